//! gRPC's health protocol: one call, two fields, so no generated code.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::{ProbeOutcome, ProbeResult, native::dial};

/// Longest answer read; a health response has a few bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// `grpc.health.v1.HealthCheckResponse.SERVING`.
const SERVING: u8 = 1;

/// Asks a server about a service. The caller bounds the time.
pub(crate) async fn check(address: impl Into<SocketAddr>, service: &str) -> ProbeOutcome {
    let address = address.into();
    match call(address, service).await {
        Ok(SERVING) => ProbeOutcome::new(ProbeResult::Success, ""),
        Ok(status) => ProbeOutcome::new(
            ProbeResult::Failure,
            format!(
                "service unhealthy (responded with \"{}\")",
                status_name(status)
            ),
        ),
        Err(trouble) => ProbeOutcome::new(ProbeResult::Failure, trouble),
    }
}

fn status_name(status: u8) -> &'static str {
    match status {
        1 => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

async fn call(address: SocketAddr, service: &str) -> Result<u8, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| dial(&address.ip().to_string(), address.port(), &error))?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(Bytes::from(frame(service))))
        .map_err(|error| error.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    let grpc_status = |headers: &hyper::HeaderMap| {
        headers
            .get("grpc-status")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let early = grpc_status(response.headers());
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    let status = early
        .or_else(|| body.trailers().and_then(grpc_status))
        .unwrap_or_else(|| "0".into());
    match status.as_str() {
        "0" => Ok(parse(&body.to_bytes())),
        "12" => Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".into()),
        other => Err(format!("error: health rpc failed with status {other}")),
    }
}

/// A request in gRPC's framing: not compressed, length, field 1.
fn frame(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or(0));
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    frame.extend_from_slice(&message);
    frame
}

/// The status in an answer: field 1, a small number; absent is 0.
fn parse(answer: &[u8]) -> u8 {
    match answer.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_in_grpc_framing() {
        assert_eq!(frame(""), [0, 0, 0, 0, 0]);
        assert_eq!(frame("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(parse(&[0, 0, 0, 0, 2, 8, 1]), SERVING);
        assert_eq!(parse(&[0, 0, 0, 0, 0]), 0);
    }
}
