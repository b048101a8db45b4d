//! `pods/eviction`: a deletion that a disruption budget may refuse.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use wherry_api::{
    Resource, Status, meta,
    selector::LabelSelector,
    status::{StatusCause, StatusDetails},
};
use wherry_store::{KeyValue, StoreError};

use crate::{
    answer::{self, Answer},
    call::{self, Call},
    stored,
    verbs::{
        CONFLICT_TRIES_MAX,
        delete::{DeleteOptions, delete_object},
        durability, store_status,
    },
};

/// When an eviction may be tried again that was refused because others are being looked at. One that a budget has no room
/// for says no time, as in Kubernetes: clients would wait it out ten times, beyond their own time-outs.
const RETRY_SECONDS: u32 = 10;
/// Evictions that a budget remembers until their pods are seen to go (`MaxDisruptedPodSize`).
const DISRUPTED_MAX: usize = 2_000;

pub(super) async fn evict(call: &Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let (eviction, _) = call::read_value(headers, body)?;
    let name = meta::name(&eviction);
    if !name.is_empty() && name != call.name() {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Eviction object: {} != {name}",
            call.name()
        )));
    }
    let options = match eviction.get("deleteOptions") {
        None | Some(Value::Null) => DeleteOptions::default(),
        Some(options) => serde_json::from_value(options.clone())
            .map_err(|error| Status::bad_request(error.to_string()))?,
    };
    ask_budget(call, options.is_dry_run(call)?).await?;
    delete_object(call, call.name(), &options).await?;
    let created = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::value(call.accept, StatusCode::CREATED, &created))
}

fn budgets() -> &'static Resource {
    wherry_api::find("policy", "v1", "poddisruptionbudgets").expect("a row")
}

/// Takes one disruption from the pod's budget, if it has one.
async fn ask_budget(call: &Call, is_dry_run: bool) -> Result<(), Status> {
    let store = &call.app.store;
    let fail = |error| store_status(budgets(), "", error);
    for _ in 0..CONFLICT_TRIES_MAX {
        let key = stored::key(call.resource, call.namespace(), call.name());
        let (pod, _) = store
            .get(&key)
            .await
            .map_err(|error| store_status(call.resource, call.name(), error))?;
        let pod = pod.ok_or_else(|| Status::not_found(call.resource, call.name()))?;
        let pod = stored::decode(&pod);
        if is_free(&pod) {
            return Ok(());
        }
        let prefix = stored::collection(budgets(), call.namespace());
        let all = store.list(&prefix, None, 0, 0).await.map_err(fail)?.items;
        let mut mine: Vec<(KeyValue, Value)> = all
            .into_iter()
            .map(|kv| {
                let budget = stored::decode(&kv);
                (kv, budget)
            })
            .filter(|(_, budget)| covers(budget, &pod))
            .collect();
        if mine.len() > 1 {
            let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::internal(message));
        }
        let Some((kv, budget)) = mine.pop() else {
            return Ok(());
        };
        let now = meta::format_time(Timestamp::now());
        let Some(changed) = take(&budget, &pod, &now)? else {
            return Ok(());
        };
        if is_dry_run {
            return Ok(());
        }
        let value = stored::encode(budgets(), &changed);
        let written = store
            .update(&kv.key, value, kv.mod_revision, durability(budgets()))
            .await;
        match written {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    let message = "couldn't update PodDisruptionBudget due to conflicts";
    Err(Status::too_many_requests(message, RETRY_SECONDS))
}

/// Whoever does no work is missed by nobody.
fn is_free(pod: &Value) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    matches!(phase, None | Some("" | "Pending" | "Succeeded" | "Failed")) || meta::is_deleting(pod)
}

fn covers(budget: &Value, pod: &Value) -> bool {
    let selector = budget.pointer("/spec/selector");
    let selector = selector.filter(|selector| !selector.is_null());
    selector
        .and_then(|selector| LabelSelector::from_value(selector).ok())
        .is_some_and(|selector| selector.matches(meta::labels(pod)))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The budget with one disruption less; `None`: the pod does not count, and may go.
fn take(budget: &Value, pod: &Value, now: &str) -> Result<Option<Value>, Status> {
    let name = meta::name(budget);
    let number = |field: &str| {
        let path = format!("/status/{field}");
        budget.pointer(&path).and_then(Value::as_i64).unwrap_or(0)
    };
    let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
    if !is_ready(pod) {
        let policy = budget.pointer("/spec/unhealthyPodEvictionPolicy");
        let may_go = match policy.and_then(Value::as_str) {
            Some("AlwaysAllow") => true,
            _ => healthy >= desired && desired > 0,
        };
        if may_go {
            return Ok(None);
        }
    }
    if number("observedGeneration") < meta::generation(budget) {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refusal(pod, why).with_retry_after_seconds(RETRY_SECONDS));
    }
    let allowed = number("disruptionsAllowed");
    if allowed <= 0 {
        let why = format!(
            "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
        );
        return Err(refusal(pod, why));
    }
    let mut changed = budget.clone();
    changed["status"]["disruptionsAllowed"] = (allowed - 1).into();
    let disrupted = &mut changed["status"]["disruptedPods"];
    if !disrupted.is_object() {
        *disrupted = Value::Object(Map::new());
    }
    if disrupted
        .as_object()
        .is_some_and(|pods| pods.len() > DISRUPTED_MAX)
    {
        let detail =
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden(budgets(), name, detail));
    }
    disrupted[meta::name(pod)] = now.into();
    Ok(Some(changed))
}

fn refusal(pod: &Value, why: String) -> Status {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let details = StatusDetails {
        name: meta::name(pod).to_owned(),
        kind: "pods".to_owned(),
        causes: vec![StatusCause {
            reason: "DisruptionBudget".to_owned(),
            message: why,
            field: String::new(),
        }],
        ..StatusDetails::default()
    };
    Status::failure(429, "TooManyRequests", message).with_details(details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(more: Value) -> Value {
        let mut budget = json!({
            "metadata": {"name": "web", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "web"}}},
            "status": {
                "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 3, "desiredHealthy": 2,
            },
        });
        for (path, value) in more.as_object().unwrap() {
            *budget.pointer_mut(path).unwrap() = value.clone();
        }
        budget
    }

    fn pod(phase: &str, ready: &str) -> Value {
        json!({
            "metadata": {"name": "web-1", "labels": {"app": "web"}},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    #[test]
    fn a_budget_gives_what_it_has() {
        let ready = pod("Running", "True");
        let changed = take(&budget(json!({})), &ready, "now").unwrap().unwrap();
        assert_eq!(changed["status"]["disruptionsAllowed"], 0);
        assert_eq!(changed["status"]["disruptedPods"], json!({"web-1": "now"}));
        let refused = take(&changed, &ready, "now").unwrap_err();
        assert_eq!(refused.code, 429);
        assert_eq!(
            refused.message,
            "Cannot evict pod as it would violate the pod's disruption budget."
        );
        let details = refused.details.unwrap();
        assert_eq!(
            details.causes[0].message,
            "The disruption budget web needs 2 healthy pods and has 3 currently"
        );
        assert_eq!(details.retry_after_seconds, 0);
        let unseen = budget(json!({"/metadata/generation": 2}));
        let refused = take(&unseen, &ready, "now").unwrap_err();
        assert_eq!(refused.details.unwrap().retry_after_seconds, 10);
    }

    #[test]
    fn who_is_not_ready_goes_while_enough_others_are() {
        let sick = pod("Running", "False");
        let short = json!({"/status/currentHealthy": 1, "/status/disruptionsAllowed": 0});
        assert_eq!(take(&budget(json!({})), &sick, "now"), Ok(None));
        assert!(take(&budget(short.clone()), &sick, "now").is_err());
        let mut always = budget(short);
        always["spec"]["unhealthyPodEvictionPolicy"] = "AlwaysAllow".into();
        assert_eq!(take(&always, &sick, "now"), Ok(None));
    }

    #[test]
    fn budgets_are_for_pods_that_work() {
        for (phase, free) in [
            ("Running", false),
            ("Pending", true),
            ("Failed", true),
            ("Succeeded", true),
        ] {
            assert_eq!(is_free(&pod(phase, "True")), free, "{phase}");
        }
        assert!(covers(&budget(json!({})), &pod("Running", "True")));
        assert!(!covers(&json!({"spec": {}}), &pod("Running", "True")));
    }
}
