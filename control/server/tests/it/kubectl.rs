//! Unmodified kubectl against the server over TLS.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::harness::{PATIENCE, TestServer};

struct Kubectl<'a>(&'a TestServer);

impl Kubectl<'_> {
    async fn run(&self, arguments: &[&str], input: &str) -> (bool, String, String) {
        let config = self.0.dir.path().join("kubeconfig");
        std::fs::write(&config, &self.0.admin_kubeconfig).unwrap();
        let mut child = Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", &config)
            .env("HOME", self.0.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl is installed");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .await
            .unwrap();
        let output = child.wait_with_output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    #[track_caller]
    fn ok(&self, arguments: &str, input: &str) -> impl Future<Output = String> {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let input = input.to_owned();
        async move {
            let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let (is_ok, out, error) = self.run(&words, &input).await;
            assert!(is_ok, "kubectl {words:?}: {error}");
            out
        }
    }

    /// Asks until it is done: roles are read a moment after they were written.
    async fn until(&self, arguments: &str, input: &str) {
        let words: Vec<&str> = arguments.split(' ').collect();
        let done = async { while !self.run(&words, input).await.0 {} };
        tokio::time::timeout(PATIENCE, done)
            .await
            .expect("kubectl does it in time");
    }

    async fn fails(&self, arguments: &str) -> String {
        let words: Vec<&str> = arguments.split(' ').collect();
        let (is_ok, _, error) = self.run(&words, "").await;
        assert!(!is_ok, "kubectl {words:?}");
        error
    }
}

const MAP: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, labels: {a: b}}\ndata: {k: v}\n";

#[tokio::test]
async fn kubectl_makes_reads_changes_and_removes() {
    let server = TestServer::start().await;
    let kubectl = Kubectl(&server);
    assert_eq!(kubectl.ok("apply -f -", MAP).await, "configmap/m created\n");
    assert_eq!(
        kubectl.ok("apply -f -", MAP).await,
        "configmap/m unchanged\n"
    );
    assert_eq!(
        kubectl.ok("apply -f -", &MAP.replace("k: v", "l: w")).await,
        "configmap/m configured\n"
    );
    assert_eq!(
        kubectl.ok("get cm m -o jsonpath={.data}", "").await,
        r#"{"l":"w"}"#
    );
    assert_eq!(
        kubectl.ok("get cm -l a=b -o name", "").await,
        "configmap/m\n"
    );
    assert!(
        kubectl
            .ok("get cm m", "")
            .await
            .starts_with("NAME   DATA   AGE\nm      1      ")
    );
    assert_eq!(
        kubectl.ok("label cm m c=d", "").await,
        "configmap/m labeled\n"
    );
    assert_eq!(
        kubectl.ok("annotate cm m e=f", "").await,
        "configmap/m annotated\n"
    );
    kubectl.ok(r#"patch cm m -p {"data":{"x":"y"}}"#, "").await;
    assert_eq!(
        kubectl.ok("replace -f -", MAP).await,
        "configmap/m replaced\n"
    );
    assert_eq!(
        kubectl.ok("delete cm m", "").await.trim(),
        r#"configmap "m" deleted"#
    );
    assert_eq!(
        kubectl.fails("get cm m").await,
        "Error from server (NotFound): configmaps \"m\" not found\n"
    );
}

#[tokio::test]
async fn kubectl_creates_by_protobuf() {
    let server = TestServer::start().await;
    let kubectl = Kubectl(&server);
    kubectl
        .ok("create configmap m --from-literal=a=b", "")
        .await;
    kubectl
        .ok("create secret generic s --from-literal=p=q", "")
        .await;
    assert_eq!(
        kubectl.ok("get secret s -o jsonpath={.data.p}", "").await,
        "cQ=="
    );
    kubectl.ok("create namespace n", "").await;
    kubectl
        .ok("create service nodeport np --tcp=80:8080", "")
        .await;
    assert_eq!(
        kubectl
            .ok("get svc np -o jsonpath={.spec.ports[0].targetPort}", "")
            .await,
        "8080"
    );
    assert_eq!(
        kubectl
            .ok("create token default", "")
            .await
            .trim()
            .split('.')
            .count(),
        3
    );
    assert_eq!(kubectl.ok("auth can-i create pods", "").await, "yes\n");
    assert!(
        kubectl
            .ok("auth whoami", "")
            .await
            .contains("kubernetes-admin")
    );
}

#[tokio::test]
async fn kubectl_finds_its_way() {
    let server = TestServer::start().await;
    let kubectl = Kubectl(&server);
    let (is_ok, version, warnings) = kubectl.run(&["version"], "").await;
    assert!(
        is_ok && version.contains("Server Version: v1.") && warnings.is_empty(),
        "{version}{warnings}"
    );
    assert!(
        kubectl
            .ok("cluster-info", "")
            .await
            .contains("is running at")
    );
    assert!(
        kubectl
            .ok("api-resources", "")
            .await
            .contains("runtimeclasses")
    );
    assert!(
        kubectl
            .ok("api-versions", "")
            .await
            .contains("coordination.k8s.io/v1")
    );
    let explained = kubectl.ok("explain pod.spec.containers.image", "").await;
    assert!(
        explained.contains("KIND:       Pod") && explained.contains("image <string>"),
        "{explained}"
    );
}

#[tokio::test]
async fn kubectl_runs_describes_and_deletes_a_pod() {
    let server = TestServer::start().await;
    let kubectl = Kubectl(&server);
    kubectl.ok("run web --image=nginx --port=80", "").await;
    let wide = kubectl.ok("get pods -o wide", "").await;
    assert!(
        wide.starts_with("NAME   READY   STATUS    RESTARTS   AGE")
            && wide.contains("web    0/1     Pending   0"),
        "{wide}"
    );
    assert!(
        kubectl
            .ok("describe pod web", "")
            .await
            .contains("Service Account:  default")
    );
    let object: Value = serde_json::from_str(&kubectl.ok("get pods -o json", "").await).unwrap();
    assert_eq!(object["items"][0]["kind"], "Pod");
    kubectl
        .ok("delete pod web --grace-period=0 --force", "")
        .await;
    assert_eq!(
        kubectl
            .ok(
                "get pods --field-selector=status.phase=Pending -A -o name",
                ""
            )
            .await,
        ""
    );
}

#[tokio::test]
async fn kubectl_says_what_is_wrong_with_a_manifest() {
    let server = TestServer::start().await;
    let kubectl = Kubectl(&server);
    let wrong = MAP.replace("\ndata:", "\ndta:");
    let (is_ok, _, error) = kubectl.run(&["create", "-f", "-"], &wrong).await;
    assert!(!is_ok);
    assert_eq!(
        error,
        "Error from server (BadRequest): error when creating \"STDIN\": ConfigMap in version \"v1\" cannot be handled as a \
         ConfigMap: strict decoding error: unknown field \"dta\"\n"
    );
}

#[tokio::test]
async fn top_shows_nodes_pods_and_containers() {
    let server = crate::proxy::with_pod().await;
    let capacity = json!({"status": {"allocatable": {"cpu": "1", "memory": "1Mi"}, "capacity": {"cpu": "1", "memory": "1Mi"}}});
    server
        .merge("/api/v1/nodes/n1/status", &capacity)
        .await
        .expect(200);
    let kubectl = Kubectl(&server);
    let nodes = kubectl.ok("top node --no-headers", "").await;
    assert!(
        nodes.starts_with("n1") && nodes.contains("250m") && nodes.contains("25%"),
        "{nodes}"
    );
    let pods = kubectl.ok("top pod --no-headers", "").await;
    assert!(pods.starts_with('a') && pods.contains("250m"), "{pods}");
    let containers = kubectl.ok("top pod a --containers --no-headers", "").await;
    assert_eq!(
        containers.split_whitespace().take(3).collect::<Vec<_>>(),
        ["a", "a", "250m"]
    );
    let component = kubectl.ok("get cs --no-headers", "").await;
    assert_eq!(component.matches(" Healthy ").count(), 3, "{component}");
}

#[tokio::test]
async fn debug_adds_a_container_and_a_patch_resizes_one() {
    let server = crate::proxy::with_pod().await;
    let kubectl = Kubectl(&server);
    kubectl
        .ok(
            "debug a --image=busybox:1 --target=a --container=dbg -- sleep 1",
            "",
        )
        .await;
    let path = "/api/v1/namespaces/default/pods/a";
    let pod = server.get(path).await.expect(200).body;
    let added = &pod["spec"]["ephemeralContainers"][0];
    assert_eq!(
        (&added["name"], &added["targetContainerName"]),
        (&json!("dbg"), &json!("a"))
    );
    assert_eq!(pod["metadata"]["generation"], 2);
    let sized = json!({"metadata": {"name": "b"}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}},
    ]}});
    server
        .post("/api/v1/namespaces/default/pods", &sized)
        .await
        .expect(201);
    let patch = "{\"spec\":{\"containers\":[{\"name\":\"c\",\"resources\":{\"requests\":{\"cpu\":\"2\"}}}]}}";
    kubectl
        .ok(&format!("patch pod b --subresource resize -p {patch}"), "")
        .await;
    let refused = kubectl
        .fails(&format!("patch pod b -p {}", patch.replace('2', "3")))
        .await;
    assert!(
        refused.contains("pod updates may not change fields other than"),
        "{refused}"
    );
    let pod = server
        .get("/api/v1/namespaces/default/pods/b")
        .await
        .expect(200)
        .body;
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"],
        "2"
    );
    assert_eq!(pod["metadata"]["generation"], 2);
}

#[tokio::test]
async fn server_side_apply_takes_over_from_the_client_s_side() {
    let server = TestServer::start().await;
    let kubectl = Kubectl(&server);
    let map = |data: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{{data}}}\n")
    };
    kubectl.ok("apply -f -", &map("a: one, b: one")).await;
    let taken = kubectl.ok("apply --server-side -f -", &map("a: two")).await;
    assert_eq!(taken, "configmap/m serverside-applied\n");
    let path = "/api/v1/namespaces/default/configmaps/m";
    let object = server.get(path).await.expect(200).body;
    assert_eq!(
        object["data"],
        json!({"a": "two"}),
        "what it no longer names goes: {object}"
    );
    let same = kubectl.ok("diff --server-side -f -", &map("a: two")).await;
    assert_eq!(same, "");
    let other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let (is_ok, _, error) = kubectl.run(&other, &map("a: three")).await;
    assert!(
        !is_ok && error.contains("conflict with \"kubectl\""),
        "{error}"
    );
    kubectl
        .ok(
            "apply --server-side --field-manager=other --force-conflicts -f -",
            &map("a: three"),
        )
        .await;
    assert_eq!(server.get(path).await.body["data"]["a"], "three");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n";
    kubectl.ok("apply --server-side -f -", pod).await;
    kubectl.ok("apply --server-side -f -", pod).await;
    kubectl.ok("label pod p x=one", "").await;
    kubectl.ok("apply --server-side -f -", pod).await;
    let pod = server.get("/api/v1/namespaces/default/pods/p").await.body;
    assert_eq!(pod["metadata"]["labels"], json!({"x": "one"}));
}

#[tokio::test]
async fn roles_are_made_and_asked_about() {
    let server = TestServer::start().await;
    let kubectl = Kubectl(&server);
    kubectl
        .ok(
            "create role reader --verb=get,list --resource=pods,pods/log",
            "",
        )
        .await;
    kubectl
        .ok("create rolebinding jane --role=reader --user=jane", "")
        .await;
    let can = ["auth", "can-i", "list", "pods", "--as", "jane"];
    let asked = async { while !kubectl.run(&can, "").await.0 {} };
    tokio::time::timeout(crate::harness::PATIENCE, asked)
        .await
        .expect("the policy is read in time");
    assert!(
        !kubectl
            .run(&["auth", "can-i", "delete", "pods", "--as", "jane"], "")
            .await
            .0
    );
    let list = kubectl.ok("auth can-i --list --as jane", "").await;
    assert!(
        list.contains("pods/log") && list.contains("selfsubjectreviews"),
        "{list}"
    );
    let bindings = kubectl.ok("get rolebindings --no-headers", "").await;
    assert!(bindings.contains("Role/reader"), "{bindings}");
    assert!(
        kubectl
            .ok("get clusterroles", "")
            .await
            .contains("cluster-admin")
    );
}

#[tokio::test]
async fn auth_reconcile_makes_roles_adds_to_them_and_gives_nothing_away() {
    let server = TestServer::start().await;
    let kubectl = Kubectl(&server);
    let roles = |verbs: &str, subject: &str| {
        format!(
            "{}\n---\n{}",
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                "metadata": {"name": "reader", "namespace": "default"},
                "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs.split(',').collect::<Vec<_>>()}],
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": "readers", "namespace": "default"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": subject}],
            }),
        )
    };
    let reconcile = "auth reconcile -f -";
    let verbs = "get role reader -o jsonpath={.rules[*].verbs[*]}";
    let said = kubectl.ok(reconcile, &roles("get", "jane")).await;
    assert!(
        said.contains("role.rbac.authorization.k8s.io/reader reconciled")
            && said.contains("rolebinding.rbac.authorization.k8s.io/readers reconciled"),
        "{said}"
    );
    kubectl.ok(reconcile, &roles("list", "joe")).await;
    assert_eq!(kubectl.ok(verbs, "").await, "get list");
    let subjects = "get rolebinding readers -o jsonpath={.subjects[*].name}";
    assert_eq!(kubectl.ok(subjects, "").await, "jane joe");
    let all = format!("{reconcile} --remove-extra-permissions --remove-extra-subjects");
    kubectl.ok(&all, &roles("list", "joe")).await;
    assert_eq!(kubectl.ok(verbs, "").await, "list");
    assert_eq!(kubectl.ok(subjects, "").await, "joe");

    // Somebody who may write roles, and reads no pods: only who may escalate gives more than they have.
    kubectl
        .ok(
            "create clusterrole writer --verb=get,list,create,update,patch \
             --resource=roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io,namespaces",
            "",
        )
        .await;
    kubectl
        .ok(
            "create clusterrolebinding writer --clusterrole=writer --user=jill",
            "",
        )
        .await;
    kubectl
        .until(
            "auth can-i update rolebindings.rbac.authorization.k8s.io --as=jill",
            "",
        )
        .await;
    let as_jill = format!("{reconcile} --as=jill");
    let words: Vec<&str> = as_jill.split(' ').collect();
    let (is_ok, _, error) = kubectl.run(&words, &roles("delete", "jill")).await;
    assert!(
        !is_ok && error.contains("attempting to grant RBAC permissions not currently held"),
        "{error}"
    );
    assert_eq!(kubectl.ok(verbs, "").await, "list");
    assert_eq!(kubectl.ok(subjects, "").await, "joe");
    kubectl
        .ok(
            "create clusterrole giver --verb=escalate,bind --resource=roles.rbac.authorization.k8s.io",
            "",
        )
        .await;
    kubectl
        .ok(
            "create clusterrolebinding giver --clusterrole=giver --user=jill",
            "",
        )
        .await;
    kubectl.until(&as_jill, &roles("delete", "jill")).await;
    assert_eq!(kubectl.ok(verbs, "").await, "list delete");
    assert_eq!(kubectl.ok(subjects, "").await, "joe jill");
}
