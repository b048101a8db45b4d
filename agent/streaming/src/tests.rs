//! Clients and servers on loopback: hand-made ones for what a client could do, `kubectl` for what it does.

use std::{process::Stdio, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, RawQuery, State},
    http::{Request, Response},
    routing::get,
};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::{Mutex, mpsc},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};
use wherry_runtime_api::{Duplex, RuntimeError, StreamSession, TerminalSize};

use crate::{
    StreamOptions, StreamServer, Timeouts,
    spdy::tests::{Client, Received},
    tunnel::tests::ClientTunnel,
};

/// An API server and a node in one, with one pod whose every container is a process of this machine.
struct Node {
    streams: StreamServer,
    /// The sizes that sessions were told of.
    sizes: Arc<Mutex<Vec<TerminalSize>>>,
    /// Told the ID of each process that was started.
    started: mpsc::UnboundedSender<u32>,
}

/// The node's address, and the IDs of the processes it starts.
struct Served {
    address: String,
    node: Arc<Node>,
    started: mpsc::UnboundedReceiver<u32>,
}

async fn serve() -> Served {
    let (sender, started) = mpsc::unbounded_channel();
    let node = Arc::new(Node {
        streams: StreamServer::new(Timeouts::default()),
        sizes: Arc::default(),
        started: sender,
    });
    let pod = "/api/v1/namespaces/default/pods/p";
    let router = Router::new()
        .route(
            "/api",
            get(async || Json(json!({"kind": "APIVersions", "versions": ["v1"]}))),
        )
        .route(
            "/apis",
            get(async || Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}))),
        )
        .route("/api/v1", get(resources))
        .route(pod, get(the_pod))
        .route(&format!("{pod}/exec"), get(exec).post(exec))
        .route(&format!("{pod}/attach"), get(attach).post(attach))
        .route(
            &format!("{pod}/portforward"),
            get(port_forward).post(port_forward),
        )
        .with_state(node.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    Served {
        address,
        node,
        started,
    }
}

async fn resources() -> Json<Value> {
    let pods = json!({"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get"]});
    Json(json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [pods]}))
}

async fn the_pod() -> Json<Value> {
    Json(json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "i", "stdin": true}]},
        "status": {"phase": "Running"},
    }))
}

type Pairs = Query<Vec<(String, String)>>;

fn options(pairs: &[(String, String)]) -> StreamOptions {
    let asked = |name: &str| {
        pairs
            .iter()
            .any(|(key, value)| key == name && value == "true")
    };
    StreamOptions {
        stdin: asked("stdin"),
        stdout: asked("stdout"),
        stderr: asked("stderr"),
        tty: asked("tty"),
    }
}

async fn exec(
    State(node): State<Arc<Node>>,
    Query(pairs): Pairs,
    mut request: Request<Body>,
) -> Response<String> {
    let command: Vec<String> = pairs
        .iter()
        .filter(|(key, _)| key == "command")
        .map(|(_, value)| value.clone())
        .collect();
    let options = options(&pairs);
    let inner = node.clone();
    node.streams
        .exec(&mut request, options, move || async move {
            inner.session(&command, options)
        })
}

async fn attach(
    State(node): State<Arc<Node>>,
    Query(pairs): Pairs,
    mut request: Request<Body>,
) -> Response<String> {
    let options = options(&pairs);
    let command = ["sh", "-c", "read line; echo got $line; exit 3"].map(String::from);
    let inner = node.clone();
    node.streams
        .attach(&mut request, options, move || async move {
            inner.session(&command, options)
        })
}

async fn port_forward(
    State(node): State<Arc<Node>>,
    RawQuery(query): RawQuery,
    mut request: Request<Body>,
) -> Response<String> {
    let ports = query
        .iter()
        .flat_map(|query| query.split('&'))
        .filter_map(|pair| pair.strip_prefix("ports=")?.parse().ok());
    node.streams
        .port_forward(&mut request, ports.collect(), async |port| {
            let stream = TcpStream::connect(("127.0.0.1", port))
                .await
                .map_err(|error| format!("port {port}: {error}"))?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
}

impl Node {
    fn session(
        &self,
        command: &[String],
        options: StreamOptions,
    ) -> Result<StreamSession, RuntimeError> {
        let stdio = |wanted| {
            if wanted {
                Stdio::piped()
            } else {
                Stdio::null()
            }
        };
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(stdio(options.stdin))
            .stdout(stdio(options.stdout))
            .stderr(stdio(options.stderr))
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                RuntimeError::InvalidArgument(format!("exec {:?}: {error}", command[0]))
            })?;
        let _ = self
            .started
            .send(child.id().expect("it was started just now"));
        let (resize, mut sizes) = mpsc::channel(1);
        let seen = self.sizes.clone();
        tokio::spawn(async move {
            while let Some(size) = sizes.recv().await {
                seen.lock().await.push(size);
            }
        });
        Ok(StreamSession {
            stdin: child.stdin.take().map(|pipe| Box::new(pipe) as _),
            stdout: child.stdout.take().map(|pipe| Box::new(pipe) as _),
            stderr: child.stderr.take().map(|pipe| Box::new(pipe) as _),
            resize: options.tty.then_some(resize),
            exit: Box::pin(async move {
                let status = child.wait().await.map_err(RuntimeError::io("wait"))?;
                Ok(status.code().unwrap_or(137))
            }),
        })
    }
}

fn exec_path(command: &[&str], streams: &str) -> String {
    let command: String = command
        .iter()
        .map(|word| {
            format!(
                "command={}&",
                word.replace(' ', "%20")
                    .replace(';', "%3B")
                    .replace('>', "%3E")
                    .replace('&', "%26")
            )
        })
        .collect();
    format!("/api/v1/namespaces/default/pods/p/exec?{command}{streams}")
}

async fn websocket(served: &Served, path: &str, protocol: &str) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{}{path}", served.address)
        .into_client_request()
        .expect("valid");
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocol.parse().expect("valid"));
    let stream = TcpStream::connect(&served.address)
        .await
        .expect("server listens");
    let (websocket, response) = tokio_tungstenite::client_async(request, stream)
        .await
        .expect("upgrade");
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    websocket
}

/// What came on each channel, until the server closes.
async fn read_channels(websocket: &mut WebSocketStream<TcpStream>) -> [Vec<u8>; 4] {
    let mut channels = <[Vec<u8>; 4]>::default();
    while let Some(message) = websocket.next().await {
        match message.expect("server closes properly") {
            Message::Binary(bytes) => {
                channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..])
            }
            Message::Close(frame) => {
                assert_eq!(u16::from(frame.expect("a reason").code), 1000);
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    channels
}

fn status(channel: &[u8]) -> Value {
    serde_json::from_slice(channel).expect("a Status")
}

#[tokio::test]
async fn websocket_carries_output_and_exit_code() {
    let served = serve().await;
    let path = exec_path(
        &["sh", "-c", "echo out; echo err >&2; exit 7"],
        "stdout=true&stderr=true",
    );
    let mut websocket = websocket(&served, &path, "v4.channel.k8s.io").await;
    let [_, stdout, stderr, error] = read_channels(&mut websocket).await;
    assert_eq!((&stdout[..], &stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    let status = status(&error);
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(
        status["details"]["causes"][0],
        json!({"reason": "ExitCode", "message": "7"})
    );
}

#[tokio::test]
async fn closing_stdin_by_itself_lets_the_command_finish() {
    let served = serve().await;
    let path = exec_path(&["sort"], "stdin=true&stdout=true");
    let mut websocket = websocket(&served, &path, "v5.channel.k8s.io").await;
    for message in [&b"\0b\n"[..], b"\0a\n", b"\xff\0"] {
        websocket
            .send(Message::Binary(Bytes::from_static(message)))
            .await
            .expect("server reads");
    }
    let [_, stdout, _, error] = read_channels(&mut websocket).await;
    assert_eq!(stdout, b"a\nb\n");
    assert_eq!(status(&error)["status"], "Success");
}

#[tokio::test]
async fn base64_clients_get_text() {
    let served = serve().await;
    let path = exec_path(&["cat"], "stdin=true&stdout=true");
    let mut websocket = websocket(&served, &path, "base64.v4.channel.k8s.io").await;
    websocket
        .send(Message::text("0aGVsbG8="))
        .await
        .expect("server reads");
    let texts: Vec<String> = websocket
        .take(2)
        .map(|message| message.expect("text").to_string())
        .collect()
        .await;
    assert_eq!(texts, ["1", "1aGVsbG8="]);
}

#[tokio::test]
async fn a_slow_client_loses_nothing_of_a_large_output() {
    const LENGTH: usize = 24 * 1024 * 1024;
    let served = serve().await;
    let path = exec_path(
        &["head", "-c", &LENGTH.to_string(), "/dev/zero"],
        "stdout=true",
    );
    let mut websocket = websocket(&served, &path, "v5.channel.k8s.io").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let [_, stdout, _, error] = read_channels(&mut websocket).await;
    assert_eq!(stdout.len(), LENGTH);
    assert_eq!(status(&error)["status"], "Success");
}

#[tokio::test]
async fn a_client_that_goes_ends_the_command() {
    let mut served = serve().await;
    let path = exec_path(&["sleep", "600"], "stdin=true&stdout=true");
    let websocket = websocket(&served, &path, "v5.channel.k8s.io").await;
    let id = served
        .started
        .recv()
        .await
        .expect("the command was started");
    drop(websocket);
    // A process that was killed and waited for is no longer there.
    while std::path::Path::new(&format!("/proc/{id}")).exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_process_left_behind_does_not_hold_the_client() {
    let served = serve().await;
    let path = exec_path(&["sh", "-c", "sleep 5 & echo done"], "stdout=true");
    let mut websocket = websocket(&served, &path, "v5.channel.k8s.io").await;
    let start = std::time::Instant::now();
    let [_, stdout, _, error] = read_channels(&mut websocket).await;
    assert_eq!(stdout, b"done\n");
    assert_eq!(status(&error)["status"], "Success");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_command_that_cannot_run_is_told_on_the_error_channel() {
    let served = serve().await;
    let path = exec_path(&["/no/such"], "stdout=true");
    let mut websocket = websocket(&served, &path, "v5.channel.k8s.io").await;
    let [_, _, _, error] = read_channels(&mut websocket).await;
    let message = status(&error)["message"].as_str().expect("text").to_owned();
    assert!(message.starts_with(
        "Internal error occurred: error executing command in container: exec \"/no/such\""
    ));
}

#[tokio::test]
async fn sizes_reach_the_terminal() {
    let served = serve().await;
    let path = exec_path(&["cat"], "stdin=true&stdout=true&tty=true");
    let mut websocket = websocket(&served, &path, "v5.channel.k8s.io").await;
    for message in [&b"\x04{\"Width\":132,\"Height\":43}"[..], b"\xff\0"] {
        websocket
            .send(Message::Binary(Bytes::from_static(message)))
            .await
            .expect("server reads");
    }
    read_channels(&mut websocket).await;
    assert_eq!(
        *served.node.sizes.lock().await,
        [TerminalSize {
            width: 132,
            height: 43
        }]
    );
}

#[tokio::test]
async fn shutdown_ends_streams() {
    let served = serve().await;
    let path = exec_path(&["sleep", "600"], "stdin=true&stdout=true");
    let mut websocket = websocket(&served, &path, "v5.channel.k8s.io").await;
    served.node.streams.shutdown().await;
    while let Some(Ok(_)) = websocket.next().await {}
}

#[tokio::test]
async fn requests_without_streams_or_upgrade_are_refused() {
    let served = serve().await;
    for (path, line) in [
        (exec_path(&["true"], ""), "you must specify at least 1"),
        (exec_path(&["true"], "stdout=true"), "missing upgrade"),
    ] {
        let mut stream = TcpStream::connect(&served.address)
            .await
            .expect("server listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request") && answer.contains(line),
            "{answer}"
        );
    }
}

async fn spdy(served: &Served, path: &str, protocol: &str) -> Client<TcpStream> {
    let mut stream = TcpStream::connect(&served.address)
        .await
        .expect("server listens");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("server reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8(head).expect("text");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    Client::new(stream)
}

#[tokio::test]
async fn spdy_carries_stdin_output_and_exit_code() {
    let served = serve().await;
    let path = exec_path(&["sh", "-c", "cat; exit 4"], "stdin=true&stdout=true");
    let mut client = spdy(&served, &path, "v4.channel.k8s.io").await;
    for (stream_id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        client.open(stream_id, &[("streamtype", kind)]).await;
    }
    client.data(3, false, b"through ").await;
    client.data(3, true, b"and through").await;
    assert_eq!(client.read_stream(5).await, b"through and through");
    assert_eq!(
        status(&client.read_stream(1).await)["reason"],
        "NonZeroExitCode"
    );
}

/// Answers each connection with what it read until its end, reversed.
async fn reversing_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            if stream.read_to_end(&mut bytes).await.is_ok() {
                bytes.reverse();
                let _ = stream.write_all(&bytes).await;
            }
        }
    });
    port
}

async fn forward_over_spdy<T>(mut client: Client<T>)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let port = reversing_server().await.to_string();
    for (id, request) in [(1, "0"), (5, "1")] {
        client
            .open(
                id,
                &[
                    ("streamtype", "error"),
                    ("port", &port),
                    ("requestid", request),
                ],
            )
            .await;
        client
            .open(
                id + 2,
                &[
                    ("streamtype", "data"),
                    ("port", &port),
                    ("requestid", request),
                ],
            )
            .await;
        client.data(id + 2, true, b"abc").await;
        assert_eq!(client.read_stream(id + 2).await, b"cba");
    }
    client
        .open(
            9,
            &[("streamtype", "error"), ("port", "1"), ("requestid", "2")],
        )
        .await;
    client
        .open(
            11,
            &[("streamtype", "data"), ("port", "1"), ("requestid", "2")],
        )
        .await;
    let message = String::from_utf8(client.read_stream(9).await).expect("text");
    assert!(message.starts_with("port 1: "), "{message}");
}

#[tokio::test]
async fn connections_are_forwarded_over_spdy() {
    let served = serve().await;
    forward_over_spdy(
        spdy(
            &served,
            "/api/v1/namespaces/default/pods/p/portforward",
            "portforward.k8s.io",
        )
        .await,
    )
    .await;
}

#[tokio::test]
async fn connections_are_forwarded_over_spdy_in_websocket() {
    let served = serve().await;
    let path = "/api/v1/namespaces/default/pods/p/portforward";
    let websocket = websocket(&served, path, "SPDY/3.1+portforward.k8s.io").await;
    forward_over_spdy(Client::new(ClientTunnel::new(websocket))).await;
}

#[tokio::test]
async fn connections_are_forwarded_over_channels() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let served = serve().await;
    let path = format!("/api/v1/namespaces/default/pods/p/portforward?ports={port}");
    let mut websocket = websocket(&served, &path, "v4.channel.k8s.io").await;
    let (mut connection, _) = listener.accept().await.expect("forwarded");
    websocket
        .send(Message::Binary(Bytes::from_static(b"\0ping")))
        .await
        .expect("server reads");
    let mut bytes = [0; 4];
    connection.read_exact(&mut bytes).await.expect("forwarded");
    connection
        .write_all(b"pong")
        .await
        .expect("client is there");
    drop(connection);
    let [data, error, ..] = read_channels(&mut websocket).await;
    assert_eq!(bytes, *b"ping");
    let mut expected = port.to_le_bytes().to_vec();
    assert_eq!(error, expected);
    expected.extend_from_slice(b"pong");
    assert_eq!(data, expected);
}

#[tokio::test]
async fn a_reset_connection_leaves_the_others_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port().to_string();
    let served = serve().await;
    let mut client = spdy(
        &served,
        "/api/v1/namespaces/default/pods/p/portforward",
        "portforward.k8s.io",
    )
    .await;
    let mut connections = Vec::new();
    for (id, request) in [(1, "0"), (5, "1")] {
        client
            .open(
                id,
                &[
                    ("streamtype", "error"),
                    ("port", &port),
                    ("requestid", request),
                ],
            )
            .await;
        client
            .open(
                id + 2,
                &[
                    ("streamtype", "data"),
                    ("port", &port),
                    ("requestid", request),
                ],
            )
            .await;
        connections.push(listener.accept().await.expect("forwarded").0);
    }
    client.control(crate::spdy::tests::reset(3)).await;
    assert_eq!(connections[0].read(&mut [0; 1]).await.unwrap_or(0), 0);
    connections[1].write_all(b"still here").await.expect("open");
    loop {
        if let Some(Received::Data {
            stream_id: 7,
            bytes,
            ..
        }) = client.receive().await
        {
            assert_eq!(bytes, &b"still here"[..]);
            break;
        }
    }
}

mod kubectl {
    //! The real client, against the same server. `tests/run.sh` installs one where it is missing.

    use super::*;

    /// kubectl with this node as its cluster. `websockets`: kubectl tries them first, else it speaks SPDY.
    fn kubectl(served: &Served, websockets: bool) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args([
                "--server",
                &format!("http://{}", served.address),
                "--kubeconfig=/dev/null",
            ])
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets.to_string())
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string())
            .env("HOME", std::env::temp_dir())
            .kill_on_drop(true);
        command
    }

    #[tokio::test]
    async fn exec_gives_output_and_exit_code() {
        for websockets in [true, false] {
            let served = serve().await;
            let output = kubectl(&served, websockets)
                .args([
                    "exec",
                    "p",
                    "--",
                    "sh",
                    "-c",
                    "echo out; echo err >&2; exit 7",
                ])
                .output()
                .await
                .expect("kubectl is installed");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
            assert_eq!(
                String::from_utf8_lossy(&output.stderr),
                "err\ncommand terminated with exit code 7\n"
            );
            assert_eq!(output.status.code(), Some(7));
        }
    }

    #[tokio::test]
    async fn exec_passes_stdin_through_to_its_end() {
        for websockets in [true, false] {
            let served = serve().await;
            let mut child = kubectl(&served, websockets)
                .args(["exec", "-i", "p", "--", "cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("kubectl is installed");
            let sent: Vec<u8> = (0..3_000_000_u32)
                .map(|number| (number % 251) as u8)
                .collect();
            let mut stdin = child.stdin.take().expect("piped");
            let feed = async {
                stdin.write_all(&sent).await.expect("kubectl reads");
                drop(stdin);
            };
            let (output, ()) = tokio::join!(child.wait_with_output(), feed);
            let output = output.expect("kubectl ends");
            assert!(output.status.success());
            assert!(
                output.stdout == sent,
                "got {} bytes of {}",
                output.stdout.len(),
                sent.len()
            );
        }
    }

    #[tokio::test]
    async fn exec_says_why_a_command_cannot_run() {
        for websockets in [true, false] {
            let served = serve().await;
            let output = kubectl(&served, websockets)
                .args(["exec", "p", "--", "/no/such"])
                .output()
                .await
                .expect("kubectl is installed");
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(error.contains("Internal error occurred: error executing command in container: exec \"/no/such\""), "{error}");
        }
    }

    #[tokio::test]
    async fn attach_ends_with_the_app() {
        for websockets in [true, false] {
            let served = serve().await;
            let mut child = kubectl(&served, websockets)
                .args(["attach", "-i", "p"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("kubectl is installed");
            child
                .stdin
                .as_mut()
                .expect("piped")
                .write_all(b"word\n")
                .await
                .expect("kubectl reads");
            let output = child.wait_with_output().await.expect("kubectl ends");
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "got word\n",
                "{output:?}"
            );
        }
    }

    #[tokio::test]
    async fn port_forward_carries_connections() {
        for websockets in [true, false] {
            let served = serve().await;
            let port = reversing_server().await;
            let mut child = kubectl(&served, websockets)
                .args([
                    "port-forward",
                    "p",
                    "--address=127.0.0.1",
                    &format!(":{port}"),
                ])
                .stdout(Stdio::piped())
                .spawn()
                .expect("kubectl is installed");
            let mut line = Vec::new();
            let stdout = child.stdout.as_mut().expect("piped");
            while !line.ends_with(b"\n") {
                line.push(
                    stdout
                        .read_u8()
                        .await
                        .expect("kubectl says where it listens"),
                );
            }
            let line = String::from_utf8(line).expect("text");
            let local = line
                .trim_start_matches("Forwarding from ")
                .split(' ')
                .next()
                .expect("an address");
            let connections = (0..8_usize).map(async |number| {
                let mut stream = TcpStream::connect(local).await.expect("kubectl listens");
                let sent: Vec<u8> = (0..100_000 + number).map(|at| (at % 13) as u8).collect();
                stream.write_all(&sent).await.expect("kubectl reads");
                stream.shutdown().await.expect("kubectl is there");
                let mut received = Vec::new();
                stream.read_to_end(&mut received).await.expect("an answer");
                received.reverse();
                assert!(
                    received == sent,
                    "got {} bytes of {}",
                    received.len(),
                    sent.len()
                );
            });
            futures::future::join_all(connections).await;
            child.kill().await.expect("it ran");
        }
    }
}
