//! What is passed on to a kubelet: plain answers, and upgraded connections byte for byte.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{RootCertStore, pki_types::ServerName, server::WebPkiClientVerifier};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{PATIENCE, TestServer};

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(server: &TestServer) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(server.pki.ca_der().clone()).unwrap();
    roots
}

/// A kubelet that says what it was asked, and echoes what comes on an upgraded connection.
async fn kubelet(server: &TestServer) -> SocketAddr {
    let identity = server
        .pki
        .node(&server.dir.path().join("node"), "n1", &[], Timestamp::now())
        .unwrap()
        .serving;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(server)), provider())
        .build()
        .unwrap();
    let (certs, key) = identity.to_rustls().unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certs, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let tls = acceptor.accept(tcp).await.unwrap();
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tls), service_fn(answer))
                    .with_upgrades()
                    .await;
            });
        }
    });
    address
}

async fn answer(
    mut request: Request<Incoming>,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let said = format!("{} {}", request.method(), request.uri());
    if said.ends_with("only_cpu_and_memory=true") {
        let stats = json!({
            "cpu": {"time": "2024-01-01T00:00:00Z", "usageNanoCores": 250_000_000},
            "memory": {"workingSetBytes": 3072},
        });
        let mut container = stats.clone();
        container["name"] = "a".into();
        let reference = json!({"name": "a", "namespace": "default"});
        let summary =
            json!({"node": stats, "pods": [{"podRef": reference, "containers": [container]}]});
        return Ok(Response::new(Full::from(summary.to_string())));
    }
    let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else {
        return Ok(Response::new(Full::from(said)));
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        io.write_all(format!("{said}\n").as_bytes()).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(io);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    });
    let response = Response::builder()
        .status(101)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, protocol);
    Ok(response.body(Full::default()).unwrap())
}

/// A node `n1` whose kubelet answers, with a pod `a`.
pub(crate) async fn with_pod() -> TestServer {
    let server = TestServer::start().await;
    let address = kubelet(&server).await;
    let node = json!({"metadata": {"name": "n1"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}},
    }});
    server.post("/api/v1/nodes", &node).await.expect(201);
    server
        .merge(
            "/api/v1/nodes/n1/status",
            &json!({"status": node["status"]}),
        )
        .await
        .expect(200);
    server.pod("a").await;
    server
}

const POD: &str = "/api/v1/namespaces/default/pods/a";

#[tokio::test]
async fn requests_reach_the_kubelet_in_its_own_words() {
    let server = with_pod().await;
    for (path, expected) in [
        (
            format!("{POD}/log?follow=true&tailLines=5"),
            "GET /containerLogs/default/a/a?follow=true&tailLines=5",
        ),
        (
            format!("{POD}/exec?command=ls&command=-l%20x&stdout=true"),
            "GET /exec/default/a/a?output=1&command=ls&command=-l%20x",
        ),
        (
            format!("{POD}/attach?stdin=true&tty=true&container=a"),
            "GET /attach/default/a/a?input=1&tty=1",
        ),
        (
            format!("{POD}/portforward?ports=80"),
            "GET /portForward/default/a?ports=80",
        ),
        (
            "/api/v1/nodes/n1/proxy/stats/summary?only=1".to_owned(),
            "GET /stats/summary?only=1",
        ),
    ] {
        let answered = server.get(&path).await.expect(200);
        assert_eq!(answered.text, expected, "{path}");
    }
    server.get(&format!("{POD}/log?container=b")).await.fails(
        400,
        "BadRequest",
        "container b is not valid for pod a",
    );
    server
        .get(&format!("{POD}/log?tailLines=-1"))
        .await
        .expect(422);
    server
        .get("/api/v1/namespaces/default/pods/none/log")
        .await
        .fails(404, "NotFound", "pods \"none\" not found");
}

#[tokio::test]
async fn a_pod_without_a_node_has_an_empty_log_and_nothing_to_run_in() {
    let server = TestServer::start().await;
    let spec = json!({"containers": [{"name": "a", "image": "busybox"}]});
    server
        .post(
            "/api/v1/namespaces/default/pods",
            &json!({"metadata": {"name": "a"}, "spec": spec}),
        )
        .await
        .expect(201);
    assert_eq!(server.get(&format!("{POD}/log")).await.expect(200).text, "");
    server.get(&format!("{POD}/exec?command=ls")).await.fails(
        400,
        "BadRequest",
        "pod a does not have a host assigned",
    );
}

#[tokio::test]
async fn a_kubelet_that_is_not_there_is_an_error_with_its_address() {
    let server = with_pod().await;
    let gone = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}});
    server
        .merge("/api/v1/nodes/n1/status", &gone)
        .await
        .expect(200);
    let answered = server.get(&format!("{POD}/log")).await.expect(500);
    assert!(
        answered
            .message()
            .contains("error dialing backend: https://127.0.0.1:1:"),
        "{}",
        answered.message()
    );
}

#[tokio::test]
async fn an_upgraded_connection_is_passed_on_byte_for_byte() {
    let server = with_pod().await;
    let (certs, key) = server.pki.admin().to_rustls().unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(&server))
        .with_client_auth_cert(certs, key)
        .unwrap();
    let address: SocketAddr = server.url.trim_start_matches("https://").parse().unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tls = connector
        .connect(ServerName::from(address.ip()), tcp)
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::post(format!("{POD}/exec?command=cat&stdin=true"))
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("X-Stream-Protocol-Version", "v4.channel.k8s.io")
        .body(Full::<bytes::Bytes>::default())
        .unwrap();
    let mut response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()[header::UPGRADE], "SPDY/3.1");
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(&mut io);
    let echo = async {
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        received
    };
    let send = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (received, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(echo, send) })
        .await
        .unwrap();
    let head = b"POST /exec/default/a/a?input=1&command=cat\n";
    assert_eq!(&received[..head.len()], head);
    assert_eq!(received[head.len()..], sent[..]);
}

#[tokio::test]
async fn a_pod_is_reached_over_http() {
    let server = TestServer::start().await;
    let app = axum::Router::new()
        .fallback(async |request: axum::extract::Request| format!("{}", request.uri()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    server.pod("a").await;
    let status = json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    server
        .merge(&format!("{POD}/status"), &status)
        .await
        .expect(200);
    let answered = server
        .get(&format!(
            "/api/v1/namespaces/default/pods/a:{port}/proxy/x/y?z=1"
        ))
        .await
        .expect(200);
    assert_eq!(answered.text, "/x/y?z=1");
    server
        .request(
            http::Method::GET,
            "/api/v1/namespaces/default/services/none/proxy/",
            "",
            &Value::Null,
        )
        .await
        .expect(404);
    // The body of what is passed on is not kept whole on the way.
    let request = Request::get(format!("/api/v1/namespaces/default/pods/a:{port}/proxy/"));
    let request = request
        .extension(wherry_server::UserInfo::admin())
        .body(axum::body::Body::empty())
        .unwrap();
    let response = tower::ServiceExt::oneshot(server.router.clone(), request)
        .await
        .unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "/"
    );
}

#[tokio::test]
async fn metrics_are_what_the_kubelets_say() {
    let server = with_pod().await;
    server.pod("silent").await;
    const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";
    let nodes = server.get(&format!("{METRICS}/nodes")).await.expect(200);
    assert_eq!(nodes.body["kind"], "NodeMetricsList");
    assert_eq!(nodes.names(), ["n1"]);
    assert_eq!(
        nodes.body["items"][0]["usage"],
        json!({"cpu": "250m", "memory": "3Ki"})
    );
    for path in ["pods", "namespaces/default/pods"] {
        let pods = server.get(&format!("{METRICS}/{path}")).await.expect(200);
        assert_eq!(pods.names(), ["a"], "a pod without figures is left out");
        let containers = &pods.body["items"][0]["containers"];
        assert_eq!(
            *containers,
            json!([{"name": "a", "usage": {"cpu": "250m", "memory": "3Ki"}}])
        );
    }
    let pod = format!("{METRICS}/namespaces/default/pods");
    assert_eq!(
        server.get(&format!("{pod}/a")).await.expect(200).body["kind"],
        "PodMetrics"
    );
    let none = server
        .get(&format!("{pod}?labelSelector=x%3Dy"))
        .await
        .expect(200);
    assert_eq!(none.names(), [""; 0]);
    server.get(&format!("{pod}/silent")).await.fails(
        404,
        "NotFound",
        "podmetrics.metrics.k8s.io \"default/silent\" not found",
    );
    server
        .get(&format!("{pod}/none"))
        .await
        .fails(404, "NotFound", "pods \"none\" not found");
    server
        .delete(&format!("{pod}/a"), &Value::Null)
        .await
        .expect(405);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = server
        .get_as(&format!("{METRICS}/nodes"), table)
        .await
        .expect(200);
    assert_eq!(
        table.body["rows"][0]["cells"],
        json!(["n1", "250m", "3Ki", "10s"])
    );
}

#[tokio::test]
async fn metrics_do_not_wait_for_a_node_that_is_gone() {
    let server = TestServer::start().await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let status = json!({
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": closed}},
    });
    let node = json!({"metadata": {"name": "n1"}, "status": status});
    server.post("/api/v1/nodes", &node).await.expect(201);
    server
        .merge("/api/v1/nodes/n1/status", &json!({"status": status}))
        .await
        .expect(200);
    let nodes = server
        .get("/apis/metrics.k8s.io/v1beta1/nodes")
        .await
        .expect(200);
    assert_eq!(nodes.names(), [""; 0]);
}
