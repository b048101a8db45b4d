//! Objects as the store keeps them: JSON that begins in one known way, so that the resource version, which only the
//! store knows, is spliced in without parsing.
//!
//! ```text
//! stored    {"kind":"Pod","apiVersion":"v1","metadata":{                       "name":"a",…},"spec":…}
//! answered  {"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"7","name":"a",…},"spec":…}
//! in lists                                 {"metadata":{"resourceVersion":"7","name":"a",…},"spec":…}
//! ```

use bytes::Bytes;
use serde_json::{Map, Value};
use wherry_api::Resource;
use wherry_store::KeyValue;

const METADATA: &str = "\"metadata\":{";

/// Where a resource's objects are in the store. Groups of the project itself and of Kubernetes have plural names
/// of their own; later kinds, which do not, come with their group.
pub(crate) fn prefix(resource: &Resource) -> String {
    let group = resource.group;
    if group.is_empty() || !group.contains('.') || group.ends_with(".k8s.io") {
        format!("/registry/{}/", resource.plural)
    } else {
        format!("/registry/{group}/{}/", resource.plural)
    }
}

/// Key of one object; `namespace` is empty for what lives in none.
pub(crate) fn key(resource: &Resource, namespace: &str, name: &str) -> String {
    let prefix = prefix(resource);
    if resource.namespaced {
        format!("{prefix}{namespace}/{name}")
    } else {
        format!("{prefix}{name}")
    }
}

/// Prefix of the keys of a collection; `namespace` empty: of all namespaces.
pub(crate) fn collection(resource: &Resource, namespace: &str) -> String {
    let prefix = prefix(resource);
    if resource.namespaced && !namespace.is_empty() {
        format!("{prefix}{namespace}/")
    } else {
        prefix
    }
}

/// Namespace and name in a key.
pub(crate) fn split_key<'a>(resource: &Resource, key: &'a str) -> (&'a str, &'a str) {
    let rest = key.get(prefix(resource).len()..).unwrap_or_default();
    if resource.namespaced {
        rest.split_once('/').unwrap_or(("", rest))
    } else {
        ("", rest)
    }
}

fn head(resource: &Resource) -> String {
    format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",",
        resource.kind,
        resource.api_version()
    )
}

/// What the store keeps of an object: all but the resource version, which it gives itself.
pub(crate) fn encode(resource: &Resource, object: &Value) -> Bytes {
    if let Some(conversion) = resource.strategy.conversion() {
        let mut kept = object.clone();
        (conversion.to_stored)(&mut kept);
        return encode_as_is(resource.stored(), &kept);
    }
    encode_as_is(resource, object)
}

/// Room that most objects need not ask for twice.
const ENCODED_BYTES: usize = 8 * 1024;

fn encode_as_is(resource: &Resource, object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(ENCODED_BYTES);
    out.extend_from_slice(head(resource).as_bytes());
    out.extend_from_slice(METADATA.as_bytes());
    let empty = Map::new();
    let object = object.as_object().unwrap_or(&empty);
    let metadata = object
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let mut first = true;
    for (name, value) in metadata {
        if matches!(name.as_str(), "resourceVersion" | "selfLink") || value.is_null() {
            continue;
        }
        write_member(&mut out, &mut first, name, value);
    }
    out.push(b'}');
    first = false;
    for (name, value) in object {
        if !matches!(name.as_str(), "kind" | "apiVersion" | "metadata") {
            write_member(&mut out, &mut first, name, value);
        }
    }
    out.push(b'}');
    // It is kept for long, and in great numbers: a copy of the very size packs, where a buffer that is shortened leaves a
    // hole behind it.
    Bytes::copy_from_slice(&out)
}

/// Takes out of the metadata what says nothing, as Go's encoding does: `labels: {}`, `finalizers: []`, nulls.
pub(crate) fn tidy_metadata(object: &mut Value) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    metadata.remove("selfLink");
    metadata.retain(|_, value| match value {
        Value::Null => false,
        Value::Object(members) => !members.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    });
}

fn write_member(out: &mut Vec<u8>, first: &mut bool, name: &str, value: &Value) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, name).expect("memory can be written");
    out.push(b':');
    serde_json::to_writer(&mut *out, value).expect("memory can be written");
}

/// The object as a client gets it.
pub(crate) fn write_object(out: &mut Vec<u8>, resource: &Resource, kv: &KeyValue) {
    if resource.strategy.conversion().is_some() {
        serde_json::to_writer(out, &decode_as(resource, kv)).expect("memory can be written");
        return;
    }
    let head = head(resource);
    kv.value
        .with(|value| match value.strip_prefix(head.as_bytes()) {
            Some(rest) => {
                out.extend_from_slice(head.as_bytes());
                write_rest(out, rest, kv.mod_revision);
            }
            // Written by something else, with its members in another order.
            None => serde_json::to_writer(out, &decode(kv)).expect("memory can be written"),
        });
}

/// The object as an item of a list, without `kind` and `apiVersion`.
pub(crate) fn write_item(out: &mut Vec<u8>, resource: &Resource, kv: &KeyValue) {
    if resource.strategy.conversion().is_some() {
        let mut object = decode_as(resource, kv);
        if let Some(members) = object.as_object_mut() {
            members.retain(|name, _| name != "kind" && name != "apiVersion");
        }
        serde_json::to_writer(out, &object).expect("memory can be written");
        return;
    }
    let head = head(resource);
    kv.value
        .with(|value| match value.strip_prefix(head.as_bytes()) {
            Some(rest) => {
                out.push(b'{');
                write_rest(out, rest, kv.mod_revision);
            }
            None => serde_json::to_writer(out, &decode(kv)).expect("memory can be written"),
        });
}

fn write_rest(out: &mut Vec<u8>, rest: &[u8], revision: u64) {
    // A dry run's object has not been written and has no version.
    if revision == 0 {
        out.extend_from_slice(rest);
        return;
    }
    let after = rest.strip_prefix(METADATA.as_bytes()).unwrap_or(rest);
    out.extend_from_slice(METADATA.as_bytes());
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(revision.to_string().as_bytes());
    out.extend_from_slice(if after.first() == Some(&b'}') {
        b"\""
    } else {
        b"\","
    });
    out.extend_from_slice(after);
}

/// The object parsed, in the version it is kept in, with its resource version. Bytes that are no JSON object come out
/// as one with metadata only.
pub(crate) fn decode(kv: &KeyValue) -> Value {
    let mut object = match kv.value.with(|value| serde_json::from_slice(value)) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    };
    let metadata = object
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    metadata["resourceVersion"] = kv.mod_revision.to_string().into();
    Value::Object(object)
}

/// The object parsed, in the version that `resource` is about.
pub(crate) fn decode_as(resource: &Resource, kv: &KeyValue) -> Value {
    let mut object = decode(kv);
    if let Some(conversion) = resource.strategy.conversion() {
        (conversion.from_stored)(&mut object);
        object["kind"] = resource.kind.into();
        object["apiVersion"] = resource.api_version().into();
    }
    object
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods() -> &'static Resource {
        wherry_api::find("", "v1", "pods").expect("a row")
    }

    fn kv(value: Bytes) -> KeyValue {
        KeyValue {
            key: "/registry/pods/ns/a".into(),
            value: value.into(),
            create_revision: 3,
            mod_revision: 7,
        }
    }

    #[test]
    fn what_is_spliced_is_what_would_be_parsed_and_written() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "spec": {"containers": []},
            "metadata": {"name": "a", "namespace": "ns", "resourceVersion": "1", "selfLink": "x"},
        });
        let kv = kv(encode(pods(), &object));
        let mut out = Vec::new();
        write_object(&mut out, pods(), &kv);
        let answered: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(answered, decode(&kv));
        assert_eq!(
            answered["metadata"],
            json!({"name": "a", "namespace": "ns", "resourceVersion": "7"})
        );
        assert_eq!(answered["kind"], "Pod");
        out.clear();
        write_item(&mut out, pods(), &kv);
        let item: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            item,
            json!({"metadata": answered["metadata"], "spec": {"containers": []}})
        );
    }

    #[test]
    fn what_is_kept_takes_no_more_room_than_its_bytes() {
        for labels in [1, 10, 1_000] {
            let labels: Map<String, Value> = (0..labels)
                .map(|n| (format!("label-{n}"), "x".into()))
                .collect();
            let value = encode(
                pods(),
                &json!({"metadata": {"name": "a", "labels": labels}}),
            );
            let length = value.len();
            let room = value.try_into_mut().expect("nobody shares it").capacity();
            assert_eq!(room, length);
        }
    }

    #[test]
    fn objects_in_another_order_and_without_metadata_are_answered_too() {
        for stored in [
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{}}"#,
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{}}"#,
        ] {
            let mut out = Vec::new();
            write_object(&mut out, pods(), &kv(Bytes::from_static(stored.as_bytes())));
            let answered: Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(answered["metadata"], json!({"resourceVersion": "7"}));
        }
    }

    #[test]
    fn an_object_has_one_form_in_the_store_and_one_in_each_version() {
        let newer = wherry_api::find("events.k8s.io", "v1", "events").expect("a row");
        let core = wherry_api::find("", "v1", "events").expect("a row");
        assert_eq!(prefix(newer), prefix(core));
        let event = json!({
            "kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": "a"}, "note": "hello",
            "regarding": {"name": "p"},
        });
        let kv = kv(encode(newer, &event));
        let kept = decode(&kv);
        assert_eq!(kept["apiVersion"], "v1");
        assert_eq!(kept["message"], "hello");
        assert_eq!(kept["involvedObject"]["name"], "p");
        let mut out = Vec::new();
        write_object(&mut out, newer, &kv);
        let answered: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(answered["note"], "hello");
        assert_eq!(answered["apiVersion"], "events.k8s.io/v1");
        let newer =
            wherry_api::find("autoscaling", "v1", "horizontalpodautoscalers").expect("a row");
        let scaler = json!({
            "kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": {"name": "a", "resourceVersion": "7"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50},
        });
        let kv = KeyValue {
            value: encode(newer, &scaler).into(),
            ..kv
        };
        assert_eq!(
            decode(&kv)["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            50
        );
        assert_eq!(decode_as(newer, &kv), scaler);
    }

    #[test]
    fn keys_are_taken_apart_as_they_were_put_together() {
        let nodes = wherry_api::find("", "v1", "nodes").expect("a row");
        for (resource, namespace, name) in [(pods(), "ns", "a"), (nodes, "", "n1")] {
            assert_eq!(
                split_key(resource, &key(resource, namespace, name)),
                (namespace, name)
            );
            assert!(key(resource, namespace, name).starts_with(&collection(resource, namespace)));
        }
    }
}
