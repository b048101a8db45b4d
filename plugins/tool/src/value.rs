//! Values of the component model as people write them in YAML, and back, as a function's types say.
//!
//! | WIT | YAML |
//! |---|---|
//! | `list<u8>` | text, or `{base64: …}` where it is none |
//! | `record` | a map; fields that are left out are empty, 0, none |
//! | `variant`, `enum` | the case's name, or `{case: payload}` |
//! | `option` | the value, or `null` |
//! | `result` | `ok`, `{ok: …}`, `{err: …}` |
//! | resource | its name and a number: `connection 1` |

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Number, Value, json};
use wasmtime::{
    AsContextMut,
    component::{Resource, ResourceAny, Type, Val},
};

/// The engine's errors are of a type of their own.
pub(crate) fn from_wasmtime(error: wasmtime::Error) -> anyhow::Error {
    anyhow!("{error:#}")
}

/// What stands behind every resource of a scripted host: a number.
#[derive(Debug)]
pub(crate) struct Handle;

/// Makes a value of a type. What is null or left out is the type's emptiest value.
pub(crate) fn to_val(store: &mut impl AsContextMut, ty: &Type, value: &Value) -> Result<Val> {
    let number = || {
        value
            .as_i64()
            .or_else(|| value.is_null().then_some(0))
            .with_context(|| format!("{value} is no number"))
    };
    let unsigned = || {
        value
            .as_u64()
            .or_else(|| value.is_null().then_some(0))
            .with_context(|| format!("{value} is no number from 0 on"))
    };
    let text = || match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => Err(anyhow!("{value} is no text")),
    };
    Ok(match ty {
        Type::Bool => Val::Bool(value.as_bool().unwrap_or_default()),
        Type::S8 => Val::S8(number()?.try_into()?),
        Type::U8 => Val::U8(unsigned()?.try_into()?),
        Type::S16 => Val::S16(number()?.try_into()?),
        Type::U16 => Val::U16(unsigned()?.try_into()?),
        Type::S32 => Val::S32(number()?.try_into()?),
        Type::U32 => Val::U32(unsigned()?.try_into()?),
        Type::S64 => Val::S64(number()?),
        Type::U64 => Val::U64(unsigned()?),
        Type::Float32 => Val::Float32(value.as_f64().unwrap_or_default() as f32),
        Type::Float64 => Val::Float64(value.as_f64().unwrap_or_default()),
        Type::Char => Val::Char(text()?.chars().next().unwrap_or_default()),
        Type::String => Val::String(text()?),
        Type::List(list) if matches!(list.ty(), Type::U8) => {
            let bytes = match value {
                Value::Object(map) => {
                    let coded = map.get("base64").and_then(Value::as_str);
                    let coded =
                        coded.with_context(|| format!("{value}: {{base64: …}} is meant"))?;
                    STANDARD.decode(coded)?
                }
                _ => text()?.into_bytes(),
            };
            Val::List(bytes.into_iter().map(Val::U8).collect())
        }
        Type::List(list) => {
            let ty = list.ty();
            let elements = match value {
                Value::Null => [].as_slice(),
                value => value
                    .as_array()
                    .with_context(|| format!("{value} is no list"))?,
            };
            let elements = elements.iter().map(|element| to_val(store, &ty, element));
            Val::List(elements.collect::<Result<_>>()?)
        }
        Type::Record(record) => {
            let empty = Map::new();
            let map = match value {
                Value::Null => &empty,
                value => value
                    .as_object()
                    .with_context(|| format!("{value} is no map"))?,
            };
            let known: Vec<_> = record.fields().map(|field| field.name.to_owned()).collect();
            if let Some(key) = map.keys().find(|key| !known.contains(key)) {
                bail!("{key} is no field; there are: {}", known.join(", "));
            }
            let fields = record.fields().map(|field| {
                let value = map.get(field.name).unwrap_or(&Value::Null);
                let value =
                    to_val(store, &field.ty, value).with_context(|| field.name.to_owned())?;
                Ok((field.name.to_owned(), value))
            });
            Val::Record(fields.collect::<Result<_>>()?)
        }
        Type::Tuple(tuple) => {
            let elements = value.as_array().map_or([].as_slice(), Vec::as_slice);
            let values = tuple
                .types()
                .enumerate()
                .map(|(i, ty)| to_val(store, &ty, elements.get(i).unwrap_or(&Value::Null)));
            Val::Tuple(values.collect::<Result<_>>()?)
        }
        Type::Variant(variant) => {
            let (name, payload) = case(value)?;
            let cases: Vec<_> = variant.cases().collect();
            let Some(found) = cases.iter().find(|case| case.name == name) else {
                let names: Vec<_> = cases.iter().map(|case| case.name).collect();
                bail!("{name} is no case; there are: {}", names.join(", "));
            };
            let payload = match &found.ty {
                Some(ty) => Some(Box::new(to_val(store, ty, payload)?)),
                None => None,
            };
            Val::Variant(name.to_owned(), payload)
        }
        Type::Enum(cases) => {
            let names: Vec<_> = cases.names().collect();
            let name = match value {
                Value::Null => names.first().copied().unwrap_or_default(),
                value => value
                    .as_str()
                    .with_context(|| format!("{value} is no case"))?,
            };
            if !names.contains(&name) {
                bail!("{name} is no case; there are: {}", names.join(", "));
            }
            Val::Enum(name.to_owned())
        }
        Type::Option(option) => Val::Option(match value {
            Value::Null => None,
            value => Some(Box::new(to_val(store, &option.ty(), value)?)),
        }),
        Type::Result(result) => {
            let (name, payload) = match value {
                Value::Null => ("ok", &Value::Null),
                value => case(value)?,
            };
            let mut side = |ty: Option<Type>| match ty {
                Some(ty) => to_val(store, &ty, payload).map(|value| Some(Box::new(value))),
                None => Ok(None),
            };
            Val::Result(match name {
                "ok" => Ok(side(result.ok())?),
                "err" => Err(side(result.err())?),
                _ => bail!("{value} is no result: {{ok: …}} or {{err: …}} is meant"),
            })
        }
        Type::Flags(_) => {
            let names = value.as_array().into_iter().flatten();
            Val::Flags(
                names
                    .filter_map(|name| Some(name.as_str()?.to_owned()))
                    .collect(),
            )
        }
        Type::Own(_) => {
            let resource = Resource::<Handle>::new_own(resource_number(value)?);
            Val::Resource(ResourceAny::try_from_resource(resource, store).map_err(from_wasmtime)?)
        }
        _ => bail!("values of this type cannot be written down"),
    })
}

/// `name`, or `{name: payload}`.
fn case(value: &Value) -> Result<(&str, &Value)> {
    match value {
        Value::String(name) => Ok((name, &Value::Null)),
        Value::Object(map) if map.len() == 1 => map
            .iter()
            .next()
            .map(|(name, payload)| (name.as_str(), payload))
            .context("an empty map"),
        _ => bail!("{value} is no case: its name is meant, or {{name: payload}}"),
    }
}

/// The number at the end of `connection 1`.
fn resource_number(value: &Value) -> Result<u32> {
    let number = match value {
        Value::Number(number) => number.as_u64().and_then(|number| number.try_into().ok()),
        Value::String(text) => text
            .rsplit(' ')
            .next()
            .and_then(|number| number.parse().ok()),
        _ => None,
    };
    number.with_context(|| format!("{value} names no resource: `connection 1` is meant"))
}

/// Writes a value down. `resource` is what resources in it are called.
pub(crate) fn from_val(
    store: &mut impl AsContextMut,
    value: &Val,
    resource: &str,
) -> Result<Value> {
    Ok(match value {
        Val::Bool(flag) => json!(flag),
        Val::S8(n) => json!(n),
        Val::U8(n) => json!(n),
        Val::S16(n) => json!(n),
        Val::U16(n) => json!(n),
        Val::S32(n) => json!(n),
        Val::U32(n) => json!(n),
        Val::S64(n) => json!(n),
        Val::U64(n) => json!(n),
        Val::Float32(n) => float(f64::from(*n)),
        Val::Float64(n) => float(*n),
        Val::Char(c) => json!(c),
        Val::String(text) => json!(text),
        Val::List(values) => match bytes(values) {
            Some(bytes) => bytes_to_value(&bytes),
            None => list(store, values, resource)?,
        },
        Val::Tuple(values) => list(store, values, resource)?,
        Val::Record(fields) => {
            let mut map = Map::new();
            for (name, value) in fields {
                map.insert(name.clone(), from_val(store, value, resource)?);
            }
            Value::Object(map)
        }
        Val::Variant(name, payload) => with_payload(store, name, payload.as_deref(), resource)?,
        Val::Enum(name) => json!(name),
        Val::Option(None) => Value::Null,
        Val::Option(Some(value)) => from_val(store, value, resource)?,
        Val::Result(Ok(payload)) => with_payload(store, "ok", payload.as_deref(), resource)?,
        Val::Result(Err(payload)) => with_payload(store, "err", payload.as_deref(), resource)?,
        Val::Flags(names) => json!(names),
        Val::Resource(any) => {
            let handle = Resource::<Handle>::try_from_resource_any(*any, store);
            let handle = handle.map_err(from_wasmtime)?;
            json!(format!("{resource} {}", handle.rep()))
        }
        _ => bail!("a value of this type cannot be written down"),
    })
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn list(store: &mut impl AsContextMut, values: &[Val], resource: &str) -> Result<Value> {
    let values = values.iter().map(|value| from_val(store, value, resource));
    Ok(Value::Array(values.collect::<Result<_>>()?))
}

fn with_payload(
    store: &mut impl AsContextMut,
    name: &str,
    payload: Option<&Val>,
    resource: &str,
) -> Result<Value> {
    Ok(match payload {
        None => json!(name),
        Some(payload) => json!({name: from_val(store, payload, resource)?}),
    })
}

/// An empty list may be of anything; as bytes it is written as the empty text, which reads as either.
fn bytes(values: &[Val]) -> Option<Vec<u8>> {
    if values.is_empty() {
        return None;
    }
    let byte = |value: &Val| match value {
        Val::U8(byte) => Some(*byte),
        _ => None,
    };
    values.iter().map(byte).collect()
}

/// Text where it is readable text.
pub(crate) fn bytes_to_value(bytes: &[u8]) -> Value {
    let is_readable = |c: char| !c.is_control() || matches!(c, '\r' | '\n' | '\t');
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(is_readable) => json!(text),
        _ => json!({"base64": STANDARD.encode(bytes)}),
    }
}

/// The other way round.
pub(crate) fn value_to_bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.clone().into_bytes()),
        Value::Object(map) => STANDARD.decode(map.get("base64")?.as_str()?).ok(),
        // An empty list.
        Value::Array(none) if none.is_empty() => Some(Vec::new()),
        _ => None,
    }
}

/// Whether what was got is what was expected: a map expects the fields it names, `{contains: …}` a part of a text.
pub(crate) fn matches(expected: &Value, got: &Value) -> bool {
    match (expected, got) {
        (Value::Object(expected), Value::String(text)) if expected.len() == 1 => expected
            .get("contains")
            .and_then(Value::as_str)
            .is_some_and(|part| text.contains(part)),
        (Value::Object(expected), Value::Object(got)) => expected
            .iter()
            .all(|(key, expected)| matches(expected, got.get(key).unwrap_or(&Value::Null))),
        (Value::Array(expected), Value::Array(got)) => {
            expected.len() == got.len()
                && expected
                    .iter()
                    .zip(got)
                    .all(|(expected, got)| matches(expected, got))
        }
        // An empty list of bytes.
        (Value::String(text), Value::Array(got)) if text.is_empty() => got.is_empty(),
        (Value::Number(expected), Value::Number(got)) => expected.as_f64() == got.as_f64(),
        _ => expected == got,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_expects_the_fields_it_names() {
        let got = json!({"ok": {"verdict": "success", "message": "PONG in 3 ms", "list": []}});
        for (expected, is_match) in [
            (json!({"ok": {"verdict": "success"}}), true),
            (json!({"ok": {"verdict": "failure"}}), false),
            (json!({"ok": {"message": {"contains": "PONG"}}}), true),
            (json!({"ok": {"message": {"contains": "QONG"}}}), false),
            (json!({"ok": {"message": "PONG"}}), false),
            (json!({"ok": {"list": ""}}), true),
            (json!({"ok": {"absent": null}}), true),
            (json!({"err": {}}), false),
        ] {
            assert_eq!(matches(&expected, &got), is_match, "{expected}");
        }
    }

    #[test]
    fn bytes_are_text_where_they_can_be_read() {
        assert_eq!(bytes_to_value(b"+PONG\r\n"), json!("+PONG\r\n"));
        assert_eq!(bytes_to_value(b"\0\xff"), json!({"base64": "AP8="}));
    }
}
