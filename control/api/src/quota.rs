//! What objects take of a ResourceQuota. Pure: admission asks before an object is made, a controller recounts.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    meta,
    quantity::{Format, Quantity},
    resources::{pod_total, qos_class},
    value::{entries, get, integer, list, text},
};

/// Amounts by the names that stand in `spec.hard`.
pub type Amounts = BTreeMap<String, Quantity>;

/// Resources that have a name of their own beside `count/…`.
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Amounts of pods that are held without a prefix too.
const COMPUTE: &[&str] = &["cpu", "ephemeral-storage", "memory"];
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

fn one() -> Quantity {
    Quantity::from_value(1, Format::DecimalSi)
}

/// `pods`, `count/jobs.batch`: the name under which objects are counted.
fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() {
        format!("count/{plural}")
    } else {
        format!("count/{plural}.{group}")
    }
}

/// What an object takes.
pub fn usage(group: &str, plural: &str, object: &Value) -> Amounts {
    let mut used = Amounts::from([(count_name(group, plural), one())]);
    if !group.is_empty() {
        return used;
    }
    let spec = get(object, "spec");
    match plural {
        "pods" => {
            let phase = text(get(object, "status"), "phase");
            if !matches!(phase, "Succeeded" | "Failed") {
                used.insert("pods".to_owned(), one());
                of_pod(spec, &mut used);
            }
            return used;
        }
        "persistentvolumeclaims" => of_claim(object, &mut used),
        "services" => of_service(spec, &mut used),
        _ => {}
    }
    if COUNTED.contains(&plural) {
        used.insert(plural.to_owned(), one());
    }
    used
}

fn of_pod(spec: &Value, used: &mut Amounts) {
    for (name, amount) in pod_total(spec, "requests") {
        if COMPUTE.contains(&name) || name.starts_with("hugepages-") {
            used.insert(name.to_owned(), amount);
        }
        used.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in pod_total(spec, "limits") {
        if COMPUTE.contains(&name) {
            used.insert(format!("limits.{name}"), amount);
        }
    }
}

fn of_claim(claim: &Value, used: &mut Amounts) {
    let spec = get(claim, "spec");
    let class = text(spec, "storageClassName");
    let requests = get(get(spec, "resources"), "requests");
    let amount = Quantity::parse(text(requests, "storage")).unwrap_or(Quantity::ZERO);
    used.insert("requests.storage".to_owned(), amount);
    if !class.is_empty() {
        used.insert(format!("{class}{OF_CLASS}requests.storage"), amount);
        used.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), one());
    }
}

fn of_service(spec: &Value, used: &mut Amounts) {
    let ports = list(spec, "ports");
    let count = |ports: usize| {
        Quantity::from_value(i64::try_from(ports).unwrap_or(i64::MAX), Format::DecimalSi)
    };
    let type_ = text(spec, "type");
    let is_balanced = type_ == "LoadBalancer";
    let allocates = spec
        .get("allocateLoadBalancerNodePorts")
        .and_then(Value::as_bool)
        != Some(false);
    let node_ports = match type_ {
        "NodePort" => ports.len(),
        "LoadBalancer" if allocates => ports.len(),
        "LoadBalancer" => ports
            .iter()
            .filter(|port| integer(port, "nodePort").unwrap_or(0) != 0)
            .count(),
        _ => 0,
    };
    used.insert("services.nodeports".to_owned(), count(node_ports));
    used.insert(
        "services.loadbalancers".to_owned(),
        count(usize::from(is_balanced)),
    );
}

/// What is held: `spec.hard`, or `hard` or `used` of the status.
pub fn amounts(object: &Value, field: &str) -> Amounts {
    entries(object, field)
        .filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(amount.as_str()?).ok()?)))
        .collect()
}

/// Those of `used` that are held.
pub fn held(used: &Amounts, hard: &Amounts) -> Amounts {
    let is_held = |(name, _): &(&String, &Quantity)| hard.contains_key(*name);
    used.iter()
        .filter(is_held)
        .map(|(name, amount)| (name.clone(), *amount))
        .collect()
}

/// Whether names in `hard` may be about this resource at all.
pub fn is_about(hard: &Amounts, group: &str, plural: &str) -> bool {
    let count = count_name(group, plural);
    hard.keys().any(|name| {
        *name == count
            || (group.is_empty()
                && match plural {
                    "pods" => is_of_pods(name),
                    "persistentvolumeclaims" => {
                        name == plural || name == "requests.storage" || name.contains(OF_CLASS)
                    }
                    "services" => name == plural || name.starts_with("services."),
                    _ => name == plural && COUNTED.contains(&plural),
                })
    })
}

fn is_of_pods(name: &str) -> bool {
    name == "pods"
        || COMPUTE.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("limits.")
        || (name.starts_with("requests.") && name != "requests.storage")
}

/// Whether a quota is about an object: its scopes choose pods, and a quota with scopes chooses nothing else.
pub fn covers(quota_spec: &Value, plural: &str, object: &Value) -> bool {
    let scopes = list(quota_spec, "scopes").iter().filter_map(Value::as_str);
    let selected = list(get(quota_spec, "scopeSelector"), "matchExpressions");
    let wanted: Vec<(&str, &str, &[Value])> = scopes
        .map(|scope| (scope, "Exists", &[][..]))
        .chain(selected.iter().map(|wanted| {
            (
                text(wanted, "scopeName"),
                text(wanted, "operator"),
                list(wanted, "values"),
            )
        }))
        .collect();
    if wanted.is_empty() {
        return true;
    }
    plural == "pods"
        && wanted
            .into_iter()
            .all(|(scope, operator, values)| in_scope(object, scope, operator, values))
}

fn in_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let spec = get(pod, "spec");
    let has_deadline = integer(spec, "activeDeadlineSeconds").is_some_and(|seconds| seconds >= 0);
    let is_best_effort = || qos_class(spec) == "BestEffort";
    match scope {
        "Terminating" => has_deadline,
        "NotTerminating" => !has_deadline,
        "BestEffort" => is_best_effort(),
        "NotBestEffort" => !is_best_effort(),
        "PriorityClass" => {
            let class = text(spec, "priorityClassName");
            let is_named = values.iter().any(|value| value.as_str() == Some(class));
            match operator {
                "In" => is_named,
                "NotIn" => !is_named,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => {
            let affinity = get(spec, "affinity");
            ["podAffinity", "podAntiAffinity"]
                .iter()
                .any(|field| crosses(get(affinity, field)))
        }
        _ => false,
    }
}

/// Whether an affinity looks beyond the pod's namespace.
fn crosses(affinity: &Value) -> bool {
    let crosses = |term: &Value| {
        !list(term, "namespaces").is_empty() || term.get("namespaceSelector").is_some()
    };
    list(affinity, "requiredDuringSchedulingIgnoredDuringExecution")
        .iter()
        .any(crosses)
        || list(affinity, "preferredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .any(|weighted| crosses(get(weighted, "podAffinityTerm")))
}

/// What a pod has to say and does not, where a quota holds it: `limits.cpu for: a; requests.memory for: a,b`.
pub fn unspecified(hard: &Amounts, pod: &Value) -> Option<String> {
    let spec = get(pod, "spec");
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for held in hard.keys() {
        let (which, name) = match held.split_once('.') {
            Some(("limits", name)) => ("limits", name),
            Some(("requests", name)) => ("requests", name),
            _ => ("requests", held.as_str()),
        };
        if !COMPUTE.contains(&name) {
            continue;
        }
        if get(get(spec, "resources"), which).get(name).is_some() {
            continue;
        }
        for container in list(spec, "containers")
            .iter()
            .chain(list(spec, "initContainers"))
        {
            if get(get(container, "resources"), which).get(name).is_none() {
                missing
                    .entry(held)
                    .or_default()
                    .push(text(container, "name"));
            }
        }
    }
    let shown = |(held, mut names): (&str, Vec<&str>)| {
        names.sort_unstable();
        format!("{held} for: {}", names.join(","))
    };
    let shown: Vec<String> = missing.into_iter().map(shown).collect();
    (!shown.is_empty()).then(|| shown.join("; "))
}

/// Why a quota cannot give what is asked of it; nothing where it can.
///
/// `asked` holds what an object takes more than before, of what the quota holds. What gets less is never refused.
pub fn refusal(quota: &Value, asked: &Amounts) -> Option<String> {
    let status = get(quota, "status");
    let (hard, used) = (amounts(status, "hard"), amounts(status, "used"));
    let name = meta::name(quota);
    let unknown: Vec<&str> = asked
        .keys()
        .filter(|name| !hard.contains_key(*name) || !used.contains_key(*name))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        return Some(format!(
            "status unknown for quota: {name}, resources: {}",
            unknown.join(",")
        ));
    }
    let exceeded: Vec<&String> = asked
        .iter()
        .filter(|(name, more)| **more > Quantity::ZERO && used[*name] + **more > hard[*name])
        .map(|(name, _)| name)
        .collect();
    if exceeded.is_empty() {
        return None;
    }
    let shown = |amounts: &Amounts| {
        let shown: Vec<String> = exceeded
            .iter()
            .map(|name| format!("{name}={}", amounts[*name]))
            .collect();
        shown.join(",")
    };
    Some(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        shown(asked),
        shown(&used),
        shown(&hard)
    ))
}

/// Amounts as they stand in an object.
pub fn to_value(amounts: &Amounts) -> Value {
    amounts
        .iter()
        .map(|(name, amount)| (name.clone(), Value::from(amount.to_string())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(amounts: &Amounts) -> String {
        let shown: Vec<String> = amounts
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect();
        shown.join(" ")
    }

    #[test]
    fn objects_take_what_kubernetes_says_they_take() {
        for (group, plural, object, expected) in [
            ("", "secrets", json!({}), "count/secrets=1 secrets=1"),
            ("batch", "jobs", json!({}), "count/jobs.batch=1"),
            ("", "limitranges", json!({}), "count/limitranges=1"),
            (
                "",
                "services",
                json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}),
                "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2",
            ),
            (
                "",
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}}),
                "count/persistentvolumeclaims=1 fast.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
                 fast.storageclass.storage.k8s.io/requests.storage=2Gi persistentvolumeclaims=1 requests.storage=2Gi",
            ),
            (
                "",
                "pods",
                json!({"spec": {
                    "containers": [
                        {"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}},
                        {"name": "b", "resources": {"requests": {"cpu": "200m", "example.com/gpu": "1"}}},
                    ],
                    "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}}}],
                    "overhead": {"cpu": "10m"},
                }}),
                "count/pods=1 cpu=1010m limits.memory=1Gi pods=1 requests.cpu=1010m requests.example.com/gpu=1",
            ),
            (
                "",
                "pods",
                json!({"status": {"phase": "Failed"}}),
                "count/pods=1",
            ),
        ] {
            assert_eq!(shown(&usage(group, plural, &object)), expected, "{plural}");
        }
    }

    #[test]
    fn scopes_choose_pods() {
        let plain = json!({"spec": {"containers": [{"name": "a"}], "priorityClassName": "high"}});
        let short = json!({"spec": {"activeDeadlineSeconds": 1, "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "1"}}},
        ]}});
        for (spec, of_plain, of_short) in [
            (json!({}), true, true),
            (json!({"scopes": ["Terminating"]}), false, true),
            (
                json!({"scopes": ["NotTerminating", "BestEffort"]}),
                true,
                false,
            ),
            (json!({"scopes": ["NotBestEffort"]}), false, true),
            (
                json!({"scopeSelector": {"matchExpressions": [
                    {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]},
                ]}}),
                true,
                false,
            ),
        ] {
            assert_eq!(covers(&spec, "pods", &plain), of_plain, "{spec}");
            assert_eq!(covers(&spec, "pods", &short), of_short, "{spec}");
            assert_eq!(
                covers(&spec, "secrets", &json!({})),
                spec == json!({}),
                "{spec}"
            );
        }
    }

    #[test]
    fn a_quota_refuses_what_it_has_not_in_the_words_of_kubernetes() {
        let quota = json!({
            "metadata": {"name": "q"},
            "status": {"hard": {"pods": "2", "cpu": "1"}, "used": {"pods": "2", "cpu": "900m"}},
        });
        let asked =
            |pods: &str, cpu: &str| amounts(&json!({"hard": {"pods": pods, "cpu": cpu}}), "hard");
        assert_eq!(refusal(&quota, &asked("0", "100m")), None);
        assert_eq!(refusal(&quota, &asked("-1", "-2")), None);
        assert_eq!(
            refusal(&quota, &asked("1", "200m")).as_deref(),
            Some(
                "exceeded quota: q, requested: cpu=200m,pods=1, used: cpu=900m,pods=2, limited: cpu=1,pods=2"
            )
        );
        let other = amounts(&json!({"hard": {"secrets": "1"}}), "hard");
        assert_eq!(
            refusal(&quota, &other).as_deref(),
            Some("status unknown for quota: q, resources: secrets")
        );
        let pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        let hard = amounts(
            &json!({"hard": {"limits.cpu": "1", "memory": "1", "pods": "1"}}),
            "hard",
        );
        assert_eq!(
            unspecified(&hard, &pod).as_deref(),
            Some("limits.cpu for: b; memory for: a,b")
        );
    }
}
