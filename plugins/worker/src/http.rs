//! `wherry:plugin/http`.

use ::http::{HeaderName, HeaderValue, Method, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request as HyperRequest, Response as HyperResponse,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
    time::timeout_at,
};
use tokio_rustls::TlsConnector;

use wasmtime::component::Resource;

use crate::{
    bindings::wherry::plugin::http::{
        Host, HostDownload, HttpError, Request, Response, Scheme, Version,
    },
    confine::{ConnectError, address},
    state::State,
    tcp::CONNECTIONS_MAX,
    tls,
};

/// Bytes of a request's body, and of an answer's at most.
const BODY_BYTES_MAX: usize = 1 << 20;

impl From<ConnectError> for HttpError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Timeout(text) => Self::Timeout(text),
            ConnectError::Refused(text) => Self::ConnectionRefused(text),
            ConnectError::NameNotFound(text) => Self::NameNotFound(text),
            ConnectError::Denied(text) => Self::Denied(text),
            ConnectError::Other(text) => Self::Other(text),
        }
    }
}

impl Host for State {
    async fn send(&mut self, request: Request) -> wasmtime::Result<Result<Response, HttpError>> {
        let (name, deadline) = (address(&request.host, request.port), self.io_deadline());
        let wanted = (request.body_bytes_max as usize).min(BODY_BYTES_MAX);
        let (response, driver) = match self.begin(request).await? {
            Ok(begun) => begun,
            Err(error) => return Ok(Err(error)),
        };
        let received = timeout_at(deadline, receive(response, wanted)).await;
        drop(driver);
        Ok(match received {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failure(&name, &error)),
            Err(_) => Err(HttpError::Timeout(format!("{name}: time is up"))),
        })
    }
}

impl HostDownload for State {
    async fn open(
        &mut self,
        request: Request,
    ) -> wasmtime::Result<Result<Resource<Download>, HttpError>> {
        let name = address(&request.host, request.port);
        if self.connections >= CONNECTIONS_MAX {
            let why = format!("{name}: {CONNECTIONS_MAX} connections are open");
            return Ok(Err(HttpError::Other(why)));
        }
        let (response, driver) = match self.begin(request).await? {
            Ok(begun) => begun,
            Err(error) => return Ok(Err(error)),
        };
        let (parts, body) = response.into_parts();
        self.connections += 1;
        Ok(Ok(self.table.push(Download {
            name,
            status: parts.status.as_u16(),
            headers: headers(&parts.headers),
            body,
            rest: Bytes::new(),
            _driver: driver,
        })?))
    }

    async fn status(&mut self, download: Resource<Download>) -> wasmtime::Result<u16> {
        Ok(self.table.get(&download)?.status)
    }

    async fn headers(
        &mut self,
        download: Resource<Download>,
    ) -> wasmtime::Result<Vec<(String, Vec<u8>)>> {
        Ok(self.table.get(&download)?.headers.clone())
    }

    async fn read(
        &mut self,
        download: Resource<Download>,
        max: u32,
    ) -> wasmtime::Result<Result<Vec<u8>, HttpError>> {
        let deadline = self.io_deadline();
        let download = self.table.get_mut(&download)?;
        let max = (max as usize).clamp(1, BODY_BYTES_MAX);
        while download.rest.is_empty() {
            match timeout_at(deadline, download.body.frame()).await {
                Ok(Some(Ok(frame))) => download.rest = frame.into_data().unwrap_or_default(),
                Ok(None) => return Ok(Ok(Vec::new())),
                Ok(Some(Err(error))) => return Ok(Err(failure(&download.name, &error))),
                Err(_) => {
                    let why = format!("{}: time is up", download.name);
                    return Ok(Err(HttpError::Timeout(why)));
                }
            }
        }
        let length = download.rest.len().min(max);
        Ok(Ok(download.rest.split_to(length).into()))
    }

    async fn drop(&mut self, download: Resource<Download>) -> wasmtime::Result<()> {
        self.table.delete(download)?;
        self.connections = self.connections.saturating_sub(1);
        Ok(())
    }
}

impl State {
    /// Sends a request, and waits for the head of the answer.
    async fn begin(
        &mut self,
        request: Request,
    ) -> wasmtime::Result<Result<(HyperResponse<Incoming>, Driver), HttpError>> {
        let name = address(&request.host, request.port);
        let prepared = match prepare(&request, &name) {
            Ok(prepared) => prepared,
            Err(why) => return Ok(Err(HttpError::InvalidRequest(why))),
        };
        let stream = match self.connect(&request.host, request.port).await? {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error.into())),
        };
        let exchange = async {
            match request.scheme {
                Scheme::Http => exchange(stream, &request, prepared).await,
                Scheme::Https => {
                    let config = tls::client_config(
                        &request.trust,
                        request.identity.as_ref(),
                        request.version,
                        &self.roots,
                    )
                    .map_err(HttpError::Tls)?;
                    let server = ServerName::try_from(request.host.clone())
                        .map_err(|error| HttpError::InvalidRequest(error.to_string()))?;
                    let stream = TlsConnector::from(config)
                        .connect(server, stream)
                        .await
                        .map_err(|error| HttpError::Tls(format!("{name}: {error}")))?;
                    exchange(stream, &request, prepared).await
                }
            }
        };
        Ok(match timeout_at(self.io_deadline(), exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::Timeout(format!("{name}: time is up"))),
        })
    }
}

fn prepare(request: &Request, name: &str) -> Result<HyperRequest<Full<Bytes>>, String> {
    if request.body.len() > BODY_BYTES_MAX {
        return Err(format!("a body of {} bytes", request.body.len()));
    }
    if !request.path_with_query.starts_with('/') {
        return Err(format!("path {:?} without /", request.path_with_query));
    }
    let scheme = match request.scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    let method: Method = request
        .method
        .parse()
        .map_err(|_| format!("method {:?}", request.method))?;
    let uri = match request.version {
        Version::Http1 => request.path_with_query.clone(),
        Version::Http2 => format!("{scheme}://{name}{}", request.path_with_query),
    };
    let mut builder = HyperRequest::builder().method(method).uri(uri);
    let mut has_host = false;
    for (key, value) in &request.headers {
        let name: HeaderName = key.parse().map_err(|_| format!("header {key:?}"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| format!("value of {key}"))?;
        has_host |= name == header::HOST;
        builder = builder.header(name, value);
    }
    if !has_host && request.version == Version::Http1 {
        builder = builder.header(header::HOST, name);
    }
    builder
        .body(Full::new(Bytes::from(request.body.clone())))
        .map_err(|error| error.to_string())
}

/// An answer whose body a guest reads piece by piece.
#[expect(unreachable_pub, reason = "the generated bindings use it as public")]
pub struct Download {
    name: String,
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Incoming,
    /// Of the frame that came last.
    rest: Bytes,
    _driver: Driver,
}

/// The task that drives a connection, which ends with the call.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn exchange<S>(
    stream: S,
    request: &Request,
    prepared: HyperRequest<Full<Bytes>>,
) -> Result<(HyperResponse<Incoming>, Driver), HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let name = address(&request.host, request.port);
    let trouble = |error: hyper::Error| failure(&name, &error);
    let stream = TokioIo::new(stream);
    match request.version {
        Version::Http1 => {
            let (mut sender, connection) = http1::handshake(stream).await.map_err(trouble)?;
            let driver = Driver(tokio::spawn(connection).abort_handle());
            let response = sender.send_request(prepared).await.map_err(trouble)?;
            Ok((response, driver))
        }
        Version::Http2 => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream)
                .await
                .map_err(trouble)?;
            let driver = Driver(tokio::spawn(connection).abort_handle());
            let response = sender.send_request(prepared).await.map_err(trouble)?;
            Ok((response, driver))
        }
    }
}

fn failure(name: &str, error: &hyper::Error) -> HttpError {
    let text = format!("{name}: {error}");
    if error.is_parse() {
        HttpError::MalformedResponse(text)
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        HttpError::ConnectionClosed(text)
    } else {
        HttpError::Other(text)
    }
}

fn headers(map: &::http::HeaderMap) -> Vec<(String, Vec<u8>)> {
    map.iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}

async fn receive(
    response: HyperResponse<Incoming>,
    body_bytes_max: usize,
) -> Result<Response, hyper::Error> {
    let (parts, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    let mut trailers = Vec::new();
    let mut body_is_cut = false;
    while let Some(frame) = incoming.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                let room = body_bytes_max - body.len();
                body.extend_from_slice(&data[..data.len().min(room)]);
                if data.len() > room {
                    body_is_cut = true;
                    break;
                }
            }
            Err(frame) => {
                if let Ok(map) = frame.into_trailers() {
                    trailers = headers(&map);
                }
            }
        }
    }
    Ok(Response {
        status: parts.status.as_u16(),
        headers: headers(&parts.headers),
        body,
        body_is_cut,
        trailers,
    })
}
