//! The built-in probes behave as the kubelet's do, and the others as they say. All tests share one host, whose worker
//! has no other guests.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use libtest_mimic::Trial;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Runtime,
    sync::mpsc,
};
use wherry_plugin_host::{
    Exec, PluginProber, ProbeAction, ProbeOutcome, ProbeRequest, ProbeResult, ProbeTarget, Prober,
    SecretError,
};

use super::{Node, guest, outcome, spec};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A host, and the runtime that its worker's connection lives in.
pub(crate) struct Shared {
    pub(crate) node: Node,
    pub(crate) prober: PluginProber,
    pub(crate) runtime: Runtime,
}

impl Shared {
    pub(crate) fn open() -> Arc<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let node = runtime.block_on(async { Node::open() });
        Arc::new(Self {
            prober: PluginProber::new(Arc::clone(&node.host)),
            node,
            runtime,
        })
    }

    async fn check_in(&self, action: ProbeAction, timeout: Duration, exec: &Pod) -> ProbeOutcome {
        self.prober
            .check(&ProbeRequest { action, timeout }, exec)
            .await
    }

    async fn check(&self, action: ProbeAction) -> ProbeOutcome {
        self.check_in(action, Duration::from_secs(10), &Pod::default())
            .await
    }

    /// A check by words, as in `exec.command`.
    async fn words(&self, words: &str, pod: &Pod) -> ProbeOutcome {
        ask(&self.prober, words, pod).await
    }
}

async fn ask(prober: &PluginProber, words: &str, pod: &Pod) -> ProbeOutcome {
    let mut words = words.split_whitespace().map(str::to_owned);
    let plugin = words.next().unwrap();
    let action = ProbeAction::Plugin {
        plugin: plugin.strip_prefix("wasm:").unwrap().into(),
        arguments: words.collect(),
        target: Box::new(ProbeTarget {
            ip: Some(LOOPBACK),
            ..ProbeTarget::default()
        }),
    };
    let timeout = Duration::from_secs(10);
    prober.check(&ProbeRequest { action, timeout }, pod).await
}

/// What a probe finds in its pod. The command `fail` fails, `hang` takes for ever, `broken` cannot be run, and any
/// other one succeeds.
#[derive(Default)]
struct Pod {
    secrets: BTreeMap<(&'static str, &'static str), Vec<u8>>,
    volumes: BTreeMap<&'static str, PathBuf>,
}

#[async_trait]
impl Exec for Pod {
    async fn exec(
        &self,
        command: &[String],
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>), Option<String>> {
        let printed = command.join(" ").into_bytes();
        match command[0].as_str() {
            "fail" => Ok((3, printed)),
            "garbage" => Ok((0, vec![b'a', 0xff, b'b'])),
            "hang" => {
                tokio::time::sleep(timeout).await;
                Err(None)
            }
            "broken" => Err(Some("container not running".into())),
            _ => Ok((0, printed)),
        }
    }

    async fn secret(&self, name: &str, key: &str) -> Result<Vec<u8>, SecretError> {
        let found = self
            .secrets
            .iter()
            .find(|(there, _)| **there == (name, key));
        found
            .map(|(_, value)| value.clone())
            .ok_or(SecretError::NotFound)
    }

    fn volume(&self, name: &str) -> Option<PathBuf> {
        self.volumes.get(name).cloned()
    }
}

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($name), {
                let shared = Arc::clone(shared);
                move || { shared.runtime.block_on($name(&shared)); Ok(()) }
            })),*]
        };
    }
    trials![
        statuses_from_200_to_399_are_success,
        own_headers_are_sent_and_host_can_be_replaced,
        redirects_within_the_host_are_followed_and_others_are_not,
        answers_that_are_none_are_failures_in_the_kubelets_words,
        a_body_is_shown_as_text_and_not_beyond_ten_kilobytes,
        https_looks_at_no_certificate_and_shows_one_that_a_secret_holds,
        a_port_that_nobody_listens_on_is_a_refused_dial,
        names_are_looked_up_and_the_nodes_own_address_is_good,
        grpc_asks_by_the_health_protocol,
        exec_goes_by_the_exit_code_and_does_not_count_when_it_cannot_run,
        probes_are_combined,
        what_runs_a_probe_lends_it_no_rights,
        redis_is_pinged,
        sql_servers_say_whether_they_take_connections,
        a_real_server_of_mysqls_protocol_is_alive_until_it_ends,
        files_have_an_age,
        an_installed_plugin_replaces_a_builtin_one_of_its_name,
        a_builtin_plugin_does_what_the_operator_grants_it,
        many_slow_servers_hold_up_nobody,
        a_worker_that_ends_costs_a_builtin_probe_nothing,
    ]
}

/// Answers each connection with the next of `answers`, and sends on what was asked.
async fn server(answers: Vec<Vec<u8>>) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            let _ = asked.send(String::from_utf8_lossy(&buffer[..read]).into_owned());
            let _ = stream.write_all(&answer).await;
        }
    });
    (port, receiver)
}

fn get(port: u16, path: &str, headers: &[(&str, &str)]) -> ProbeAction {
    let headers = headers.iter();
    ProbeAction::HttpGet {
        is_https: false,
        host: "127.0.0.1".into(),
        port,
        path: path.into(),
        headers: headers.map(|(k, v)| ((*k).into(), (*v).into())).collect(),
    }
}

const EMPTY_OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

async fn statuses_from_200_to_399_are_success(shared: &Shared) {
    use ProbeResult::{Failure, Success};
    for (answer, expected, message) in [
        ("200 OK\r\ncontent-length: 2\r\n\r\nhi", Success, "hi"),
        (
            "304 Not Modified\r\n\r\n",
            Success,
            "Probe terminated redirects, Response body: ",
        ),
        (
            "404 Not Found\r\ncontent-length: 0\r\n\r\n",
            Failure,
            "HTTP probe failed with statuscode: 404",
        ),
        (
            "500 Oh\r\ncontent-length: 6\r\n\r\nsecret",
            Failure,
            "HTTP probe failed with statuscode: 500",
        ),
    ] {
        let (port, _asked) = server(vec![format!("HTTP/1.1 {answer}").into()]).await;
        let said = shared.check(get(port, "/healthz", &[])).await;
        assert_eq!(said, outcome(expected, message), "{answer}");
    }
}

async fn own_headers_are_sent_and_host_can_be_replaced(shared: &Shared) {
    let (port, mut asked) = server(vec![EMPTY_OK.into(); 3]).await;
    let given = [
        ("Host", "example.test"),
        ("X-Probe", "a: b"),
        ("X-Empty", ""),
    ];
    shared.check(get(port, "ready?full=1", &given)).await;
    let request = asked.recv().await.unwrap().to_lowercase();
    assert!(request.starts_with("get /ready?full=1 "), "{request}");
    for line in [
        "host: example.test\r\n",
        "x-probe: a: b\r\n",
        "x-empty: \r\n",
        "user-agent: kube-probe/1.36\r\n",
        "accept: */*\r\n",
        "connection: close\r\n",
    ] {
        assert!(request.contains(line), "{line}{request}");
    }
    assert!(!request.contains("127.0.0.1"), "{request}");
    let given = [("User-Agent", "me"), ("Accept", "")];
    shared.check(get(port, "/", &given)).await;
    let request = asked.recv().await.unwrap().to_lowercase();
    assert!(request.contains("user-agent: me\r\n"), "{request}");
    assert!(!request.contains("accept"), "{request}");
    assert!(
        request.contains(&format!("host: 127.0.0.1:{port}\r\n")),
        "{request}"
    );
}

async fn redirects_within_the_host_are_followed_and_others_are_not(shared: &Shared) {
    let to = |location: &str| -> Vec<u8> {
        format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n").into()
    };
    let (port, mut asked) = server(vec![
        to("/a/b?c=d"),
        to("../e#f"),
        to("?g"),
        "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".into(),
    ])
    .await;
    let said = shared.check(get(port, "/", &[])).await;
    assert_eq!(said.message, "HTTP probe failed with statuscode: 500");
    let mut paths = Vec::new();
    for _ in 0..4 {
        let request = asked.recv().await.unwrap();
        paths.push(request.split(' ').nth(1).unwrap().to_owned());
    }
    assert_eq!(paths, ["/", "/a/b?c=d", "/e", "/e?g"]);
    // Another port of the same host.
    let (other, _asked) = server(vec!["HTTP/1.1 503 No\r\n\r\n".into()]).await;
    let (port, _asked) = server(vec![to(&format!("http://127.0.0.1:{other}/x"))]).await;
    let said = shared.check(get(port, "/", &[])).await;
    assert_eq!(said.message, "HTTP probe failed with statuscode: 503");
    for away in [
        "http://example.test/",
        "//example.test",
        "ftp://127.0.0.1/",
        "mailto:x",
    ] {
        let (port, _asked) = server(vec![to(away)]).await;
        let said = shared.check(get(port, "/", &[])).await;
        let expected = outcome(
            ProbeResult::Success,
            "Probe terminated redirects, Response body: ",
        );
        assert_eq!(said, expected, "{away}");
    }
    let (port, _asked) = server(vec![to("/again"); 11]).await;
    let said = shared.check(get(port, "/", &[])).await;
    let expected = format!("Get \"http://127.0.0.1:{port}/\": stopped after 10 redirects");
    assert_eq!(said, outcome(ProbeResult::Failure, &expected));
}

async fn answers_that_are_none_are_failures_in_the_kubelets_words(shared: &Shared) {
    let (port, _asked) = server(vec![Vec::new()]).await;
    let said = shared.check(get(port, "/x", &[])).await;
    let expected = format!("Get \"http://127.0.0.1:{port}/x\": EOF");
    assert_eq!(said, outcome(ProbeResult::Failure, &expected));
    let (port, _asked) = server(vec![b"nonsense\r\n\r\n".to_vec()]).await;
    let said = shared.check(get(port, "/x", &[])).await;
    assert_eq!(said.result, ProbeResult::Failure, "{said:?}");
    let silent = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let said = shared
        .check_in(
            get(port, "/x", &[]),
            Duration::from_secs(1),
            &Pod::default(),
        )
        .await;
    let expected = format!(
        "Get \"http://127.0.0.1:{port}/x\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    );
    assert_eq!(said, outcome(ProbeResult::Failure, &expected));
}

async fn a_body_is_shown_as_text_and_not_beyond_ten_kilobytes(shared: &Shared) {
    let head = "HTTP/1.1 200 OK\r\ncontent-length:";
    let (port, _asked) = server(vec![
        [
            format!("{head} 3\r\n\r\n").into_bytes(),
            vec![b'a', 0xff, b'b'],
        ]
        .concat(),
        [
            format!("{head} 1000000\r\n\r\n").into_bytes(),
            vec![b'x'; 1_000_000],
        ]
        .concat(),
    ])
    .await;
    let said = shared.check(get(port, "/", &[])).await;
    assert_eq!(said, outcome(ProbeResult::Success, "a\u{fffd}b"));
    let said = shared.check(get(port, "/", &[])).await;
    assert_eq!(said.result, ProbeResult::Success);
    assert!(said.message.len() <= 10 * 1024, "{}", said.message.len());
}

/// A server that asks for a client's certificate, and the PEM of a good one with its key.
async fn tls_server() -> (u16, Vec<u8>, Vec<u8>, Vec<u8>) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.clone().self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let leaf = |names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let (server, server_key) = leaf(&["127.0.0.1"]);
    let (client, client_key) = leaf(&["probe"]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca_certificate.der().clone()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .build()
    .unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Without a certificate there is no handshake.
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(EMPTY_OK.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    let ca = ca_certificate.pem().into_bytes();
    (
        port,
        ca,
        client.pem().into_bytes(),
        client_key.serialize_pem().into_bytes(),
    )
}

async fn https_looks_at_no_certificate_and_shows_one_that_a_secret_holds(shared: &Shared) {
    let (port, ca, certificate, key) = tls_server().await;
    let pod = Pod {
        secrets: [
            (("client", "tls.crt"), certificate),
            (("client", "tls.key"), key),
            (("client", "ca.crt"), ca),
        ]
        .into(),
        ..Pod::default()
    };
    let said = shared
        .words(&format!("wasm:http-get --https --port={port}"), &pod)
        .await;
    assert_eq!(said.result, ProbeResult::Failure, "{said:?}");
    for more in ["", " --ca-secret=client"] {
        let words = format!("wasm:http-get --https --port={port} --client-secret=client{more}");
        let said = shared.words(&words, &pod).await;
        assert_eq!(said, outcome(ProbeResult::Success, ""), "{more}");
    }
    let said = shared
        .words(
            &format!("wasm:http-get --https --port={port} --client-secret=absent"),
            &pod,
        )
        .await;
    let expected = "plugin http-get: secret absent has no tls.crt";
    assert_eq!(said, outcome(ProbeResult::Unknown, expected));
}

async fn closed_port() -> u16 {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}

async fn a_port_that_nobody_listens_on_is_a_refused_dial(shared: &Shared) {
    let port = closed_port().await;
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    let host = "127.0.0.1".to_owned();
    let said = shared.check(ProbeAction::TcpSocket { host, port }).await;
    assert_eq!(said, outcome(ProbeResult::Failure, &refused));
    let said = shared.check(get(port, "/x", &[])).await;
    let expected = format!("Get \"http://127.0.0.1:{port}/x\": {refused}");
    assert_eq!(said, outcome(ProbeResult::Failure, &expected));
    let service = String::new();
    let said = shared
        .check(ProbeAction::Grpc {
            host: LOOPBACK,
            port,
            service,
        })
        .await;
    assert_eq!(said, outcome(ProbeResult::Failure, &refused));
}

async fn names_are_looked_up_and_the_nodes_own_address_is_good(shared: &Shared) {
    let (port, _asked) = server(vec![EMPTY_OK.into()]).await;
    let at = |host: &str| ProbeAction::HttpGet {
        is_https: false,
        host: host.into(),
        port,
        path: "/".into(),
        headers: Vec::new(),
    };
    let said = shared.check(at("localhost")).await;
    assert_eq!(said, outcome(ProbeResult::Success, ""));
    let said = shared.check(at("no-such-name.invalid")).await;
    let expected = format!(
        "Get \"http://no-such-name.invalid:{port}/\": dial tcp: lookup no-such-name.invalid: no such host"
    );
    assert_eq!(said, outcome(ProbeResult::Failure, &expected));
}

/// A gRPC health server: `status` for the service "good", NOT_FOUND for "absent", UNIMPLEMENTED for "old".
async fn health_server() -> u16 {
    use bytes::Bytes;
    use http_body_util::{BodyExt, StreamBody};
    use hyper::{Request, Response, body::Frame, body::Incoming, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = |request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert_eq!(request.headers()["content-type"], "application/grpc");
                let asked = request.into_body().collect().await?.to_bytes();
                let service = asked.get(7..).unwrap_or_default();
                let (health, grpc_status): (u8, &str) = match service {
                    b"bad" => (2, "0"),
                    b"absent" => (0, "5"),
                    b"old" => (0, "12"),
                    _ => (1, "0"),
                };
                let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, health]);
                let mut trailers = hyper::HeaderMap::new();
                trailers.insert("grpc-status", grpc_status.parse().unwrap());
                let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
                let body = StreamBody::new(futures::stream::iter(frames));
                Ok::<_, hyper::Error>(
                    Response::builder()
                        .header("content-type", "application/grpc")
                        .body(body.map_err(|error: hyper::Error| error))
                        .unwrap(),
                )
            };
            tokio::spawn(async move {
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .await;
            });
        }
    });
    port
}

async fn grpc_asks_by_the_health_protocol(shared: &Shared) {
    let port = health_server().await;
    let not_there =
        "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)";
    for (service, result, message) in [
        ("", ProbeResult::Success, ""),
        ("good", ProbeResult::Success, ""),
        (
            "bad",
            ProbeResult::Failure,
            "service unhealthy (responded with \"NOT_SERVING\")",
        ),
        (
            "absent",
            ProbeResult::Failure,
            "error: health rpc failed with status 5",
        ),
        ("old", ProbeResult::Failure, not_there),
    ] {
        let said = shared
            .check(ProbeAction::Grpc {
                host: LOOPBACK,
                port,
                service: service.into(),
            })
            .await;
        assert_eq!(said, outcome(result, message), "{service}");
    }
    let silent = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let asked = ProbeAction::Grpc {
        host: LOOPBACK,
        port,
        service: String::new(),
    };
    let said = shared
        .check_in(asked, Duration::from_secs(1), &Pod::default())
        .await;
    let expected = format!(
        "timeout: failed to connect service \"127.0.0.1:{port}\" within 1s: context deadline exceeded"
    );
    assert_eq!(said, outcome(ProbeResult::Failure, &expected));
}

async fn exec_goes_by_the_exit_code_and_does_not_count_when_it_cannot_run(shared: &Shared) {
    for (command, result, message) in [
        ("fine", ProbeResult::Success, "fine"),
        ("fail hard", ProbeResult::Failure, "fail hard"),
        ("garbage", ProbeResult::Success, "a\u{fffd}b"),
        (
            "hang on",
            ProbeResult::Failure,
            "command timed out: \"hang on\" timed out after 1s",
        ),
        ("broken", ProbeResult::Unknown, "container not running"),
    ] {
        let command = command.split(' ').map(str::to_owned).collect();
        let said = shared
            .check_in(
                ProbeAction::Exec { command },
                Duration::from_secs(1),
                &Pod::default(),
            )
            .await;
        assert_eq!(said, outcome(result, message));
    }
}

async fn probes_are_combined(shared: &Shared) {
    use ProbeResult::{Failure as F, Success as S, Unknown as U};
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let open = format!(
        "wasm:tcp-socket --port={}",
        listener.local_addr().unwrap().port()
    );
    let closed = closed_port().await;
    let refused = format!("wasm:tcp-socket --port={closed}");
    let told = format!("{refused}: dial tcp 127.0.0.1:{closed}: connect: connection refused");
    let pod = Pod::default();
    for (words, result, message) in [
        (format!("wasm:all-of {open}"), S, String::new()),
        (format!("wasm:all-of {open} ; fine"), S, String::new()),
        (format!("wasm:all-of {open} ; {refused} ; fail"), F, told.clone()),
        ("wasm:all-of fine ; broken".into(), U, "broken: container not running".into()),
        ("wasm:all-of broken ; fail".into(), F, "fail: fail".into()),
        (format!("wasm:any-of {refused} ; {open}"), S, open.clone()),
        (format!("wasm:any-of {refused} ; fail"), F, format!("{told}; fail: fail")),
        ("wasm:any-of fail ; broken".into(), U, "broken: container not running".into()),
        (
            format!("wasm:all-of wasm:any-of ( fail ; {open} ) ; fine"),
            S,
            String::new(),
        ),
        (
            "wasm:all-of wasm:any-of ( fail ; wasm:all-of ( fine ; fail ) ) ; fine".into(),
            F,
            "wasm:any-of fail ; wasm:all-of ( fine ; fail ): fail: fail; wasm:all-of fine ; fail: fail: fail".into(),
        ),
    ] {
        assert_eq!(shared.words(&words, &pod).await, outcome(result, &message), "{words}");
    }
    for (words, why) in [
        (
            "wasm:all-of",
            "a probe is missing: name them with ; between them",
        ),
        (
            "wasm:all-of fine ; ; fine",
            "a probe is missing: name them with ; between them",
        ),
        ("wasm:all-of fine )", ") without ("),
        ("wasm:all-of ( fine", "( without )"),
    ] {
        let said = shared.words(words, &pod).await;
        let expected = format!("plugin all-of: invalid arguments: {why}");
        assert_eq!(said, outcome(U, &expected), "{words}");
    }
    let many = vec!["fine"; 17].join(" ; ");
    let said = shared.words(&format!("wasm:all-of {many}"), &pod).await;
    assert!(
        said.message.ends_with("a probe runs at most 16 others"),
        "{said:?}"
    );
    let mut deep = "fine".to_owned();
    for _ in 0..5 {
        deep = format!("wasm:all-of ( {deep} )");
    }
    let said = shared.words(&deep, &pod).await;
    assert_eq!(said.result, U);
    assert!(said.message.contains("to a depth of 4"), "{said:?}");
    let said = shared.words("wasm:all-of wasm:absent", &pod).await;
    assert!(
        said.message.contains("plugin absent is not installed"),
        "{said:?}"
    );
    // A combination of many calls at once, each of which waits for another of the same plugin.
    let nested = "wasm:all-of wasm:all-of ( wasm:all-of ( fine ) )";
    let calls = (0..40).map(|_| shared.words(nested, &pod));
    for said in futures::future::join_all(calls).await {
        assert_eq!(said, outcome(S, ""));
    }
}

async fn what_runs_a_probe_lends_it_no_rights(shared: &Shared) {
    let mut bare = spec("bare");
    bare.grants = wherry_plugin_host::Grants {
        // What it imports has to be granted, or it is not installed.
        exec: true,
        ..Default::default()
    };
    shared.node.host.install(bare, &guest()).await.unwrap();
    let pod = Pod::default();
    let elsewhere = TcpListener::bind(("127.0.0.2", 0)).await.unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    let there = format!("wasm:tcp-socket --host=127.0.0.2 --port={port}");
    let said = shared.words(&there, &pod).await;
    assert_eq!(said.result, ProbeResult::Success, "{said:?}");
    let said = shared
        .words(&format!("wasm:bare probe {there}"), &pod)
        .await;
    let denied = format!("not granted: 127.0.0.2:{port} needs the grant hosts");
    assert!(said.message.contains(&denied), "{said:?}");
    assert_eq!(said.result, ProbeResult::Unknown);
    // By way of a built-in one that may do everything, too.
    let said = shared
        .words(&format!("wasm:bare probe wasm:all-of {there}"), &pod)
        .await;
    assert!(said.message.contains(&denied), "{said:?}");
    let said = shared
        .words("wasm:bare probe wasm:redis-ping --password-secret=db", &pod)
        .await;
    assert!(
        said.message
            .contains("secret db/password needs the grant secrets"),
        "{said:?}"
    );
    shared.node.host.remove("bare").await;
}

async fn redis_is_pinged(shared: &Shared) {
    let answers = |answers: &[&str]| answers.iter().map(|answer| (*answer).into()).collect();
    let (port, mut asked) = server(answers(&["+PONG\r\n", "-LOADING soon\r\n", ""])).await;
    let pod = Pod {
        secrets: [(("db", "password"), b"sesame".to_vec())].into(),
        ..Pod::default()
    };
    let ping = format!("wasm:redis-ping --port={port}");
    assert_eq!(
        shared.words(&ping, &pod).await,
        outcome(ProbeResult::Success, "PONG")
    );
    assert_eq!(asked.recv().await.unwrap(), "*1\r\n$4\r\nPING\r\n");
    for expected in ["redis answered -LOADING soon", "redis answered nothing"] {
        assert_eq!(
            shared.words(&ping, &pod).await,
            outcome(ProbeResult::Failure, expected)
        );
    }
    let (port, mut asked) = server(answers(&["-WRONGPASS no\r\n"])).await;
    let words = format!("wasm:redis-ping --port={port} --username=me --password-secret=db");
    let said = shared.words(&words, &pod).await;
    assert_eq!(
        said,
        outcome(ProbeResult::Failure, "redis answered -WRONGPASS no")
    );
    let auth = "*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$6\r\nsesame\r\n";
    assert_eq!(asked.recv().await.unwrap(), auth);
}

/// What PostgreSQL 15 says to a start-up message, by what it is up to.
fn postgres_says(error: Option<(&str, &str)>) -> Vec<u8> {
    match error {
        None => vec![b'R', 0, 0, 0, 12, 0, 0, 0, 5, 1, 2, 3, 4],
        Some((code, message)) => {
            let body = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0Fpostmaster.c\0\0");
            let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
            [b"E".as_slice(), &length, body.as_bytes()].concat()
        }
    }
}

async fn sql_servers_say_whether_they_take_connections(shared: &Shared) {
    use ProbeResult::{Failure as F, Success as S};
    let pod = Pod::default();
    for (answer, result, message) in [
        (postgres_says(None), S, "accepting connections"),
        (
            postgres_says(Some(("57P03", "the database system is starting up"))),
            F,
            "rejecting connections: the database system is starting up",
        ),
        (
            postgres_says(Some(("3D000", "database \"x\" does not exist"))),
            S,
            "accepting connections",
        ),
        (
            b"HTTP/1.1 400 Bad".to_vec(),
            F,
            "the server does not speak PostgreSQL's protocol",
        ),
        (Vec::new(), F, "the server closed the connection"),
    ] {
        let (port, _asked) = server(vec![answer]).await;
        let said = shared
            .words(&format!("wasm:sql-ping --port={port} --database=x"), &pod)
            .await;
        assert_eq!(said, outcome(result, message));
    }
    let said = shared.words("wasm:sql-ping --kind=oracle", &pod).await;
    let expected =
        "plugin sql-ping: invalid arguments: --kind=oracle is neither postgres nor mysql";
    assert_eq!(said, outcome(ProbeResult::Unknown, expected));
    let packet = |number: u8, body: &[u8]| {
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        [&length[..3], &[number], body].concat()
    };
    let greeting = packet(
        0,
        b"\x0a8.0.36\0\x07\0\0\0abcdefgh\0\xff\xf7\x21\x02\0\xff\xdf\x15",
    );
    let denied = packet(
        2,
        b"\xff\x15\x04#28000Access denied for user 'wherry-probe'",
    );
    for (says, then, result, message) in [
        (greeting.clone(), denied, S, "8.0.36 is alive"),
        (
            greeting.clone(),
            packet(2, b"\0\0\0\x02\0\0\0"),
            S,
            "8.0.36 is alive",
        ),
        (
            greeting,
            packet(2, b"\xff\x1d\x04#08004Server shutdown in progress"),
            F,
            "error 1053: Server shutdown in progress",
        ),
        (
            packet(0, b"\xff\x10\x04Too many connections"),
            Vec::new(),
            F,
            "error 1040: Too many connections",
        ),
    ] {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&says).await.unwrap();
            let mut login = vec![0; 512];
            let read = stream.read(&mut login).await.unwrap_or(0);
            let _ = stream.write_all(&then).await;
            login[..read].to_vec()
        });
        let said = shared
            .words(&format!("wasm:sql-ping --kind=mysql --port={port}"), &pod)
            .await;
        assert_eq!(said, outcome(result, message));
        let login = serving.await.unwrap();
        if said.result == S {
            assert!(login.windows(13).any(|part| part == b"wherry-probe\0"));
        }
    }
}

/// MariaDB (Debian's `mariadb-server-core`, no service of the system's) with nothing but its own tables.
struct MariaDb {
    process: std::process::Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl MariaDb {
    const SHARE: &str = "/usr/share/mysql";

    fn command(directory: &Path) -> std::process::Command {
        let mut command = std::process::Command::new("mariadbd");
        command
            .args(["--no-defaults", "--user=root", "--innodb-log-file-size=4M"])
            .arg(format!("--lc-messages-dir={}", Self::SHARE))
            .arg(format!("--datadir={}", directory.join("data").display()))
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(directory.join("log")).unwrap());
        command
    }

    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("data")).unwrap();
        let mut sql = "create database mysql;\nuse mysql;\n".to_owned();
        for part in ["mysql_system_tables", "mysql_system_tables_data"] {
            let path = format!("{}/{part}.sql", Self::SHARE);
            sql += &std::fs::read_to_string(&path)
                .expect("mariadb-server-core: tests/run.sh installs it");
        }
        let sql_file = directory.path().join("sql");
        std::fs::write(&sql_file, sql).unwrap();
        let made = Self::command(directory.path())
            .arg("--bootstrap")
            .stdin(std::fs::File::open(sql_file).unwrap())
            .status()
            .unwrap();
        let log = || std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        assert!(made.success(), "{}", log());
        let port = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
        let port = port.local_addr().unwrap().port();
        let process = Self::command(directory.path())
            .args(["--bind-address=127.0.0.1", &format!("--port={port}")])
            .arg(format!("--socket={}", directory.path().join("s").display()))
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            directory,
            port,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn a_real_server_of_mysqls_protocol_is_alive_until_it_ends(shared: &Shared) {
    let pod = Pod::default();
    let server = MariaDb::start();
    let words = format!("wasm:sql-ping --kind=mysql --port={}", server.port);
    let begun = std::time::Instant::now();
    let said = loop {
        let said = shared.words(&words, &pod).await;
        if said.result == ProbeResult::Success {
            break said;
        }
        let in_time = begun.elapsed() < Duration::from_secs(60);
        assert!(in_time, "{said:?}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(
        said.message.starts_with("10.") && said.message.ends_with(" is alive"),
        "{said:?}"
    );
    // Nobody of that name, and no such database: it takes connections all the same, and blocks nobody for it.
    for more in [
        "",
        " --user=root --database=mysql",
        " --user=nobody",
        " --database=absent",
    ] {
        for _ in 0..60 {
            let said = shared.words(&format!("{words}{more}"), &pod).await;
            assert_eq!(said.result, ProbeResult::Success, "{more}: {said:?}");
        }
    }
    let not_postgres = words.replace("mysql", "postgres");
    let said = shared.words(&not_postgres, &pod).await;
    assert_eq!(said.result, ProbeResult::Failure, "{said:?}");
    drop(server);
    let said = shared.words(&words, &pod).await;
    assert!(
        said.result == ProbeResult::Failure && said.message.contains("refused"),
        "{said:?}"
    );
}

async fn files_have_an_age(shared: &Shared) {
    use ProbeResult::{Failure as F, Success as S, Unknown as U};
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    std::fs::write(root.join("beat"), "x").unwrap();
    std::fs::write(root.join("old"), "x").unwrap();
    let then = std::time::SystemTime::now() - Duration::from_secs(100);
    std::fs::File::open(root.join("old"))
        .unwrap()
        .set_modified(then)
        .unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("out")).unwrap();
    let pod = Pod {
        volumes: [("data", root)].into(),
        ..Pod::default()
    };
    for (arguments, result, message) in [
        ("--volume=data --path=beat --max-age=60", S, "data/beat is "),
        ("--volume=data --path=old --max-age=60", F, "data/old is 10"),
        (
            "--volume=data --path=old --max-age=600",
            S,
            "data/old is 10",
        ),
        (
            "--volume=data --path=beat --max-age=60 --min-size=2",
            F,
            "data/beat has 1 bytes, fewer than 2",
        ),
        (
            "--volume=data --path=absent --max-age=60",
            F,
            "data/absent is not there",
        ),
        (
            "--volume=other --path=beat --max-age=60",
            F,
            "other/beat is not there",
        ),
        (
            "--volume=data --path=out --max-age=60",
            U,
            "plugin file-age: not granted: out: leads out of the volume",
        ),
        (
            "--volume=data --path=../x --max-age=60",
            U,
            "plugin file-age: not granted: ../x: leads out of the volume",
        ),
        (
            "--volume=data --path=beat",
            U,
            "plugin file-age: invalid arguments: --max-age= is missing",
        ),
        (
            "--path=beat",
            U,
            "plugin file-age: invalid arguments: --volume= is missing",
        ),
        (
            "--volume=data --path=beat --max-age=60 --nonsense",
            U,
            "plugin file-age: invalid arguments: unknown argument --nonsense",
        ),
    ] {
        let said = shared
            .words(&format!("wasm:file-age {arguments}"), &pod)
            .await;
        assert_eq!(said.result, result, "{arguments}: {said:?}");
        assert!(said.message.starts_with(message), "{arguments}: {said:?}");
    }
}

async fn an_installed_plugin_replaces_a_builtin_one_of_its_name(_: &Shared) {
    // A node of its own: others ask for the built-in one meanwhile.
    let own = Node::open();
    let prober = PluginProber::new(Arc::clone(&own.host));
    let pod = Pod::default();
    let words = "wasm:file-age fail mine";
    let said = ask(&prober, words, &pod).await;
    assert!(said.message.contains("--volume= is missing"), "{said:?}");
    let wasm = guest();
    let installed = own.host.install(spec("file-age"), &wasm);
    installed.await.unwrap();
    assert_eq!(
        ask(&prober, words, &pod).await,
        outcome(ProbeResult::Failure, "mine")
    );
    own.host.remove("file-age").await;
    let said = ask(&prober, words, &pod).await;
    assert!(said.message.contains("--volume= is missing"), "{said:?}");
    let metrics = prober.metrics();
    assert!(
        metrics.contains("wherry_plugin_calls_total{plugin=\"file-age\"}"),
        "{metrics}"
    );
}

async fn a_builtin_plugin_does_what_the_operator_grants_it(_: &Shared) {
    let node = Node::open();
    let host = &node.host;
    let (port, _asked) = server(vec![EMPTY_OK.into(); 2]).await;
    // By name: the pod's own address takes no grant.
    let words = ["--host=localhost".to_owned(), format!("--port={port}")];
    let (target, time) = (ProbeTarget::default(), Duration::from_secs(10));
    let pod = Pod::default();
    let check = || host.check("http-get", &words, &target, time, &pod);
    assert_eq!(check().await.result, ProbeResult::Success);
    // Nowhere but the pod any more.
    host.install_builtin("http-get", |spec| {
        spec.grants.hosts.clear();
        spec.limits.memory_bytes_max = 8 << 20;
    })
    .await
    .unwrap();
    let said = check().await;
    assert_eq!(said.result, ProbeResult::Unknown, "{said:?}");
    assert!(said.message.contains("needs the grant hosts"), "{said:?}");
    host.remove("http-get").await;
    assert_eq!(check().await.result, ProbeResult::Success);
    let error = host.install_builtin("own", |_| {}).await.unwrap_err();
    assert_eq!(error.reason(), "NotBuiltIn");
}

async fn many_slow_servers_hold_up_nobody(shared: &Shared) {
    let silent = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let pod = Pod::default();
    let slow = (0..100).map(|_| shared.check_in(get(port, "/", &[]), Duration::from_secs(3), &pod));
    let slow = futures::future::join_all(slow);
    let quick = async {
        let mut said = Vec::new();
        for _ in 0..10 {
            let (port, _asked) = server(vec![EMPTY_OK.into()]).await;
            said.push(
                shared
                    .check_in(get(port, "/", &[]), Duration::from_secs(2), &pod)
                    .await,
            );
        }
        said
    };
    let (slow, quick) = tokio::join!(slow, quick);
    assert!(slow.iter().all(|said| said.result == ProbeResult::Failure));
    assert!(
        slow.iter()
            .all(|said| said.message.contains("deadline exceeded"))
    );
    assert!(
        quick.iter().all(|said| said.result == ProbeResult::Success),
        "{quick:?}"
    );
}

async fn a_worker_that_ends_costs_a_builtin_probe_nothing(_: &Shared) {
    // A node of its own: a worker's end is news to every call under way.
    let own = Node::open();
    let prober = PluginProber::new(Arc::clone(&own.host));
    let (port, _asked) = server(vec![EMPTY_OK.into(); 3]).await;
    for _ in 0..3 {
        let request = ProbeRequest {
            action: get(port, "/", &[]),
            timeout: Duration::from_secs(10),
        };
        let said = prober.check(&request, &Pod::default()).await;
        assert_eq!(said, outcome(ProbeResult::Success, ""));
        if let Some(pid) = own.host.worker_pid().await {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        }
    }
}
