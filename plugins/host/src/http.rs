//! HTTP probes: one request on a connection of its own, redirects within the host followed.

use std::sync::Arc;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    ProbeOutcome, ProbeResult,
    native::{address, dial},
};

/// Body kept for the event (`maxRespBodyLength` of the kubelet).
const BODY_BYTES_MAX: usize = 10 * 1024;
/// Redirects followed, as Go's client does.
const REDIRECTS_MAX: usize = 10;

/// What to get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(String, String)],
}

impl Target<'_> {
    pub(crate) fn url(&self, is_https: bool) -> String {
        let scheme = if is_https { "https" } else { "http" };
        format!(
            "{scheme}://{}{}",
            address(self.host, self.port),
            rooted(self.path)
        )
    }
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// Makes the request. The caller bounds the time.
pub(crate) async fn get(target: Target<'_>, tls: Option<Arc<ClientConfig>>) -> ProbeOutcome {
    let failure = |message: String| ProbeOutcome::new(ProbeResult::Failure, message);
    let url = target.url(tls.is_some());
    let mut path = rooted(target.path);
    for _ in 0..=REDIRECTS_MAX {
        let response = match send(target, &path, tls.clone()).await {
            Ok(response) => response,
            Err(trouble) => return failure(format!("Get \"{url}\": {trouble}")),
        };
        let status = response.status();
        if status.is_redirection() {
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok());
            match location.map(|location| next_path(target, tls.is_some(), location)) {
                Some(Some(next)) => {
                    path = next;
                    continue;
                }
                // Away from the pod: not followed, and not held against it.
                Some(None) => {
                    return ProbeOutcome::new(ProbeResult::Success, "Probe terminated redirects");
                }
                None => return ProbeOutcome::new(ProbeResult::Success, ""),
            }
        }
        if status.is_success() {
            let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
                .collect()
                .await;
            let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
            return ProbeOutcome::new(ProbeResult::Success, text.unwrap_or_default());
        }
        return failure(format!(
            "HTTP probe failed with statuscode: {}",
            status.as_u16()
        ));
    }
    failure(format!(
        "Get \"{url}\": stopped after {REDIRECTS_MAX} redirects"
    ))
}

fn next_path(target: Target<'_>, is_https: bool, location: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(location.to_owned());
    }
    let scheme = if is_https { "https" } else { "http" };
    let origin = format!("{scheme}://{}", address(target.host, target.port));
    let rest = location.strip_prefix(&origin)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rooted(rest))
}

async fn send(
    target: Target<'_>,
    path: &str,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Response<Incoming>, String> {
    let stream = TcpStream::connect((target.host, target.port))
        .await
        .map_err(|error| dial(target.host, target.port, &error))?;
    let request = request(target, path)?;
    match tls {
        None => exchange(stream, request).await,
        Some(config) => {
            let name =
                ServerName::try_from(target.host.to_owned()).map_err(|error| error.to_string())?;
            let stream = TlsConnector::from(config)
                .connect(name, stream)
                .await
                .map_err(|error| error.to_string())?;
            exchange(stream, request).await
        }
    }
}

fn request(target: Target<'_>, path: &str) -> Result<Request<Empty<Bytes>>, String> {
    let own = |name: &str| {
        target
            .headers
            .iter()
            .any(|(there, _)| there.eq_ignore_ascii_case(name))
    };
    let mut request = Request::get(path).header(CONNECTION, "close");
    if !own("host") {
        request = request.header(HOST, address(target.host, target.port));
    }
    if !own("user-agent") {
        request = request.header(USER_AGENT, "kube-probe/1.36");
    }
    if !own("accept") {
        request = request.header(ACCEPT, "*/*");
    }
    for (name, value) in target.headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(name, value);
    }
    request
        .body(Empty::new())
        .map_err(|error| error.to_string())
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // Ends with the response, or when the sender is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| {
        if error.is_incomplete_message() {
            "EOF".into()
        } else {
            error.to_string()
        }
    })
}

#[cfg(test)]
mod tests;
