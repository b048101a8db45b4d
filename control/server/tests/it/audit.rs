//! The audit log: what is in it, and what is not.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};
use wherry_server::{AuditConfig, PodSecurityConfig, UserInfo};
use wherry_store::MemoryStore;

use crate::harness::{PATIENCE, TestServer};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- level: Metadata
  resources: [{group: "", resources: ["secrets"]}]
- level: RequestResponse
  users: [jane]
  omitStages: [RequestReceived]
- level: None
"#;

/// Lines of the log about one path, once there are `count` of them.
async fn events(dir: &std::path::Path, path: &str, count: usize) -> Vec<Value> {
    let read = async {
        loop {
            let text = std::fs::read_to_string(dir.join("audit.log")).unwrap_or_default();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let lines = whole
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).expect("a line is an event"));
            let about: Vec<Value> = lines.filter(|event| event["requestURI"] == path).collect();
            if about.len() >= count {
                return about;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("events are written in time")
}

#[tokio::test]
async fn what_the_policy_names_is_logged_and_secrets_are_not_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let audit = AuditConfig {
        log_path: dir.path().join("audit.log"),
        policy: POLICY.to_owned(),
        bytes_max: 1 << 20,
        backups_max: 1,
    };
    let server = TestServer::with(Arc::new(MemoryStore::default()), Some(audit)).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}});
    server.post(secrets, &secret).await.expect(201);
    let found = events(dir.path(), secrets, 2).await;
    assert_eq!(found[0]["stage"], "RequestReceived");
    let done = &found[1];
    assert_eq!(done["stage"], "ResponseComplete");
    assert_eq!(done["level"], "Metadata");
    assert_eq!(done["verb"], "create");
    assert_eq!(done["user"]["username"], "kubernetes-admin");
    assert_eq!(done["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(
        done["objectRef"],
        json!({"resource": "secrets", "namespace": "default", "name": "s", "apiVersion": "v1"})
    );
    assert_eq!(
        done["annotations"]["authorization.k8s.io/decision"],
        "allow"
    );
    assert_eq!(found[0]["auditID"], done["auditID"]);

    // Refused, with bodies; asked by the one the policy names.
    let jane = UserInfo::new("jane", &[]);
    let maps = "/api/v1/namespaces/default/configmaps";
    server
        .ask(
            &jane,
            Method::POST,
            maps,
            &json!({"metadata": {"name": "m"}}),
        )
        .await
        .expect(403);
    let found = events(dir.path(), maps, 1).await;
    assert_eq!(found.len(), 1, "the first stage is left out");
    assert_eq!(
        found[0]["annotations"]["authorization.k8s.io/decision"],
        "forbid"
    );
    assert_eq!(found[0]["responseStatus"]["reason"], "Forbidden");
    assert_eq!(found[0]["responseObject"]["code"], 403);
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    server
        .ask(
            &jane,
            Method::POST,
            whoami,
            &json!({"kind": "SelfSubjectReview"}),
        )
        .await
        .expect(201);
    let found = events(dir.path(), whoami, 1).await;
    assert_eq!(found[0]["requestObject"]["kind"], "SelfSubjectReview");
    assert_eq!(
        found[0]["responseObject"]["status"]["userInfo"]["username"],
        "jane"
    );

    // What no rule wants is not there.
    server
        .get("/api/v1/namespaces/default/pods")
        .await
        .expect(200);
    server.get(&format!("{secrets}/s")).await.expect(200);
    events(dir.path(), &format!("{secrets}/s"), 2).await;
    let text = std::fs::read_to_string(dir.path().join("audit.log")).unwrap();
    assert!(!text.contains("/pods"));
    assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg"));
}

#[tokio::test]
async fn a_watch_is_logged_when_it_begins_and_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let policy =
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata, verbs: [watch]}]";
    let audit = AuditConfig {
        log_path: dir.path().join("audit.log"),
        policy: policy.to_owned(),
        bytes_max: 1 << 20,
        backups_max: 1,
    };
    let server = TestServer::with(Arc::new(MemoryStore::default()), Some(audit)).await;
    let path = "/api/v1/namespaces/default/secrets?watch=1";
    let watch = server.watch(path).await;
    let stages = |found: &[Value]| {
        found
            .iter()
            .map(|event| event["stage"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        stages(&events(dir.path(), path, 2).await),
        ["RequestReceived", "ResponseStarted"]
    );
    drop(watch);
    assert_eq!(
        stages(&events(dir.path(), path, 3).await),
        ["RequestReceived", "ResponseStarted", "ResponseComplete"]
    );
}

#[tokio::test]
async fn what_pods_do_beyond_their_level_is_logged_and_who_is_exempt_is_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let audit = AuditConfig {
        log_path: dir.path().join("audit.log"),
        policy: "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}"
            .to_owned(),
        bytes_max: 1 << 20,
        backups_max: 1,
    };
    let config = PodSecurityConfig::parse(
        "{apiVersion: apiserver.config.k8s.io/v1, kind: AdmissionConfiguration, plugins: [{name: PodSecurity,
          configuration: {apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration,
          defaults: {enforce: baseline, audit: restricted}, exemptions: {namespaces: [free]}}}]}",
    );
    let server = TestServer::with_pod_security(config.expect("a configuration"), audit).await;
    for namespace in ["free", "own"] {
        let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
        let namespace = json!({"metadata": {"name": namespace, "labels": labels}});
        server
            .post("/api/v1/namespaces", &namespace)
            .await
            .expect(201);
        let account = json!({"metadata": {"name": "default"}});
        let namespace = namespace["metadata"]["name"].as_str().unwrap();
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        server.post(&path, &account).await.expect(201);
    }
    let account = json!({"metadata": {"name": "default"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    server.post(accounts, &account).await.expect(201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "i", "securityContext": {"privileged": true}}],
    }});
    for (namespace, code, annotations) in [
        (
            "default",
            403,
            json!({"enforce-policy": "baseline:latest", "audit-violations": true}),
        ),
        ("own", 201, json!({"audit-violations": true})),
        ("free", 201, json!({"exempt": "namespace"})),
    ] {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        server.post(&path, &pod).await.expect(code);
        let found = events(dir.path(), &path, 2).await;
        let logged = found[1]["annotations"].as_object().expect("annotations");
        let mut ours = json!({});
        for (key, text) in logged {
            if let Some(key) = key.strip_prefix("pod-security.kubernetes.io/") {
                ours[key] = if key == "audit-violations" {
                    let text = text.as_str().expect("a text");
                    text.starts_with("would violate PodSecurity \"restricted:latest\": ")
                        .into()
                } else {
                    text.clone()
                };
            }
        }
        assert_eq!(ours, annotations, "{namespace}");
    }
}

#[tokio::test]
async fn a_level_that_is_raised_names_the_pods_beyond_it_and_one_that_is_misspelt_is_refused() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces/default";
    let pod = |name: &str, context: Value| {
        json!({"metadata": {"name": name}, "spec": {
            "containers": [{"name": "c", "image": "i", "securityContext": context}],
        }})
    };
    for (name, context) in [
        ("a", json!({"privileged": true})),
        ("b", json!({"privileged": true})),
        ("c", json!({"procMount": "Default"})),
    ] {
        let pods = format!("{path}/pods");
        server.post(&pods, &pod(name, context)).await.expect(201);
    }
    let enforce = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    server.merge(path, &enforce("strict")).await.fails(
        422,
        "Invalid",
        "Namespace \"default\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \
         \"strict\": must be one of privileged, baseline, restricted",
    );
    let raised = server.merge(path, &enforce("baseline")).await.expect(200);
    let warnings: Vec<&str> = raised
        .headers
        .get_all(http::header::WARNING)
        .iter()
        .map(|value| value.to_str().expect("a text"))
        .collect();
    assert_eq!(
        warnings,
        [
            "299 - \"existing pods in namespace \\\"default\\\" violate the new PodSecurity enforce level \
             \\\"baseline:latest\\\"\"",
            "299 - \"a (and 1 other pod): privileged\"",
        ]
    );
    let lowered = server.merge(path, &enforce("privileged")).await.expect(200);
    assert!(!lowered.headers.contains_key(http::header::WARNING));
}
