//! From an upgrade request to the transport it asks for, and the answer that accepts or refuses it.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const STREAM_PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_STREAM_PROTOCOL_VERSIONS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY_31: &str = "SPDY/3.1";

/// What travels on the connection after the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// WebSocket messages that begin with a channel byte; 255 closes a channel.
    ChannelsV5,
    /// The same without a way to close a channel.
    ChannelsV4,
    /// Text messages: a digit for the channel, then base64.
    ChannelsV4Base64,
    /// SPDY with one stream for each of the command's streams.
    SpdyChannelsV4,
    /// SPDY with a pair of streams for each connection.
    SpdyPortForward,
    /// The same, its bytes carried in WebSocket messages.
    TunnelPortForward,
}

impl Transport {
    fn is_websocket(self) -> bool {
        !matches!(self, Self::SpdyChannelsV4 | Self::SpdyPortForward)
    }

    fn name(self) -> &'static str {
        match self {
            Self::ChannelsV5 => "v5.channel.k8s.io",
            Self::ChannelsV4 | Self::SpdyChannelsV4 => "v4.channel.k8s.io",
            Self::ChannelsV4Base64 => "base64.v4.channel.k8s.io",
            Self::SpdyPortForward => "portforward.k8s.io",
            Self::TunnelPortForward => "SPDY/3.1+portforward.k8s.io",
        }
    }
}

/// An upgrade that was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upgrade {
    pub(crate) transport: Transport,
    /// `Sec-WebSocket-Accept`, for WebSocket.
    accept: Option<String>,
}

/// Why a request cannot be upgraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
    accepted: Vec<&'static str>,
}

impl Refusal {
    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
            accepted: Vec::new(),
        }
    }

    pub(crate) fn into_response(self) -> Response<String> {
        let mut response = Response::new(self.message);
        *response.status_mut() = self.status;
        for name in self.accepted {
            response.headers_mut().append(
                ACCEPTED_STREAM_PROTOCOL_VERSIONS,
                HeaderValue::from_static(name),
            );
        }
        response
    }
}

/// A 400 with this text.
pub(crate) fn refuse(message: &str) -> Response<String> {
    Refusal::bad_request(message).into_response()
}

impl Upgrade {
    /// Picks the first transport of `offered` (in the server's order for WebSocket, as its protocols are
    /// alternatives; there is one for SPDY) that the client asks for.
    pub(crate) fn negotiate<B>(
        request: &Request<B>,
        offered: &[Transport],
    ) -> Result<Self, Refusal> {
        let headers = request.headers();
        if !has_token(headers, &header::CONNECTION, "upgrade") {
            return Err(Refusal::bad_request(
                "unable to upgrade: missing upgrade headers in request",
            ));
        }
        if has_token(headers, &header::UPGRADE, "websocket") {
            Self::negotiate_websocket(headers, offered)
        } else if has_token(headers, &header::UPGRADE, SPDY_31) {
            let asked = tokens(headers, &STREAM_PROTOCOL_VERSION);
            pick(&asked, offered, false).map(|transport| Self {
                transport,
                accept: None,
            })
        } else {
            Err(Refusal::bad_request(
                "unable to upgrade: upgrade to websocket or SPDY/3.1 is expected",
            ))
        }
    }

    fn negotiate_websocket(headers: &HeaderMap, offered: &[Transport]) -> Result<Self, Refusal> {
        let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| {
            Refusal::bad_request("unable to upgrade: no Sec-WebSocket-Key in request")
        })?;
        if !has_token(headers, &header::SEC_WEBSOCKET_VERSION, "13") {
            return Err(Refusal::bad_request(
                "unable to upgrade: Sec-WebSocket-Version must be 13",
            ));
        }
        let asked = tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL);
        let transport = pick(&asked, offered, true)?;
        Ok(Self {
            transport,
            accept: Some(derive_accept_key(key.as_bytes())),
        })
    }

    /// `101 Switching Protocols`.
    pub(crate) fn response(&self) -> Response<String> {
        let mut response = Response::new(String::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let name = HeaderValue::from_static(self.transport.name());
        match self
            .accept
            .as_deref()
            .and_then(|accept| HeaderValue::from_str(accept).ok())
        {
            Some(accept) => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
            }
            None => {
                headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY_31));
                headers.insert(STREAM_PROTOCOL_VERSION, name);
            }
        }
        response
    }
}

fn pick(asked: &[&str], offered: &[Transport], websocket: bool) -> Result<Transport, Refusal> {
    let offered: Vec<Transport> = offered
        .iter()
        .copied()
        .filter(|t| t.is_websocket() == websocket)
        .collect();
    offered.iter().copied().find(|transport| asked.contains(&transport.name())).ok_or_else(|| {
        let accepted: Vec<&'static str> = offered.iter().map(|transport| transport.name()).collect();
        Refusal {
            status: StatusCode::FORBIDDEN,
            message: format!("unable to upgrade: unable to negotiate protocol: client supports {asked:?}, server accepts {accepted:?}"),
            accepted,
        }
    })
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
        .collect()
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name)
        .iter()
        .any(|found| found.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXEC: &[Transport] = &[
        Transport::ChannelsV5,
        Transport::ChannelsV4,
        Transport::ChannelsV4Base64,
        Transport::SpdyChannelsV4,
    ];

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri("/exec/default/p/c");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("test headers are valid")
    }

    #[test]
    fn websocket_takes_the_newest_protocol_both_know() {
        let request = request(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            (
                "sec-websocket-protocol",
                "v4.channel.k8s.io, v5.channel.k8s.io",
            ),
        ]);
        let upgrade = Upgrade::negotiate(&request, EXEC).expect("both know v5");
        assert_eq!(upgrade.transport, Transport::ChannelsV5);
        let response = upgrade.response();
        assert_eq!(response.status(), 101);
        // The example of RFC 6455, section 1.3.
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(
            response.headers()["sec-websocket-protocol"],
            "v5.channel.k8s.io"
        );
    }

    #[test]
    fn spdy_protocols_come_as_separate_headers() {
        let request = request(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "channel.k8s.io"),
        ]);
        let upgrade = Upgrade::negotiate(&request, EXEC).expect("both know v4");
        assert_eq!(upgrade.transport, Transport::SpdyChannelsV4);
        assert_eq!(
            upgrade.response().headers()["x-stream-protocol-version"],
            "v4.channel.k8s.io"
        );
    }

    #[test]
    fn what_cannot_be_agreed_on_is_refused_with_the_alternatives() {
        let request = request(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "channel.k8s.io"),
        ]);
        let response = Upgrade::negotiate(&request, EXEC)
            .expect_err("v1 is not offered")
            .into_response();
        assert_eq!(response.status(), 403);
        assert_eq!(
            response.headers()["x-accepted-stream-protocol-versions"],
            "v4.channel.k8s.io"
        );
    }

    #[test]
    fn a_request_without_upgrade_is_a_bad_request() {
        let response = Upgrade::negotiate(&request(&[]), EXEC)
            .expect_err("no upgrade")
            .into_response();
        assert_eq!(response.status(), 400);
    }
}
