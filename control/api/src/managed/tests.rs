//! Applying, updating, and whose is what afterwards.

use serde_json::{Value, json};

use super::{Act, ApplyError, apply, track_update};
use crate::Resource;

fn act<'a>(plural: &str, manager: &'a str, now: &'a str) -> Act<'a> {
    let resource: &'static Resource = crate::find("", "v1", plural).expect(plural);
    Act {
        resource,
        subresource: "",
        manager,
        now,
    }
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "ns"}, "data": data})
}

fn apply_map(live: &Value, manager: &str, data: Value, is_forced: bool) -> Result<Value, String> {
    apply(
        &act("configmaps", manager, "2024-01-01T00:00:00Z"),
        live,
        &map(data),
        is_forced,
    )
    .map_err(|error| error.to_string())
}

/// `manager operation: fields`, one for each entry.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .map(|entry| {
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            format!(
                "{} {}: {}",
                text("manager"),
                text("operation"),
                entry["fieldsV1"]
            )
        })
        .collect()
}

#[test]
fn what_is_applied_is_owned_and_what_is_left_out_goes() {
    let first = apply_map(&Value::Null, "a", json!({"x": "1", "y": "2"}), false).unwrap();
    assert_eq!(
        owners(&first),
        [r#"a Apply: {"f:data":{"f:x":{},"f:y":{}}}"#]
    );
    let again = apply_map(&first, "a", json!({"x": "1", "y": "2"}), false).unwrap();
    assert_eq!(again, first, "nothing changes, not even the time");
    let second = apply_map(&first, "a", json!({"x": "1"}), false).unwrap();
    assert_eq!(second["data"], json!({"x": "1"}));
    let other = apply_map(&second, "b", json!({"z": "3"}), false).unwrap();
    assert_eq!(
        other["data"],
        json!({"x": "1", "z": "3"}),
        "what others own stays"
    );
}

#[test]
fn managers_share_what_they_agree_on_and_conflict_about_the_rest() {
    let live = apply_map(&Value::Null, "a", json!({"x": "1", "y": "1"}), false).unwrap();
    let shared = apply_map(&live, "b", json!({"x": "1"}), false).unwrap();
    assert_eq!(
        owners(&shared),
        [
            r#"a Apply: {"f:data":{"f:x":{},"f:y":{}}}"#,
            r#"b Apply: {"f:data":{"f:x":{}}}"#
        ]
    );
    let left = apply_map(&shared, "a", json!({"y": "1"}), false).unwrap();
    assert_eq!(
        left["data"],
        json!({"x": "1", "y": "1"}),
        "the other still wants it"
    );
    assert_eq!(
        apply_map(&live, "b", json!({"x": "2"}), false).unwrap_err(),
        "Apply failed with 1 conflict: conflict with \"a\": .data.x"
    );
    assert_eq!(
        apply_map(&live, "b", json!({"x": "2", "y": "2"}), false).unwrap_err(),
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .data.x\n- .data.y"
    );
    let forced = apply_map(&live, "b", json!({"x": "2"}), true).unwrap();
    assert_eq!(forced["data"], json!({"x": "2", "y": "1"}));
    assert_eq!(
        owners(&forced),
        [
            r#"a Apply: {"f:data":{"f:y":{}}}"#,
            r#"b Apply: {"f:data":{"f:x":{}}}"#
        ]
    );
}

#[test]
fn an_update_takes_what_it_changes() {
    let live = apply_map(
        &Value::Null,
        "a",
        json!({"x": "1", "y": "1", "z": "1"}),
        false,
    )
    .unwrap();
    let mut new = live.clone();
    new["data"] = json!({"x": "2", "y": "1", "w": "1"});
    let now = "2024-01-02T00:00:00Z";
    track_update(&act("configmaps", "edit", now), &live, &mut new);
    assert_eq!(
        owners(&new),
        [
            r#"a Apply: {"f:data":{"f:y":{}}}"#,
            r#"edit Update: {"f:data":{"f:w":{},"f:x":{}}}"#
        ]
    );
    assert_eq!(
        apply_map(&new, "a", json!({"x": "1"}), false).unwrap_err(),
        format!("Apply failed with 1 conflict: conflict with \"edit\" using v1 at {now}: .data.x")
    );
    let mut same = new.clone();
    track_update(
        &act("configmaps", "edit", "2024-01-03T00:00:00Z"),
        &new,
        &mut same,
    );
    assert_eq!(same, new, "no change, no new time");
}

#[test]
fn what_was_there_before_anybody_was_recorded_is_nobodys_in_particular() {
    let live = map(json!({"x": "1"}));
    let mut new = map(json!({"x": "2"}));
    track_update(&act("configmaps", "edit", ""), &live, &mut new);
    assert_eq!(owners(&new), [""; 0]);
    let error = apply_map(&live, "a", json!({"x": "2"}), false).unwrap_err();
    assert!(
        error.contains("conflict with \"before-first-apply\" using v1"),
        "{error}"
    );
    let applied = apply_map(&live, "a", json!({"y": "1"}), false).unwrap();
    assert_eq!(applied["data"], json!({"x": "1", "y": "1"}));
}

#[test]
fn a_record_of_its_own_counts_and_an_empty_one_is_a_new_beginning() {
    let live = apply_map(&Value::Null, "a", json!({"x": "1"}), false).unwrap();
    let mut moved = live.clone();
    moved["metadata"]["managedFields"][0]["manager"] = "b".into();
    track_update(&act("configmaps", "edit", ""), &live, &mut moved);
    assert_eq!(owners(&moved), [r#"b Apply: {"f:data":{"f:x":{}}}"#]);
    let mut reset = live.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(&act("configmaps", "edit", ""), &live, &mut reset);
    assert_eq!(owners(&reset), [""; 0]);
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client_s_side() {
    let mut live = map(json!({"x": "1", "y": "1"}));
    let last = map(json!({"x": "1"})).to_string();
    live["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": last});
    let mut recorded = live.clone();
    track_update(
        &act("configmaps", "kubectl-client-side-apply", "t"),
        &Value::Null,
        &mut recorded,
    );
    let taken = apply_map(&recorded, "kubectl", json!({"x": "2"}), false).unwrap();
    assert_eq!(taken["data"]["x"], "2");
    let annotation =
        &taken["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    assert!(annotation.as_str().unwrap().contains(r#""x":"2""#));
    let error = apply_map(&recorded, "kubectl", json!({"x": "2", "y": "2"}), false).unwrap_err();
    assert_eq!(
        error,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1 at t: .data.y"
    );
}

fn pod(containers: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "ns"},
        "spec": {"containers": containers},
    })
}

#[test]
fn items_of_lists_are_told_apart_by_their_keys() {
    let apply_pod = |live: &Value, manager: &str, containers: Value| {
        apply(&act("pods", manager, "t"), live, &pod(containers), false)
    };
    let config = json!([{"name": "a", "image": "i", "ports": [{"containerPort": 80}], "args": ["x"]}, {"name": "b", "image": "i"}]);
    let mut live = apply_pod(&Value::Null, "one", config).unwrap();
    let pods = crate::find("", "v1", "pods").unwrap();
    pods.strategy.default(&mut live);
    let sidecar =
        json!([{"name": "c", "image": "i"}, {"name": "a", "env": [{"name": "E", "value": "1"}]}]);
    let both = apply_pod(&live, "two", sidecar).unwrap();
    let names: Vec<&str> = both["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|container| container["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["c", "a", "b"]);
    assert_eq!(both["spec"]["containers"][1]["image"], "i");
    let error = apply_pod(
        &both,
        "two",
        json!([{"name": "a", "args": ["y"], "ports": [{"containerPort": 80, "hostPort": 1}]}]),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "Apply failed with 1 conflict: conflict with \"one\": .spec.containers[name=\"a\"].args"
    );
    let gone = apply_pod(
        &both,
        "one",
        json!([{"name": "a", "image": "i", "args": ["x"]}]),
    )
    .unwrap();
    let containers = gone["spec"]["containers"].as_array().unwrap();
    assert_eq!(
        containers.len(),
        2,
        "an item goes with its defaults: {containers:?}"
    );
    assert_eq!(containers[1]["ports"], Value::Null);
    let twice = apply_pod(&Value::Null, "one", json!([{"name": "a"}, {"name": "a"}]));
    assert_eq!(
        twice.unwrap_err(),
        ApplyError::Invalid(
            "failed to create typed patch object (ns/a; v1, Kind=Pod): .spec.containers: duplicate entries for key \
             {\"name\":\"a\"}"
                .to_owned()
        )
    );
}

#[test]
fn a_structure_goes_with_the_defaults_that_came_with_it() {
    let probe = json!({"httpGet": {"port": 80}});
    let with = pod(json!([{"name": "a", "image": "i", "livenessProbe": probe}]));
    let mut live = apply(&act("pods", "one", "t"), &Value::Null, &with, false).unwrap();
    crate::find("", "v1", "pods")
        .unwrap()
        .strategy
        .default(&mut live);
    assert!(live["spec"]["containers"][0]["livenessProbe"]["periodSeconds"].is_number());
    let without = pod(json!([{"name": "a", "image": "i"}]));
    let new = apply(&act("pods", "one", "t"), &live, &without, false).unwrap();
    assert_eq!(new["spec"]["containers"][0]["livenessProbe"], Value::Null);
    assert_eq!(new["spec"]["restartPolicy"], "Always");
}

#[test]
fn status_is_owned_by_those_who_write_it() {
    let mut live = pod(json!([{"name": "a", "image": "i"}]));
    live["status"] = json!({"phase": "Pending"});
    track_update(&act("pods", "maker", "t"), &Value::Null, &mut live);
    assert_eq!(
        owners(&live),
        [
            r#"maker Update: {"f:spec":{"f:containers":{".":{},"k:{\"name\":\"a\"}":{".":{},"f:image":{},"f:name":{}}}}}"#
        ]
    );
    let mut new = live.clone();
    new["status"] = json!({"phase": "Running"});
    let kubelet = Act {
        subresource: "status",
        ..act("pods", "kubelet", "u")
    };
    track_update(&kubelet, &live, &mut new);
    let entry = &new["metadata"]["managedFields"][1];
    assert_eq!(
        (&entry["manager"], &entry["subresource"], &entry["fieldsV1"]),
        (
            &json!("kubelet"),
            &json!("status"),
            &json!({"f:status": {"f:phase": {}}})
        )
    );
}

#[test]
fn updaters_of_old_become_one() {
    let mut live = map(json!({"k": "0"}));
    track_update(&act("configmaps", "m00", "t00"), &Value::Null, &mut live);
    for i in 1..15 {
        let mut new = live.clone();
        new["data"][format!("k{i}")] = "1".into();
        let (manager, now) = (format!("m{i:02}"), format!("t{i:02}"));
        track_update(&act("configmaps", &manager, &now), &live, &mut new);
        live = new;
    }
    let owners = owners(&live);
    assert_eq!(owners.len(), 10);
    assert!(
        owners
            .iter()
            .any(|owner| owner.starts_with("ancient-changes Update")),
        "{owners:?}"
    );
}
