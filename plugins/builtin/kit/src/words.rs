//! Results, and the words of the kubelet, which is written in Go.

use alloc::{format, string::String};

use crate::{Outcome, ProbeError, Verdict, tcp::TcpError};

/// All is well.
pub fn success(message: impl Into<String>) -> Result<Outcome, ProbeError> {
    Ok(Outcome {
        verdict: Verdict::Success,
        message: message.into(),
    })
}

/// It is not.
pub fn failure(message: impl Into<String>) -> Result<Outcome, ProbeError> {
    Ok(Outcome {
        verdict: Verdict::Failure,
        message: message.into(),
    })
}

/// A failure in an error's words; what is not granted is no failure of the pod's.
pub fn denied_or(error: TcpError) -> Result<Outcome, ProbeError> {
    match error {
        TcpError::Denied(why) => Err(ProbeError::Denied(why)),
        error => failure(dial_tcp(error)),
    }
}

/// What became of a connection. The host's texts name the address in the kubelet's words.
pub fn dial_tcp(error: TcpError) -> String {
    match error {
        TcpError::Timeout(text)
        | TcpError::ConnectionRefused(text)
        | TcpError::NameNotFound(text)
        | TcpError::ConnectionClosed(text)
        | TcpError::Denied(text)
        | TcpError::Other(text) => text,
    }
}

/// `host:port`, with brackets where they belong.
pub fn address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Nanoseconds as Go prints a duration: `1s`, `500ms`, `1.5s`.
pub fn seconds(nanoseconds: u64) -> String {
    let millis = nanoseconds.div_ceil(1_000_000);
    match (millis / 1000, millis % 1000) {
        (0, millis) => format!("{millis}ms"),
        (seconds, 0) => format!("{seconds}s"),
        (seconds, millis) => {
            let fraction = format!("{millis:03}");
            format!("{seconds}.{}s", fraction.trim_end_matches('0'))
        }
    }
}
