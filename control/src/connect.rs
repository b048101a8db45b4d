//! Clients of an API server on another machine, whose network may go away without a word.
//!
//! kube's own client waits for an answer for as long as the kernel keeps the connection, a quarter of an hour after the
//! other side was last heard of, and keeps connections that it would use next. A node whose link was down for half a
//! minute was so taken for dead for two minutes more: each renewal of its lease took another dead connection.

use std::time::Duration;

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config, Error,
    client::{Body, ClientBuilder, ConfigExt, retry::RetryPolicy},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

/// How long a connection is silent before the other side is asked whether it is there, and between two questions.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// How long nothing is heard of the other side before the connection is given up: a loss of packets that connections
/// survive, and well within the 40 s in which a node has to renew its lease.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Makes a client.
///
/// # Errors
/// The config's certificates or credentials cannot be used.
pub(crate) fn client(config: Config) -> Result<Client, Error> {
    // Behind a proxy it is the proxy that goes away.
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_tcp_user_timeout(Some(SILENCE_MAX));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}
