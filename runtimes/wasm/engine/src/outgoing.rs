//! Requests that guests send, by HTTP and HTTPS, from the pod's address.

use std::{io, sync::Arc, time::Duration};

use http::{Request, Response, uri::Scheme};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::{names::LookupError, pod::Pod};

/// Where a guest gives no time-out of its own.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

/// Sends what guests ask to send.
pub(crate) struct Outgoing(Arc<Pod>);

impl Outgoing {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        Self(pod)
    }
}

type SendFuture<T> = Box<dyn Future<Output = Result<T, Error>> + Send>;

impl WasiHttpHooks for Outgoing {
    fn is_supported_scheme(&mut self, scheme: &Scheme) -> bool {
        *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS
    }

    fn default_scheme(&mut self) -> Option<Scheme> {
        Some(Scheme::HTTP)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: SendFuture<()>,
    ) -> SendFuture<(Response<WasiBody>, SendFuture<()>)> {
        Box::new(send(self.0.clone(), request, options.unwrap_or_default()))
    }
}

/// A connection, secure or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn send(
    pod: Arc<Pod>,
    mut request: Request<WasiBody>,
    options: RequestOptions,
) -> Result<(Response<WasiBody>, SendFuture<()>), Error> {
    let authority = request
        .uri()
        .authority()
        .ok_or(Error::HttpRequestUriInvalid)?;
    let is_secure = request.uri().scheme() == Some(&Scheme::HTTPS);
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let port = authority
        .port_u16()
        .unwrap_or(if is_secure { 443 } else { 80 });
    let connect = tokio::time::timeout(options.connect_timeout.unwrap_or(TIMEOUT_DEFAULT), async {
        let stream = connect(&pod, &host, port).await?;
        let stream: Box<dyn Stream> = if is_secure {
            let secured = pod.trust.connect(stream, &host).await;
            Box::new(secured.map_err(untrusted)?)
        } else {
            Box::new(stream)
        };
        Ok::<_, Error>(hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?)
    });
    let (mut sender, connection) = connect.await.map_err(|_| Error::ConnectionTimeout)??;
    // A request to the server itself names only the path; the host is in its header.
    *request.uri_mut() = http::Uri::builder()
        .path_and_query(
            request
                .uri()
                .path_and_query()
                .map_or("/", |path| path.as_str()),
        )
        .build()
        .map_err(|_| Error::HttpRequestUriInvalid)?;
    let connection = tokio::spawn(connection);
    let first_byte = options.first_byte_timeout.unwrap_or(TIMEOUT_DEFAULT);
    let response = tokio::time::timeout(first_byte, sender.send_request(request))
        .await
        .map_err(|_| Error::ConnectionReadTimeout)??;
    let aborts = AbortOnDrop(connection);
    let io: SendFuture<()> = Box::new(async move {
        let mut aborts = aborts;
        match (&mut aborts.0).await {
            Ok(result) => result.map_err(Error::from),
            Err(_) => Err(Error::ConnectionTerminated),
        }
    });
    Ok((
        response.map(|body| body.map_err(Error::from).boxed_unsync()),
        io,
    ))
}

/// A certificate that is not good is told from other trouble: a guest can do something about it.
fn untrusted(error: io::Error) -> Error {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
        Some(rustls::Error::AlertReceived(alert)) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        Some(_) => Error::TlsProtocolError,
        None => Error::InternalError(Some(error.to_string())),
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tries each address of the host in turn.
async fn connect(pod: &Pod, host: &str, port: u16) -> Result<TcpStream, Error> {
    let unresolved = |error: LookupError| match error {
        LookupError::Unavailable(_) => Error::DnsTimeout,
        LookupError::Unknown | LookupError::Invalid => Error::DnsError {
            rcode: Some("NXDOMAIN".into()),
            info_code: None,
        },
    };
    let addresses = pod
        .names
        .lookup(&pod.network, host)
        .await
        .map_err(unresolved)?;
    let mut last = Error::DestinationNotFound;
    for address in addresses {
        match pod.network.connect((address, port).into()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Error::Connect(error),
        }
    }
    Err(last)
}
