use std::time::Duration;

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{Exec, NativeProber, ProbeAction, ProbeOutcome, ProbeRequest, ProbeResult, Prober};

struct ExitsWith(Result<(i32, Vec<u8>), Option<String>>);

#[async_trait]
impl Exec for ExitsWith {
    async fn exec(&self, _: &[String], _: Duration) -> Result<(i32, Vec<u8>), Option<String>> {
        self.0.clone()
    }
}

async fn check(action: ProbeAction) -> ProbeOutcome {
    let request = ProbeRequest {
        action,
        timeout: Duration::from_secs(5),
    };
    NativeProber::default()
        .check(&request, &ExitsWith(Ok((0, Vec::new()))))
        .await
}

/// Answers each connection with the next of `answers`, and sends on what was asked.
async fn server(answers: Vec<&'static str>) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback has free ports");
    let port = listener.local_addr().expect("bound").port();
    let (asked, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("the client connects");
            let mut buffer = vec![0; 4096];
            let read = stream.read(&mut buffer).await.expect("the client sends");
            let _ = asked.send(String::from_utf8_lossy(&buffer[..read]).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, receiver)
}

fn get(port: u16, path: &str, headers: &[(&str, &str)]) -> ProbeAction {
    ProbeAction::HttpGet {
        is_https: false,
        host: "127.0.0.1".into(),
        port,
        path: path.into(),
        headers: headers
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect(),
    }
}

#[tokio::test]
async fn statuses_from_200_to_399_are_success() {
    let table = [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
            ProbeResult::Success,
        ),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", ProbeResult::Success),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            ProbeResult::Failure,
        ),
        (
            "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
            ProbeResult::Failure,
        ),
    ];
    for (answer, expected) in table {
        let (port, _asked) = server(vec![answer]).await;
        assert_eq!(
            check(get(port, "/healthz", &[])).await.result,
            expected,
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_failed_status_is_told_in_the_kubelets_words() {
    let (port, _asked) = server(vec!["HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"]).await;
    assert_eq!(
        check(get(port, "/", &[])).await.message,
        "HTTP probe failed with statuscode: 503"
    );
}

#[tokio::test]
async fn own_headers_are_sent_and_host_can_be_replaced() {
    let (port, mut asked) = server(vec!["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
    check(get(
        port,
        "ready?full=1",
        &[("Host", "example.test"), ("X-Probe", "yes")],
    ))
    .await;
    let request = asked.recv().await.expect("one request").to_lowercase();
    assert!(request.starts_with("get /ready?full=1 "), "{request}");
    assert!(
        request.contains("host: example.test\r\n") && request.contains("x-probe: yes\r\n"),
        "{request}"
    );
    assert!(!request.contains("127.0.0.1"), "{request}");
}

#[tokio::test]
async fn redirects_within_the_pod_are_followed_and_others_are_not() {
    let here = "HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n";
    let bad = "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n";
    let (port, _asked) = server(vec![here, bad]).await;
    assert_eq!(
        check(get(port, "/", &[])).await.result,
        ProbeResult::Failure
    );
    let away = "HTTP/1.1 302 Found\r\nlocation: http://example.test/\r\ncontent-length: 0\r\n\r\n";
    let (port, _asked) = server(vec![away]).await;
    assert_eq!(
        check(get(port, "/", &[])).await.result,
        ProbeResult::Success
    );
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_a_refused_dial() {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback has free ports");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    let tcp = check(ProbeAction::TcpSocket {
        host: "127.0.0.1".into(),
        port,
    })
    .await;
    assert_eq!(
        (tcp.result, tcp.message.as_str()),
        (ProbeResult::Failure, refused.as_str())
    );
    let http = check(get(port, "/x", &[])).await;
    assert_eq!(
        http.message,
        format!("Get \"http://127.0.0.1:{port}/x\": {refused}")
    );
}

#[tokio::test]
async fn an_exec_probe_goes_by_its_exit_code_and_does_not_count_when_it_cannot_run() {
    let table = [
        (Ok((0, b"fine".to_vec())), ProbeResult::Success),
        (Ok((3, b"no".to_vec())), ProbeResult::Failure),
        (Err(None), ProbeResult::Failure),
        (Err(Some("container gone".into())), ProbeResult::Unknown),
    ];
    for (answer, expected) in table {
        let action = ProbeAction::Exec {
            command: vec!["true".into()],
        };
        let request = ProbeRequest {
            action,
            timeout: Duration::from_secs(1),
        };
        let outcome = NativeProber::default()
            .check(&request, &ExitsWith(answer))
            .await;
        assert_eq!(outcome.result, expected);
    }
}
