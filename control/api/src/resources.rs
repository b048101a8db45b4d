//! The table of resources. A row is data; what a kind knows of its objects is in the file named after it.

use crate::{Resource, Strategy, Subresource, Verb, table::Column};

mod certificatesigningrequest;
mod configmap;
mod csi;
mod daemonset;
mod deployment;
mod endpoints;
mod endpointslice;
mod event;
mod horizontalpodautoscaler;
mod job;
mod lease;
mod limitrange;
mod namespace;
mod node;
mod persistentvolume;
mod persistentvolumeclaim;
mod plugin;
mod pod;
mod poddisruptionbudget;
mod priorityclass;
mod rbac;
mod replicaset;
mod resourcequota;
mod runtimeclass;
mod secret;
mod service;
mod serviceaccount;
mod statefulset;
mod storageclass;
mod workload;

pub use pod::{pod_total, qos_class};
pub use service::needs_health_check;
pub use storageclass::is_default_class;

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

/// The row of a kind that lives in namespaces and is like most: of the core group, with every verb and no further paths.
const fn namespaced(
    kind: &'static str,
    plural: &'static str,
    columns: &'static [Column],
    strategy: &'static dyn Strategy,
) -> Resource {
    Resource {
        group: "",
        version: "v1",
        kind,
        plural,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        columns,
        lazy: false,
        deprecated: "",
        deletion_grace_seconds: None,
        strategy,
    }
}

/// The same for a kind of which there is one for all namespaces.
const fn cluster_wide(
    kind: &'static str,
    plural: &'static str,
    columns: &'static [Column],
    strategy: &'static dyn Strategy,
) -> Resource {
    Resource {
        namespaced: false,
        ..namespaced(kind, plural, columns, strategy)
    }
}

/// What both versions of autoscalers share; the newer one itself.
const AUTOSCALER: Resource = Resource {
    group: "autoscaling",
    version: "v2",
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[sub("status", "HorizontalPodAutoscaler", STATUS_VERBS)],
    ..namespaced(
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        horizontalpodautoscaler::COLUMNS,
        &horizontalpodautoscaler::HorizontalPodAutoscaler,
    )
};

/// All rows.
pub static RESOURCES: &[Resource] = &[
    Resource {
        short_names: &["cm"],
        ..namespaced(
            "ConfigMap",
            "configmaps",
            configmap::COLUMNS,
            &configmap::ConfigMap,
        )
    },
    Resource {
        short_names: &["ep"],
        deprecated: "v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        ..namespaced(
            "Endpoints",
            "endpoints",
            endpoints::COLUMNS,
            &endpoints::Endpoints,
        )
    },
    Resource {
        short_names: &["ev"],
        lazy: true,
        ..namespaced("Event", "events", event::COLUMNS, &event::Event)
    },
    Resource {
        short_names: &["limits"],
        ..namespaced(
            "LimitRange",
            "limitranges",
            limitrange::COLUMNS,
            &limitrange::LimitRange,
        )
    },
    Resource {
        short_names: &["ns"],
        verbs: NO_COLLECTION,
        subresources: &[
            sub("finalize", "Namespace", &["update"]),
            sub("status", "Namespace", STATUS_VERBS),
        ],
        ..cluster_wide(
            "Namespace",
            "namespaces",
            namespace::COLUMNS,
            &namespace::Namespace,
        )
    },
    Resource {
        short_names: &["no"],
        subresources: &[
            sub("proxy", "NodeProxyOptions", PROXY_VERBS),
            sub("status", "Node", STATUS_VERBS),
        ],
        ..cluster_wide("Node", "nodes", node::COLUMNS, &node::Node)
    },
    Resource {
        short_names: &["pv"],
        subresources: &[sub("status", "PersistentVolume", STATUS_VERBS)],
        ..cluster_wide(
            "PersistentVolume",
            "persistentvolumes",
            persistentvolume::COLUMNS,
            &persistentvolume::PersistentVolume,
        )
    },
    Resource {
        short_names: &["pvc"],
        subresources: &[sub("status", "PersistentVolumeClaim", STATUS_VERBS)],
        ..namespaced(
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            persistentvolumeclaim::COLUMNS,
            &persistentvolumeclaim::PersistentVolumeClaim,
        )
    },
    Resource {
        short_names: &["po"],
        categories: &["all"],
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
        deletion_grace_seconds: Some(pod::deletion_grace_seconds),
        ..namespaced("Pod", "pods", pod::COLUMNS, &pod::Pod)
    },
    Resource {
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[
            sub("scale", "Scale", STATUS_VERBS),
            sub("status", "ReplicationController", STATUS_VERBS),
        ],
        ..namespaced(
            "ReplicationController",
            "replicationcontrollers",
            replicaset::COLUMNS,
            &replicaset::Replicas::Controller,
        )
    },
    Resource {
        short_names: &["quota"],
        subresources: &[sub("status", "ResourceQuota", STATUS_VERBS)],
        ..namespaced(
            "ResourceQuota",
            "resourcequotas",
            resourcequota::COLUMNS,
            &resourcequota::ResourceQuota,
        )
    },
    namespaced("Secret", "secrets", secret::COLUMNS, &secret::Secret),
    Resource {
        short_names: &["sa"],
        subresources: &[sub("token", "TokenRequest", &["create"])],
        ..namespaced(
            "ServiceAccount",
            "serviceaccounts",
            serviceaccount::COLUMNS,
            &serviceaccount::ServiceAccount,
        )
    },
    Resource {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[
            sub("proxy", "ServiceProxyOptions", PROXY_VERBS),
            sub("status", "Service", STATUS_VERBS),
        ],
        ..namespaced("Service", "services", service::COLUMNS, &service::Service)
    },
    Resource {
        group: "apps",
        ..namespaced(
            "ControllerRevision",
            "controllerrevisions",
            statefulset::REVISION_COLUMNS,
            &statefulset::ControllerRevision,
        )
    },
    Resource {
        group: "apps",
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[sub("status", "DaemonSet", STATUS_VERBS)],
        ..namespaced(
            "DaemonSet",
            "daemonsets",
            daemonset::COLUMNS,
            &daemonset::DaemonSet,
        )
    },
    Resource {
        group: "apps",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[
            sub("scale", "Scale", STATUS_VERBS),
            sub("status", "Deployment", STATUS_VERBS),
        ],
        ..namespaced(
            "Deployment",
            "deployments",
            deployment::COLUMNS,
            &deployment::Deployment,
        )
    },
    Resource {
        group: "apps",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[
            sub("scale", "Scale", STATUS_VERBS),
            sub("status", "ReplicaSet", STATUS_VERBS),
        ],
        ..namespaced(
            "ReplicaSet",
            "replicasets",
            replicaset::COLUMNS,
            &replicaset::Replicas::Set,
        )
    },
    Resource {
        group: "apps",
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[
            sub("scale", "Scale", STATUS_VERBS),
            sub("status", "StatefulSet", STATUS_VERBS),
        ],
        ..namespaced(
            "StatefulSet",
            "statefulsets",
            statefulset::COLUMNS,
            &statefulset::StatefulSet,
        )
    },
    AUTOSCALER,
    Resource {
        version: "v1",
        strategy: &horizontalpodautoscaler::Older,
        ..AUTOSCALER
    },
    Resource {
        group: "batch",
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[sub("status", "CronJob", STATUS_VERBS)],
        ..namespaced("CronJob", "cronjobs", job::CRON_COLUMNS, &job::CronJob)
    },
    Resource {
        group: "batch",
        categories: &["all"],
        subresources: &[sub("status", "Job", STATUS_VERBS)],
        ..namespaced("Job", "jobs", job::COLUMNS, &job::Job)
    },
    Resource {
        group: "certificates.k8s.io",
        short_names: &["csr"],
        subresources: &[
            sub("approval", "CertificateSigningRequest", STATUS_VERBS),
            sub("status", "CertificateSigningRequest", STATUS_VERBS),
        ],
        ..cluster_wide(
            "CertificateSigningRequest",
            "certificatesigningrequests",
            certificatesigningrequest::COLUMNS,
            &certificatesigningrequest::CertificateSigningRequest,
        )
    },
    Resource {
        group: "coordination.k8s.io",
        lazy: true,
        ..namespaced("Lease", "leases", lease::COLUMNS, &lease::Lease)
    },
    Resource {
        group: "discovery.k8s.io",
        ..namespaced(
            "EndpointSlice",
            "endpointslices",
            endpointslice::COLUMNS,
            &endpointslice::EndpointSlice,
        )
    },
    Resource {
        group: "events.k8s.io",
        short_names: &["ev"],
        lazy: true,
        ..namespaced("Event", "events", event::NEWER_COLUMNS, &event::NewerEvent)
    },
    Resource {
        group: "node.k8s.io",
        ..cluster_wide(
            "RuntimeClass",
            "runtimeclasses",
            runtimeclass::COLUMNS,
            &runtimeclass::RuntimeClass,
        )
    },
    Resource {
        group: "wherry.dev",
        version: "v1alpha1",
        subresources: &[sub("status", "Plugin", STATUS_VERBS)],
        ..cluster_wide("Plugin", "plugins", plugin::COLUMNS, &plugin::Plugin)
    },
    Resource {
        group: "policy",
        short_names: &["pdb"],
        subresources: &[sub("status", "PodDisruptionBudget", STATUS_VERBS)],
        ..namespaced(
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            poddisruptionbudget::COLUMNS,
            &poddisruptionbudget::PodDisruptionBudget,
        )
    },
    Resource {
        group: "scheduling.k8s.io",
        short_names: &["pc"],
        ..cluster_wide(
            "PriorityClass",
            "priorityclasses",
            priorityclass::COLUMNS,
            &priorityclass::PriorityClass,
        )
    },
    Resource {
        group: "rbac.authorization.k8s.io",
        ..cluster_wide(
            "ClusterRole",
            "clusterroles",
            rbac::ROLE_COLUMNS,
            &rbac::Role {
                is_namespaced: false,
            },
        )
    },
    Resource {
        group: "rbac.authorization.k8s.io",
        ..cluster_wide(
            "ClusterRoleBinding",
            "clusterrolebindings",
            rbac::BINDING_COLUMNS,
            &rbac::Binding {
                is_namespaced: false,
            },
        )
    },
    Resource {
        group: "rbac.authorization.k8s.io",
        ..namespaced(
            "Role",
            "roles",
            rbac::ROLE_COLUMNS,
            &rbac::Role {
                is_namespaced: true,
            },
        )
    },
    Resource {
        group: "rbac.authorization.k8s.io",
        ..namespaced(
            "RoleBinding",
            "rolebindings",
            rbac::BINDING_COLUMNS,
            &rbac::Binding {
                is_namespaced: true,
            },
        )
    },
    Resource {
        group: "storage.k8s.io",
        ..cluster_wide(
            "CSIDriver",
            "csidrivers",
            csi::DRIVER_COLUMNS,
            &csi::CsiDriver,
        )
    },
    Resource {
        group: "storage.k8s.io",
        ..cluster_wide("CSINode", "csinodes", csi::NODE_COLUMNS, &csi::CsiNode)
    },
    Resource {
        group: "storage.k8s.io",
        short_names: &["sc"],
        ..cluster_wide(
            "StorageClass",
            "storageclasses",
            storageclass::COLUMNS,
            &storageclass::StorageClass,
        )
    },
    Resource {
        group: "storage.k8s.io",
        subresources: &[sub("status", "VolumeAttachment", STATUS_VERBS)],
        ..cluster_wide(
            "VolumeAttachment",
            "volumeattachments",
            csi::ATTACHMENT_COLUMNS,
            &csi::VolumeAttachment,
        )
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
