//! What of a node is kept from pods, as operators type it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use thiserror::Error;

use crate::pod::quantity;

/// What can be kept.
const RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// What is wrong with a reservation as typed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReservedError {
    /// Not `resource=quantity`.
    #[error("reservation {0:?} is not resource=quantity")]
    Form(String),
    /// No such resource.
    #[error("reservation {0:?} is not one of cpu, memory, ephemeral-storage")]
    Resource(String),
    /// Not a positive quantity.
    #[error("reservation of {resource}: {amount:?} is not a quantity above zero")]
    Amount {
        /// Of what.
        resource: String,
        /// As typed.
        amount: String,
    },
}

/// Reads `cpu=100m,memory=200Mi`, the form of `--system-reserved`.
///
/// # Errors
/// The first one that cannot be read.
pub fn parse_reserved(text: &str) -> Result<BTreeMap<String, Quantity>, ReservedError> {
    let words = text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    words
        .map(|word| {
            let (resource, amount) = word
                .split_once('=')
                .ok_or_else(|| ReservedError::Form(word.into()))?;
            if !RESOURCES.contains(&resource) {
                return Err(ReservedError::Resource(resource.into()));
            }
            let given = Quantity(amount.into());
            match quantity::millis(&given) {
                Some(1..) => Ok((resource.to_owned(), given)),
                _ => Err(ReservedError::Amount {
                    resource: resource.into(),
                    amount: amount.into(),
                }),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_are_read_or_refused() {
        let found = parse_reserved("cpu=100m, memory=1Gi").expect("good");
        assert_eq!(found["cpu"], Quantity("100m".into()));
        assert_eq!(found["memory"], Quantity("1Gi".into()));
        assert!(parse_reserved("").expect("good").is_empty());
        for wrong in ["cpu", "pods=3", "cpu=-1", "cpu=0", "memory=much"] {
            assert!(parse_reserved(wrong).is_err(), "{wrong}");
        }
    }
}
