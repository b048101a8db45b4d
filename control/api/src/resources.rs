//! The table of resources. A row is data; what a kind knows of its objects is in the file named after it.

use crate::{Resource, Subresource, Verb};

mod configmap;
mod endpoints;
mod event;
mod lease;
mod namespace;
mod node;
mod pod;
mod runtimeclass;
mod secret;
mod service;
mod serviceaccount;

pub use pod::qos_class;

use Verb::{Create, Delete, DeleteCollection, Get, List, Patch, Update, Watch};

/// Every verb.
const ALL: &[Verb] = &[
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
];
/// Every verb but deletion of a collection.
const NO_COLLECTION: &[Verb] = &[Create, Delete, Get, List, Patch, Update, Watch];

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];
const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];
const STREAM_VERBS: &[&str] = &["create", "get"];

const fn sub(
    name: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, kind, verbs }
}

/// All rows.
pub static RESOURCES: &[Resource] = &[
    Resource {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        list_kind: "ConfigMapList",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        columns: configmap::COLUMNS,
        lazy: false,
        deletion_grace_seconds: None,
        strategy: &configmap::ConfigMap,
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Endpoints",
        list_kind: "EndpointsList",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        columns: endpoints::COLUMNS,
        lazy: false,
        deletion_grace_seconds: None,
        strategy: &endpoints::Endpoints,
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Event",
        list_kind: "EventList",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        columns: event::COLUMNS,
        lazy: true,
        deletion_grace_seconds: None,
        strategy: &event::Event,
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Namespace",
        list_kind: "NamespaceList",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        categories: &[],
        namespaced: false,
        verbs: NO_COLLECTION,
        subresources: &[
            sub("finalize", "Namespace", &["update"]),
            sub("status", "Namespace", STATUS_VERBS),
        ],
        columns: namespace::COLUMNS,
        lazy: false,
        deletion_grace_seconds: None,
        strategy: &namespace::Namespace,
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Node",
        list_kind: "NodeList",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        categories: &[],
        namespaced: false,
        verbs: ALL,
        subresources: &[
            sub("proxy", "NodeProxyOptions", PROXY_VERBS),
            sub("status", "Node", STATUS_VERBS),
        ],
        columns: node::COLUMNS,
        lazy: false,
        deletion_grace_seconds: None,
        strategy: &node::Node,
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Pod",
        list_kind: "PodList",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        namespaced: true,
        verbs: ALL,
        subresources: &[
            sub("attach", "PodAttachOptions", STREAM_VERBS),
            sub("binding", "Binding", &["create"]),
            sub("ephemeralcontainers", "Pod", STATUS_VERBS),
            sub("eviction", "Eviction", &["create"]),
            sub("exec", "PodExecOptions", STREAM_VERBS),
            sub("log", "Pod", &["get"]),
            sub("portforward", "PodPortForwardOptions", STREAM_VERBS),
            sub("proxy", "PodProxyOptions", PROXY_VERBS),
            sub("resize", "Pod", STATUS_VERBS),
            sub("status", "Pod", STATUS_VERBS),
        ],
        columns: pod::COLUMNS,
        lazy: false,
        deletion_grace_seconds: Some(pod::deletion_grace_seconds),
        strategy: &pod::Pod,
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Secret",
        list_kind: "SecretList",
        plural: "secrets",
        singular: "secret",
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        columns: secret::COLUMNS,
        lazy: false,
        deletion_grace_seconds: None,
        strategy: &secret::Secret,
    },
    Resource {
        group: "",
        version: "v1",
        kind: "ServiceAccount",
        list_kind: "ServiceAccountList",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[sub("token", "TokenRequest", &["create"])],
        columns: serviceaccount::COLUMNS,
        lazy: false,
        deletion_grace_seconds: None,
        strategy: &serviceaccount::ServiceAccount,
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Service",
        list_kind: "ServiceList",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        namespaced: true,
        verbs: ALL,
        subresources: &[
            sub("proxy", "ServiceProxyOptions", PROXY_VERBS),
            sub("status", "Service", STATUS_VERBS),
        ],
        columns: service::COLUMNS,
        lazy: false,
        deletion_grace_seconds: None,
        strategy: &service::Service,
    },
    Resource {
        group: "coordination.k8s.io",
        version: "v1",
        kind: "Lease",
        list_kind: "LeaseList",
        plural: "leases",
        singular: "lease",
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        columns: lease::COLUMNS,
        lazy: true,
        deletion_grace_seconds: None,
        strategy: &lease::Lease,
    },
    Resource {
        group: "node.k8s.io",
        version: "v1",
        kind: "RuntimeClass",
        list_kind: "RuntimeClassList",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        short_names: &[],
        categories: &[],
        namespaced: false,
        verbs: ALL,
        subresources: &[],
        columns: runtimeclass::COLUMNS,
        lazy: false,
        deletion_grace_seconds: None,
        strategy: &runtimeclass::RuntimeClass,
    },
];

/// The row of a resource.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES
        .iter()
        .find(|row| row.plural == plural && row.group == group && row.version == version)
}

/// The row of a kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES
        .iter()
        .find(|row| row.kind == kind && row.group == group && row.version == version)
}

#[cfg(test)]
mod tests;
