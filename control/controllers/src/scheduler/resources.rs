//! Amounts of what nodes have and pods ask for. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use wherry_api::quantity;

/// Amounts by resource, in the units comparisons are made in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) cpu_millis: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) ephemeral_storage_bytes: i64,
    pub(crate) pods: i64,
    /// Everything else: huge pages and extended resources.
    pub(crate) other: Vec<(Box<str>, i64)>,
}

impl Resources {
    /// Reads a resource list; a quantity that cannot be read counts as nothing.
    pub(crate) fn read(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut amounts = Self::default();
        for (name, text) in list.into_iter().flatten() {
            let Ok(parsed) = quantity::Quantity::parse(&text.0) else {
                continue;
            };
            let clamp = |amount: i128| i64::try_from(amount).unwrap_or(i64::MAX);
            match name.as_str() {
                "cpu" => amounts.cpu_millis = clamp(parsed.milli()),
                "memory" => amounts.memory_bytes = clamp(parsed.value()),
                "ephemeral-storage" => amounts.ephemeral_storage_bytes = clamp(parsed.value()),
                "pods" => amounts.pods = clamp(parsed.value()),
                other => amounts.other.push((other.into(), clamp(parsed.value()))),
            }
        }
        amounts
    }

    /// An amount of one of the other resources.
    pub(crate) fn other(&self, name: &str) -> i64 {
        self.other
            .iter()
            .find(|(other, _)| **other == *name)
            .map_or(0, |(_, amount)| *amount)
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.combine(more, i64::saturating_add);
    }

    pub(crate) fn subtract(&mut self, less: &Self) {
        self.combine(less, i64::saturating_sub);
    }

    /// The larger amount of each resource.
    pub(crate) fn raise_to(&mut self, floor: &Self) {
        self.combine(floor, i64::max);
    }

    fn combine(&mut self, with: &Self, how: impl Fn(i64, i64) -> i64) {
        self.cpu_millis = how(self.cpu_millis, with.cpu_millis);
        self.memory_bytes = how(self.memory_bytes, with.memory_bytes);
        self.ephemeral_storage_bytes =
            how(self.ephemeral_storage_bytes, with.ephemeral_storage_bytes);
        self.pods = how(self.pods, with.pods);
        for (name, amount) in &with.other {
            match self.other.iter_mut().find(|(other, _)| other == name) {
                Some((_, own)) => *own = how(*own, *amount),
                None => self.other.push((name.clone(), how(0, *amount))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &[(&str, &str)]) -> Resources {
        let list = list
            .iter()
            .map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned())));
        Resources::read(Some(&list.collect()))
    }

    #[test]
    fn amounts_are_read_in_their_units() {
        let found = read(&[
            ("cpu", "1500m"),
            ("memory", "1Gi"),
            ("pods", "110"),
            ("x.dev/gpu", "2"),
            ("bad", "x"),
        ]);
        assert_eq!(
            (found.cpu_millis, found.memory_bytes, found.pods),
            (1500, 1 << 30, 110)
        );
        assert_eq!((found.other("x.dev/gpu"), found.other("none")), (2, 0));
    }

    #[test]
    fn what_is_added_can_be_subtracted() {
        let mut sum = read(&[("cpu", "1")]);
        let more = read(&[("cpu", "250m"), ("x.dev/gpu", "1")]);
        sum.add(&more);
        assert_eq!((sum.cpu_millis, sum.other("x.dev/gpu")), (1250, 1));
        sum.subtract(&more);
        assert_eq!((sum.cpu_millis, sum.other("x.dev/gpu")), (1000, 0));
        sum.raise_to(&read(&[("cpu", "500m"), ("memory", "1")]));
        assert_eq!((sum.cpu_millis, sum.memory_bytes), (1000, 1));
    }
}
