//! Workloads as users write them: defaults, complaints, printed rows.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{Resource, find};

fn row(group: &str, plural: &str) -> &'static Resource {
    find(group, "v1", plural).unwrap()
}

fn template(labels: Value) -> Value {
    json!({
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "web", "image": "nginx"}]},
    })
}

/// As it would be stored.
fn made(resource: &Resource, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": resource.api_version(),
        "kind": resource.kind,
        "metadata": {
            "name": "web",
            "namespace": "default",
            "uid": "u-1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec,
    });
    resource.strategy.default(&mut object);
    resource.strategy.prepare_create(&mut object);
    object
}

fn complaints(resource: &Resource, spec: Value) -> Vec<String> {
    resource
        .validate_create(&made(resource, spec))
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().unwrap()
}

fn selected(more: Value) -> Value {
    let mut spec = json!({
        "selector": {"matchLabels": {"app": "web"}},
        "template": template(json!({"app": "web"})),
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

#[test]
fn a_deployment_gets_kubernetes_defaults() {
    let made = made(row("apps", "deployments"), selected(json!({})));
    let spec = &made["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(spec["revisionHistoryLimit"], 10);
    assert_eq!(spec["progressDeadlineSeconds"], 600);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["restartPolicy"], "Always");
    assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always");
    assert!(
        pod.get("enableServiceLinks").is_none(),
        "that is for the pod, not for its template"
    );
}

#[test]
fn what_makes_no_sense_is_refused_in_kubernetes_words() {
    for (group, plural, spec, complaint) in [
        (
            "apps",
            "deployments",
            json!({"template": template(json!({"app": "web"}))}),
            "spec.selector: Required value",
        ),
        (
            "apps",
            "deployments",
            selected(json!({"selector": {}})),
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
        ),
        (
            "apps",
            "deployments",
            selected(json!({"template": template(json!({"app": "api"}))})),
            "spec.template.metadata.labels: Invalid value: {\"app\":\"api\"}: `selector` does not match template \
             `labels`",
        ),
        (
            "apps",
            "deployments",
            selected(json!({"replicas": -1})),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "apps",
            "deployments",
            selected(json!({"strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}})),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            "apps",
            "deployments",
            selected(json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}})),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            "apps",
            "deployments",
            selected(json!({"progressDeadlineSeconds": 5, "minReadySeconds": 5})),
            "spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds",
        ),
        (
            "apps",
            "replicasets",
            {
                let mut spec = selected(json!({}));
                spec["template"]["spec"]["restartPolicy"] = "Never".into();
                spec
            },
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            "",
            "replicationcontrollers",
            json!({"selector": {"app": "web"}}),
            "spec.template: Required value",
        ),
        (
            "batch",
            "jobs",
            json!({"template": template(json!({}))}),
            "spec.template.spec.restartPolicy: Unsupported value: \"Always\": supported values: \"OnFailure\", \
             \"Never\"",
        ),
        (
            "batch",
            "cronjobs",
            json!({"schedule": "every day", "jobTemplate": {"spec": {"template": template(json!({}))}}}),
            "spec.schedule: Invalid value: \"every day\": expected exactly 5 fields, found 2: [every day]",
        ),
        (
            "batch",
            "cronjobs",
            json!({
                "schedule": "@daily",
                "timeZone": "Mars/Olympus",
                "jobTemplate": {"spec": {"template": template(json!({}))}},
            }),
            "spec.timeZone: Invalid value: \"Mars/Olympus\": unknown time zone Mars/Olympus",
        ),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"minAvailable": "150%"}),
            "spec.minAvailable: Invalid value: \"150%\": must not be greater than 100%",
        ),
    ] {
        let found = complaints(row(group, plural), spec);
        assert!(
            found.iter().any(|text| text == complaint),
            "{plural}: {complaint}\nfound {found:#?}"
        );
    }
}

#[test]
fn what_is_right_is_taken() {
    for (group, plural, spec) in [
        ("apps", "deployments", selected(json!({"replicas": 0}))),
        ("apps", "replicasets", selected(json!({}))),
        ("apps", "daemonsets", selected(json!({}))),
        (
            "apps",
            "statefulsets",
            selected(json!({
                "serviceName": "web",
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
            })),
        ),
        (
            "",
            "replicationcontrollers",
            json!({"template": template(json!({"app": "web"}))}),
        ),
        ("batch", "jobs", {
            let mut spec = json!({"template": template(json!({}))});
            spec["template"]["spec"]["restartPolicy"] = "Never".into();
            spec
        }),
        ("batch", "cronjobs", {
            let mut job = json!({"template": template(json!({}))});
            job["template"]["spec"]["restartPolicy"] = "OnFailure".into();
            json!({"schedule": "*/5 * * * *", "jobTemplate": {"spec": job}})
        }),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}),
        ),
    ] {
        assert_eq!(
            complaints(row(group, plural), spec),
            Vec::<String>::new(),
            "{plural}"
        );
    }
}

#[test]
fn a_status_adds_up() {
    const WHOLE: &str = "cannot be greater than status.replicas";
    for (group, plural, status, complaints) in [
        (
            "apps",
            "deployments",
            json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 2, "updatedReplicas": 3}),
            vec![
                format!("status.updatedReplicas: Invalid value: 3: {WHOLE}"),
                "status.availableReplicas: Invalid value: 2: cannot be greater than readyReplicas".to_owned(),
            ],
        ),
        (
            "apps",
            "replicasets",
            json!({"replicas": 1, "fullyLabeledReplicas": 2, "observedGeneration": -1}),
            vec![
                "status.observedGeneration: Invalid value: -1: must be greater than or equal to 0".to_owned(),
                format!("status.fullyLabeledReplicas: Invalid value: 2: {WHOLE}"),
            ],
        ),
        (
            "",
            "replicationcontrollers",
            json!({"replicas": 1, "readyReplicas": 2}),
            vec![format!("status.readyReplicas: Invalid value: 2: {WHOLE}")],
        ),
        (
            "apps",
            "statefulsets",
            json!({"replicas": 1, "availableReplicas": 1, "currentReplicas": 2, "collisionCount": 1}),
            vec![
                format!("status.currentReplicas: Invalid value: 2: {WHOLE}"),
                "status.availableReplicas: Invalid value: 1: cannot be greater than status.readyReplicas".to_owned(),
                "status.collisionCount: Invalid value: 1: cannot be decremented".to_owned(),
            ],
        ),
        (
            "apps",
            "daemonsets",
            json!({"numberReady": -1, "collisionCount": 2}),
            vec!["status.numberReady: Invalid value: -1: must be greater than or equal to 0".to_owned()],
        ),
        (
            "apps",
            "statefulsets",
            json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1, "collisionCount": 2}),
            vec![],
        ),
    ] {
        let resource = row(group, plural);
        let keeps_collisions = status.get("collisionCount").is_some();
        let old = json!({"status": {"collisionCount": if keeps_collisions { 2 } else { 0 }}});
        let errors = resource.strategy.validate_update("status", &json!({"status": status}), &old);
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts, complaints, "{plural}");
    }
}

#[test]
fn a_selector_is_decided_once() {
    for plural in ["deployments", "replicasets", "daemonsets"] {
        let resource = row("apps", plural);
        let old = made(resource, selected(json!({})));
        let mut new = old.clone();
        new["spec"]["selector"] = json!({"matchLabels": {"app": "api"}});
        new["spec"]["template"]["metadata"]["labels"] = json!({"app": "api"});
        let errors = resource.strategy.validate_update("", &new, &old);
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"api\"}}: field is immutable"
            ],
            "{plural}"
        );
    }
    let resource = row("apps", "statefulsets");
    let old = made(resource, selected(json!({"serviceName": "a"})));
    let mut new = old.clone();
    new["spec"]["serviceName"] = "b".into();
    assert!(
        resource.strategy.validate_update("", &new, &old)[0]
            .to_string()
            .starts_with("spec: Forbidden: updates to statefulset spec for fields other than")
    );
}

#[test]
fn how_many_pods_of_a_statefulset_may_be_unavailable_is_at_least_one() {
    let resource = row("apps", "statefulsets");
    for (max, wanted) in [
        (json!(2), ""),
        (json!("50%"), ""),
        (json!(0), "Invalid value: 0: cannot be 0"),
        (json!("0%"), "Invalid value: \"0%\": cannot be 0"),
        (
            json!(-1),
            "Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            json!("101%"),
            "Invalid value: \"101%\": must not be greater than 100%",
        ),
    ] {
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": max}});
        let set = made(resource, selected(json!({"updateStrategy": strategy})));
        let errors = resource.strategy.validate_create(&set);
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        let at = "spec.updateStrategy.rollingUpdate.maxUnavailable";
        let wanted: Vec<_> = (!wanted.is_empty())
            .then(|| format!("{at}: {wanted}"))
            .into_iter()
            .collect();
        assert_eq!(texts, wanted, "{max}");
    }
}

#[test]
fn a_job_knows_its_pods_by_its_uid() {
    let mut spec = json!({"template": template(json!({"a": "b"}))});
    spec["template"]["spec"]["restartPolicy"] = "Never".into();
    let job = made(row("batch", "jobs"), spec);
    assert_eq!(
        job["spec"]["selector"],
        json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}})
    );
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        *labels,
        json!({
            "a": "b",
            "batch.kubernetes.io/controller-uid": "u-1",
            "batch.kubernetes.io/job-name": "web",
            "controller-uid": "u-1",
            "job-name": "web",
        })
    );
}

#[test]
fn rows_show_what_kubectl_users_expect() {
    let cells = |group, plural, spec, status: Value| {
        let resource = row(group, plural);
        let mut object = made(resource, spec);
        object["status"] = status;
        resource.strategy.row(&object, now())
    };
    assert_eq!(
        cells(
            "apps",
            "deployments",
            selected(json!({"replicas": 3})),
            json!({"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2})
        ),
        json!(["web", "2/3", 3, 2, "60s", "web", "nginx", "app=web"])
            .as_array()
            .unwrap()
            .clone()
    );
    assert_eq!(
        cells(
            "",
            "replicationcontrollers",
            json!({"template": template(json!({"app": "web"}))}),
            json!({"replicas": 1})
        ),
        json!(["web", 1, 1, 0, "60s", "web", "nginx", "app=web"])
            .as_array()
            .unwrap()
            .clone()
    );
    let mut spec = json!({"template": template(json!({})), "completions": 2});
    spec["template"]["spec"]["restartPolicy"] = "Never".into();
    let status = json!({
        "succeeded": 2,
        "startTime": "2026-01-01T00:00:10Z",
        "completionTime": "2026-01-01T00:00:25Z",
        "conditions": [{"type": "Complete", "status": "True"}],
    });
    assert_eq!(
        cells("batch", "jobs", spec, status)[..5],
        json!(["web", "Complete", "2/2", "15s", "60s"])
            .as_array()
            .unwrap()[..]
    );
}
