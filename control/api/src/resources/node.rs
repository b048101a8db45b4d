//! Node.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, empty, entries, flag, get, list, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Status", "The status of the node"),
    Column::text("Roles", "The roles of the node"),
    Column::age(),
    Column::text("Version", "Kubelet Version reported by the node."),
    Column::text("Internal-IP", "Address of the node inside the cluster.").wide(),
    Column::text("External-IP", "Address of the node outside the cluster.").wide(),
    Column::text(
        "OS-Image",
        "OS Image reported by the node from /etc/os-release.",
    )
    .wide(),
    Column::text(
        "Kernel-Version",
        "Kernel Version reported by the node from 'uname -r'.",
    )
    .wide(),
    Column::text(
        "Container-Runtime",
        "ContainerRuntime Version reported by the node.",
    )
    .wide(),
];

pub(super) struct Node;

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        default(object, "spec", empty());
        if let Some(status) = object.get_mut("status")
            && let Some(capacity) = status.get("capacity").cloned()
        {
            default(status, "allocatable", capacity);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        let spec = get(object, "spec");
        taints(list(spec, "taints"), &path.child("taints"), &mut errors);
        let cidrs = path.child("podCIDRs");
        for (i, cidr) in list(spec, "podCIDRs").iter().enumerate() {
            let cidr = cidr.as_str().unwrap_or_default();
            if !is_cidr(cidr) {
                let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(&cidrs.index(i), cidr, detail));
            }
        }
        errors
    }

    fn validate_status(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("status");
        let path = path.child("addresses");
        let mut seen = BTreeSet::new();
        for (i, address) in list(get(new, "status"), "addresses").iter().enumerate() {
            if !seen.insert((text(address, "type"), text(address, "address"))) {
                errors.push(FieldError::duplicate(&path.index(i), address.clone()));
            }
        }
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        let (new, old) = (get(new, "spec"), get(old, "spec"));
        for (field, at) in [("podCIDR", "podCIDRs"), ("providerID", "providerID")] {
            if !text(old, field).is_empty() && text(old, field) != text(new, field) {
                let detail =
                    format!("node updates may not change {field} except from \"\" to valid");
                errors.push(FieldError::forbidden(&path.child(at), detail));
            }
        }
        errors
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        (field == "spec.unschedulable")
            .then(|| flag(get(object, "spec"), "unschedulable").to_string())
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let status = get(object, "status");
        let info = get(status, "nodeInfo");
        let address = |type_: &str| {
            list(status, "addresses")
                .iter()
                .find(|address| text(address, "type") == type_)
                .map_or("<none>", |address| text(address, "address"))
        };
        let or_unknown = |field: &str| match text(info, field) {
            "" => "<unknown>",
            text => text,
        };
        vec![
            meta::name(object).into(),
            ready(object).into(),
            roles(object).into(),
            table::age(object, now).into(),
            text(info, "kubeletVersion").into(),
            address("InternalIP").into(),
            address("ExternalIP").into(),
            or_unknown("osImage").into(),
            or_unknown("kernelVersion").into(),
            or_unknown("containerRuntimeVersion").into(),
        ]
    }
}

fn ready(object: &Value) -> String {
    let ready = list(get(object, "status"), "conditions")
        .iter()
        .find(|condition| text(condition, "type") == "Ready");
    let mut status = match ready.map(|condition| text(condition, "status")) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if flag(get(object, "spec"), "unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(object: &Value) -> String {
    let roles: BTreeSet<&str> = entries(get(object, "metadata"), "labels")
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => Some(role),
                _ if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
                _ => None,
            },
        )
        .collect();
    if roles.is_empty() {
        "<none>".to_owned()
    } else {
        roles.into_iter().collect::<Vec<_>>().join(",")
    }
}

fn taints(taints: &[Value], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (i, taint) in taints.iter().enumerate() {
        let at = path.index(i);
        let (key, value, effect) = (
            text(taint, "key"),
            text(taint, "value"),
            text(taint, "effect"),
        );
        errors.extend(
            meta::qualified_name(key)
                .into_iter()
                .map(|text| FieldError::invalid(&at.child("key"), key, text)),
        );
        errors.extend(
            meta::label_value(value)
                .into_iter()
                .map(|text| FieldError::invalid(&at.child("value"), value, text)),
        );
        let supported = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if effect.is_empty() {
            errors.push(FieldError::required(&at.child("effect"), ""));
        } else if !supported.contains(&effect) {
            errors.push(FieldError::not_supported(
                &at.child("effect"),
                effect,
                &supported,
            ));
        }
        if !seen.insert((key, effect)) {
            let mut error = FieldError::duplicate(&at, taint.clone());
            "taints must be unique by key and effect pair".clone_into(&mut error.detail);
            errors.push(error);
        }
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let Ok(address) = address.parse::<std::net::IpAddr>() else {
        return false;
    };
    bits.parse::<u8>()
        .is_ok_and(|bits| bits <= if address.is_ipv4() { 32 } else { 128 })
}
