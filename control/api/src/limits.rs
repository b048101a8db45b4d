//! What a LimitRange gives to pods that say nothing, and what it does not let through. Pure.

use serde_json::Value;

use crate::{
    meta,
    quantity::Quantity,
    resources::pod_total,
    value::{default_absent, empty, entries, get, list, list_mut, text},
};

/// Says in a pod what it was given.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Gives containers the requests and limits that they do not name.
pub fn apply_defaults(range: &Value, pod: &mut Value) {
    let mut notes = Vec::new();
    for limit in list(get(range, "spec"), "limits") {
        if text(limit, "type") != "Container" {
            continue;
        }
        let Some(spec) = pod.get_mut("spec") else {
            return;
        };
        for (field, kind) in [
            ("containers", "container"),
            ("initContainers", "init container"),
        ] {
            for container in list_mut(spec, field) {
                give(limit, container, kind, &mut notes);
            }
        }
    }
    if notes.is_empty() {
        return;
    }
    let annotations = meta::metadata_mut(pod)
        .entry("annotations")
        .or_insert_with(empty);
    if let Some(annotations) = annotations.as_object_mut() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        annotations.insert(ANNOTATION.to_owned(), note.into());
    }
}

fn give(limit: &Value, container: &mut Value, kind: &str, notes: &mut Vec<String>) {
    for (from, to, word) in [
        ("defaultRequest", "requests", "request"),
        ("default", "limits", "limit"),
    ] {
        let mut given = Vec::new();
        for (name, amount) in entries(limit, from) {
            if get(get(container, "resources"), to).get(name).is_none() {
                default_absent(container, "resources", empty());
                default_absent(&mut container["resources"], to, empty());
                default_absent(&mut container["resources"][to], name, amount.clone());
                given.push(name.as_str());
            }
        }
        if !given.is_empty() {
            given.sort_unstable();
            let name = text(container, "name");
            notes.push(format!("{} {word} for {kind} {name}", given.join(", ")));
        }
    }
}

fn amount(amounts: &Value, name: &str) -> Option<Quantity> {
    Quantity::parse(amounts.get(name)?.as_str()?).ok()
}

/// Requests and limits that are looked at as one.
struct Holder<'a> {
    kind: &'a str,
    request: &'a dyn Fn(&str) -> Option<Quantity>,
    limit: &'a dyn Fn(&str) -> Option<Quantity>,
}

/// What of an object a LimitRange does not let through; `plural` is `pods` or `persistentvolumeclaims`.
pub fn violations(range: &Value, plural: &str, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let spec = get(object, "spec");
    for limit in list(get(range, "spec"), "limits") {
        match (text(limit, "type"), plural) {
            ("Container", "pods") => {
                let containers = list(spec, "containers")
                    .iter()
                    .chain(list(spec, "initContainers"));
                for container in containers {
                    let resources = get(container, "resources");
                    let holder = Holder {
                        kind: "Container",
                        request: &|name| amount(get(resources, "requests"), name),
                        limit: &|name| amount(get(resources, "limits"), name),
                    };
                    check(limit, &holder, &mut found);
                }
            }
            ("Pod", "pods") => {
                let (requests, limits) = (pod_total(spec, "requests"), pod_total(spec, "limits"));
                let holder = Holder {
                    kind: "Pod",
                    request: &|name| requests.get(name).copied(),
                    limit: &|name| limits.get(name).copied(),
                };
                check(limit, &holder, &mut found);
            }
            ("PersistentVolumeClaim", "persistentvolumeclaims") => claim(limit, spec, &mut found),
            _ => {}
        }
    }
    found
}

fn check(limit: &Value, holder: &Holder<'_>, found: &mut Vec<String>) {
    let kind = holder.kind;
    let bounds = |field| {
        entries(limit, field).filter_map(|(name, _)| Some((name, amount(get(limit, field), name)?)))
    };
    for (name, min) in bounds("min") {
        let head = format!("minimum {name} usage per {kind} is {min}");
        match ((holder.request)(name), (holder.limit)(name)) {
            (None, _) => found.push(format!("{head}.  No request is specified")),
            (Some(request), _) if request < min => {
                found.push(format!("{head}, but request is {request}"))
            }
            (_, Some(limit)) if limit < min => found.push(format!("{head}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, max) in bounds("max") {
        let head = format!("maximum {name} usage per {kind} is {max}");
        match ((holder.request)(name), (holder.limit)(name)) {
            (_, None) => found.push(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if limit > max => found.push(format!("{head}, but limit is {limit}")),
            (Some(request), _) if request > max => {
                found.push(format!("{head}, but request is {request}"))
            }
            _ => {}
        }
    }
    for (name, ratio) in bounds("maxLimitRequestRatio") {
        let head = format!("{name} max limit to request ratio per {kind} is {ratio}");
        let some = |amount: Option<Quantity>| amount.filter(|amount| !amount.is_zero());
        match (some((holder.request)(name)), some((holder.limit)(name))) {
            (None, _) => found.push(format!(
                "{head}, but no request is specified or request is 0"
            )),
            (_, None) => found.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let observed = limit.milli() as f64 / request.milli() as f64;
                if observed > ratio.milli() as f64 / 1000.0 {
                    found.push(format!("{head}, but provided ratio is {observed:.6}"));
                }
            }
        }
    }
}

fn claim(limit: &Value, spec: &Value, found: &mut Vec<String>) {
    let requests = get(get(spec, "resources"), "requests");
    let Some(request) = amount(requests, "storage") else {
        return;
    };
    for (field, word, is_wrong) in [
        (
            "min",
            "minimum",
            (|request, bound| request < bound) as fn(Quantity, Quantity) -> bool,
        ),
        ("max", "maximum", |request, bound| request > bound),
    ] {
        if let Some(bound) = amount(get(limit, field), "storage")
            && is_wrong(request, bound)
        {
            found.push(format!(
                "{word} storage usage per PersistentVolumeClaim is {bound}, but request is {request}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(limit: Value) -> Value {
        json!({"spec": {"limits": [limit]}})
    }

    #[test]
    fn containers_get_what_they_do_not_name() {
        let range = range(json!({
            "type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"},
        }));
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "3"}}}],
        }});
        apply_defaults(&range, &mut pod);
        assert_eq!(
            pod["spec"]["containers"],
            json!([
                {"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "1Gi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "3", "memory": "1Gi"}}},
            ])
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; memory limit for \
             container b"
        );
        let once = pod.clone();
        apply_defaults(&range, &mut pod);
        assert_eq!(pod, once);
    }

    #[test]
    fn what_is_out_of_bounds_is_told_in_the_words_of_kubernetes() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
        for (limit, object, expected) in [
            (
                json!({"type": "Container", "max": {"memory": "1Gi"}}),
                pod(json!({"limits": {"memory": "1Gi"}})),
                vec![],
            ),
            (
                json!({"type": "Container", "max": {"memory": "1Gi"}}),
                pod(json!({"limits": {"memory": "2Gi"}})),
                vec!["maximum memory usage per Container is 1Gi, but limit is 2Gi"],
            ),
            (
                json!({"type": "Container", "max": {"memory": "1Gi"}, "min": {"cpu": "1"}}),
                pod(json!({})),
                vec![
                    "minimum cpu usage per Container is 1.  No request is specified",
                    "maximum memory usage per Container is 1Gi.  No limit is specified",
                ],
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "1"}}),
                pod(json!({"requests": {"cpu": "500m"}})),
                vec!["minimum cpu usage per Pod is 1, but request is 500m"],
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "2"}})),
                vec![
                    "cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000",
                ],
            ),
        ] {
            assert_eq!(violations(&range(limit), "pods", &object), expected);
        }
        let limit = json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}});
        let claim = json!({"spec": {"resources": {"requests": {"storage": "500Mi"}}}});
        assert_eq!(
            violations(&range(limit), "persistentvolumeclaims", &claim),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi"]
        );
    }
}
