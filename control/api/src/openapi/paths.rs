//! The requests that can be made of each resource: paths, operations and their parameters.

use serde_json::{Map, Value, json};

use super::{META, Spec, VIRTUAL, base, definition_of, gvk};
use crate::{RESOURCES, Resource, Subresource, Verb, patch::PatchKind};

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

pub(super) fn paths_of(spec: Spec, group: &str, version: &str) -> Map<String, Value> {
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
