//! Rules and rows of quotas, limits and autoscalers.

use serde_json::json;

use super::{cells, create_errors, created, find, row};

#[test]
fn what_is_wrong_with_amounts_is_told_in_the_words_of_kubernetes() {
    for (plural, object, errors) in [
        (
            "resourcequotas",
            json!({"spec": {"hard": {"pods": "2", "requests.cpu": "1", "count/jobs.batch": "3", "example.com/gpu": "1"}}}),
            vec![],
        ),
        (
            "resourcequotas",
            json!({"spec": {"hard": {"pods": "1500m", "cores": "1", "cpu": "-1"}}}),
            vec![
                "spec.hard[cores]: Invalid value: \"cores\": must be a standard resource type or fully qualified",
                "spec.hard[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
            ],
        ),
        (
            "resourcequotas",
            json!({"spec": {"hard": {"secrets": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}}),
            vec![
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: unsupported scope applied to resource",
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: unsupported scope applied to resource",
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes",
            ],
        ),
        (
            "limitranges",
            json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}}]}}),
            vec![],
        ),
        (
            "limitranges",
            json!({"spec": {"limits": [
                {"type": "Container", "min": {"cpu": "3"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "500m"}},
                {"type": "Pod", "default": {"cpu": "1"}},
                {"type": "PersistentVolumeClaim"},
            ]}}),
            vec![
                "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2",
                "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than default request value 2",
                "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than default value 2",
                "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
                "spec.limits[1].default: Forbidden: may not be specified when `type` is 'Pod'",
                "spec.limits[2].limits: Required value: either minimum or maximum storage value is required, but \
                 neither was provided",
            ],
        ),
        (
            "horizontalpodautoscalers",
            json!({"spec": {"minReplicas": 3, "maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": ""}}}),
            vec![
                "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`",
                "spec.scaleTargetRef.name: Required value",
            ],
        ),
    ] {
        assert_eq!(create_errors(plural, object), errors, "{plural}");
    }
}

#[test]
fn a_limit_is_a_request_where_none_is_named() {
    let range = json!({"spec": {"limits": [
        {"type": "Container", "max": {"cpu": "2"}, "default": {"memory": "1Gi"}, "min": {"ephemeral-storage": "1"}},
    ]}});
    let range = created(row("limitranges"), range);
    let limit = &range["spec"]["limits"][0];
    assert_eq!(limit["default"], json!({"cpu": "2", "memory": "1Gi"}));
    assert_eq!(
        limit["defaultRequest"],
        json!({"cpu": "2", "memory": "1Gi", "ephemeral-storage": "1"})
    );
}

#[test]
fn an_autoscaler_says_that_nothing_scales() {
    for version in ["v1", "v2"] {
        let resource = find("autoscaling", version, "horizontalpodautoscalers").expect("a row");
        let made = created(
            resource,
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "a"}}}),
        );
        let mut stored = made;
        if let Some(conversion) = resource.strategy.conversion() {
            (conversion.to_stored)(&mut stored);
        }
        assert_eq!(
            stored["status"]["conditions"][0]["reason"], "NoAutoscaler",
            "{version}"
        );
        assert_eq!(
            json!(cells("horizontalpodautoscalers", stored)),
            json!([
                "x",
                "Deployment/a",
                "cpu: <unknown>/80%",
                "1",
                3,
                0,
                "<unknown>"
            ])
        );
    }
}

#[test]
fn a_quota_shows_what_is_used() {
    let quota = json!({
        "metadata": {"name": "x"},
        "status": {"hard": {"pods": "2", "limits.cpu": "4", "cpu": "1"}, "used": {"pods": "1", "limits.cpu": "500m"}},
    });
    assert_eq!(
        json!(cells("resourcequotas", quota)),
        json!([
            "x",
            "cpu: 0/1, pods: 1/2",
            "limits.cpu: 500m/4",
            "<unknown>"
        ])
    );
}
