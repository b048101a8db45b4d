//! Sets of fields, and how `fieldsV1` writes them down.
//!
//! An element of a path is its text in `fieldsV1`: `f:name` is a field, `k:{"name":"a"}` the item of a list whose keys
//! are these, `v:"a"` the item of a list that is a set, `i:0` an item by its place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde_json::{Map, Value};

use crate::field::quote;

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    members: BTreeSet<String>,
    children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Self::is_empty)
    }

    pub(super) fn has_member(&self, element: &str) -> bool {
        self.members.contains(element)
    }

    /// Whether an element or anything below it is in it.
    pub(super) fn touches(&self, element: &str) -> bool {
        self.has_member(element) || self.child(element).is_some_and(|child| !child.is_empty())
    }

    pub(super) fn child(&self, element: &str) -> Option<&Self> {
        self.children.get(element)
    }

    /// Adds a path; the empty one is no member of anything.
    pub(super) fn insert(&mut self, path: &[String]) {
        let Some((last, parents)) = path.split_last() else {
            return;
        };
        let mut at = self;
        for parent in parents {
            at = at.children.entry(parent.clone()).or_default();
        }
        at.members.insert(last.clone());
    }

    /// Takes out an element and all below it.
    pub(super) fn remove(&mut self, element: &str) {
        self.members.remove(element);
        self.children.remove(element);
    }

    /// Leaves only what is below an element, and the element.
    pub(super) fn retain(&mut self, element: &str) {
        self.members.retain(|found| found == element);
        self.children.retain(|found, _| found == element);
    }

    /// What is in either.
    pub(super) fn union(&mut self, other: &Self) {
        self.members.extend(other.members.iter().cloned());
        for (element, child) in &other.children {
            self.children
                .entry(element.clone())
                .or_default()
                .union(child);
        }
    }

    /// Takes out what is in the other.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.members
            .retain(|element| !other.members.contains(element));
        for (element, child) in &other.children {
            if let Some(own) = self.children.get_mut(element) {
                own.subtract(child);
            }
        }
        self.children.retain(|_, child| !child.is_empty());
    }

    /// What is in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(element, child)| {
            let both = child.intersection(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        Self {
            children: children.collect(),
            members: self.members.intersection(&other.members).cloned().collect(),
        }
    }

    /// The paths in it, as conflicts show them.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect("", &mut found);
        found
    }

    fn collect(&self, prefix: &str, found: &mut Vec<String>) {
        for element in &self.members {
            found.push(format!("{prefix}{}", shown(element)));
        }
        for (element, child) in &self.children {
            child.collect(&format!("{prefix}{}", shown(element)), found);
        }
    }

    /// As `fieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        let only_parents = self.children.iter().filter(|(_, child)| !child.is_empty());
        for (element, child) in only_parents {
            let mut below = child.to_value();
            if self.has_member(element)
                && let Some(below) = below.as_object_mut()
            {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(element.clone(), below);
        }
        for element in &self.members {
            map.entry(element.clone())
                .or_insert_with(|| Value::Object(Map::new()));
        }
        Value::Object(map)
    }

    /// From `fieldsV1`; `None` when it is none.
    pub fn parse(value: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (element, below) in value.as_object()? {
            if element == "." {
                continue;
            }
            let element = canonical(element)?;
            let below_map = below.as_object()?;
            if below_map.is_empty() || below_map.contains_key(".") {
                set.members.insert(element.clone());
            }
            let child = Self::parse(below)?;
            if !child.is_empty() {
                set.children.insert(element, child);
            }
        }
        Some(set)
    }
}

/// The one way in which an element is written here.
fn canonical(element: &str) -> Option<String> {
    let (sort, text) = element.split_once(':')?;
    match sort {
        "f" | "i" => Some(element.to_owned()),
        "v" => Some(value_element(&serde_json::from_str(text).ok()?)),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(text).ok()?;
            Some(key_element(
                keys.iter().map(|(key, value)| (key.as_str(), value)),
            ))
        }
        _ => None,
    }
}

pub(super) fn field_element(name: &str) -> String {
    format!("f:{name}")
}

pub(super) fn value_element(value: &Value) -> String {
    format!("v:{value}")
}

pub(super) fn key_element<'a>(keys: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let sorted: BTreeMap<&str, &Value> = keys.collect();
    let mut text = String::from("k:{");
    for (i, (key, value)) in sorted.into_iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        let _ = write!(text, "{}:{value}", Value::from(key));
    }
    text.push('}');
    text
}

fn shown(element: &str) -> String {
    let (sort, text) = element.split_once(':').unwrap_or(("f", element));
    let scalar = |value: &Value| match value {
        Value::String(text) => quote(text),
        other => other.to_string(),
    };
    match sort {
        "k" => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(text).unwrap_or_default();
            let keys: Vec<String> = keys
                .iter()
                .map(|(key, value)| format!("{key}={}", scalar(value)))
                .collect();
            format!("[{}]", keys.join(","))
        }
        "v" => {
            let value: Value = serde_json::from_str(text).unwrap_or_default();
            format!("[={}]", scalar(&value))
        }
        "i" => format!("[{text}]"),
        _ => format!(".{text}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_set_is_written_as_it_was_read() {
        let fields = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {".": {}, "v:\"a/b\"": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:ports": {
                "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}},
            }}}},
        });
        let set = FieldSet::parse(&fields).unwrap();
        assert_eq!(set.to_value(), fields);
        assert!(set.paths().contains(
            &".spec.containers[name=\"a\"].ports[containerPort=80,protocol=\"TCP\"].containerPort".to_owned()
        ));
        assert!(
            set.paths()
                .contains(&".metadata.finalizers[=\"a/b\"]".to_owned())
        );
        for wrong in [
            json!([]),
            json!({"x": {}}),
            json!({"k:{": {}}),
            json!({"f:a": 1}),
        ] {
            assert_eq!(FieldSet::parse(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sets_are_joined_and_taken_apart() {
        let set = |value: Value| FieldSet::parse(&value).unwrap();
        let a = set(json!({"f:x": {"f:a": {}, "f:b": {}}, "f:y": {}}));
        let b = set(json!({"f:x": {"f:b": {}, "f:c": {}}}));
        let mut both = a.clone();
        both.union(&b);
        assert_eq!(
            both.to_value(),
            json!({"f:x": {"f:a": {}, "f:b": {}, "f:c": {}}, "f:y": {}})
        );
        assert_eq!(a.intersection(&b).to_value(), json!({"f:x": {"f:b": {}}}));
        let mut rest = a.clone();
        rest.subtract(&b);
        assert_eq!(rest.to_value(), json!({"f:x": {"f:a": {}}, "f:y": {}}));
        rest.subtract(&a);
        assert!(rest.is_empty());
    }
}
