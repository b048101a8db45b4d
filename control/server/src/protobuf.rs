//! Request bodies in Kubernetes' protobuf, which kubectl and Go clients send for the kinds they know.
//!
//! ```text
//! "k8s\0"  Unknown { 1: TypeMeta { 1: apiVersion, 2: kind }, 2: the message }
//! ```
//!
//! `protobuf/fields.txt` says, for each message, which number is which field of the JSON form; nothing is generated from
//! it, and it is read when the first such body comes. Answers are never in protobuf: whoever sends it takes JSON too.
//! The numbers are those of the `generated.proto` files of k8s.io/api 1.35, for every kind of the stable groups.
//! A line is `<number> [repeated|map|inline|keep] <type> <field>`. `inline`: its fields are its parent's in JSON.
//! `keep`: zero means something (a pointer in Go, or a required field); other zeros are what Go writes for "not set".

use std::{collections::HashMap, sync::OnceLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};
use thiserror::Error;
use wherry_api::meta;

const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; no kind comes near it.
const DEPTH_MAX: usize = 64;
const FIELDS: &str = include_str!("protobuf/fields.txt");

/// Why a body could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ProtobufError {
    /// It does not begin as it has to.
    #[error("provided data does not appear to be a protobuf message, expected prefix \"k8s\\0\"")]
    Prefix,
    /// It ends too early, or a number in it is too long.
    #[error("unexpected EOF")]
    Truncated,
    /// It holds what cannot be.
    #[error("proto: wrong wireType in message {0}")]
    WireType(String),
    /// Text that is no UTF-8.
    #[error("proto: invalid UTF-8 in message {0}")]
    Utf8(String),
    /// Nobody has said what this kind looks like.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    Kind {
        /// Kind.
        kind: String,
        /// Its version.
        api_version: String,
    },
    /// Messages within messages, too many of them.
    #[error("proto: message nested too deeply")]
    Depth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    One,
    /// One, and zero is a value.
    Kept,
    Repeated,
    Map,
    Inline,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    number: u64,
    shape: Shape,
    type_: &'static str,
    name: &'static str,
}

type Messages = HashMap<&'static str, Vec<Field>>;

fn messages() -> &'static Messages {
    static MESSAGES: OnceLock<Messages> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let mut messages = Messages::new();
        let mut current = "";
        for line in FIELDS.lines() {
            match line.strip_prefix(' ') {
                None => {
                    current = line;
                    messages.insert(current, Vec::new());
                }
                Some(line) => messages
                    .entry(current)
                    .or_default()
                    .extend(parse_field(line)),
            }
        }
        messages
    })
}

fn parse_field(line: &'static str) -> Option<Field> {
    let (number, rest) = line.split_once(' ')?;
    let (shape, rest) = match rest.split_once(' ') {
        Some(("repeated", rest)) => (Shape::Repeated, rest),
        Some(("map", rest)) => (Shape::Map, rest),
        Some(("inline", rest)) => (Shape::Inline, rest),
        Some(("keep", rest)) => (Shape::Kept, rest),
        _ => (Shape::One, rest),
    };
    let (type_, name) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(Field {
        number: number.parse().ok()?,
        shape,
        type_,
        name,
    })
}

/// The object in a body, as it would be in JSON.
pub(crate) fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let mut envelope = Reader(body.strip_prefix(MAGIC).ok_or(ProtobufError::Prefix)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, wire)) = envelope.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => {
                let mut types = Reader(bytes);
                while let Some((number, wire)) = types.next()? {
                    match number {
                        1 => api_version = text(&wire, "TypeMeta")?,
                        2 => kind = text(&wire, "TypeMeta")?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (group, version) = api_version
        .split_once('/')
        .unwrap_or(("core", &api_version));
    let name = if kind == "DeleteOptions" {
        "meta.v1.DeleteOptions".to_owned()
    } else {
        format!(
            "{}.{version}.{kind}",
            group.split('.').next().unwrap_or_default()
        )
    };
    let Some((name, _)) = messages().get_key_value(name.as_str()) else {
        return Err(ProtobufError::Kind { kind, api_version });
    };
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    read_message(name, raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(ProtobufError::Truncated)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Truncated)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(ProtobufError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, ProtobufError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(
                self.take(8)?.try_into().expect("eight bytes were taken"),
            )),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Truncated)?;
                Wire::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(ProtobufError::WireType("Unknown".into())),
        };
        Ok(Some((key >> 3, wire)))
    }
}

fn text(wire: &Wire<'_>, message: &str) -> Result<String, ProtobufError> {
    match wire {
        Wire::Bytes(bytes) => std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| ProtobufError::Utf8(message.to_owned())),
        _ => Err(ProtobufError::WireType(message.to_owned())),
    }
}

fn read_message(
    name: &str,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::Depth);
    }
    let fields = messages().get(name).map_or(&[][..], Vec::as_slice);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        // A field of a newer version than this one's.
        let Some(field) = fields.iter().find(|field| field.number == number) else {
            continue;
        };
        match field.shape {
            Shape::Inline => match wire {
                Wire::Bytes(bytes) => read_message(field.type_, bytes, out, depth + 1)?,
                _ => return Err(ProtobufError::WireType(name.to_owned())),
            },
            Shape::Repeated => {
                let value = read_value(name, field.type_, &wire, depth)?;
                if let Some(list) = out
                    .entry(field.name)
                    .or_insert_with(|| Value::Array(Vec::new()))
                    .as_array_mut()
                {
                    list.push(value);
                }
            }
            Shape::Map => {
                let (key, value) = read_entry(name, field.type_, &wire, depth)?;
                if let Some(map) = out
                    .entry(field.name)
                    .or_insert_with(|| Value::Object(Map::new()))
                    .as_object_mut()
                {
                    map.insert(key, value);
                }
            }
            Shape::One | Shape::Kept => {
                let value = read_value(name, field.type_, &wire, depth)?;
                let is_zero = match &value {
                    Value::Null => true,
                    Value::Bool(value) => !value,
                    Value::Number(number) => number.as_f64() == Some(0.0),
                    Value::String(text) => text.is_empty(),
                    Value::Array(_) | Value::Object(_) => false,
                };
                if !is_zero || (field.shape == Shape::Kept && !value.is_null()) {
                    out.insert(field.name.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

fn read_entry(
    name: &str,
    type_: &str,
    wire: &Wire<'_>,
    depth: usize,
) -> Result<(String, Value), ProtobufError> {
    let Wire::Bytes(bytes) = wire else {
        return Err(ProtobufError::WireType(name.to_owned()));
    };
    let mut key = String::new();
    let mut value = match type_ {
        "string" | "bytes" => Value::String(String::new()),
        _ => Value::Null,
    };
    let mut entry = Reader(bytes);
    while let Some((number, wire)) = entry.next()? {
        match number {
            1 => key = text(&wire, name)?,
            2 => value = read_value(name, type_, &wire, depth)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn read_value(
    message: &str,
    type_: &str,
    wire: &Wire<'_>,
    depth: usize,
) -> Result<Value, ProtobufError> {
    let wrong = || ProtobufError::WireType(message.to_owned());
    match (type_, wire) {
        ("string", wire) => text(wire, message).map(Value::String),
        ("bytes", Wire::Bytes(bytes)) => Ok(STANDARD.encode(bytes).into()),
        ("int", Wire::Varint(value)) => Ok(value.cast_signed().into()),
        ("bool", Wire::Varint(value)) => Ok((*value != 0).into()),
        ("double", Wire::Fixed64(bits)) => Ok(f64::from_bits(*bits).into()),
        ("resource.Quantity", Wire::Bytes(bytes)) => {
            let mut out = Map::new();
            read_message(type_, bytes, &mut out, depth + 1)?;
            Ok(out.remove("string").unwrap_or(Value::Null))
        }
        ("intstr.IntOrString", Wire::Bytes(bytes)) => {
            let mut out = Map::new();
            read_message(type_, bytes, &mut out, depth + 1)?;
            Ok(match out.get("type").and_then(Value::as_i64) {
                Some(1) => out.remove("strVal").unwrap_or_else(|| "".into()),
                _ => out.remove("intVal").unwrap_or_else(|| 0.into()),
            })
        }
        ("meta.v1.Time" | "meta.v1.MicroTime", Wire::Bytes(bytes)) => {
            let mut out = Map::new();
            read_message(type_, bytes, &mut out, depth + 1)?;
            let part = |name: &str| out.get(name).and_then(Value::as_i64);
            let Some(seconds) = part("seconds") else {
                return Ok(Value::Null);
            };
            let nanos = i32::try_from(part("nanos").unwrap_or_default()).unwrap_or_default();
            let Ok(time) = Timestamp::new(seconds, nanos) else {
                return Ok(Value::Null);
            };
            Ok(if type_ == "meta.v1.Time" {
                meta::format_time(time)
            } else {
                meta::format_micro_time(time)
            }
            .into())
        }
        ("runtime.RawExtension" | "meta.v1.FieldsV1", Wire::Bytes(bytes)) => {
            let mut raw = Reader(bytes);
            while let Some((number, wire)) = raw.next()? {
                if let (1, Wire::Bytes(json)) = (number, wire) {
                    return Ok(serde_json::from_slice(json).unwrap_or_default());
                }
            }
            Ok(Value::Null)
        }
        (
            "authorization.v1.ExtraValue"
            | "authentication.v1.ExtraValue"
            | "certificates.v1.ExtraValue",
            Wire::Bytes(bytes),
        ) => {
            let mut out = Map::new();
            read_message(type_, bytes, &mut out, depth + 1)?;
            Ok(out
                .remove("items")
                .unwrap_or_else(|| Value::Array(Vec::new())))
        }
        ("bytes" | "int" | "bool" | "double", _) => Err(wrong()),
        (_, Wire::Bytes(bytes)) => {
            let mut out = Map::new();
            read_message(type_, bytes, &mut out, depth + 1)?;
            Ok(Value::Object(out))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut len = bytes.len();
        while len >= 0x80 {
            out.push((len & 0x7f) as u8 | 0x80);
            len >>= 7;
        }
        out.push(len as u8);
        out.extend_from_slice(bytes);
        out
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &types), field(2, raw)].concat()
    }

    #[test]
    fn a_pod_is_what_it_would_be_in_json() {
        let quantity = field(1, b"500m");
        let limit = [field(1, b"cpu"), field(2, &quantity)].concat();
        let probe = [
            field(
                1,
                &field(
                    2,
                    &[field(1, b"/"), field(2, &[0x08, 0, 0x10, 80, 0x1a, 0])].concat(),
                ),
            ),
            vec![0x10, 0],
        ]
        .concat();
        let container = [
            field(1, b"web"),
            field(2, b""),
            field(8, &field(1, &limit)),
            field(10, &probe),
        ]
        .concat();
        let volume = [field(1, b"v"), field(2, &field(2, b""))].concat();
        // restartPolicy is empty and hostNetwork false, as Go writes what is not set; the grace period is 0.
        let spec = [
            field(1, &volume),
            field(2, &container),
            field(3, b""),
            vec![4 << 3, 0],
            vec![11 << 3, 0],
        ]
        .concat();
        let metadata = [
            field(1, b"a"),
            field(8, b""),
            field(11, &[field(1, b"k"), field(2, b"")].concat()),
        ]
        .concat();
        let pod = decode(&envelope(
            "v1",
            "Pod",
            &[field(1, &metadata), field(2, &spec)].concat(),
        ))
        .unwrap();
        assert_eq!(
            pod,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "labels": {"k": ""}},
                "spec": {
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "containers": [{
                        "name": "web",
                        "resources": {"limits": {"cpu": "500m"}},
                        "livenessProbe": {"httpGet": {"path": "/", "port": 80}},
                    }],
                    "terminationGracePeriodSeconds": 0,
                },
            })
        );
    }

    #[test]
    fn bytes_times_and_options_are_read() {
        let secret = field(2, &[field(1, b"k"), field(2, b"\x00\x01")].concat());
        assert_eq!(
            decode(&envelope("v1", "Secret", &secret)).unwrap()["data"],
            json!({"k": "AAE="})
        );
        let options = decode(&envelope("policy/v1", "DeleteOptions", &[0x08, 0])).unwrap();
        assert_eq!(options["gracePeriodSeconds"], 0);
        let time = [vec![0x08], vec![0x80, 0xd0, 0x95, 0xff, 0x06]].concat();
        let lease = field(2, &field(4, &time));
        let lease = decode(&envelope("coordination.k8s.io/v1", "Lease", &lease)).unwrap();
        assert!(
            lease["spec"]["renewTime"]
                .as_str()
                .unwrap()
                .ends_with(".000000Z"),
            "{lease}"
        );
    }

    #[test]
    fn what_is_none_is_refused() {
        assert_eq!(decode(b"{}"), Err(ProtobufError::Prefix));
        assert!(matches!(
            decode(&envelope("v1", "Nonsense", b"")),
            Err(ProtobufError::Kind { .. })
        ));
        assert_eq!(
            decode(&envelope("v1", "Pod", &[0x0a, 0x7f])),
            Err(ProtobufError::Truncated)
        );
    }

    #[test]
    fn every_type_named_in_the_table_is_in_it() {
        let scalars = ["string", "bytes", "int", "bool", "double"];
        for (name, fields) in messages() {
            for field in fields {
                let is_known =
                    scalars.contains(&field.type_) || messages().contains_key(field.type_);
                assert!(is_known, "{name}: {}", field.type_);
                assert_eq!(
                    field.name.is_empty(),
                    field.shape == Shape::Inline,
                    "{name}: {field:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&envelope("v1", "Pod", &bytes));
        }
    }
}
