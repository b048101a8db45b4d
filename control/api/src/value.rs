//! Reading and defaulting JSON objects by field.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// A field; null when it is not there.
pub(crate) fn get<'a>(object: &'a Value, field: &str) -> &'a Value {
    object.get(field).unwrap_or(&NULL)
}

/// A text; empty when it is not there.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get(field)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// A number; `None` when it is not there.
pub(crate) fn integer(object: &Value, field: &str) -> Option<i64> {
    object.get(field).and_then(Value::as_i64)
}

/// A truth; false when it is not there.
pub(crate) fn flag(object: &Value, field: &str) -> bool {
    object
        .get(field)
        .and_then(Value::as_bool)
        .unwrap_or_default()
}

/// A list; empty when it is not there.
pub(crate) fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object
        .get(field)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// A list to write to; empty when it is not there.
pub(crate) fn list_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut [Value] {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .map(Vec::as_mut_slice)
        .unwrap_or_default()
}

/// The entries of a map; none when it is not there.
pub(crate) fn entries<'a>(
    object: &'a Value,
    field: &str,
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object
        .get(field)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

/// Whether a field has been given: Go cannot tell an empty text from none.
pub(crate) fn is_set(object: &Value, field: &str) -> bool {
    match object.get(field) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

/// Sets a field that has not been given. Does nothing to what is no object.
pub(crate) fn default(object: &mut Value, field: &str, value: impl Into<Value>) {
    if !is_set(object, field)
        && let Some(map) = object.as_object_mut()
    {
        map.insert(field.to_owned(), value.into());
    }
}

/// Sets a field that is not there; an empty text is.
pub(crate) fn default_absent(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        map.entry(field).or_insert_with(|| value.into());
    }
}

/// An empty object.
pub(crate) fn empty() -> Value {
    Value::Object(Map::new())
}

/// Puts a field of `from` in the place of that of `to`, or takes it out when `from` has none.
pub(crate) fn keep(to: &mut Value, from: &Value, field: &str) {
    let Some(map) = to.as_object_mut() else {
        return;
    };
    match from.get(field) {
        Some(value) => {
            map.insert(field.to_owned(), value.clone());
        }
        None => {
            map.remove(field);
        }
    }
}

/// Takes a field out.
pub(crate) fn remove(object: &mut Value, field: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(field);
    }
}
