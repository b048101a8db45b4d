//! What the server says it serves: the old documents, one per group and version, and the aggregated one.

use serde_json::{Value, json};
use wherry_api::{RESOURCES, Resource, Subresource, Verb};

use crate::{computed::COMPUTED, reviews::REVIEWS};

/// The order in which kubectl prefers groups when a name is in several.
fn group_versions() -> Vec<(&'static str, &'static str)> {
    let rows = RESOURCES.iter().map(|row| (row.group, row.version));
    let mut found: Vec<(&str, &str)> = Vec::new();
    let reviews = REVIEWS.iter().map(|review| (review.group, "v1"));
    let computed = COMPUTED.iter().map(|row| (row.group, row.version));
    for group_version in rows.chain(reviews).chain(computed) {
        if !found.contains(&group_version) {
            found.push(group_version);
        }
    }
    found
}

fn groups() -> Vec<&'static str> {
    let mut found: Vec<&str> = group_versions()
        .into_iter()
        .map(|(group, _)| group)
        .collect();
    found.retain(|group| !group.is_empty());
    found.dedup();
    found
}

fn versions_of(group: &str) -> Vec<&'static str> {
    group_versions()
        .into_iter()
        .filter(|(found, _)| *found == group)
        .map(|(_, version)| version)
        .collect()
}

/// Whether there is such a group version.
pub(crate) fn is_served(group: &str, version: &str) -> bool {
    group_versions().contains(&(group, version))
}

/// `/api`.
pub(crate) fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": versions_of(""),
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`.
pub(crate) fn group_list() -> Value {
    let groups: Vec<Value> = groups().into_iter().map(describe_group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`.
pub(crate) fn group(name: &str) -> Option<Value> {
    groups().contains(&name).then(|| {
        let mut group = describe_group(name);
        group["kind"] = "APIGroup".into();
        group["apiVersion"] = "v1".into();
        group
    })
}

fn describe_group(group: &str) -> Value {
    let versions: Vec<Value> = versions_of(group)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "create",
        Verb::Delete => "delete",
        Verb::DeleteCollection => "deletecollection",
        Verb::Get => "get",
        Verb::List => "list",
        Verb::Patch => "patch",
        Verb::Update => "update",
        Verb::Watch => "watch",
    }
}

fn verb_names(row: &Resource) -> Vec<&'static str> {
    row.verbs.iter().map(|verb| verb_name(*verb)).collect()
}

/// Group and version of what a subresource is about, where that is not the resource's own.
fn kind_home(row: &Resource, sub: &Subresource) -> (&'static str, &'static str) {
    match sub.kind {
        "Eviction" => ("policy", "v1"),
        "TokenRequest" => ("authentication.k8s.io", "v1"),
        "Scale" => ("autoscaling", "v1"),
        _ => (row.group, row.version),
    }
}

/// `/api/v1`, `/apis/<group>/<version>`.
pub(crate) fn resource_list(group: &str, version: &str) -> Option<Value> {
    if !is_served(group, version) {
        return None;
    }
    let mut resources: Vec<Value> = Vec::new();
    for row in RESOURCES
        .iter()
        .filter(|row| row.group == group && row.version == version)
    {
        let mut described = json!({
            "name": row.plural,
            "singularName": row.singular(),
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": verb_names(row),
        });
        if !row.short_names.is_empty() {
            described["shortNames"] = json!(row.short_names);
        }
        if !row.categories.is_empty() {
            described["categories"] = json!(row.categories);
        }
        resources.push(described);
        for sub in row.subresources {
            let mut described = json!({
                "name": format!("{}/{}", row.plural, sub.name),
                "singularName": "",
                "namespaced": row.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            let (home, home_version) = kind_home(row, sub);
            if (home, home_version) != (row.group, row.version) {
                described["group"] = home.into();
                described["version"] = home_version.into();
            }
            resources.push(described);
        }
    }
    for review in REVIEWS.iter().filter(|review| review.group == group) {
        resources.push(json!({
            "name": review.plural,
            "singularName": review.singular,
            "namespaced": review.namespaced,
            "kind": review.kind,
            "verbs": ["create"],
        }));
    }
    for row in COMPUTED
        .iter()
        .filter(|row| (row.group, row.version) == (group, version))
    {
        let mut described = json!({
            "name": row.plural,
            "singularName": row.singular,
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": ["get", "list"],
        });
        if !row.short_names.is_empty() {
            described["shortNames"] = json!(row.short_names);
        }
        resources.push(described);
    }
    if group.is_empty() {
        resources.push(json!({
            "name": "bindings",
            "singularName": "binding",
            "namespaced": true,
            "kind": "Binding",
            "verbs": ["create"],
        }));
    }
    resources.sort_by_key(|resource| resource["name"].as_str().unwrap_or_default().to_owned());
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    )
}

/// `/api` or `/apis` in aggregated form.
pub(crate) fn aggregated(is_core: bool, version: &str) -> Value {
    let wanted = if is_core { vec![""] } else { groups() };
    let items: Vec<Value> = wanted
        .into_iter()
        .map(|group| {
            let versions: Vec<Value> = versions_of(group)
                .into_iter()
                .map(|version| {
                    json!({"version": version, "freshness": "Current", "resources": aggregated_resources(group, version)})
                })
                .collect();
            let metadata = if group.is_empty() { json!({"creationTimestamp": null}) } else { json!({"name": group, "creationTimestamp": null}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn scope(namespaced: bool) -> &'static str {
    if namespaced { "Namespaced" } else { "Cluster" }
}

fn aggregated_resources(group: &str, version: &str) -> Vec<Value> {
    let mut resources: Vec<Value> = RESOURCES
        .iter()
        .filter(|row| row.group == group && row.version == version)
        .map(|row| {
            let subresources: Vec<Value> = row
                .subresources
                .iter()
                .map(|sub| {
                    let (home, home_version) = kind_home(row, sub);
                    json!({
                        "subresource": sub.name,
                        "responseKind": {"group": home, "version": home_version, "kind": sub.kind},
                        "verbs": sub.verbs,
                    })
                })
                .collect();
            let mut described = json!({
                "resource": row.plural,
                "responseKind": {"group": group, "version": version, "kind": row.kind},
                "scope": scope(row.namespaced),
                "singularResource": row.singular(),
                "verbs": verb_names(row),
            });
            if !row.short_names.is_empty() {
                described["shortNames"] = json!(row.short_names);
            }
            if !row.categories.is_empty() {
                described["categories"] = json!(row.categories);
            }
            if !subresources.is_empty() {
                described["subresources"] = json!(subresources);
            }
            described
        })
        .collect();
    for row in COMPUTED
        .iter()
        .filter(|row| (row.group, row.version) == (group, version))
    {
        let mut described = json!({
            "resource": row.plural,
            "responseKind": {"group": group, "version": version, "kind": row.kind},
            "scope": scope(row.namespaced),
            "singularResource": row.singular,
            "verbs": ["get", "list"],
        });
        if !row.short_names.is_empty() {
            described["shortNames"] = json!(row.short_names);
        }
        resources.push(described);
    }
    let virtual_ones = REVIEWS
        .iter()
        .filter(|review| review.group == group)
        .map(|review| {
            (
                review.plural,
                review.singular,
                review.kind,
                review.namespaced,
            )
        });
    let bindings = group
        .is_empty()
        .then_some(("bindings", "binding", "Binding", true));
    for (plural, singular, kind, namespaced) in virtual_ones.chain(bindings) {
        resources.push(json!({
            "resource": plural,
            "responseKind": {"group": group, "version": version, "kind": kind},
            "scope": scope(namespaced),
            "singularResource": singular,
            "verbs": ["create"],
        }));
    }
    resources.sort_by_key(|resource| resource["resource"].as_str().unwrap_or_default().to_owned());
    resources
}
