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
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use wasmtime::component::Resource;

use crate::{
    bindings::wherry::plugin::http::{
        Host, HostDownload, HttpError, Request, Response, Scheme, Version,
    },
    confine::{ConnectError, address},
    http1 as plain,
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
        let name = address(&request.host, request.port);
        let wanted = (request.body_bytes_max as usize).min(BODY_BYTES_MAX);
        let prepared = match prepare(&request, &name) {
            Ok(prepared) => prepared,
            Err(why) => return Ok(Err(HttpError::InvalidRequest(why))),
        };
        let is_http1 = (request.scheme, request.version) == (Scheme::Http, Version::Http1);
        if is_http1 && plain::is_plain(&prepared, &request.body) {
            return self.send_plain(&request, &prepared, wanted).await;
        }
        let (response, driver) = match self.begin(request, prepared).await? {
            Ok(begun) => begun,
            Err(error) => return Ok(Err(error)),
        };
        let received = receive(response, wanted);
        let received = self.deadlines.within(self.io_deadline(), received).await;
        drop(driver);
        Ok(match received {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(failure(&name, &error)),
            None => Err(time_is_up(&name)),
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
        let prepared = match prepare(&request, &name) {
            Ok(prepared) => prepared,
            Err(why) => return Ok(Err(HttpError::InvalidRequest(why))),
        };
        let (response, driver) = match self.begin(request, prepared).await? {
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
        let (deadlines, deadline) = self.deadline();
        let download = self.table.get_mut(&download)?;
        let max = (max as usize).clamp(1, BODY_BYTES_MAX);
        while download.rest.is_empty() {
            match deadlines.within(deadline, download.body.frame()).await {
                Some(Some(Ok(frame))) => download.rest = frame.into_data().unwrap_or_default(),
                Some(None) => return Ok(Ok(Vec::new())),
                Some(Some(Err(error))) => return Ok(Err(failure(&download.name, &error))),
                None => return Ok(Err(time_is_up(&download.name))),
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

fn time_is_up(name: &str) -> HttpError {
    HttpError::Timeout(format!("{name}: time is up"))
}

impl State {
    /// Sends a request without a body, and waits for the answer.
    async fn send_plain(
        &mut self,
        request: &Request,
        prepared: &HyperRequest<Full<Bytes>>,
        wanted: usize,
    ) -> wasmtime::Result<Result<Response, HttpError>> {
        let head = plain::head(prepared);
        let connected = self.connect_with(&request.host, request.port, &head);
        let (mut stream, sent) = match connected.await? {
            Ok(connected) => connected,
            Err(error) => return Ok(Err(error.into())),
        };
        let exchange = async {
            stream.write_all(&head[sent..]).await?;
            plain::receive(&mut stream, prepared.method(), wanted).await
        };
        let answer = self.deadlines.within(self.io_deadline(), exchange).await;
        let name = || address(&request.host, request.port);
        Ok(match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(plain::Trouble::Malformed(why))) => {
                Err(HttpError::MalformedResponse(format!("{}: {why}", name())))
            }
            Some(Err(plain::Trouble::Closed)) => {
                let why = "connection closed before message completed";
                Err(HttpError::ConnectionClosed(format!("{}: {why}", name())))
            }
            Some(Err(plain::Trouble::Io(_, why))) => {
                Err(HttpError::Other(format!("{}: {why}", name())))
            }
            None => Err(time_is_up(&name())),
        })
    }

    /// Sends a request, and waits for the head of the answer.
    async fn begin(
        &mut self,
        request: Request,
        prepared: HyperRequest<Full<Bytes>>,
    ) -> wasmtime::Result<Result<(HyperResponse<Incoming>, Driver), HttpError>> {
        let name = address(&request.host, request.port);
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
        let answer = self.deadlines.within(self.io_deadline(), exchange).await;
        Ok(answer.unwrap_or_else(|| Err(time_is_up(&name))))
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
type Driver = AbortOnDropHandle<Result<(), hyper::Error>>;

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
            let driver = Driver::new(tokio::spawn(connection));
            let response = sender.send_request(prepared).await.map_err(trouble)?;
            Ok((response, driver))
        }
        Version::Http2 => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream)
                .await
                .map_err(trouble)?;
            let driver = Driver::new(tokio::spawn(connection));
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
