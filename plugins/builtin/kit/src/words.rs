//! Results, and the words of the kubelet, which is written in Go.

use alloc::{format, string::String};

use crate::{Outcome, ProbeError, Verdict, http::HttpError, tcp::TcpError};

/// Who asks, as servers' logs know it.
pub const USER_AGENT: &str = "kube-probe/1.36";

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

/// Why there is no HTTP answer; that is for servers that went away in the middle, in Go's word.
pub fn http_error(error: HttpError) -> String {
    match error {
        HttpError::ConnectionClosed(_) => "EOF".into(),
        HttpError::Timeout(text)
        | HttpError::ConnectionRefused(text)
        | HttpError::NameNotFound(text)
        | HttpError::Tls(text)
        | HttpError::MalformedResponse(text)
        | HttpError::Denied(text)
        | HttpError::InvalidRequest(text)
        | HttpError::Other(text) => text,
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
    // What has passed since the call began is not worth telling.
    let millis = nanoseconds.div_ceil(50_000_000) * 50;
    match (millis / 1000, millis % 1000) {
        (0, millis) => format!("{millis}ms"),
        (seconds, 0) => format!("{seconds}s"),
        (seconds, millis) => {
            let fraction = format!("{millis:03}");
            format!("{seconds}.{}s", fraction.trim_end_matches('0'))
        }
    }
}
