use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "uid": "u" }, "spec": spec })).expect("a pod")
}

fn resources(requests: Value, limits: Value) -> Value {
    json!({ "name": "a", "resources": { "requests": requests, "limits": limits } })
}

#[test]
fn the_class_decides_cgroup_and_oom_score() {
    let both = json!({ "cpu": "1", "memory": "1Gi" });
    let plain = json!({ "name": "b" });
    let table = [
        (
            json!([plain]),
            QosClass::BestEffort,
            "w/kubepods/besteffort/podu",
            1000,
        ),
        (
            json!([resources(json!({}), both.clone())]),
            QosClass::Guaranteed,
            "w/kubepods/podu",
            -997,
        ),
        (
            json!([resources(both.clone(), both.clone()), plain]),
            QosClass::Burstable,
            "w/kubepods/burstable/podu",
            900,
        ),
        (
            json!([resources(json!({ "memory": "1Gi" }), json!({}))]),
            QosClass::Burstable,
            "w/kubepods/burstable/podu",
            900,
        ),
        (
            json!([resources(json!({ "cpu": "1" }), json!({}))]),
            QosClass::Burstable,
            "w/kubepods/burstable/podu",
            999,
        ),
    ];
    for (containers, expected, cgroup, score) in table {
        let pod = pod(json!({ "containers": containers }));
        assert_eq!(class(&pod), expected, "{containers}");
        assert_eq!(cgroup_parent("w", &pod), cgroup);
        let first = &spec(&pod).containers[0];
        assert_eq!(oom_score_adj(&pod, first, 10 << 30), score, "{containers}");
    }
    let critical = pod(json!({ "priority": 2_000_001_000, "containers": [{ "name": "a" }] }));
    assert_eq!(
        oom_score_adj(&critical, &spec(&critical).containers[0], 1 << 30),
        -997
    );
}

#[test]
fn a_pod_has_what_its_steps_need_at_most_and_the_overhead_of_its_class() {
    let sized = |name: &str, cpu: &str, policy: Option<&str>| {
        let list = json!({ "cpu": cpu, "memory": "64Mi" });
        json!({ "name": name, "restartPolicy": policy, "resources": { "requests": list, "limits": list } })
    };
    let pod = pod(json!({
        "overhead": { "cpu": "250m", "memory": "16Mi" },
        "initContainers": [sized("s", "100m", Some("Always")), sized("i", "2", None)],
        "containers": [sized("a", "500m", None), sized("b", "500m", None)],
    }));
    // The init container beside the sidecar needs more than everything after it.
    assert_eq!(pod_request_millis(&pod, "cpu"), 2100 + 250);
    let limits = pod_resources(&pod, Some(100));
    assert_eq!(limits.cpu_quota_us, Some(235_000));
    assert_eq!(limits.memory_bytes_max, Some((3 * 64 + 16) << 20));
    assert_eq!(
        (limits.pids_max, limits.cpu_shares),
        (Some(100), Some(2406))
    );
}

#[test]
fn a_container_without_a_limit_leaves_its_pod_without_one_unless_the_pod_has_its_own() {
    let limited = resources(
        json!({}),
        json!({ "cpu": "1", "memory": "1Gi", "hugepages-2Mi": "4Mi" }),
    );
    let containers = json!([limited, { "name": "b" }]);
    let open = pod(json!({ "containers": containers }));
    let limits = pod_resources(&open, None);
    assert_eq!(
        (
            limits.cpu_quota_us,
            limits.memory_bytes_max,
            limits.pids_max
        ),
        (None, None, None)
    );
    assert_eq!(limits.hugepage_bytes_max, [("2MB".to_owned(), 4 << 20)]);
    let own = json!({ "limits": { "cpu": "2", "memory": "2Gi" } });
    let whole = pod(json!({ "resources": own, "containers": containers }));
    let limits = pod_resources(&whole, None);
    assert_eq!(
        (limits.cpu_quota_us, limits.memory_bytes_max),
        (Some(200_000), Some(2 << 30))
    );
    assert_eq!(class(&whole), QosClass::Guaranteed);
    assert_eq!(pod_request_millis(&whole, "cpu"), 2000);
}

#[test]
fn shares_and_quotas_stay_within_what_the_kernel_takes() {
    for (millis, shares) in [(0, 2), (1, 2), (1000, 1024), (10_000_000, 262_144)] {
        assert_eq!(cpu_shares(millis), shares, "{millis}");
    }
    for (millis, quota) in [(1, 1000), (10, 1000), (1500, 150_000)] {
        assert_eq!(cpu_quota_us(millis), quota, "{millis}");
    }
}
