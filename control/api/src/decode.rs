//! From a request body to an object whose known fields have the right types.
//!
//! Does what decoding into Go's structures does for kube-apiserver: unknown fields and nulls vanish, quantities and times
//! take their canonical form, and a wrong type is told in the words people have learnt to search for.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{
    Resource,
    field::{Path, quote},
    meta,
    quantity::Quantity,
    schema::{Schema, Type},
};

/// What was found besides errors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Paths of fields that do not exist; they have been dropped.
    pub unknown: Vec<String>,
    /// Paths of fields that stand there twice; the last one counts.
    pub duplicates: Vec<String>,
}

impl Decoded {
    /// Warnings, as `fieldValidation=Warn` sends them.
    pub fn warnings(&self) -> Vec<String> {
        let unknown = self
            .unknown
            .iter()
            .map(|path| format!("unknown field \"{path}\""));
        unknown
            .chain(
                self.duplicates
                    .iter()
                    .map(|path| format!("duplicate field \"{path}\"")),
            )
            .collect()
    }

    /// The message of the error that `fieldValidation=Strict` makes of it.
    pub fn strict_error(&self, resource: &Resource) -> Option<String> {
        let warnings = self.warnings();
        (!warnings.is_empty()).then(|| {
            let trouble = format!("strict decoding error: {}", warnings.join(", "));
            handled_as(resource.version, resource.kind, &trouble)
        })
    }
}

fn handled_as(version: &str, kind: &str, trouble: &str) -> String {
    format!(
        "{kind} in version {} cannot be handled as a {kind}: {trouble}",
        quote(version)
    )
}

/// Checks the types of all known fields, drops unknown ones and nulls, and writes quantities and times in their
/// canonical form. `raw` is the JSON text the object was read from, searched for fields that stand there twice;
/// empty: not searched.
///
/// # Errors
/// With the message for a `BadRequest`.
pub fn check(resource: &Resource, object: &mut Value, raw: &[u8]) -> Result<Decoded, String> {
    check_kind(resource.group, resource.version, resource.kind, object, raw)
}

/// [`check`] for a kind without a row of its own: `DeleteOptions`, `Binding`, `Eviction`, `TokenRequest`, … A kind
/// without a schema is only checked to be an object.
///
/// # Errors
/// With the message for a `BadRequest`.
pub fn check_kind(
    group: &str,
    version: &str,
    kind: &str,
    object: &mut Value,
    raw: &[u8],
) -> Result<Decoded, String> {
    let Value::Object(map) = object else {
        let trouble = format!(
            "json: cannot unmarshal {} into Go value of type {version}.{kind}",
            sort_of(object)
        );
        return Err(handled_as(version, kind, &trouble));
    };
    let mut decoded = Decoded::default();
    let schema = Schema::get();
    if let Some(id) = schema.kind(group, version, kind) {
        let mut checker = Checker {
            schema,
            unknown: Vec::new(),
        };
        checker
            .object(id, map, &Path::ROOT)
            .map_err(|trouble| handled_as(version, kind, &trouble))?;
        decoded.unknown = checker.unknown;
    }
    if !raw.is_empty() {
        decoded.duplicates = duplicates(raw);
    }
    Ok(decoded)
}

/// Whether the body is of the kind that the path takes; an absent `apiVersion` and `kind` are filled in.
///
/// # Errors
/// With the message for a `BadRequest`.
pub fn check_type(resource: &Resource, object: &mut Value) -> Result<(), String> {
    let Value::Object(map) = object else {
        return Err(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: \
             json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \
             \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            resource.kind,
            sort_of(object)
        ));
    };
    let api_version = resource.api_version();
    let given = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default();
    let (given_version, given_kind) = (given("apiVersion"), given("kind"));
    if !given_version.is_empty() && given_version != api_version {
        return Err(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({api_version})"
        ));
    }
    if !given_kind.is_empty() && given_kind != resource.kind {
        return Err(format!(
            "{given_kind} in version {} cannot be handled as a {}: no kind {} is registered for version {} in scheme",
            quote(resource.version),
            resource.kind,
            quote(given_kind),
            quote(&api_version),
        ));
    }
    map.insert("apiVersion".to_owned(), api_version.into());
    map.insert("kind".to_owned(), resource.kind.into());
    Ok(())
}

fn sort_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

struct Checker<'s> {
    schema: &'s Schema,
    unknown: Vec<String>,
}

impl Checker<'_> {
    fn object(
        &mut self,
        id: usize,
        map: &mut Map<String, Value>,
        path: &Path<'_>,
    ) -> Result<(), String> {
        let object = self.schema.object(id);
        let mut needs_removal = false;
        for (name, value) in map.iter_mut() {
            let at = path.child(name);
            match object.field(name) {
                Some(_) if value.is_null() => needs_removal = true,
                Some(field) => self.value(&field.type_, value, object.short_name(), &at)?,
                None => {
                    self.unknown.push(at.to_string());
                    needs_removal = true;
                }
            }
        }
        if needs_removal {
            map.retain(|name, value| !value.is_null() && object.field(name).is_some());
        }
        Ok(())
    }

    /// `owner` is the short name of the type that has the field.
    fn value(
        &mut self,
        type_: &Type,
        value: &mut Value,
        owner: &str,
        path: &Path<'_>,
    ) -> Result<(), String> {
        match (type_, &mut *value) {
            (Type::Any, _)
            | (Type::Text, Value::String(_))
            | (Type::Bool, Value::Bool(_))
            | (Type::Number, Value::Number(_))
            | (Type::IntOrString, Value::String(_)) => return Ok(()),
            (Type::Object(id), Value::Object(map)) => return self.object(*id, map, path),
            (Type::List(item), Value::Array(items)) => {
                for (i, value) in items.iter_mut().enumerate() {
                    if value.is_null() {
                        *value = zero(item);
                    }
                    self.value(item, value, owner, &path.index(i))?;
                }
                return Ok(());
            }
            (Type::Map(item), Value::Object(map)) => {
                for (key, value) in map.iter_mut() {
                    if value.is_null() {
                        *value = zero(item);
                    }
                    self.value(item, value, owner, &path.key(key))?;
                }
                return Ok(());
            }
            (Type::Int64, Value::Number(number)) if number.as_i64().is_some() => return Ok(()),
            (Type::Int32 | Type::IntOrString, Value::Number(number))
                if number
                    .as_i64()
                    .is_some_and(|number| i32::try_from(number).is_ok()) =>
            {
                return Ok(());
            }
            (Type::Quantity, Value::String(text)) => {
                let canonical = Quantity::parse(text)
                    .map_err(|e| e.to_string())?
                    .to_string();
                if canonical != *text {
                    *text = canonical;
                }
                return Ok(());
            }
            (Type::Quantity, Value::Number(number)) => {
                let canonical = Quantity::parse(&number.to_string())
                    .map_err(|e| e.to_string())?
                    .to_string();
                *value = canonical.into();
                return Ok(());
            }
            (Type::Time | Type::MicroTime, Value::String(text)) => {
                let micro = matches!(type_, Type::MicroTime);
                let layout = if micro {
                    "2006-01-02T15:04:05.000000Z07:00"
                } else {
                    "2006-01-02T15:04:05Z07:00"
                };
                let time = meta::parse_time(text).ok_or_else(|| {
                    format!(
                        "parsing time {0} as {1}: cannot parse {0} as \"2006\"",
                        quote(text),
                        quote(layout)
                    )
                })?;
                let canonical = if micro {
                    meta::format_micro_time(time)
                } else {
                    meta::format_time(time)
                };
                if canonical != *text {
                    *text = canonical;
                }
                return Ok(());
            }
            (Type::Bytes, Value::String(text)) => {
                if text.contains(['\n', '\r']) {
                    text.retain(|c| c != '\n' && c != '\r');
                }
                return match STANDARD.decode(text.as_bytes()) {
                    Ok(_) => Ok(()),
                    Err(e) => Err(format!(
                        "illegal base64 data at input byte {}",
                        base64_offset(&e, text.len())
                    )),
                };
            }
            _ => {}
        }
        let given = match (type_, &*value) {
            (Type::Int32 | Type::Int64 | Type::IntOrString, Value::Number(number)) => {
                format!("number {number}")
            }
            _ => sort_of(value).to_owned(),
        };
        Err(match type_ {
            Type::IntOrString => {
                format!("json: cannot unmarshal {given} into Go value of type int32")
            }
            Type::Quantity => "quantities must match the regular expression \
                               '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                .to_owned(),
            Type::Time | Type::MicroTime => {
                format!("json: cannot unmarshal {given} into Go value of type string")
            }
            _ => format!(
                "json: cannot unmarshal {given} into Go struct field {owner}.{} of type {}",
                path.fields(),
                self.schema.go_name(type_)
            ),
        })
    }
}

/// What Go makes of a null in a list or map.
fn zero(type_: &Type) -> Value {
    match type_ {
        Type::Text | Type::Bytes => "".into(),
        Type::Quantity => "0".into(),
        Type::IntOrString | Type::Int32 | Type::Int64 | Type::Number => 0.into(),
        Type::Bool => false.into(),
        Type::List(_) => Value::Array(Vec::new()),
        Type::Map(_) | Type::Object(_) => Value::Object(Map::new()),
        Type::Any | Type::Time | Type::MicroTime => Value::Null,
    }
}

fn base64_offset(error: &base64::DecodeError, len: usize) -> usize {
    match error {
        base64::DecodeError::InvalidByte(offset, _)
        | base64::DecodeError::InvalidLastSymbol(offset, _) => *offset,
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
            len - len % 4
        }
    }
}

/// Paths of the fields that stand twice in a JSON text; empty when it is none.
pub fn duplicates(raw: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(raw);
    let walk = Walk {
        path: Path::ROOT,
        found: &mut found,
    };
    if walk.deserialize(&mut reader).is_err() {
        found.clear();
    }
    found
}

struct Walk<'a> {
    path: Path<'a>,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen: BTreeSet<Cow<'de, str>> = BTreeSet::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let at = self.path.child(&key);
            if seen.contains(&key) {
                let text = at.to_string();
                if !self.found.contains(&text) {
                    self.found.push(text);
                }
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Walk {
                    path: at,
                    found: &mut *self.found,
                })?;
                seen.insert(key);
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut i = 0;
        while seq
            .next_element_seed(Walk {
                path: self.path.index(i),
                found: &mut *self.found,
            })?
            .is_some()
        {
            i += 1;
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A key, borrowed from the text where it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods() -> &'static Resource {
        crate::find("", "v1", "pods").expect("pods")
    }

    #[test]
    fn wrong_types_are_told_in_the_words_of_kube_apiserver() {
        for (object, trouble) in [
            (
                json!({"metadata": {"labels": "x"}}),
                "json: cannot unmarshal string into Go struct field ObjectMeta.metadata.labels of type map[string]string",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                json!({"spec": {"containers": "x"}}),
                "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                json!({"spec": {"containers": [{"ports": [{"containerPort": "80"}]}]}}),
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort \
                 of type int32",
            ),
            (
                json!({"spec": {"containers": [{"env": [{"name": "A", "value": true}]}]}}),
                "json: cannot unmarshal bool into Go struct field EnvVar.spec.containers.env.value of type string",
            ),
            (
                json!({"spec": {"activeDeadlineSeconds": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.activeDeadlineSeconds of type int64",
            ),
            (
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                json!({"metadata": {"creationTimestamp": "now"}}),
                "parsing time \"now\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"now\" as \"2006\"",
            ),
        ] {
            let mut object = object;
            let error = check(pods(), &mut object, b"").expect_err(trouble);
            assert_eq!(
                error,
                format!("Pod in version \"v1\" cannot be handled as a Pod: {trouble}")
            );
        }
    }

    #[test]
    fn unknown_fields_are_dropped_and_told() {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "color": "red"},
            "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "imag": "i"}]},
        });
        let decoded = check(pods(), &mut pod, b"").expect("types are right");
        assert_eq!(
            decoded.unknown,
            ["metadata.color", "spec.containers[1].imag"]
        );
        assert_eq!(
            decoded.strict_error(pods()).as_deref(),
            Some(
                "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \
                 \"metadata.color\", unknown field \"spec.containers[1].imag\""
            )
        );
        assert_eq!(
            pod["spec"]["containers"],
            json!([{"name": "c", "image": "i"}, {"name": "d"}])
        );
        assert_eq!(pod["metadata"], json!({"name": "a"}));
    }

    #[test]
    fn fields_that_stand_there_twice_are_told() {
        let raw = br#"{"spec":{"containers":[{"name":"a"},{"name":"b","name":"c"}],"containers":[]},"kind":"Pod"}"#;
        assert_eq!(
            duplicates(raw),
            ["spec.containers[1].name", "spec.containers"]
        );
        let decoded = Decoded {
            unknown: Vec::new(),
            duplicates: duplicates(raw),
        };
        assert_eq!(
            decoded.warnings(),
            [
                "duplicate field \"spec.containers[1].name\"",
                "duplicate field \"spec.containers\""
            ]
        );
        assert!(duplicates(b"a: b").is_empty());
    }

    #[test]
    fn values_take_their_canonical_form() {
        let mut pod = json!({
            "metadata": {"creationTimestamp": null, "deletionTimestamp": "2024-05-01T12:00:00.123+02:00"},
            "spec": {"nodeName": null, "containers": [{"resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]},
        });
        check(pods(), &mut pod, b"").expect("types are right");
        assert_eq!(
            pod,
            json!({
                "metadata": {"deletionTimestamp": "2024-05-01T10:00:00Z"},
                "spec": {"containers": [{"resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]},
            })
        );
    }

    #[test]
    fn bytes_must_be_base64() {
        let secrets = crate::find("", "v1", "secrets").expect("secrets");
        let mut secret = json!({"data": {"a": "aGk="}});
        assert!(check(secrets, &mut secret, b"").is_ok());
        let mut secret = json!({"data": {"a": "a!k="}});
        let error = check(secrets, &mut secret, b"").expect_err("no base64");
        assert_eq!(
            error,
            "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 1"
        );
    }

    #[test]
    fn the_kind_must_be_that_of_the_path() {
        let mut object = json!({"metadata": {"name": "a"}});
        check_type(pods(), &mut object).expect("filled in");
        assert_eq!(
            (object["apiVersion"].as_str(), object["kind"].as_str()),
            (Some("v1"), Some("Pod"))
        );
        let error = check_type(pods(), &mut json!({"apiVersion": "v2", "kind": "Pod"}))
            .expect_err("version");
        assert_eq!(
            error,
            "the API version in the data (v2) does not match the expected API version (v1)"
        );
        assert!(check_type(pods(), &mut json!({"apiVersion": "v1", "kind": "Node"})).is_err());
        assert!(check_type(pods(), &mut json!([])).is_err());
    }

    #[test]
    fn bodies_without_a_row_are_checked_by_kind() {
        let mut options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "x"}, "foo": 1});
        let decoded = check_kind("", "v1", "DeleteOptions", &mut options, b"").expect("options");
        assert_eq!(decoded.unknown, ["foo"]);
        assert!(
            check_kind(
                "",
                "v1",
                "DeleteOptions",
                &mut json!({"gracePeriodSeconds": "0"}),
                b""
            )
            .is_err()
        );
    }
}
