//! Requests over real TLS against a server whose agent is a table of pods and the in-memory runtime.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use axum::body::Body;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use wherry_runtime_api::{
    ContainerConfig, ContainerId, PodSandboxConfig, PodUid,
    fake::{FakeClock, FakeRuntime},
};

use super::*;

struct Node {
    pods: Mutex<Vec<Arc<Pod>>>,
    runtimes: Vec<Arc<dyn Runtime>>,
    logs: PathBuf,
}

#[async_trait]
impl Kubelet for Node {
    fn node_name(&self) -> &str {
        "node"
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().expect("not poisoned").clone()
    }

    fn runtimes(&self) -> &[Arc<dyn Runtime>] {
        &self.runtimes
    }

    fn log_directory(&self, _pod: &Pod) -> PathBuf {
        self.logs.clone()
    }

    async fn image_fs(&self) -> Option<FsUsage> {
        Some(FsUsage {
            used_bytes: 1,
            inodes_used: 2,
            capacity_bytes: 10,
            available_bytes: 4,
        })
    }

    fn metrics(&self) -> String {
        "agent_says 1\n".into()
    }
}

/// A CA, the server, and what a test needs to be any client.
struct Served {
    node: Arc<Node>,
    runtime: Arc<FakeRuntime>,
    directory: tempfile::TempDir,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn leaf(issuer: &Issuer<'static, KeyPair>, name: &str, group: &str) -> (String, String) {
    let key = KeyPair::generate().expect("randomness");
    let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).expect("a valid name");
    params.distinguished_name.push(DnType::CommonName, name);
    params
        .distinguished_name
        .push(DnType::OrganizationName, group);
    let certificate = params.signed_by(&key, issuer).expect("a valid certificate");
    (certificate.pem(), key.serialize_pem())
}

async fn serve() -> Served {
    serve_with(None).await
}

async fn serve_with(reviewer: Option<Arc<dyn Reviewer>>) -> Served {
    let ca_key = KeyPair::generate().expect("randomness");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = params
        .self_signed(&ca_key)
        .expect("a valid certificate")
        .pem();
    let issuer = Issuer::new(params, ca_key);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runtime = FakeRuntime::new("oci", FakeClock::default());
    let node = Arc::new(Node {
        pods: Mutex::default(),
        runtimes: vec![runtime.clone()],
        logs: directory.path().join("forgotten"),
    });
    let (certificate, key) = leaf(&issuer, "system:node:node", "system:nodes");
    let config = Config::new(
        "127.0.0.1:0".parse().expect("an address"),
        certificate,
        key,
        ca_pem.clone(),
    );
    let server = Server::bind(config, node.clone(), reviewer)
        .await
        .expect("a free port");
    let address = server.local_addr().expect("bound");
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(server.run(shutdown.clone()));
    Served {
        node,
        runtime,
        directory,
        ca_pem,
        issuer,
        address,
        shutdown,
        task,
    }
}

impl Served {
    async fn send(
        &self,
        user: Option<(&str, &str)>,
        request: Request<Body>,
    ) -> http::Response<hyper::body::Incoming> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).expect("PEM");
        roots.add(ca).expect("a CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match user {
            Some((name, group)) => {
                let (certificate, key) = leaf(&self.issuer, name, group);
                let chain =
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address)
            .await
            .expect("server listens");
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .expect("handshake");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("HTTP");
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.expect("an answer")
    }

    async fn get_as(&self, user: Option<(&str, &str)>, path: &str) -> (StatusCode, String) {
        let request = Request::get(path)
            .header(header::HOST, "node")
            .body(Body::empty())
            .expect("valid");
        let response = self.send(user, request).await;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("whole body")
            .to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        self.get_as(
            Some(("kube-apiserver-kubelet-client", "system:masters")),
            path,
        )
        .await
    }

    /// A pod with one running container `c`, and that container.
    async fn run_pod(&self, name: &str) -> (Arc<Pod>, ContainerId, PathBuf) {
        let logs = self.directory.path().join(name).join("c");
        std::fs::create_dir_all(&logs).expect("space");
        let log_path = logs.join("0.log");
        std::fs::write(
            &log_path,
            "2026-11-20T12:00:00Z stdout F one\n2026-11-20T12:00:01Z stdout F two\n",
        )
        .expect("space");
        let uid = PodUid::from(format!("uid-{name}"));
        let sandbox =
            PodSandboxConfig::new(uid.clone(), name, "default", logs.clone(), String::new());
        let sandbox = self
            .runtime
            .run_pod_sandbox(&sandbox)
            .await
            .expect("a sandbox");
        let container = ContainerConfig::new("c", "sha256:i", "i", log_path.clone());
        let id = self
            .runtime
            .create_container(&sandbox, &container)
            .await
            .expect("a container");
        self.runtime.start_container(&id).await.expect("starts");
        let state = json!({"running": {"startedAt": "2026-11-20T12:00:00Z"}});
        let pod = self.add_pod(
            name,
            json!({"containerID": format!("oci://{id}"), "state": state}),
        );
        (pod, id, log_path)
    }

    fn add_pod(&self, name: &str, mut status: Value) -> Arc<Pod> {
        for (field, value) in [
            ("name", json!("c")),
            ("image", json!("i")),
            ("imageID", json!("")),
            ("ready", json!(false)),
            ("restartCount", json!(0)),
        ] {
            status
                .as_object_mut()
                .expect("an object")
                .entry(field)
                .or_insert(value);
        }
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"containerStatuses": [status], "podIPs": [{"ip": "10.0.0.9"}]},
        });
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).expect("a pod"));
        self.node
            .pods
            .lock()
            .expect("not poisoned")
            .push(pod.clone());
        pod
    }
}

#[tokio::test]
async fn only_health_answers_strangers() {
    let served = serve().await;
    assert_eq!(
        served.get_as(None, "/healthz").await,
        (StatusCode::OK, "ok".into())
    );
    for (path, subresources) in [
        ("/pods", "pods proxy"),
        ("/metrics", "metrics"),
        ("/metrics/cadvisor", "metrics"),
        ("/stats/summary", "stats"),
        ("/configz", "configz proxy"),
        ("/logs/", "log"),
        ("/containerLogs/default/p/c", "proxy"),
        ("/exec/default/p/c?command=ls", "proxy"),
    ] {
        assert_eq!(
            served.get_as(None, path).await,
            (StatusCode::UNAUTHORIZED, "Unauthorized".into()),
            "{path}"
        );
        let (status, text) = served
            .get_as(Some(("system:node:other", "system:nodes")), path)
            .await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert_eq!(
            text,
            format!(
                "Forbidden (user=system:node:other, verb=get, resource=nodes, subresource(s)=[{subresources}])"
            )
        );
    }
    let (status, text) = served.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.starts_with("agent_says 1\n"), "{text}");
    assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
}

/// Knows two tokens; `scraper` may read figures. Remembers what it is asked.
#[derive(Default)]
struct FakeReviewer {
    asked: Mutex<Vec<String>>,
    is_down: AtomicBool,
}

impl FakeReviewer {
    fn ask(&self, what: String) -> Result<(), String> {
        self.asked.lock().expect("not poisoned").push(what);
        match self.is_down.load(Ordering::SeqCst) {
            true => Err("connection refused".into()),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Reviewer for FakeReviewer {
    async fn token(&self, token: &str) -> Result<Option<User>, String> {
        self.ask(format!("token {token}"))?;
        let is_known = matches!(token, "scraper" | "nobody");
        Ok(is_known.then(|| User {
            name: token.into(),
            groups: vec!["system:authenticated".into()],
        }))
    }

    async fn access(&self, access: &Access<'_>) -> Result<bool, String> {
        let Access {
            user,
            verb,
            node,
            subresource,
        } = access;
        let name = &user.name;
        self.ask(format!("{name} {verb} {node}/{subresource}"))?;
        Ok(name == "scraper"
            && *verb == "get"
            && ["stats", "metrics", "pods"].contains(subresource))
    }
}

#[tokio::test]
async fn tokens_and_access_are_reviewed_and_the_answers_kept() {
    let reviewer = Arc::new(FakeReviewer::default());
    let served = serve_with(Some(reviewer.clone())).await;
    let get = async |token: &str, path: &str| {
        let request = Request::get(path)
            .header(header::HOST, "node")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Body::empty())
            .expect("valid");
        served.send(None, request).await.status().as_u16()
    };
    for _ in 0..2 {
        for (token, path, expected) in [
            ("scraper", "/stats/summary", 200),
            ("scraper", "/pods", 200),
            ("scraper", "/containerLogs/default/p/c", 403),
            ("nobody", "/configz", 403),
        ] {
            assert_eq!(get(token, path).await, expected, "{token} {path}");
        }
    }
    // Each was asked once; a narrower subresource is enough, and a wider one is asked for only then.
    assert_eq!(
        *reviewer.asked.lock().expect("not poisoned"),
        [
            "token scraper",
            "scraper get node/stats",
            "scraper get node/pods",
            "scraper get node/proxy",
            "token nobody",
            "nobody get node/configz",
            "nobody get node/proxy",
        ]
    );
    assert_eq!(get("stranger", "/pods").await, 401);
    reviewer.is_down.store(true, Ordering::SeqCst);
    assert_eq!(get("scraper", "/stats/summary").await, 200, "known already");
    assert_eq!(get("scraper", "/metrics").await, 500, "not known");
    assert_eq!(get("other", "/metrics").await, 401);
    // Whoever the config names is asked nothing about.
    assert_eq!(served.get("/pods").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_command_is_run_and_its_output_is_the_answer() {
    let served = serve().await;
    served.run_pod("p").await;
    served.runtime.exec_exits("false", 1);
    let post = async |path: &str| {
        let request = Request::post(path)
            .header(header::HOST, "node")
            .body(Body::empty())
            .expect("valid");
        let user = Some(("admin", "system:masters"));
        let response = served.send(user, request).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("whole body");
        (
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        )
    };
    let (status, text) = post("/run/default/p/c?cmd=echo+hi").await;
    assert_eq!(status, 200, "{text}");
    let (status, _) = post("/run/default/p/uid-p/c?cmd=echo").await;
    assert_eq!(status, 200);
    let (status, text) = post("/run/default/p/c?cmd=false").await;
    assert_eq!(status, 500);
    assert!(
        text.ends_with("command terminated with exit code 1\n"),
        "{text}"
    );
    for (path, expected) in [
        ("/run/default/p/c", 400),
        ("/run/default/absent/c?cmd=echo", 404),
        ("/run/default/p/another-uid/c?cmd=echo", 404),
    ] {
        assert_eq!(post(path).await.0, expected, "{path}");
    }
    let logs = served.get("/logs/messages").await;
    assert_eq!(logs.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(logs.1, "logs endpoint is disabled.");
    assert_eq!(served.get("/healthz/syncloop").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_no_certificate() {
    let (served, other) = (serve().await, serve().await);
    let stranger = Served {
        issuer: other.issuer,
        ..served
    };
    let request = Request::get("/pods").body(Body::empty()).expect("valid");
    let answer = tokio::spawn(async move {
        stranger
            .send(Some(("x", "system:masters")), request)
            .await
            .status()
    });
    assert!(answer.await.is_err(), "the server must end the handshake");
}

#[tokio::test]
async fn logs_are_served_or_the_reason_why_not() {
    let served = serve().await;
    served.run_pod("p").await;
    served.add_pod(
        "waiting",
        json!({"state": {"waiting": {"reason": "ContainerCreating"}}}),
    );
    let ok = |text: &str| (StatusCode::OK, text.to_owned());
    assert_eq!(
        served.get("/containerLogs/default/p/c").await,
        ok("one\ntwo\n")
    );
    assert_eq!(
        served
            .get("/containerLogs/default/p/c?tailLines=1&timestamps=true")
            .await,
        ok("2026-11-20T12:00:01Z two\n")
    );
    let table = [
        (
            "/containerLogs/default/absent/c",
            404,
            "pod \"absent\" does not exist\n",
        ),
        (
            "/containerLogs/default/p/x",
            404,
            "container \"x\" not found in pod \"p\"\n",
        ),
        (
            "/containerLogs/default/p/c?previous=true",
            400,
            "previous terminated container \"c\" in pod \"p\" not found",
        ),
        (
            "/containerLogs/default/waiting/c",
            400,
            "container \"c\" in pod \"waiting\" is waiting to start: ContainerCreating",
        ),
        (
            "/containerLogs/default/p/c?tailLines=x",
            400,
            "{\"message\": \"Unable to decode query.\"}",
        ),
    ];
    for (path, status, text) in table {
        let answer = served.get(path).await;
        assert_eq!(
            (answer.0.as_u16(), answer.1.as_str()),
            (status, text),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_log_of_a_forgotten_container_is_found_by_its_attempt() {
    let served = serve().await;
    let ended = json!({"terminated": {"exitCode": 1, "containerID": "oci://gone"}});
    served.add_pod("p", json!({"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended}));
    let logs = served.node.logs.join("c");
    std::fs::create_dir_all(&logs).expect("space");
    std::fs::write(logs.join("4.log"), "2026-11-20T12:00:00Z stderr F panic\n").expect("space");
    assert_eq!(
        served.get("/containerLogs/default/p/c").await,
        (StatusCode::OK, "panic\n".into())
    );
    assert_eq!(
        served
            .get("/containerLogs/default/p/c?previous=true&follow=true")
            .await,
        (StatusCode::OK, "panic\n".into())
    );
}

#[tokio::test]
async fn init_and_ephemeral_containers_are_found_like_any_other() {
    let served = serve().await;
    for kind in ["initContainer", "ephemeralContainer"] {
        let (pod, id, _) = served.run_pod(kind).await;
        let mut value = serde_json::to_value(&*pod).expect("JSON");
        let status = value["status"]["containerStatuses"].take();
        value["status"][format!("{kind}Statuses")] = status;
        let spec = value["spec"]["containers"].take();
        value["spec"][format!("{kind}s")] = spec;
        value["spec"]["containers"] = json!([{"name": "main", "image": "i"}]);
        let pod: Pod = serde_json::from_value(value).expect("a pod");
        {
            let mut pods = served.node.pods.lock().expect("not poisoned");
            pods.clear();
            pods.push(Arc::new(pod.clone()));
        }
        assert_eq!(
            served
                .get(&format!("/containerLogs/default/{kind}/c"))
                .await,
            (StatusCode::OK, "one\ntwo\n".into())
        );
        let found = container::find_running(&*served.node, &pod, "c").await;
        assert_eq!(found.map(|found| found.id).ok(), Some(id), "{kind}");
    }
}

#[tokio::test]
async fn a_followed_log_ends_with_its_container() {
    let served = serve().await;
    let (_, _, log_path) = served.run_pod("p").await;
    let path = "/containerLogs/default/p/c?follow=true&tailLines=1";
    let request = Request::get(path)
        .header(header::HOST, "node")
        .body(Body::empty())
        .expect("valid");
    let response = served
        .send(Some(("admin", "system:masters")), request)
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    let writer = async {
        use std::io::Write;
        let mut log = std::fs::OpenOptions::new()
            .append(true)
            .open(log_path)
            .expect("writable");
        for number in 0..100 {
            writeln!(log, "2026-11-20T12:00:02Z stdout F {number}").expect("space");
            tokio::task::yield_now().await;
        }
        served.runtime.exit("uid-p", "c", 0, false);
    };
    let (body, ()) = tokio::join!(response.into_body().collect(), writer);
    let text = String::from_utf8(body.expect("whole body").to_bytes().to_vec()).expect("text");
    let expected: String = std::iter::once("two\n".into())
        .chain((0..100).map(|number| format!("{number}\n")))
        .collect();
    assert_eq!(text, expected);
}

#[tokio::test]
async fn exec_reaches_the_runtime() {
    let served = serve().await;
    served.run_pod("p").await;
    served.add_pod(
        "stopped",
        json!({"state": {"terminated": {"exitCode": 0, "containerID": "oci://x"}}}),
    );
    let request = |pod: &str| {
        Request::builder()
            .method(Method::GET)
            .uri(format!(
                "/exec/default/{pod}/c?command=echo&command=hi&output=1"
            ))
            .header(header::HOST, "node")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
            .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io")
            .body(Body::empty())
            .expect("valid")
    };
    let user = Some(("admin", "system:masters"));
    let response = served.send(user, request("p")).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains("\"status\":\"Success\"") {
        let count = tokio::io::AsyncReadExt::read_buf(&mut stream, &mut bytes)
            .await
            .expect("more to come");
        assert!(count > 0, "{}", String::from_utf8_lossy(&bytes));
    }
    assert!(String::from_utf8_lossy(&bytes).contains("echo hi\n"));

    for (pod, status, message) in [
        ("stopped", 500, "container not found (\"c\")"),
        ("absent", 404, "pod does not exist"),
    ] {
        let response = served.send(user, request(pod)).await;
        assert_eq!(response.status(), status);
        assert_eq!(
            response
                .into_body()
                .collect()
                .await
                .expect("whole body")
                .to_bytes(),
            message
        );
    }
}

#[tokio::test]
async fn usage_is_told_in_both_forms() {
    let served = serve().await;
    served.run_pod("p").await;
    let (_, text) = served.get("/stats/summary").await;
    let summary: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(summary["node"]["nodeName"], "node");
    assert_eq!(summary["node"]["runtime"]["imageFs"]["usedBytes"], 1);
    assert_eq!(summary["pods"][0]["podRef"]["name"], "p");
    assert_eq!(
        summary["pods"][0]["containers"][0]["memory"]["workingSetBytes"],
        1 << 20
    );
    let container = &summary["pods"][0]["containers"][0];
    assert!(container["cpu"]["usageNanoCores"].is_u64(), "{container}");
    assert!(container["rootfs"]["usedBytes"].is_u64(), "{container}");
    assert!(container["memory"]["pageFaults"].is_null(), "{container}");
    assert!(summary["node"]["rlimit"]["maxpid"].is_u64());
    let (_, text) = served.get("/stats/summary?only_cpu_and_memory=true").await;
    let less: Value = serde_json::from_str(&text).expect("JSON");
    let container = &less["pods"][0]["containers"][0];
    assert!(container["cpu"]["usageCoreNanoSeconds"].is_u64());
    assert!(container["rootfs"].is_null() && less["node"]["runtime"].is_null());
    let (_, text) = served.get("/metrics/cadvisor").await;
    let line = "container_memory_working_set_bytes{container=\"c\",id=\"oci://";
    assert!(text.contains(line), "{text}");
    let (_, text) = served.get("/metrics/resource").await;
    assert!(text.contains("container_cpu_usage_seconds_total{container=\"c\",namespace=\"default\",pod=\"p\"} 0.001 "), "{text}");
    assert!(text.contains("resource_scrape_error 0 "), "{text}");
}

#[tokio::test]
async fn pods_are_listed_as_desired_and_as_running() {
    let served = serve().await;
    served.run_pod("p").await;
    served.add_pod("waiting", json!({}));
    for (path, expected) in [
        ("/pods", vec!["p", "waiting"]),
        ("/runningpods/", vec!["p"]),
    ] {
        let (_, text) = served.get(path).await;
        let list: Value = serde_json::from_str(&text).expect("JSON");
        let names: Vec<&str> = list["items"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .collect();
        assert_eq!((list["kind"].as_str(), names), (Some("PodList"), expected));
    }
}

#[tokio::test]
async fn shutdown_ends_requests_that_would_not_end() {
    let served = serve().await;
    served.run_pod("p").await;
    let request = Request::get("/containerLogs/default/p/c?follow=true")
        .header(header::HOST, "node")
        .body(Body::empty())
        .expect("valid");
    let response = served
        .send(Some(("admin", "system:masters")), request)
        .await;
    served.shutdown.cancel();
    served.task.await.expect("no panic");
    drop(response);
}
