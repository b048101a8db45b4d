//! What a pod gets that did not ask for anything else.

use serde_json::{Value, json};

use crate::{
    quantity::Quantity,
    value::{self, default, default_absent, empty, get, list, list_mut, text},
};

/// Seconds a pod is kept on a node that is not ready or cannot be reached.
const TOLERATION_SECONDS: i64 = 300;
/// `r--r--r--` and the owner's `w`, in decimal as JSON has it.
const DEFAULT_MODE: i64 = 0o644;

pub(super) fn default_pod_spec(spec: &mut Value) {
    default_template_spec(spec);
    for field in ["initContainers", "containers"] {
        list_mut(spec, field).iter_mut().for_each(default_requests);
    }
    default_pod_requests(spec);
    default(spec, "enableServiceLinks", true);
}

/// What the spec in a template of pods gets: less than a pod's own, which is made of it later.
pub(in super::super) fn default_template_spec(spec: &mut Value) {
    let is_host_network = value::flag(spec, "hostNetwork");
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list_mut(spec, field) {
            default_container(container, is_host_network);
        }
    }
    for volume in list_mut(spec, "volumes") {
        default_volume(volume);
    }
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "restartPolicy", "Always");
    default(spec, "securityContext", empty());
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    if value::integer(spec, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        spec["terminationGracePeriodSeconds"] = 1.into();
    }
    // `serviceAccount` is the old name of `serviceAccountName`; both are shown.
    let account = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        spec["serviceAccountName"] = account.clone().into();
        spec["serviceAccount"] = account.into();
    }
}

pub(super) fn default_pod(pod: &mut Value) {
    default_absent(pod, "spec", empty());
    if let Some(spec) = pod.get_mut("spec") {
        default_pod_spec(spec);
    }
}

fn default_container(container: &mut Value, is_host_network: bool) {
    for port in list_mut(container, "ports") {
        default(port, "protocol", "TCP");
        if is_host_network
            && value::integer(port, "hostPort").unwrap_or_default() == 0
            && let Some(number) = value::integer(port, "containerPort")
        {
            port["hostPort"] = number.into();
        }
    }
    let policy = pull_policy(text(container, "image"));
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", empty());
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            default_probe(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for handler in ["postStart", "preStop"] {
            if let Some(http) = lifecycle
                .get_mut(handler)
                .and_then(|handler| handler.get_mut("httpGet"))
            {
                default_http(http);
            }
        }
    }
    for env in list_mut(container, "env") {
        if let Some(field) = env
            .get_mut("valueFrom")
            .and_then(|from| from.get_mut("fieldRef"))
        {
            default(field, "apiVersion", "v1");
        }
        if let Some(resource) = env
            .get_mut("valueFrom")
            .and_then(|from| from.get_mut("resourceFieldRef"))
        {
            default_absent(resource, "divisor", "0");
        }
    }
}

/// A zero counts as not given, as for Go.
fn default_number(object: &mut Value, field: &str, number: i64) {
    if value::integer(object, field).unwrap_or_default() == 0
        && let Some(map) = object.as_object_mut()
    {
        map.insert(field.to_owned(), number.into());
    }
}

fn default_probe(probe: &mut Value) {
    for (field, number) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        default_number(probe, field, number);
    }
    if let Some(http) = probe.get_mut("httpGet") {
        default_http(http);
    }
    if let Some(grpc) = probe.get_mut("grpc") {
        default_absent(grpc, "service", "");
    }
}

fn default_http(http: &mut Value) {
    default(http, "path", "/");
    default(http, "scheme", "HTTP");
}

fn default_requests(container: &mut Value) {
    let Some(resources) = container
        .get_mut("resources")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let requests = resources.entry("requests").or_insert_with(empty);
    for (name, limit) in limits {
        default_absent(requests, &name, limit);
    }
}

/// A pod limited as a whole asks for what its containers ask for, and for the limit where none of them asks.
fn default_pod_requests(spec: &mut Value) {
    let Some(limits) = get(spec, "resources")
        .get("limits")
        .and_then(Value::as_object)
        .cloned()
    else {
        return;
    };
    let asked: Vec<(String, String)> = super::resources::aggregate_requests(spec)
        .into_iter()
        .map(|(name, amount)| (name.to_owned(), amount.to_string()))
        .collect();
    let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) else {
        return;
    };
    let requests = resources.entry("requests").or_insert_with(empty);
    for (name, amount) in asked.iter().filter(|(name, _)| limits.contains_key(name)) {
        default_absent(requests, name, amount.as_str());
    }
    for (name, limit) in limits {
        default_absent(requests, &name, limit);
    }
}

fn default_volume(volume: &mut Value) {
    // A volume with a name and nothing else is an empty directory.
    if volume
        .as_object()
        .is_some_and(|map| map.keys().all(|key| key == "name"))
    {
        volume["emptyDir"] = empty();
    }
    default_volume_source(volume);
}

/// Of a pod's volume, or of a PersistentVolume, whose `spec` has further fields.
pub(in super::super) fn default_volume_source(volume: &mut Value) {
    let Some(sources) = volume.as_object_mut() else {
        return;
    };
    for (name, source) in sources {
        match name.as_str() {
            "secret" | "configMap" => default_absent(source, "defaultMode", DEFAULT_MODE),
            "downwardAPI" => {
                default_absent(source, "defaultMode", DEFAULT_MODE);
                default_downward_items(source);
            }
            "projected" => {
                default_absent(source, "defaultMode", DEFAULT_MODE);
                for part in list_mut(source, "sources") {
                    if let Some(token) = part.get_mut("serviceAccountToken") {
                        default_number(token, "expirationSeconds", 3600);
                    }
                    if let Some(downward) = part.get_mut("downwardAPI") {
                        default_downward_items(downward);
                    }
                }
            }
            "hostPath" => default_absent(source, "type", ""),
            "image" => {
                let policy = pull_policy(text(source, "reference"));
                default(source, "pullPolicy", policy);
            }
            "iscsi" => default(source, "iscsiInterface", "default"),
            "rbd" => {
                default(source, "pool", "rbd");
                default(source, "user", "admin");
                default(source, "keyring", "/etc/ceph/keyring");
            }
            "scaleIO" => {
                default(source, "storageMode", "ThinProvisioned");
                default(source, "fsType", "xfs");
            }
            "ephemeral" => {
                if let Some(spec) = source
                    .get_mut("volumeClaimTemplate")
                    .and_then(|claim| claim.get_mut("spec"))
                {
                    crate::resources::persistentvolumeclaim::default_spec(spec);
                }
            }
            _ => {}
        }
    }
}

fn default_downward_items(source: &mut Value) {
    for item in list_mut(source, "items") {
        if let Some(field) = item.get_mut("fieldRef") {
            default(field, "apiVersion", "v1");
        }
        if let Some(resource) = item.get_mut("resourceFieldRef") {
            default_absent(resource, "divisor", "0");
        }
    }
}

/// `Always` for what may change under its name.
fn pull_policy(image: &str) -> &'static str {
    if image_tag(image) == Some("latest") {
        "Always"
    } else {
        "IfNotPresent"
    }
}

/// Tag of an image; `latest` when it has neither tag nor digest, `None` when it has only a digest.
fn image_tag(image: &str) -> Option<&str> {
    let (name, digest) = image
        .split_once('@')
        .map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => Some(tag),
        None if digest.is_some() => None,
        None => Some("latest"),
    }
}

/// What the admission plugin DefaultTolerationSeconds adds.
pub(super) fn default_tolerations(spec: &mut Value) {
    let tolerates = |spec: &Value, taint: &str| {
        list(spec, "tolerations").iter().any(|toleration| {
            let (key, effect) = (text(toleration, "key"), text(toleration, "effect"));
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        })
    };
    for taint in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        if tolerates(spec, taint) {
            continue;
        }
        let toleration = json!({
            "key": taint,
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": TOLERATION_SECONDS,
        });
        match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
            Some(tolerations) => tolerations.push(toleration),
            None => {
                if let Some(map) = spec.as_object_mut() {
                    map.insert("tolerations".to_owned(), json!([toleration]));
                }
            }
        }
    }
}

/// What the admission plugin Priority sets.
pub(super) fn default_priority(spec: &mut Value) {
    let priority: i64 = match text(spec, "priorityClassName") {
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        _ => 0,
    };
    default(spec, "priority", priority);
    default(spec, "preemptionPolicy", "PreemptLowerPriority");
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from the requests and limits of CPU and memory.
pub fn qos_class(spec: &Value) -> &'static str {
    const COMPUTE: [&str; 2] = ["cpu", "memory"];
    let mut is_guaranteed = true;
    let mut has_any = false;
    let amount = |list: &Value, name: &str| {
        list.get(name)
            .and_then(Value::as_str)
            .and_then(|text| Quantity::parse(text).ok())
            .filter(|quantity| *quantity > Quantity::ZERO)
    };
    let has_pod_level = super::resources::has_pod_level(spec);
    let of_containers = list(spec, "containers")
        .iter()
        .chain(list(spec, "initContainers"));
    // What is said of the pod as a whole decides alone.
    let of_pod = has_pod_level.then_some(spec);
    for holder in of_pod
        .into_iter()
        .chain(of_containers.filter(|_| !has_pod_level))
    {
        let resources = get(holder, "resources");
        let (requests, limits) = (get(resources, "requests"), get(resources, "limits"));
        for name in COMPUTE {
            let (request, limit) = (amount(requests, name), amount(limits, name));
            has_any |= request.is_some() || limit.is_some();
            is_guaranteed &=
                limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (has_any, is_guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
