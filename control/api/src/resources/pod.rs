//! Pod: the rules are in the files beside, one for each verb.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{FieldError, Strategy, meta, table::Column, value};

mod container;
mod defaults;
mod env;
mod mounts;
mod print;
mod probe;
mod resources;
mod scheduling;
mod security;
mod update;
mod validate;
mod volumes;

pub(super) use container::{port_number, port_number_or_name};
pub use defaults::qos_class;
pub(super) use defaults::{default_template_spec, default_volume_source};
pub(super) use resources::overhead;
pub use resources::pod_total;
pub(super) use scheduling::{label_selector, node_selector, tolerations};
pub(super) use validate::{ip, pod_spec};
pub(super) use volumes::{driver_name, persistent as volume_source};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
    Column::text("Status", "The aggregate status of the containers in this pod."),
    Column::text(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in this pod \
         has restarted.",
    ),
    Column::age(),
    Column::text("IP", "podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated.")
        .wide(),
    Column::text("Node", "NodeName indicates in which node this pod is scheduled. Empty until it is.").wide(),
    Column::text(
        "Nominated Node",
        "nominatedNodeName is set only when this pod preempts other pods on the node, but it cannot be scheduled right \
         away.",
    )
    .wide(),
    Column::text("Readiness Gates", "Conditions beyond readiness of the containers that make the pod ready.").wide(),
];

/// Seconds a deletion without a grace period of its own gives the pod; 0 where nothing has to be stopped.
pub(super) fn deletion_grace_seconds(pod: &Value) -> i64 {
    let spec = value::get(pod, "spec");
    let phase = value::text(value::get(pod, "status"), "phase");
    if value::text(spec, "nodeName").is_empty() || matches!(phase, "Failed" | "Succeeded") {
        return 0;
    }
    match value::integer(spec, "terminationGracePeriodSeconds") {
        None => 0,
        Some(seconds) if seconds < 0 => 1,
        Some(seconds) => seconds,
    }
}

pub(super) struct Pod;

impl Strategy for Pod {
    fn default(&self, pod: &mut Value) {
        defaults::default_pod(pod);
    }

    fn prepare_create(&self, pod: &mut Value) {
        if let Some(spec) = pod.get_mut("spec") {
            defaults::default_tolerations(spec);
            defaults::default_priority(spec);
        }
        let qos_class = qos_class(value::get(pod, "spec"));
        let mut status = json!({"phase": "Pending", "qosClass": qos_class});
        if !value::list(value::get(pod, "spec"), "schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        pod["status"] = status;
    }

    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        update::prepare(subresource, new, old);
    }

    fn validate_create(&self, pod: &Value) -> Vec<FieldError> {
        validate::create(pod)
    }

    fn validate_update(&self, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
        update::validate(subresource, new, old)
    }

    fn selectable_field(&self, pod: &Value, field: &str) -> Option<String> {
        let (spec, status) = (value::get(pod, "spec"), value::get(pod, "status"));
        Some(match field {
            "spec.nodeName" => value::text(spec, "nodeName").to_owned(),
            "spec.restartPolicy" => value::text(spec, "restartPolicy").to_owned(),
            "spec.schedulerName" => value::text(spec, "schedulerName").to_owned(),
            "spec.serviceAccountName" => value::text(spec, "serviceAccountName").to_owned(),
            "spec.hostNetwork" => value::flag(spec, "hostNetwork").to_string(),
            "status.phase" => value::text(status, "phase").to_owned(),
            "status.podIP" => value::text(status, "podIP").to_owned(),
            "status.nominatedNodeName" => value::text(status, "nominatedNodeName").to_owned(),
            _ => return None,
        })
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ]
    }

    fn row(&self, pod: &Value, now: Timestamp) -> Vec<Value> {
        print::row(pod, now)
    }
}

/// Whether a pod stands for a static pod of a node.
pub(super) fn is_mirror(pod: &Value) -> bool {
    meta::annotation(pod, "kubernetes.io/config.mirror").is_some()
}

#[cfg(test)]
mod tests;
