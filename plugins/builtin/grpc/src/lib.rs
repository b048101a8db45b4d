//! Probes of kind grpc: SERVING by the health protocol is success. One call and two fields, so no generated code.
//!
//! `--port=` (name or number), `--host=` (the pod, where it is missing), `--service=` (the server as a whole).

#![no_std]

extern crate alloc;

use alloc::{format, string::String, vec::Vec};

use kit::{
    Arguments, Guest, Outcome, ProbeError, address, clock, failure,
    http::{HttpError, Request, Response, Scheme, Trust, Version, send},
    http_error, seconds, success,
};

/// Longest answer read; a health response has a few bytes.
const ANSWER_BYTES_MAX: u32 = 16 * 1024;
/// `grpc.health.v1.HealthCheckResponse.SERVING`.
const SERVING: u8 = 1;

struct Plugin;

kit::export!(Plugin);

impl Guest for Plugin {
    fn check(arguments: Vec<String>) -> Result<Outcome, ProbeError> {
        let mut arguments = Arguments::new(arguments);
        let port = arguments.port(None)?;
        let host = arguments.host();
        let service = arguments.get("service").unwrap_or_default();
        arguments.end()?;
        let time = clock::remaining();
        let name = address(&host, port);
        match send(&request(host, port, &service)) {
            Ok(response) => said(&response),
            Err(HttpError::Denied(why)) => Err(ProbeError::Denied(why)),
            Err(HttpError::Timeout(_)) => failure(format!(
                "timeout: failed to connect service \"{name}\" within {}: context deadline exceeded",
                seconds(time)
            )),
            Err(error) => failure(http_error(error)),
        }
    }
}

fn request(host: String, port: u16, service: &str) -> Request {
    let headers = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", kit::USER_AGENT),
    ];
    Request {
        method: "POST".into(),
        scheme: Scheme::Http,
        host,
        port,
        path_with_query: "/grpc.health.v1.Health/Check".into(),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        body: frame(service),
        version: Version::Http2,
        trust: Trust::Anybody,
        identity: None,
        body_bytes_max: ANSWER_BYTES_MAX,
    }
}

fn said(response: &Response) -> Result<Outcome, ProbeError> {
    let status = response
        .headers
        .iter()
        .chain(&response.trailers)
        .find(|(name, _)| name == "grpc-status")
        .map(|(_, value)| String::from_utf8_lossy(value));
    match status.as_deref().unwrap_or("0") {
        "0" => match health(&response.body) {
            SERVING => success(""),
            status => failure(format!(
                "service unhealthy (responded with \"{}\")",
                status_name(status)
            )),
        },
        "12" => failure(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)",
        ),
        other => failure(format!("error: health rpc failed with status {other}")),
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

/// A request in gRPC's framing: not compressed, length, field 1.
fn frame(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = Vec::from([0]);
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

/// The status in an answer: field 1, a small number; absent is 0.
fn health(answer: &[u8]) -> u8 {
    match answer.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}
