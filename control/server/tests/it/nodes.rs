//! What an agent may see and do: its own node, its own pods, and what they name.

use http::Method;
use serde_json::{Value, json};
use wherry_server::UserInfo;

use crate::harness::TestServer;

const NS: &str = "/api/v1/namespaces/default";

/// A server with nodes `a` and `b`, a pod on each, and what they name.
async fn server() -> TestServer {
    let server = TestServer::start().await;
    for node in ["a", "b"] {
        server
            .post("/api/v1/nodes", &json!({"metadata": {"name": node}}))
            .await
            .expect(201);
        for (plural, name) in [("secrets", "key"), ("configmaps", "settings")] {
            let object = json!({"metadata": {"name": format!("{name}-{node}")}});
            server
                .post(&format!("{NS}/{plural}"), &object)
                .await
                .expect(201);
        }
        let pod = json!({"metadata": {"name": format!("pod-{node}")}, "spec": {
            "nodeName": node, "serviceAccountName": "default",
            "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": format!("key-{node}")}}]}],
            "volumes": [
                {"name": "s", "configMap": {"name": format!("settings-{node}")}},
                {"name": "d", "persistentVolumeClaim": {"claimName": format!("claim-{node}")}},
            ],
        }});
        server.post(&format!("{NS}/pods"), &pod).await.expect(201);
        let claim = json!({"metadata": {"name": format!("claim-{node}")}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        }});
        server
            .post(&format!("{NS}/persistentvolumeclaims"), &claim)
            .await
            .expect(201);
        let volume = json!({"metadata": {"name": format!("pv-{node}")}, "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "claimRef": {"namespace": "default", "name": format!("claim-{node}")},
            "csi": {"driver": "d", "volumeHandle": "h", "nodePublishSecretRef": {"name": format!("deep-{node}"), "namespace": "kube-system"}},
        }});
        server
            .post("/api/v1/persistentvolumes", &volume)
            .await
            .expect(201);
        let secret = json!({"metadata": {"name": format!("deep-{node}")}});
        server
            .post("/api/v1/namespaces/kube-system/secrets", &secret)
            .await
            .expect(201);
    }
    server
}

#[tokio::test]
async fn an_agent_reads_what_its_own_pods_name_and_nothing_else() {
    let server = server().await;
    let node = UserInfo::node("a");
    for (path, code) in [
        (format!("{NS}/secrets/key-a"), 200),
        (format!("{NS}/secrets/key-b"), 403),
        (format!("{NS}/secrets"), 403),
        (
            format!("{NS}/secrets?fieldSelector=metadata.name%3Dkey-a"),
            200,
        ),
        (
            format!("{NS}/secrets?fieldSelector=metadata.name%3Dkey-b"),
            403,
        ),
        ("/api/v1/secrets".to_owned(), 403),
        (format!("{NS}/configmaps/settings-a"), 200),
        (format!("{NS}/configmaps/settings-b"), 403),
        (format!("{NS}/persistentvolumeclaims/claim-a"), 200),
        (format!("{NS}/persistentvolumeclaims/claim-b"), 403),
        ("/api/v1/persistentvolumes/pv-a".to_owned(), 200),
        ("/api/v1/persistentvolumes/pv-b".to_owned(), 403),
        (
            "/api/v1/namespaces/kube-system/secrets/deep-a".to_owned(),
            200,
        ),
        (
            "/api/v1/namespaces/kube-system/secrets/deep-b".to_owned(),
            403,
        ),
        (format!("{NS}/serviceaccounts/default"), 200),
        (format!("{NS}/pods/pod-a"), 200),
        (format!("{NS}/pods/pod-b"), 403),
        (format!("{NS}/pods/gone"), 404),
        ("/api/v1/pods".to_owned(), 403),
        (
            "/api/v1/pods?fieldSelector=spec.nodeName%3Da".to_owned(),
            200,
        ),
        (
            "/api/v1/pods?fieldSelector=spec.nodeName%3Db".to_owned(),
            403,
        ),
        ("/api/v1/nodes".to_owned(), 200),
        ("/api/v1/services".to_owned(), 200),
        ("/apis/apps/v1/deployments".to_owned(), 403),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles".to_owned(),
            403,
        ),
    ] {
        let answered = server.ask(&node, Method::GET, &path, &Value::Null).await;
        assert_eq!(answered.code, code, "{path}: {}", answered.text);
    }
    server.ask(&node, Method::GET, &format!("{NS}/secrets/key-b"), &Value::Null).await.fails(
        403,
        "Forbidden",
        "secrets \"key-b\" is forbidden: User \"system:node:a\" cannot get resource \"secrets\" in API group \"\" in \
         the namespace \"default\": no relationship found between node 'a' and this object",
    );
    // A pod that comes opens what it names, and one that goes closes it.
    let pod = json!({"metadata": {"name": "more"}, "spec": {
        "nodeName": "a", "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "key-b"}}]}],
    }});
    server.post(&format!("{NS}/pods"), &pod).await.expect(201);
    server
        .ask(
            &node,
            Method::GET,
            &format!("{NS}/secrets/key-b"),
            &Value::Null,
        )
        .await
        .expect(200);
    server
        .delete(
            &format!("{NS}/pods/more"),
            &json!({"gracePeriodSeconds": 0}),
        )
        .await
        .expect(200);
    let path = format!("{NS}/secrets/key-b");
    let closed = async {
        while server
            .ask(&node, Method::GET, &path, &Value::Null)
            .await
            .code
            != 403
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, closed)
        .await
        .expect("the way is closed in time");
}

#[tokio::test]
async fn an_agent_writes_about_its_own_node_and_pods() {
    let server = server().await;
    let node = UserInfo::node("a");
    let mirror = |name: &str, node: &str| {
        json!({
            "metadata": {"name": name, "annotations": {"kubernetes.io/config.mirror": "h"}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        })
    };
    let plain = json!({"metadata": {"name": "plain"}, "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}]}});
    let token = |pod: &str| json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod}}});
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": "a"}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let label = |label: &str| json!({"metadata": {"labels": {label: "x"}}});
    let (post, patch, delete) = (Method::POST, Method::PATCH, Method::DELETE);
    for (method, path, body, code, why) in [
        (&post, format!("{NS}/pods"), mirror("static", "a"), 201, ""),
        (
            &post,
            format!("{NS}/pods"),
            mirror("foreign", "b"),
            403,
            "can only create pods with spec.nodeName set to itself",
        ),
        (
            &post,
            format!("{NS}/pods"),
            plain,
            403,
            "can only create mirror pods",
        ),
        (
            &patch,
            format!("{NS}/pods/pod-a/status"),
            json!({"status": {"message": "m"}}),
            200,
            "",
        ),
        (
            &patch,
            format!("{NS}/pods/pod-b/status"),
            json!({"status": {"message": "m"}}),
            403,
            "can only update pod status for pods with spec.nodeName",
        ),
        (
            &patch,
            format!("{NS}/pods/pod-a/status"),
            label("l"),
            403,
            "cannot update labels through pod status",
        ),
        (
            &patch,
            format!("{NS}/pods/pod-a"),
            label("l"),
            403,
            "cannot patch resource",
        ),
        (
            &patch,
            format!("{NS}/persistentvolumeclaims/claim-a/status"),
            json!({"status": {"capacity": {"storage": "2Gi"}, "conditions": [
                {"type": "FileSystemResizePending", "status": "True"},
            ]}}),
            200,
            "",
        ),
        (
            &patch,
            format!("{NS}/persistentvolumeclaims/claim-b/status"),
            json!({"status": {"capacity": {"storage": "2Gi"}}}),
            403,
            "no relationship found between node 'a' and this object",
        ),
        (
            &patch,
            format!("{NS}/persistentvolumeclaims/claim-a/status"),
            json!({"status": {"phase": "Lost"}}),
            403,
            "is not allowed to update fields other than",
        ),
        (
            &patch,
            format!("{NS}/persistentvolumeclaims/claim-a/status"),
            label("l"),
            403,
            "is not allowed to update fields other than",
        ),
        (
            &patch,
            format!("{NS}/persistentvolumeclaims/claim-a"),
            label("l"),
            403,
            "cannot patch resource",
        ),
        (
            &delete,
            format!("{NS}/pods/pod-b"),
            Value::Null,
            403,
            "can only delete pods with spec.nodeName set to itself",
        ),
        (
            &post,
            format!("{NS}/pods/pod-b/eviction"),
            json!({"metadata": {"name": "pod-b"}}),
            403,
            "can only evict pods",
        ),
        (
            &post,
            format!("{NS}/serviceaccounts/default/token"),
            token("pod-a"),
            201,
            "",
        ),
        (
            &post,
            format!("{NS}/serviceaccounts/default/token"),
            token("pod-b"),
            403,
            "bound to a pod scheduled on a different node",
        ),
        (
            &post,
            format!("{NS}/serviceaccounts/default/token"),
            json!({"spec": {}}),
            403,
            "not bound to a pod",
        ),
        (
            &patch,
            "/api/v1/nodes/a".into(),
            label("topology.kubernetes.io/zone"),
            200,
            "",
        ),
        (
            &patch,
            "/api/v1/nodes/a".into(),
            label("node-restriction.kubernetes.io/secure"),
            403,
            "is not allowed to modify labels: node-restriction.kubernetes.io/secure",
        ),
        (
            &patch,
            "/api/v1/nodes/a".into(),
            json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
            403,
            "is not allowed to modify taints",
        ),
        (
            &patch,
            "/api/v1/nodes/b".into(),
            label("l"),
            403,
            "only its own",
        ),
        (
            &patch,
            "/api/v1/nodes/b/status".into(),
            json!({"status": {}}),
            403,
            "only its own",
        ),
        (
            &delete,
            "/api/v1/nodes/a".into(),
            Value::Null,
            403,
            "cannot delete resource",
        ),
        (&post, leases.into(), lease("a"), 201, ""),
        (
            &post,
            leases.into(),
            lease("b"),
            403,
            "can only access node lease with the same name",
        ),
        (
            &post,
            "/apis/coordination.k8s.io/v1/namespaces/default/leases".into(),
            lease("a"),
            403,
            "can only access leases in the",
        ),
        (
            &delete,
            format!("{NS}/secrets/key-a"),
            Value::Null,
            403,
            "cannot delete resource",
        ),
        (&delete, format!("{NS}/pods/pod-a"), Value::Null, 200, ""),
    ] {
        let answered = server.ask(&node, method.clone(), &path, &body).await;
        assert_eq!(answered.code, code, "{method} {path}: {}", answered.text);
        if code == 403 {
            assert!(
                answered.message().contains(why),
                "{method} {path}: {}",
                answered.message()
            );
        }
    }
}

#[tokio::test]
async fn an_agent_that_registers_names_itself() {
    let server = TestServer::start().await;
    let node = UserInfo::node("a");
    for (name, labels, code) in [
        ("b", json!({}), 403),
        (
            "a",
            json!({"node-role.kubernetes.io/control-plane": ""}),
            403,
        ),
        ("a", json!({"kubernetes.io/os": "linux", "mine": "x"}), 201),
    ] {
        // Taints are an agent's to set when it registers, and not later.
        let body = json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]},
        });
        let answered = server
            .ask(&node, Method::POST, "/api/v1/nodes", &body)
            .await;
        assert_eq!(answered.code, code, "{name}: {}", answered.text);
    }
}
