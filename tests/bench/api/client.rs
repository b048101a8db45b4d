//! A client that costs little beside the server it measures: HTTP/1.1 over TLS, one request at a time, bodies as bytes.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header, http::Uri};
use hyper_util::rt::TokioIo;
use kube::{
    client::ConfigExt,
    config::{Config, KubeConfigOptions, Kubeconfig},
};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// A server, and who asks it.
pub(super) struct Target {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Target {
    /// The cluster and the user of a kubeconfig; the server is named by its address.
    pub(super) async fn read(kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let authority = |url: &Uri| url.authority().map(ToString::to_string);
        let address = authority(&config.cluster_url).context("an address")?;
        Ok(Self {
            address: address.parse().context(address)?,
            tls: TlsConnector::from(Arc::new(tls)),
        })
    }

    /// A connection of its own.
    pub(super) async fn connect(&self) -> Result<Connection> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let tls = self.tls.connect(name, tcp).await?;
        let (sender, driver) = http1::handshake(TokioIo::new(tls)).await?;
        let driver = tokio::spawn(async move {
            // What ends a connection is seen by the request that is under way.
            let _ = driver.await;
        });
        Ok(Connection {
            sender,
            host: self.address.to_string(),
            _driver: AbortOnDropHandle::new(driver),
        })
    }
}

/// A connection that is kept.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    /// Asks, and gives the answer as soon as it begins.
    ///
    /// # Errors
    /// The connection ends, or the answer is no success.
    pub(super) async fn open(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let what = || format!("{method} {path}");
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::USER_AGENT, "bench")
            .header(header::CONTENT_TYPE, content_type)
            .body(Full::new(body))?;
        self.sender.ready().await.with_context(what)?;
        let response = self.sender.send_request(request).await.with_context(what)?;
        let status = response.status();
        if !status.is_success() {
            let said = response.into_body().collect().await?.to_bytes();
            bail!("{}: {status} {said:?}", what());
        }
        Ok(response)
    }

    /// Asks, and gives the length of the answer once its last byte is here.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<usize> {
        let response = self.open(method, path, content_type, body).await?;
        read(response.into_body(), |_| {}).await
    }

    /// Creates an object.
    pub(super) async fn create(&mut self, path: &str, object: Vec<u8>) -> Result<usize> {
        self.send(Method::POST, path, "application/json", object.into())
            .await
    }

    /// Reads, showing each part as it comes, and gives the length of all of them.
    pub(super) async fn get(&mut self, path: &str, show: impl FnMut(&[u8])) -> Result<usize> {
        let response = self
            .open(Method::GET, path, "application/json", Bytes::new())
            .await?;
        read(response.into_body(), show).await
    }
}

async fn read(mut body: Incoming, mut show: impl FnMut(&[u8])) -> Result<usize> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            show(data);
            length += data.len();
        }
    }
    Ok(length)
}
