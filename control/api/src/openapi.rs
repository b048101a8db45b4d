//! OpenAPI v2 and v3 of the table of resources, made when asked for and not kept: they are large, and clients cache them.
//!
//! kubectl takes from v3 what `explain` prints, the merge keys of `apply`, and whether the server validates fields
//! (`fieldValidation` among the parameters of PATCH), so that it need not. v2 it takes in protobuf, for what it does not
//! find in v3: manifests without a kind, and the old form of `explain`.

mod paths;
mod protobuf;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use self::paths::paths_of;
use crate::{
    RESOURCES,
    schema::{self, KINDS},
};

const TITLE: &str = "Kubernetes";
const API_VERSION: &str = "v1.33.0";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Kinds that are only sent: group, version, kind, name in paths, lives in a namespace.
const VIRTUAL: &[(&str, &str, &str, &str, bool)] = &[
    ("", "v1", "Binding", "bindings", true),
    (
        "authentication.k8s.io",
        "v1",
        "SelfSubjectReview",
        "selfsubjectreviews",
        false,
    ),
    (
        "authentication.k8s.io",
        "v1",
        "TokenReview",
        "tokenreviews",
        false,
    ),
    (
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        true,
    ),
    (
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        false,
    ),
    (
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        false,
    ),
    (
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        false,
    ),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spec {
    V2,
    V3,
}

impl Spec {
    fn prefix(self) -> &'static str {
        match self {
            Self::V2 => "/definitions",
            Self::V3 => "/components/schemas",
        }
    }

    fn reference(self, definition: &str) -> Value {
        json!({"$ref": format!("#{}/{definition}", self.prefix())})
    }
}

/// `/openapi/v2`.
pub fn v2() -> Value {
    let spec = Spec::V2;
    let definitions = definitions(spec);
    let mut paths = Map::new();
    for (group, version) in group_versions() {
        paths.extend(paths_of(spec, group, version));
    }
    json!({
        "swagger": "2.0",
        "info": {"title": TITLE, "version": API_VERSION},
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": {
            "BearerToken": {
                "description": "Bearer Token authentication",
                "type": "apiKey",
                "name": "authorization",
                "in": "header",
            },
        },
        "security": [{"BearerToken": []}],
    })
}

/// `/openapi/v2` in protobuf, gnostic's `openapi.v2.Document`.
pub fn v2_protobuf() -> Vec<u8> {
    protobuf::encode(&v2())
}

/// Group versions of `/openapi/v3`, such as `api/v1` and `apis/coordination.k8s.io/v1`.
pub fn v3_paths() -> Vec<String> {
    group_versions()
        .into_iter()
        .map(|(group, version)| base(group, version))
        .collect()
}

/// `/openapi/v3`: the index; `hash_of` names the content of a path, so that clients may cache it.
pub fn v3_index(hash_of: impl Fn(&str) -> String) -> Value {
    let paths: Map<String, Value> = v3_paths()
        .into_iter()
        .map(|path| {
            let url = format!("/openapi/v3/{path}?hash={}", hash_of(&path));
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/<path>`, with `path` as in [`v3_paths`]; `None`: there is no such group version.
pub fn v3(path: &str) -> Option<Value> {
    let spec = Spec::V3;
    let (group, version) = group_versions()
        .into_iter()
        .find(|(group, version)| base(group, version) == path)?;
    let paths = Value::Object(paths_of(spec, group, version));
    let mut definitions = definitions(spec);
    let used = reachable(&paths, &definitions);
    definitions.retain(|name, _| used.contains(name));
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": API_VERSION},
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "BearerToken": {
                    "description": "Bearer Token authentication",
                    "type": "apiKey",
                    "name": "authorization",
                    "in": "header",
                },
            },
        },
    }))
}

fn group_versions() -> BTreeSet<(&'static str, &'static str)> {
    let rows = RESOURCES.iter().map(|row| (row.group, row.version));
    rows.chain(VIRTUAL.iter().map(|row| (row.0, row.1)))
        .collect()
}

/// `api/v1`, `apis/coordination.k8s.io/v1`.
fn base(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// Name of the definition of a kind.
fn definition_of(group: &str, version: &str, kind: &str) -> Option<String> {
    let found = KINDS
        .iter()
        .find(|row| row.kind == kind && row.version == version && row.group == group)?;
    Some((found.definition)().into_owned())
}

fn definitions(spec: Spec) -> Map<String, Value> {
    let mut definitions = schema::definitions(spec.prefix());
    for (name, definition) in &mut definitions {
        let short_name = name.rsplit('.').next().unwrap_or_default().to_owned();
        adapt(spec, &short_name, definition);
    }
    for kind in KINDS {
        if let Some(definition) = definitions.get_mut(&*(kind.definition)()) {
            definition["x-kubernetes-group-version-kind"] =
                json!([gvk(kind.group, kind.version, kind.kind)]);
        }
    }
    for kind in ["DeleteOptions", "Status"] {
        if let Some(definition) = definitions.get_mut(&format!("{META}.{kind}")) {
            definition["x-kubernetes-group-version-kind"] = json!([gvk("", "v1", kind)]);
        }
    }
    for row in RESOURCES {
        let Some(item) = definition_of(row.group, row.version, row.kind) else {
            continue;
        };
        let name = format!("{item}List");
        let text = |of: &str| {
            json!({
                "type": "string",
                "description": definitions.get(&item).map_or(Value::Null, |item| {
                    item["properties"][of]["description"].clone()
                }),
            })
        };
        let list = json!({
            "description": format!("{} is a list of {} objects.", row.list_kind(), row.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": text("apiVersion"),
                "kind": text("kind"),
                "metadata": described(spec, spec.reference(&format!("{META}.ListMeta")), "Standard list metadata."),
                "items": {
                    "description": format!("List of {} objects.", row.kind),
                    "type": "array",
                    "items": spec.reference(&item),
                },
            },
            "x-kubernetes-group-version-kind": [gvk(row.group, row.version, &row.list_kind())],
        });
        definitions.insert(name, list);
    }
    definitions
}

/// From JSON Schema as schemars makes it to the dialect that Kubernetes serves.
fn adapt(spec: Spec, short_name: &str, definition: &mut Value) {
    match (short_name, spec) {
        ("IntOrString", Spec::V2) => dialect(
            definition,
            json!({"type": "string", "format": "int-or-string"}),
        ),
        ("IntOrString", Spec::V3) => {
            dialect(
                definition,
                json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
            );
        }
        ("Quantity", Spec::V2) => dialect(definition, json!({"type": "string"})),
        ("Quantity", Spec::V3) => dialect(
            definition,
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        ),
        _ => {}
    }
    let Some(properties) = definition
        .get_mut("properties")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    for (field, property) in properties {
        if let Some(rule) = schema::patch_rule(short_name, field) {
            property["x-kubernetes-patch-strategy"] = rule.strategy().into();
            if !rule.merge_key.is_empty() {
                property["x-kubernetes-patch-merge-key"] = rule.merge_key.into();
            }
        }
        match schema::list_type(short_name, field) {
            schema::ListType::Keyed(keys) => {
                property["x-kubernetes-list-type"] = "map".into();
                property["x-kubernetes-list-map-keys"] = keys.into();
            }
            schema::ListType::Set => property["x-kubernetes-list-type"] = "set".into(),
            schema::ListType::Atomic if property["type"] == "array" => {
                property["x-kubernetes-list-type"] = "atomic".into();
            }
            schema::ListType::Atomic => {}
        }
        let description = property
            .get("description")
            .and_then(Value::as_str)
            .map(str::to_owned);
        if let (Some(reference), Some(description)) = (property.get("$ref").cloned(), description) {
            *property = described(spec, json!({"$ref": reference}), &description);
        }
    }
}

fn dialect(definition: &mut Value, mut replacement: Value) {
    if let Some(description) = definition.get("description") {
        replacement["description"] = description.clone();
    }
    *definition = replacement;
}

/// A reference with a description; in v3 nothing may stand beside a `$ref`.
fn described(spec: Spec, mut reference: Value, description: &str) -> Value {
    match spec {
        Spec::V2 => {
            reference["description"] = description.into();
            reference
        }
        Spec::V3 => json!({"description": description, "allOf": [reference]}),
    }
}

/// Definitions that `value` refers to, directly or not.
fn reachable(value: &Value, definitions: &Map<String, Value>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut to_visit = vec![value];
    while let Some(value) = to_visit.pop() {
        match value {
            Value::Object(map) => {
                if let Some(name) = map
                    .get("$ref")
                    .and_then(Value::as_str)
                    .and_then(|text| text.rsplit('/').next())
                    && found.insert(name.to_owned())
                    && let Some(definition) = definitions.get(name)
                {
                    to_visit.push(definition);
                }
                to_visit.extend(map.values());
            }
            Value::Array(items) => to_visit.extend(items),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    found.insert(reference.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let v2 = v2();
        let documents = v3_paths()
            .into_iter()
            .map(|path| v3(&path).expect("listed"))
            .chain([v2]);
        for document in documents {
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for reference in found {
                let pointer = reference.strip_prefix('#').expect("local");
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
        }
    }

    #[test]
    fn v3_has_what_kubectl_looks_for() {
        let core = v3("api/v1").expect("core");
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            gvk("", "v1", "Pod")
        );
        assert_eq!(patch["x-kubernetes-action"], "patch");
        assert!(
            patch["requestBody"]["content"]
                .get("application/strategic-merge-patch+json")
                .is_some()
        );
        let parameters: Vec<&str> = patch["parameters"]
            .as_array()
            .expect("list")
            .iter()
            .filter_map(|p| p["name"].as_str())
            .collect();
        assert_eq!(parameters, ["dryRun", "fieldManager", "fieldValidation"]);
        let schemas = &core["components"]["schemas"];
        let spec = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(
            spec["volumes"]["x-kubernetes-patch-strategy"],
            "merge,retainKeys"
        );
        assert_eq!(
            spec["securityContext"]["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.api.core.v1.PodSecurityContext"
        );
        assert!(
            spec["securityContext"]["description"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
        assert_eq!(
            schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"],
            json!([gvk("", "v1", "Pod")])
        );
        assert_eq!(
            schemas["io.k8s.api.core.v1.PodList"]["properties"]["items"]["items"]["$ref"],
            "#/components/schemas/io.k8s.api.core.v1.Pod"
        );
        assert!(
            schemas.get("io.k8s.api.coordination.v1.Lease").is_none(),
            "only what the group version needs"
        );
    }

    #[test]
    fn the_index_names_every_group_version_and_its_hash() {
        let index = v3_index(|path| path.len().to_string());
        assert_eq!(
            index["paths"]["api/v1"]["serverRelativeURL"],
            "/openapi/v3/api/v1?hash=6"
        );
        for row in RESOURCES {
            assert!(
                index["paths"].get(base(row.group, row.version)).is_some(),
                "{row:?}"
            );
        }
        assert_eq!(v3("apis/none/v1"), None);
    }
}
