//! Objects seen through their types: which fields they set, what differs between two, one laid over another.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::set::{FieldSet, field_element, key_element, value_element};
use crate::schema::{Field, ListType, Object, Schema, Type};

/// What a value is to those who manage parts of it.
#[derive(Clone, Copy)]
pub(super) enum Shape<'s> {
    /// Has one owner as a whole: plain values, and what is atomic.
    Leaf,
    Struct(&'s Object),
    Map(&'s Type),
    /// A list whose items are told apart by these fields.
    Keyed(&'s Type, &'static [&'static str]),
    /// A list of plain values, each at most once.
    Set,
}

impl<'s> Shape<'s> {
    pub(super) fn of_kind(schema: &'s Schema, group: &str, version: &str, kind: &str) -> Self {
        let id = schema.kind(group, version, kind);
        id.map_or(Self::Leaf, |id| Self::Struct(schema.object(id)))
    }

    fn of(type_: &'s Type, field: Option<&Field>) -> Self {
        match type_ {
            Type::Object(id) => {
                let object = Schema::get().object(*id);
                if object.is_atomic() {
                    Self::Leaf
                } else {
                    Self::Struct(object)
                }
            }
            Type::Map(_) if field.is_some_and(|field| field.is_atomic_map) => Self::Leaf,
            Type::Map(value) => Self::Map(value),
            Type::List(item) => match field.map(|field| field.list) {
                Some(ListType::Keyed(keys)) => Self::Keyed(item, keys),
                Some(ListType::Set) => Self::Set,
                Some(ListType::Atomic) | None => Self::Leaf,
            },
            _ => Self::Leaf,
        }
    }

    /// Shape of a field or an entry.
    fn field(self, name: &str) -> Self {
        match self {
            Self::Struct(object) => match object.field(name) {
                Some(field) => Self::of(&field.type_, Some(field)),
                None => Self::Leaf,
            },
            Self::Map(value) => Self::of(value, None),
            _ => Self::Leaf,
        }
    }
}

/// A list's items by what tells them apart.
type Items<'v> = Vec<(String, &'v Value)>;

/// `None`: an item lacks a key, or stands twice; such a list can only be managed as a whole.
fn keyed<'v>(items: &'v [Value], keys: &[&str]) -> Option<Items<'v>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::with_capacity(items.len());
    for item in items {
        let element = item_element(item, keys)?;
        if !seen.insert(element.clone()) {
            return None;
        }
        found.push((element, item));
    }
    Some(found)
}

fn item_element(item: &Value, keys: &[&str]) -> Option<String> {
    static TCP: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| "TCP".into());
    let mut pairs = Vec::with_capacity(keys.len());
    for key in keys {
        let value = match item.get(key) {
            Some(value) => value,
            None if *key == "protocol" => &*TCP,
            None => return None,
        };
        pairs.push((*key, value));
    }
    Some(key_element(pairs.into_iter()))
}

fn values(items: &[Value]) -> Option<Items<'_>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::with_capacity(items.len());
    for item in items {
        let element = value_element(item);
        if !seen.insert(element.clone()) {
            return None;
        }
        found.push((element, item));
    }
    Some(found)
}

/// The parts of a value, each with its shape; `None`: it has none, or not of this shape.
fn parts<'v, 's>(
    value: &'v Value,
    shape: Shape<'s>,
) -> Option<Vec<(String, &'v Value, Shape<'s>)>> {
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(map)) => Some(
            map.iter()
                .map(|(name, value)| (field_element(name), value, shape.field(name)))
                .collect(),
        ),
        (Shape::Keyed(item, keys), Value::Array(items)) => {
            let shape = Shape::of(item, None);
            let items = keyed(items, keys)?.into_iter();
            Some(
                items
                    .map(|(element, item)| (element, item, shape))
                    .collect(),
            )
        }
        (Shape::Set, Value::Array(items)) => {
            let items = values(items)?.into_iter();
            Some(
                items
                    .map(|(element, item)| (element, item, Shape::Leaf))
                    .collect(),
            )
        }
        _ => None,
    }
}

/// What is wrong with the lists of an object that is to be applied: path and trouble.
pub(super) fn check(value: &Value, shape: Shape<'_>, path: &str) -> Result<(), String> {
    if let (Shape::Keyed(_, keys), Value::Array(items)) = (shape, value) {
        let mut seen = BTreeSet::new();
        for item in items {
            let Some(element) = item_element(item, keys) else {
                return Err(format!(
                    "{path}: element 0: associative list with keys has an element that omits key field {:?} (and doesn't have default value)",
                    keys.iter()
                        .find(|key| item.get(**key).is_none())
                        .unwrap_or(&"")
                ));
            };
            if !seen.insert(element.clone()) {
                let shown = element.strip_prefix("k:").unwrap_or_default();
                return Err(format!("{path}: duplicate entries for key {shown}"));
            }
        }
    }
    if let (Shape::Set, Value::Array(items)) = (shape, value)
        && values(items).is_none()
    {
        return Err(format!("{path}: duplicate entries"));
    }
    for (element, value, shape) in parts(value, shape).unwrap_or_default() {
        let name = element.strip_prefix("f:");
        let path = name.map_or_else(|| path.to_owned(), |name| format!("{path}.{name}"));
        check(value, shape, &path)?;
    }
    Ok(())
}

/// The fields that a value sets.
pub(super) fn fields_of(value: &Value, shape: Shape<'_>) -> FieldSet {
    let mut set = FieldSet::default();
    collect(value, shape, &mut Vec::new(), &mut set);
    set
}

fn collect(value: &Value, shape: Shape<'_>, at: &mut Vec<String>, set: &mut FieldSet) {
    let Some(found) = parts(value, shape) else {
        set.insert(at);
        return;
    };
    let is_own_member = !matches!(shape, Shape::Struct(_));
    if found.is_empty() {
        set.insert(at);
    }
    for (element, value, shape) in found {
        at.push(element);
        if is_own_member {
            set.insert(at);
        }
        collect(value, shape, at, set);
        at.pop();
    }
}

/// What differs between two objects.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Set now and not before.
    pub(super) added: FieldSet,
    /// Set to something else.
    pub(super) modified: FieldSet,
    /// Set before and not now.
    pub(super) removed: FieldSet,
}

pub(super) fn compare(old: &Value, new: &Value, shape: Shape<'_>) -> Comparison {
    let mut comparison = Comparison::default();
    comparison.between(Some(old), Some(new), shape, &mut Vec::new());
    comparison
}

impl Comparison {
    fn between(
        &mut self,
        old: Option<&Value>,
        new: Option<&Value>,
        shape: Shape<'_>,
        at: &mut Vec<String>,
    ) {
        if old == new {
            return;
        }
        let old_parts = old.map(|old| parts(old, shape));
        let new_parts = new.map(|new| parts(new, shape));
        match (&old_parts, &new_parts) {
            // `spec` itself and the like are everybody's.
            (None, Some(_)) if at.len() > 1 || matches!(new_parts, Some(None)) => {
                self.added.insert(at);
            }
            (Some(_), None) => self.removed.insert(at),
            (Some(None), Some(_)) | (Some(_), Some(None)) => {
                self.modified.insert(at);
                return;
            }
            _ => {}
        }
        let old_parts = old_parts.flatten().unwrap_or_default();
        let new_parts = new_parts.flatten().unwrap_or_default();
        for (element, value, shape) in &old_parts {
            let other = new_parts.iter().find(|(other, ..)| other == element);
            at.push(element.clone());
            self.between(Some(value), other.map(|(_, value, _)| *value), *shape, at);
            at.pop();
        }
        for (element, value, shape) in &new_parts {
            if old_parts.iter().all(|(other, ..)| other != element) {
                at.push(element.clone());
                self.between(None, Some(value), *shape, at);
                at.pop();
            }
        }
    }
}

/// `config` laid over `live`: what it sets is set, everything else stays. Items of lists stand in the order of `config`,
/// with those that only `live` has kept in their places.
pub(super) fn merge(live: &Value, config: &Value, shape: Shape<'_>) -> Value {
    match (shape, live, config) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(live), Value::Object(config)) => {
            let mut merged = live.clone();
            for (name, value) in config {
                let value = match live.get(name) {
                    Some(live) => merge(live, value, shape.field(name)),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Shape::Keyed(..) | Shape::Set, Value::Array(_), Value::Array(_)) => {
            let (Some(live), Some(config_parts)) = (parts(live, shape), parts(config, shape))
            else {
                return config.clone();
            };
            let mut merged = Vec::with_capacity(live.len() + config_parts.len());
            let mut next = 0;
            for (element, value, shape) in &config_parts {
                let found = live.iter().position(|(other, ..)| other == element);
                if let Some(place) = found {
                    while next < place {
                        push_own(&live, next, &config_parts, &mut merged);
                        next += 1;
                    }
                    merged.push(merge(live[place].1, value, *shape));
                } else {
                    merged.push((*value).clone());
                }
            }
            // Those that the order of the configuration has passed over already are in it, or were pushed above.
            while next < live.len() {
                push_own(&live, next, &config_parts, &mut merged);
                next += 1;
            }
            Value::Array(merged)
        }
        _ => config.clone(),
    }
}

type Parts<'v, 's> = [(String, &'v Value, Shape<'s>)];

/// Pushes an item of the live list that the configuration does not have.
fn push_own(live: &Parts<'_, '_>, at: usize, config: &Parts<'_, '_>, merged: &mut Vec<Value>) {
    let (element, value, _) = &live[at];
    if config.iter().all(|(other, ..)| other != element) {
        merged.push((*value).clone());
    }
}

/// Takes out what was in `last` and nobody keeps: an item or entry goes with all below it, unless somebody keeps a part.
pub(super) fn prune(value: &mut Value, last: &FieldSet, keep: &FieldSet, shape: Shape<'_>) {
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(map)) => {
            let names: Vec<String> = map.keys().cloned().collect();
            for name in names {
                let element = field_element(&name);
                // A field of a structure goes whole, with the defaults that were filled in beside what was applied.
                let is_field = matches!(shape, Shape::Struct(_)) && last.touches(&element);
                if prunes(last, keep, &element) || (is_field && !keep.touches(&element)) {
                    map.remove(&name);
                } else if let Some(child) = last.child(&element)
                    && let Some(value) = map.get_mut(&name)
                {
                    let was_empty = is_empty(value);
                    prune(value, child, below(keep, &element), shape.field(&name));
                    if is_empty(value) && !was_empty && !keep.touches(&element) {
                        map.remove(&name);
                    }
                }
            }
        }
        (Shape::Keyed(item, keys), Value::Array(items)) if keyed(items, keys).is_some() => {
            let shape = Shape::of(item, None);
            items.retain_mut(|item| {
                let Some(element) = item_element(item, keys) else {
                    return true;
                };
                if prunes(last, keep, &element) {
                    return false;
                }
                if let Some(child) = last.child(&element) {
                    prune(item, child, below(keep, &element), shape);
                }
                true
            });
        }
        (Shape::Set, Value::Array(items)) => {
            items.retain(|item| !prunes(last, keep, &value_element(item)));
        }
        _ => {}
    }
}

fn prunes(last: &FieldSet, keep: &FieldSet, element: &str) -> bool {
    last.has_member(element) && !keep.touches(element)
}

fn below<'a>(set: &'a FieldSet, element: &str) -> &'a FieldSet {
    static NONE: std::sync::LazyLock<FieldSet> = std::sync::LazyLock::new(FieldSet::default);
    set.child(element).unwrap_or(&NONE)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// An object without what no client manages.
pub(super) fn without_system_fields(object: &Value) -> Value {
    const SYSTEM: &[&str] = &[
        "name",
        "namespace",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "uid",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    let mut object = object.as_object().cloned().unwrap_or_else(Map::new);
    object.remove("apiVersion");
    object.remove("kind");
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !SYSTEM.contains(&name.as_str()));
        if metadata.is_empty() {
            object.remove("metadata");
        }
    }
    Value::Object(object)
}
