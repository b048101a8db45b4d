//! Names, labels and metadata.

use serde_json::json;

use super::*;

fn pods() -> &'static Resource {
    crate::find("", "v1", "pods").expect("pods")
}

fn texts(errors: Vec<FieldError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn names_follow_their_rules() {
    for (name, is_label, is_subdomain, is_1035) in [
        ("a", true, true, true),
        ("a-b", true, true, true),
        ("a.b", false, true, false),
        ("1a", true, true, false),
        ("A", false, false, false),
        ("a-", false, false, false),
        ("-a", false, false, false),
        ("", false, false, false),
        ("a..b", false, false, false),
        ("a_b", false, false, false),
    ] {
        assert_eq!(dns1123_label(name).is_empty(), is_label, "{name}");
        assert_eq!(dns1123_subdomain(name).is_empty(), is_subdomain, "{name}");
        assert_eq!(dns1035_label(name).is_empty(), is_1035, "{name}");
    }
    assert_eq!(
        dns1123_label(&"a".repeat(64)),
        ["must be no more than 63 characters"]
    );
    assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
}

#[test]
fn keys_and_label_values_follow_their_rules() {
    for (name, is_right) in [
        ("a", true),
        ("a.b/c_d-e.F", true),
        ("A/b", false),
        ("/b", false),
        ("a/", false),
        ("a/b/c", false),
        ("-a", false),
        ("", false),
    ] {
        assert_eq!(qualified_name(name).is_empty(), is_right, "{name}");
    }
    assert_eq!(qualified_name("/b"), ["prefix part must be non-empty"]);
    for (value, is_right) in [
        ("", true),
        ("a", true),
        ("A.b_c", true),
        ("a b", false),
        ("-", false),
    ] {
        assert_eq!(label_value(value).is_empty(), is_right, "{value}");
    }
    for (key, is_right) in [
        ("a.txt", true),
        ("..a", false),
        (".", false),
        ("", false),
        ("a/b", false),
        ("_", true),
    ] {
        assert_eq!(config_map_key(key).is_empty(), is_right, "{key}");
    }
    assert_eq!(config_map_key(".."), ["must not be '..'"]);
}

#[test]
fn generated_names_fit_into_a_label_and_use_the_safe_alphabet() {
    let name = generated_name("web-", [0, 1, 26, 27, 255]);
    assert_eq!(name, "web-bc9bq");
    let long = generated_name(&"a".repeat(100), [1; 5]);
    assert_eq!(long.len(), 63);
    assert!(dns1123_label(&long).is_empty());
}

#[test]
fn times_are_written_as_kubernetes_writes_them() {
    let time = parse_time("2024-05-01T12:00:00.123456789+02:00").expect("time");
    assert_eq!(format_time(time), "2024-05-01T10:00:00Z");
    assert_eq!(format_micro_time(time), "2024-05-01T10:00:00.123456Z");
    assert_eq!(parse_time(""), None);
    assert_eq!(parse_time("today"), None);
}

#[test]
fn metadata_is_checked_with_the_messages_of_kubernetes() {
    let subdomain = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                     must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation \
                     is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    for (metadata, errors) in [
        (json!({"name": "a", "namespace": "b"}), vec![]),
        (
            json!({"namespace": "b"}),
            vec!["metadata.name: Required value: name or generateName is required".to_owned()],
        ),
        (
            json!({"name": "A_", "namespace": "b"}),
            vec![format!("metadata.name: Invalid value: \"A_\": {subdomain}")],
        ),
        (json!({"name": "a"}), vec!["metadata.namespace: Required value".to_owned()]),
        (
            json!({"name": "a", "namespace": "b", "labels": {"a b": "c"}}),
            vec![
                "metadata.labels: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' \
                 or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
                 '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
                    .to_owned(),
            ],
        ),
        (
            json!({"name": "a", "namespace": "b", "finalizers": ["mine"]}),
            vec![
                "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it \
                 fully qualified"
                    .to_owned(),
            ],
        ),
        (
            json!({"name": "a", "namespace": "b", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x"}]}),
            vec!["metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty".to_owned()],
        ),
        (
            json!({"name": "a", "namespace": "b", "annotations": {"a": "x".repeat(ANNOTATIONS_BYTES_MAX)}}),
            vec!["metadata.annotations: Too long: may not be more than 262144 bytes".to_owned()],
        ),
    ] {
        assert_eq!(texts(validate_object_meta(pods(), &json!({"metadata": metadata}))), errors);
    }
    let nodes = crate::find("", "v1", "nodes").expect("nodes");
    assert_eq!(
        texts(validate_object_meta(
            nodes,
            &json!({"metadata": {"name": "a", "namespace": "b"}})
        )),
        ["metadata.namespace: Forbidden: not allowed on this type"]
    );
}

#[test]
fn identity_never_changes() {
    let old = json!({"metadata": {"name": "a", "namespace": "b", "uid": "1", "creationTimestamp": "2024-05-01T12:00:00Z"}});
    for (field, value) in [
        ("name", "x"),
        ("namespace", "x"),
        ("uid", "2"),
        ("creationTimestamp", "2025-05-01T12:00:00Z"),
    ] {
        let mut new = old.clone();
        new["metadata"][field] = value.into();
        assert_eq!(
            texts(validate_object_meta_update(&new, &old)),
            [format!(
                "metadata.{field}: Invalid value: \"{value}\": field is immutable"
            )]
        );
    }
    let mut deleting = old.clone();
    deleting["metadata"]["deletionTimestamp"] = "2024-06-01T12:00:00Z".into();
    let mut new = deleting.clone();
    new["metadata"]["finalizers"] = json!(["a/b"]);
    assert_eq!(
        texts(validate_object_meta_update(&new, &deleting)),
        [
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
          finalizers []string{\"a/b\"}"
        ]
    );
}
