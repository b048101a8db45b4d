//! Service: the object. Cluster IPs are given out by the server, since it knows which are taken.

use std::{collections::BTreeSet, net::IpAddr};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::pod::{port_number, port_number_or_name};
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    resource::keep_other_half,
    table::{self, Column},
    value::{
        default, default_absent, empty, entries, get, integer, is_set, keep, list, list_mut,
        remove, text,
    },
};

/// Seconds for which a client stays with the pod it met.
const AFFINITY_SECONDS: i64 = 10_800;
const AFFINITY_SECONDS_MAX: i64 = 86_400;

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Type", "type determines how the Service is exposed."),
    Column::text(
        "Cluster-IP",
        "clusterIP is the IP address of the service and is usually assigned randomly.",
    ),
    Column::text(
        "External-IP",
        "Addresses at which the service is reached from outside the cluster.",
    ),
    Column::text(
        "Port(s)",
        "The list of ports that are exposed by this service.",
    ),
    Column::age(),
    Column::text(
        "Selector",
        "Route service traffic to pods with label keys and values matching this selector.",
    )
    .wide(),
];

pub(super) struct Service;

impl Strategy for Service {
    fn validate_name(&self, name: &str) -> Vec<String> {
        meta::dns1035_label(name)
    }

    fn default(&self, object: &mut Value) {
        default(object, "spec", empty());
        let spec = &mut object["spec"];
        default(spec, "sessionAffinity", "None");
        if text(spec, "sessionAffinity") == "ClientIP" {
            default(spec, "sessionAffinityConfig", empty());
            let config = &mut spec["sessionAffinityConfig"];
            default(config, "clientIP", empty());
            default(&mut config["clientIP"], "timeoutSeconds", AFFINITY_SECONDS);
        }
        default(spec, "type", "ClusterIP");
        let type_ = text(spec, "type").to_owned();
        for port in list_mut(spec, "ports") {
            default(port, "protocol", "TCP");
            let target = get(port, "targetPort");
            if target.is_null() || target == 0 || target == "" {
                port["targetPort"] = get(port, "port").clone();
            }
        }
        if is_reached_from_outside(spec) {
            default(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(type_.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
            default(spec, "internalTrafficPolicy", "Cluster");
        }
        if type_ == "LoadBalancer" {
            default_absent(spec, "allocateLoadBalancerNodePorts", true);
        }
        // Either of the two may be given; both are shown.
        let first = list(spec, "clusterIPs")
            .first()
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let given = text(spec, "clusterIP").to_owned();
        if given.is_empty() && !first.is_empty() {
            spec["clusterIP"] = first.into();
        } else if !given.is_empty() && first.is_empty() {
            spec["clusterIPs"] = json!([given]);
        }
        if type_ != "ExternalName" {
            let given = text(spec, "clusterIP");
            let family = if given.contains(':') { "IPv6" } else { "IPv4" };
            default(spec, "ipFamilies", json!([family]));
            default(spec, "ipFamilyPolicy", "SingleStack");
        }
        default(object, "status", json!({"loadBalancer": {}}));
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
    }

    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        keep_other_half(subresource, new, old);
        if subresource == "status" {
            return;
        }
        let old = get(old, "spec");
        let Some(spec) = new.get_mut("spec") else {
            return;
        };
        // What only the old type had goes with it, unless it is given anew.
        for (field, is_kept) in [
            ("externalTrafficPolicy", is_reached_from_outside(spec)),
            (
                "allocateLoadBalancerNodePorts",
                text(spec, "type") == "LoadBalancer",
            ),
            ("healthCheckNodePort", needs_health_check(spec)),
        ] {
            if !is_kept && get(spec, field) == get(old, field) {
                remove(spec, field);
            }
        }
        if needs_health_check(spec) && needs_health_check(old) && health_check_node_port(spec) == 0
        {
            keep(spec, old, "healthCheckNodePort");
        }
        let has_cluster_ip = |type_: &str| type_ != "ExternalName";
        if !has_cluster_ip(text(spec, "type")) {
            // What was allocated goes back when the type changes and nothing else is said.
            if has_cluster_ip(text(old, "type")) {
                for field in [
                    "clusterIP",
                    "clusterIPs",
                    "ipFamilies",
                    "ipFamilyPolicy",
                    "internalTrafficPolicy",
                ] {
                    if get(spec, field) == get(old, field) {
                        remove(spec, field);
                    }
                }
            }
            return;
        }
        if has_cluster_ip(text(old, "type")) {
            if !is_set(spec, "clusterIP") {
                keep(spec, old, "clusterIP");
                keep(spec, old, "clusterIPs");
                keep(spec, old, "ipFamilies");
                keep(spec, old, "ipFamilyPolicy");
            }
            if matches!(text(spec, "type"), "NodePort" | "LoadBalancer") {
                for port in list_mut(spec, "ports") {
                    let same = list(old, "ports").iter().find(|old| {
                        text(old, "protocol") == text(port, "protocol")
                            && get(old, "port") == get(port, "port")
                    });
                    if let Some(same) = same
                        && integer(port, "nodePort").unwrap_or_default() == 0
                    {
                        keep(port, same, "nodePort");
                    }
                }
            } else if matches!(text(old, "type"), "NodePort" | "LoadBalancer") {
                for port in list_mut(spec, "ports") {
                    let is_old = list(old, "ports")
                        .iter()
                        .any(|old| get(old, "nodePort") == get(port, "nodePort"));
                    if is_old {
                        remove(port, "nodePort");
                    }
                }
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        validate(get(object, "spec"), &Path::new("spec"), &mut errors);
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, old) = (get(new, "spec"), get(old, "spec"));
        let needs_ip = |spec: &Value| text(spec, "type") != "ExternalName";
        let was = text(old, "clusterIP");
        if needs_ip(spec) && needs_ip(old) && !was.is_empty() && text(spec, "clusterIP") != was {
            let path = Path::new("spec");
            let path = path.child("clusterIPs");
            let shown = get(spec, "clusterIPs").clone();
            errors.push(FieldError::invalid(
                &path.index(0),
                shown,
                "may not change once set",
            ));
        }
        if needs_health_check(spec)
            && needs_health_check(old)
            && health_check_node_port(spec) != health_check_node_port(old)
            && health_check_node_port(old) != 0
        {
            let path = Path::new("spec");
            errors.push(FieldError::forbidden(
                &path.child("healthCheckNodePort"),
                "field is immutable",
            ));
        }
        errors
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        match field {
            "spec.clusterIP" => Some(text(get(object, "spec"), "clusterIP").to_owned()),
            "spec.type" => Some(text(get(object, "spec"), "type").to_owned()),
            _ => None,
        }
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let cluster_ip = match list(spec, "clusterIPs").first().and_then(Value::as_str) {
            Some(ip) => ip,
            None => table::or_none(text(spec, "clusterIP")),
        };
        let ports: Vec<String> = list(spec, "ports")
            .iter()
            .map(|port| {
                let (number, protocol) = (
                    integer(port, "port").unwrap_or_default(),
                    text(port, "protocol"),
                );
                match integer(port, "nodePort").unwrap_or_default() {
                    0 => format!("{number}/{protocol}"),
                    node_port => format!("{number}:{node_port}/{protocol}"),
                }
            })
            .collect();
        let selector: Vec<String> = entries(spec, "selector")
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        vec![
            meta::name(object).into(),
            text(spec, "type").into(),
            cluster_ip.into(),
            external_ip(object).into(),
            table::or_none(&ports.join(",")).into(),
            table::age(object, now).into(),
            table::or_none(&selector.join(",")).into(),
        ]
    }
}

fn is_reached_from_outside(spec: &Value) -> bool {
    match text(spec, "type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !list(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

/// Whether nodes tell a balancer on a port of its own which of them have endpoints of this Service.
pub fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn health_check_node_port(spec: &Value) -> i64 {
    integer(spec, "healthCheckNodePort").unwrap_or_default()
}

fn external_ip(object: &Value) -> String {
    let spec = get(object, "spec");
    let mut ips: Vec<&str> = list(spec, "externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match text(spec, "type") {
        "ExternalName" => return text(spec, "externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = list(get(get(object, "status"), "loadBalancer"), "ingress");
            let assigned: Vec<&str> = ingress
                .iter()
                .map(|ingress| match text(ingress, "ip") {
                    "" => text(ingress, "hostname"),
                    ip => ip,
                })
                .filter(|address| !address.is_empty())
                .collect();
            if assigned.is_empty() && ips.is_empty() {
                return "<pending>".to_owned();
            }
            ips = assigned.into_iter().chain(ips).collect();
        }
        _ => {}
    }
    table::or_none(&ips.join(",")).to_owned()
}

type Errors = Vec<FieldError>;

fn validate(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let type_ = text(spec, "type");
    let cluster_ip = text(spec, "clusterIP");
    let is_headless = cluster_ip == "None";
    let cluster_ips = path.child("clusterIPs");
    let first = cluster_ips.index(0);
    if list(spec, "ports").is_empty() && !is_headless && type_ != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    match type_ {
        "LoadBalancer" | "NodePort" if is_headless => {
            let detail = format!("may not be set to 'None' for {type_} services");
            errors.push(FieldError::invalid(&first, cluster_ip, detail));
        }
        "ExternalName" => {
            if !list(spec, "clusterIPs").is_empty() {
                let detail = "may not be set for ExternalName services";
                errors.push(FieldError::forbidden(&cluster_ips, detail));
            }
            let name = text(spec, "externalName");
            let name = name.strip_suffix('.').unwrap_or(name);
            let at = path.child("externalName");
            if name.is_empty() {
                errors.push(FieldError::required(&at, ""));
            } else {
                let texts = meta::dns1123_subdomain(name);
                errors.extend(
                    texts
                        .into_iter()
                        .map(|text| FieldError::invalid(&at, name, text)),
                );
            }
        }
        "ClusterIP" | "LoadBalancer" | "NodePort" => {}
        "" => errors.push(FieldError::required(&path.child("type"), "")),
        other => {
            let supported = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
            errors.push(FieldError::not_supported(
                &path.child("type"),
                other,
                &supported,
            ));
        }
    }
    ports(spec, type_, path, errors);
    if let Some(selector) = spec.get("selector") {
        errors.extend(meta::validate_labels(selector, &path.child("selector")));
    }
    affinity(spec, path, errors);
    families(spec, type_, path, errors);
    if type_ != "ExternalName"
        && !cluster_ip.is_empty()
        && !is_headless
        && cluster_ip.parse::<IpAddr>().is_err()
    {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(&first, cluster_ip, detail));
    }
    let listed = list(spec, "clusterIPs")
        .first()
        .and_then(Value::as_str)
        .unwrap_or(cluster_ip);
    if listed != cluster_ip {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(
            &cluster_ips,
            get(spec, "clusterIPs").clone(),
            detail,
        ));
    }
    let external = path.child("externalIPs");
    for (i, ip) in list(spec, "externalIPs").iter().enumerate() {
        super::pod::ip(ip.as_str().unwrap_or_default(), &external.index(i), errors);
    }
    for (field, allowed) in [
        ("internalTrafficPolicy", &["Cluster", "Local"]),
        ("externalTrafficPolicy", &["Cluster", "Local"]),
    ] {
        let policy = text(spec, field);
        if !policy.is_empty() && !allowed.contains(&policy) {
            errors.push(FieldError::not_supported(
                &path.child(field),
                policy,
                allowed,
            ));
        }
    }
    if type_ == "ClusterIP"
        && !is_reached_from_outside(spec)
        && is_set(spec, "externalTrafficPolicy")
    {
        let detail = "may only be set for externally-accessible services";
        let policy = text(spec, "externalTrafficPolicy");
        errors.push(FieldError::invalid(
            &path.child("externalTrafficPolicy"),
            policy,
            detail,
        ));
    }
    let health = health_check_node_port(spec);
    let at = path.child("healthCheckNodePort");
    if health != 0 && !needs_health_check(spec) {
        let detail =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(&at, health, detail));
    } else if health != 0 {
        port_number(health, &at, errors);
    }
    if spec.get("allocateLoadBalancerNodePorts").is_some() && type_ != "LoadBalancer" {
        let at = path.child("allocateLoadBalancerNodePorts");
        errors.push(FieldError::forbidden(
            &at,
            "may only be used when `type` is 'LoadBalancer'",
        ));
    }
}

/// Addresses are given out of IPv4 ranges alone. A Service that needs none, since others name its endpoints, may be of
/// any family.
fn families(spec: &Value, type_: &str, path: &Path<'_>, errors: &mut Errors) {
    let is_headless = text(spec, "clusterIP") == "None" && entries(spec, "selector").count() == 0;
    let has_address = type_ != "ExternalName" && !is_headless;
    let at = path.child("ipFamilies");
    for (i, family) in list(spec, "ipFamilies").iter().enumerate() {
        match family.as_str().unwrap_or_default() {
            "IPv6" if has_address => {
                let detail = "not configured on this cluster";
                errors.push(FieldError::invalid(&at.index(i), "IPv6", detail));
            }
            "IPv4" | "IPv6" => {}
            other => errors.push(FieldError::not_supported(
                &at.index(i),
                other,
                &["IPv4", "IPv6"],
            )),
        }
    }
    let at = path.child("ipFamilyPolicy");
    match text(spec, "ipFamilyPolicy") {
        policy @ "RequireDualStack" if has_address => {
            let detail = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid(&at, policy, detail));
        }
        "" | "SingleStack" | "PreferDualStack" | "RequireDualStack" => {}
        other => errors.push(FieldError::not_supported(
            &at,
            other,
            &["SingleStack", "PreferDualStack", "RequireDualStack"],
        )),
    }
}

fn affinity(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let affinity = text(spec, "sessionAffinity");
    if affinity.is_empty() {
        errors.push(FieldError::required(&path.child("sessionAffinity"), ""));
    } else if !["ClientIP", "None"].contains(&affinity) {
        let at = path.child("sessionAffinity");
        errors.push(FieldError::not_supported(
            &at,
            affinity,
            &["ClientIP", "None"],
        ));
    }
    let config = get(spec, "sessionAffinityConfig");
    let at = path.child("sessionAffinityConfig");
    if affinity == "None" && !config.is_null() {
        let detail = "must not be set when session affinity is None";
        errors.push(FieldError::forbidden(&at, detail));
    }
    let at = at.child("clientIP");
    if affinity == "ClientIP"
        && let Some(seconds) = integer(get(config, "clientIP"), "timeoutSeconds")
        && !(1..=AFFINITY_SECONDS_MAX).contains(&seconds)
    {
        let detail = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
        errors.push(FieldError::invalid(
            &at.child("timeoutSeconds"),
            seconds,
            detail,
        ));
    }
}

fn ports(spec: &Value, type_: &str, path: &Path<'_>, errors: &mut Errors) {
    let all = list(spec, "ports");
    let path = path.child("ports");
    let (mut names, mut numbers, mut node_ports) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, port) in all.iter().enumerate() {
        let at = path.index(i);
        let name = text(port, "name");
        if name.is_empty() {
            if all.len() > 1 {
                errors.push(FieldError::required(&at.child("name"), ""));
            }
        } else {
            let name_path = at.child("name");
            let texts = meta::dns1123_label(name);
            errors.extend(
                texts
                    .into_iter()
                    .map(|text| FieldError::invalid(&name_path, name, text)),
            );
            if !names.insert(name) {
                errors.push(FieldError::duplicate(&name_path, name));
            }
        }
        let number = integer(port, "port").unwrap_or_default();
        port_number(number, &at.child("port"), errors);
        let protocol = text(port, "protocol");
        if protocol.is_empty() {
            errors.push(FieldError::required(&at.child("protocol"), ""));
        } else if !["SCTP", "TCP", "UDP"].contains(&protocol) {
            let supported = ["SCTP", "TCP", "UDP"];
            errors.push(FieldError::not_supported(
                &at.child("protocol"),
                protocol,
                &supported,
            ));
        }
        port_number_or_name(get(port, "targetPort"), &at.child("targetPort"), errors);
        let node_port = integer(port, "nodePort").unwrap_or_default();
        if node_port != 0 {
            if type_ == "ClusterIP" {
                let detail = "may not be used when `type` is 'ClusterIP'";
                errors.push(FieldError::forbidden(&at.child("nodePort"), detail));
            }
            if !node_ports.insert((protocol, node_port)) {
                errors.push(FieldError::duplicate(&at.child("nodePort"), node_port));
            }
        }
        if !numbers.insert((protocol, number)) {
            errors.push(FieldError::duplicate(
                &at,
                json!({"protocol": protocol, "port": number}),
            ));
        }
    }
}
