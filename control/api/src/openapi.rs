//! OpenAPI v2 and v3 of the table of resources, made when asked for and not kept: they are large, and clients cache them.
//!
//! kubectl takes from v3 what `explain` prints, the merge keys of `apply`, and whether the server validates fields
//! (`fieldValidation` among the parameters of PATCH), so that it need not. v2 it takes in protobuf, for what it does not
//! find in v3: manifests without a kind, and the old form of `explain`.

mod protobuf;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{
    RESOURCES, Resource, Subresource, Verb,
    patch::PatchKind,
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
            "description": format!("{} is a list of {} objects.", row.list_kind, row.kind),
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
            "x-kubernetes-group-version-kind": [gvk(row.group, row.version, row.list_kind)],
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

fn parameter(spec: Spec, name: &str, place: &str, type_: &str, description: &str) -> Value {
    let mut parameter = json!({"name": name, "in": place, "description": description});
    if place == "path" {
        parameter["required"] = true.into();
    }
    match spec {
        Spec::V2 => {
            parameter["type"] = type_.into();
            parameter["uniqueItems"] = true.into();
        }
        Spec::V3 => parameter["schema"] = json!({"type": type_, "uniqueItems": true}),
    }
    parameter
}

const READ: &[(&str, &str, &str)] = &[
    (
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels. Defaults to everything.",
    ),
    (
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields. Defaults to everything.",
    ),
    (
        "limit",
        "integer",
        "The maximum number of responses to return for a list call.",
    ),
    (
        "continue",
        "string",
        "The token of the answer before, to get the next page of a list.",
    ),
    (
        "resourceVersion",
        "string",
        "The revision at which a list is true, or after which a watch begins.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is applied to list calls.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Begin a watch with an event for each object there is, and a bookmark.",
    ),
    (
        "allowWatchBookmarks",
        "boolean",
        "Requests watch events with type \"BOOKMARK\".",
    ),
    (
        "timeoutSeconds",
        "integer",
        "Timeout for the list or watch call.",
    ),
    (
        "watch",
        "boolean",
        "Watch for changes to the described resources and return them as a stream.",
    ),
];

const WRITE: &[(&str, &str, &str)] = &[
    (
        "dryRun",
        "string",
        "When present, indicates that modifications should not be persisted: All.",
    ),
    (
        "fieldManager",
        "string",
        "A name associated with the actor or entity that is making these changes.",
    ),
    (
        "fieldValidation",
        "string",
        "What is done about unknown and duplicate fields: Ignore, Warn or Strict.",
    ),
];

const DELETE: &[(&str, &str, &str)] = &[
    (
        "dryRun",
        "string",
        "When present, indicates that modifications should not be persisted: All.",
    ),
    (
        "gracePeriodSeconds",
        "integer",
        "The duration in seconds before the object should be deleted.",
    ),
    (
        "propagationPolicy",
        "string",
        "Whether and how garbage collection will be performed: Orphan, Background or Foreground.",
    ),
];

fn query(spec: Spec, parameters: &[(&str, &str, &str)]) -> Value {
    parameters
        .iter()
        .map(|(name, type_, text)| parameter(spec, name, "query", type_, text))
        .collect()
}

/// What an operation sends and answers.
struct Operation<'a> {
    action: &'a str,
    description: String,
    gvk: Value,
    parameters: &'a [(&'a str, &'a str, &'a str)],
    body: Option<String>,
    answer: Option<String>,
    patches: bool,
}

fn operation(spec: Spec, operation: Operation<'_>) -> Value {
    let Operation {
        action,
        description,
        gvk,
        parameters,
        body,
        answer,
        patches,
    } = operation;
    let mut parameters = query(spec, parameters);
    let mut answered = json!({"description": "OK"});
    let schema = answer.map(|definition| spec.reference(&definition));
    match (spec, schema) {
        (Spec::V2, Some(schema)) => answered["schema"] = schema,
        (Spec::V3, Some(schema)) => {
            answered["content"] = json!({"application/json": {"schema": schema}, "application/yaml": {"schema": schema}});
        }
        (_, None) => {}
    }
    let mut value = json!({
        "description": description,
        "responses": {"200": answered, "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    });
    if patches {
        match spec {
            Spec::V2 => {
                value["consumes"] = PatchKind::CONTENT_TYPES.into();
                if let Some(parameters) = parameters.as_array_mut() {
                    parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": {"type": "object"}}));
                }
            }
            Spec::V3 => {
                let content: Map<String, Value> = PatchKind::CONTENT_TYPES
                    .iter()
                    .map(|content_type| {
                        (
                            (*content_type).to_owned(),
                            json!({"schema": {"type": "object"}}),
                        )
                    })
                    .collect();
                value["requestBody"] = json!({"required": true, "content": content});
            }
        }
    } else if let Some(definition) = body {
        let schema = spec.reference(&definition);
        match spec {
            Spec::V2 => {
                if let Some(parameters) = parameters.as_array_mut() {
                    parameters.push(
                        json!({"name": "body", "in": "body", "required": true, "schema": schema}),
                    );
                }
            }
            Spec::V3 => {
                value["requestBody"] =
                    json!({"required": true, "content": {"*/*": {"schema": schema}}})
            }
        }
    }
    if spec == Spec::V2 {
        value["produces"] = json!(["application/json", "application/yaml"]);
        value["schemes"] = json!(["https"]);
    }
    value["parameters"] = parameters;
    value
}

fn paths_of(spec: Spec, group: &str, version: &str) -> Map<String, Value> {
    let mut paths = Map::new();
    for row in RESOURCES
        .iter()
        .filter(|row| row.group == group && row.version == version)
    {
        resource_paths(spec, row, &mut paths);
    }
    for (_, _, kind, plural, namespaced) in VIRTUAL
        .iter()
        .filter(|row| row.0 == group && row.1 == version)
    {
        let definition = definition_of(group, version, kind);
        let scope = if *namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let post = operation(
            spec,
            Operation {
                action: "post",
                description: format!("create a {kind}"),
                gvk: gvk(group, version, kind),
                parameters: WRITE,
                body: definition.clone(),
                answer: definition,
                patches: false,
            },
        );
        let mut item = json!({"post": post});
        if *namespaced {
            item["parameters"] = json!([namespace_parameter(spec)]);
        }
        paths.insert(format!("/{}{scope}/{plural}", base(group, version)), item);
    }
    paths
}

fn namespace_parameter(spec: Spec) -> Value {
    parameter(
        spec,
        "namespace",
        "path",
        "string",
        "object name and auth scope, such as for teams and projects",
    )
}

fn name_parameter(spec: Spec, kind: &str) -> Value {
    parameter(
        spec,
        "name",
        "path",
        "string",
        &format!("name of the {kind}"),
    )
}

fn resource_paths(spec: Spec, row: &Resource, paths: &mut Map<String, Value>) {
    let root = base(row.group, row.version);
    let definition = definition_of(row.group, row.version, row.kind);
    let list = definition
        .as_ref()
        .map(|definition| format!("{definition}List"));
    let status = Some(format!("{META}.Status"));
    let has = |verb: Verb| row.verbs.contains(&verb);
    let own = || gvk(row.group, row.version, row.kind);
    let make =
        |action: &str, what: &str, parameters, body: Option<&String>, answer: Option<&String>| {
            operation(
                spec,
                Operation {
                    action,
                    description: format!("{what} {}", row.kind),
                    gvk: own(),
                    parameters,
                    body: body.cloned(),
                    answer: answer.cloned(),
                    patches: action == "patch",
                },
            )
        };
    let options = Some(format!("{META}.DeleteOptions"));
    let scope = if row.namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let collection_path = format!("/{root}{scope}/{}", row.plural);
    let mut collection = json!({});
    if has(Verb::List) {
        collection["get"] = make(
            "list",
            "list or watch objects of kind",
            READ,
            None,
            list.as_ref(),
        );
    }
    if has(Verb::Create) {
        collection["post"] = make(
            "post",
            "create a",
            WRITE,
            definition.as_ref(),
            definition.as_ref(),
        );
    }
    if has(Verb::DeleteCollection) {
        collection["delete"] = make(
            "deletecollection",
            "delete collection of",
            READ,
            options.as_ref(),
            status.as_ref(),
        );
    }
    if row.namespaced {
        collection["parameters"] = json!([namespace_parameter(spec)]);
        let all = make(
            "list",
            "list or watch objects of kind",
            READ,
            None,
            list.as_ref(),
        );
        paths.insert(format!("/{root}/{}", row.plural), json!({"get": all}));
    }

    let mut item = json!({});
    if has(Verb::Get) {
        item["get"] = make("get", "read the specified", &[], None, definition.as_ref());
    }
    if has(Verb::Update) {
        item["put"] = make(
            "put",
            "replace the specified",
            WRITE,
            definition.as_ref(),
            definition.as_ref(),
        );
    }
    if has(Verb::Patch) {
        item["patch"] = make(
            "patch",
            "partially update the specified",
            WRITE,
            None,
            definition.as_ref(),
        );
    }
    if has(Verb::Delete) {
        item["delete"] = make(
            "delete",
            "delete a",
            DELETE,
            options.as_ref(),
            status.as_ref(),
        );
    }
    let mut parameters = vec![name_parameter(spec, row.kind)];
    if row.namespaced {
        parameters.push(namespace_parameter(spec));
    }
    item["parameters"] = parameters.clone().into();
    for sub in row.subresources {
        let mut below = subresource(spec, row, sub);
        below["parameters"] = parameters.clone().into();
        paths.insert(format!("{collection_path}/{{name}}/{}", sub.name), below);
    }
    paths.insert(format!("{collection_path}/{{name}}"), item);
    paths.insert(collection_path, collection);
}

fn subresource(spec: Spec, row: &Resource, sub: &Subresource) -> Value {
    let (group, version) = match sub.kind {
        "Eviction" => ("policy", "v1"),
        "TokenRequest" => ("authentication.k8s.io", "v1"),
        _ => (row.group, row.version),
    };
    let definition = definition_of(group, version, sub.kind);
    let mut item = json!({});
    for verb in sub.verbs {
        let (method, action, parameters): (&str, &str, &[_]) = match *verb {
            "create" => ("post", "post", WRITE),
            "get" => ("get", "get", &[]),
            "update" => ("put", "put", WRITE),
            "patch" => ("patch", "patch", WRITE),
            "delete" => ("delete", "delete", DELETE),
            _ => continue,
        };
        let is_connect = sub.kind.ends_with("Options");
        let sends = matches!(*verb, "create" | "update") && !is_connect;
        item[method] = operation(
            spec,
            Operation {
                action: if is_connect { "connect" } else { action },
                description: format!("{verb} {} of the specified {}", sub.name, row.kind),
                gvk: gvk(group, version, sub.kind),
                parameters: if is_connect { &[] } else { parameters },
                body: definition.clone().filter(|_| sends),
                answer: definition
                    .clone()
                    .filter(|_| !is_connect && sub.name != "log"),
                patches: *verb == "patch" && !is_connect,
            },
        );
    }
    item
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
