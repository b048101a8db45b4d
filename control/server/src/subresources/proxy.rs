//! Requests that are passed on: to the kubelet of a node, or to a pod.
//!
//! ```text
//! client ─ TLS ─ server ─ TLS, client certificate ─ kubelet     log, exec, attach, portforward, nodes/proxy
//!                       └ HTTP ─ pod                            pods/proxy, services/proxy
//! ```
//!
//! An upgraded connection (WebSocket or SPDY) is passed on byte for byte once both sides have agreed.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use wherry_api::{Resource, Status, meta, status::StatusDetails};

use crate::{
    App,
    answer::Answer,
    call::Call,
    compress::Live,
    stored,
    verbs::{get, store_status},
};

/// For a connection to a node or a pod.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Kubelets listen here unless their Node says otherwise.
const KUBELET_PORT: u16 = 10_250;
/// Bytes read of a kubelet's error.
const KUBELET_ERROR_BYTES_MAX: usize = 2048;

/// Between this server and one peer only.
const HOP_HEADERS: &[HeaderName] = &[
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
struct Destination {
    host: IpAddr,
    port: u16,
    is_tls: bool,
    path: String,
}

/// Passes a request on.
pub(super) async fn proxy(call: &Call, request: Request) -> Answer {
    let query = request.uri().query().map(str::to_owned);
    let destination = match (call.resource.plural, call.path.subresource.as_str()) {
        ("pods", "log" | "exec" | "attach" | "portforward") => {
            return to_kubelet_of_pod(call, request, query).await;
        }
        ("nodes", "proxy") => {
            let (name, port) = split_port(call.name());
            let node = load(call, "nodes", "", name).await?;
            let mut destination = kubelet(name, &node, path_behind(call))?;
            if let Some(port) = port.and_then(|port| port.parse().ok()) {
                destination.port = port;
            }
            destination
        }
        ("pods", "proxy") => {
            let (scheme, rest) = split_scheme(call.name());
            let (name, port) = split_port(rest);
            let pod = load(call, "pods", call.namespace(), name).await?;
            let port = match port {
                Some(port) => port
                    .parse()
                    .map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?,
                None => first_port(&pod).unwrap_or(80),
            };
            Destination {
                host: pod_ip(&pod)?,
                port,
                is_tls: scheme == "https",
                path: path_behind(call),
            }
        }
        ("services", "proxy") => service(call).await?,
        _ => return Err(Status::unknown_path()),
    };
    send(call, request, &destination, query.as_deref()).await
}

/// Log, exec, attach and port-forward, after the checks that kube-apiserver makes before it asks the kubelet.
async fn to_kubelet_of_pod(call: &Call, request: Request, query: Option<String>) -> Answer {
    let pod = stored::decode(&get::load(call).await?);
    let (namespace, name) = (call.namespace(), call.name());
    let subresource = call.path.subresource.as_str();
    let node_name = pod
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let (path, query) = if subresource == "portforward" {
        (format!("/portForward/{namespace}/{name}"), query)
    } else {
        let container = choose_container(&pod, call.query.get("container"))?;
        if subresource == "log" {
            check_log_options(call)?;
            if node_name.is_empty() {
                // Nothing has been written yet.
                return Ok(crate::answer::text(StatusCode::OK, ""));
            }
            (
                format!("/containerLogs/{namespace}/{name}/{container}"),
                query,
            )
        } else {
            let query = kubelet_stream_query(call);
            (
                format!("/{subresource}/{namespace}/{name}/{container}"),
                Some(query),
            )
        }
    };
    if node_name.is_empty() {
        return Err(Status::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    }
    let node = load(call, "nodes", "", node_name).await?;
    let destination = kubelet(node_name, &node, path)?;
    let answer = send(call, request, &destination, query.as_deref()).await?;
    if subresource == "log" && !answer.status().is_success() {
        return Err(log_refused(answer).await);
    }
    Ok(answer)
}

/// The kubelet's plain words as a Status. What it says of streams goes to the client as it is, because
/// clients read it there.
async fn log_refused(answer: Response) -> Status {
    let code = answer.status();
    let bytes = axum::body::to_bytes(answer.into_body(), KUBELET_ERROR_BYTES_MAX)
        .await
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        StatusCode::NOT_FOUND => Status::failure(code.as_u16(), "NotFound", text),
        _ => Status::failure(code.as_u16(), "", text),
    }
}

/// The parameters of exec and attach in the kubelet's words.
fn kubelet_stream_query(call: &Call) -> String {
    let mut query = String::new();
    let mut add = |name: &str, value: &str| {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                query.push(char::from(byte));
            } else {
                query.push_str(&format!("%{byte:02X}"));
            }
        }
    };
    for (from, to) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if call.query.flag(from) {
            add(to, "1");
        }
    }
    for command in call.query.all("command") {
        add("command", command);
    }
    query
}

/// The container a request is about, in the words of kube-apiserver when that is not clear.
fn choose_container(pod: &Value, asked: &str) -> Result<String, Status> {
    let name = meta::name(pod);
    let names = |list: &str| -> Vec<&str> {
        let containers = pod
            .pointer(&format!("/spec/{list}"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        containers
            .filter_map(|container| container.get("name")?.as_str())
            .collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    if asked.is_empty() {
        if let [only] = containers[..] {
            return Ok(only.to_owned());
        }
        if containers.is_empty() {
            return Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}"
            )));
        }
        let mut message = format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            containers.join(" ")
        );
        if !init.is_empty() {
            message.push_str(&format!(
                " or one of the init containers: [{}]",
                init.join(" ")
            ));
        }
        return Err(Status::bad_request(message));
    }
    if containers.contains(&asked)
        || init.contains(&asked)
        || names("ephemeralContainers").contains(&asked)
    {
        return Ok(asked.to_owned());
    }
    Err(Status::bad_request(format!(
        "container {asked} is not valid for pod {name}"
    )))
}

fn check_log_options(call: &Call) -> Result<(), Status> {
    use wherry_api::{FieldError, field::Path};
    let mut errors = Vec::new();
    for (field, least) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
        if let Some(value) = call.query.number::<i64>(field)?
            && value < least
        {
            let detail = if least == 0 {
                "must be greater than or equal to 0".to_owned()
            } else {
                "must be greater than 0".to_owned()
            };
            errors.push(FieldError::invalid(&Path::new(field), value, detail));
        }
    }
    if call.query.has("sinceSeconds") && call.query.has("sinceTime") {
        errors.push(FieldError::forbidden(
            &Path::ROOT,
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid_kind(
            "",
            "PodLogOptions",
            call.name(),
            errors,
        ))
    }
}

async fn load(call: &Call, plural: &str, namespace: &str, name: &str) -> Result<Value, Status> {
    let resource: &'static Resource = wherry_api::find("", "v1", plural).expect("a row");
    let found = call
        .app
        .store
        .get(&stored::key(resource, namespace, name))
        .await;
    let (found, _) = found.map_err(|error| store_status(resource, name, error))?;
    Ok(stored::decode(
        &found.ok_or_else(|| Status::not_found(resource, name))?,
    ))
}

fn path_behind(call: &Call) -> String {
    if call.path.rest.is_empty() {
        "/".to_owned()
    } else {
        call.path.rest.clone()
    }
}

/// `https:web:8080` → `https`, `web:8080`.
fn split_scheme(name: &str) -> (&str, &str) {
    match name.split_once(':') {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        _ => ("", name),
    }
}

fn split_port(name: &str) -> (&str, Option<&str>) {
    match name.split_once(':') {
        Some((name, "")) => (name, None),
        Some((name, port)) => (name, Some(port)),
        None => (name, None),
    }
}

fn first_port(pod: &Value) -> Option<u16> {
    let containers = pod.pointer("/spec/containers")?.as_array()?;
    let port = containers
        .iter()
        .find_map(|container| container.pointer("/ports/0/containerPort")?.as_u64())?;
    u16::try_from(port).ok()
}

fn pod_ip(pod: &Value) -> Result<IpAddr, Status> {
    let ip = pod
        .pointer("/status/podIP")
        .and_then(Value::as_str)
        .unwrap_or_default();
    ip.parse().map_err(|_| {
        Status::service_unavailable(format!("pod {} has no address yet", meta::name(pod)))
    })
}

fn kubelet(name: &str, node: &Value, path: String) -> Result<Destination, Status> {
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    let of_type = |wanted: &str| {
        addresses.into_iter().flatten().find_map(|address| {
            (address.get("type")?.as_str()? == wanted)
                .then(|| address.get("address")?.as_str()?.parse().ok())
                .flatten()
        })
    };
    let host = ["InternalIP", "ExternalIP"].into_iter().find_map(of_type);
    let host = host.ok_or_else(|| {
        Status::internal(format!(
            "no preferred addresses found for node {name:?}; known addresses: []"
        ))
    })?;
    let port = node
        .pointer("/status/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(Value::as_u64);
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .unwrap_or(KUBELET_PORT);
    Ok(Destination {
        host,
        port,
        is_tls: true,
        path,
    })
}

/// One of the endpoints of a Service, any of them.
async fn service(call: &Call) -> Result<Destination, Status> {
    let (scheme, rest) = split_scheme(call.name());
    let (name, port) = split_port(rest);
    let service = load(call, "services", call.namespace(), name).await?;
    let none =
        || Status::service_unavailable(format!("no endpoints available for service {name:?}"));
    let endpoints = load(call, "endpoints", call.namespace(), name)
        .await
        .map_err(|_| none())?;
    let ports = service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let is_wanted = |service_port: &&Value| match port {
        None => true,
        Some(port) => {
            service_port["name"] == port
                || (service_port["port"].is_u64()
                    && service_port["port"].as_u64() == port.parse().ok())
        }
    };
    let chosen = ports.iter().find(is_wanted);
    let chosen = chosen.ok_or_else(|| {
        Status::service_unavailable(format!(
            "no service port {:?} found for service {name:?}",
            port.unwrap_or_default()
        ))
    })?;
    let subsets = endpoints
        .get("subsets")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let mut candidates: Vec<(IpAddr, u16)> = Vec::new();
    for subset in &subsets {
        let port = subset["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|port| {
                port.get("name").and_then(Value::as_str).unwrap_or_default()
                    == chosen
                        .get("name")
                        .and_then(Value::as_str)
                        .unwrap_or_default()
            });
        let Some(port) = port.and_then(|port| u16::try_from(port["port"].as_u64()?).ok()) else {
            continue;
        };
        let addresses = subset["addresses"].as_array().into_iter().flatten();
        candidates.extend(
            addresses.filter_map(|address| Some((address["ip"].as_str()?.parse().ok()?, port))),
        );
    }
    if candidates.is_empty() {
        return Err(none());
    }
    let (host, port) = candidates.swap_remove(rand::random_range(0..candidates.len()));
    Ok(Destination {
        host,
        port,
        is_tls: scheme == "https",
        path: path_behind(call),
    })
}

fn trouble(destination: &Destination, error: &dyn std::fmt::Display) -> Status {
    let scheme = if destination.is_tls { "https" } else { "http" };
    let mut status = Status::internal(format!(
        "error dialing backend: {scheme}://{}:{}: {error}",
        destination.host, destination.port
    ));
    status.details.get_or_insert_with(StatusDetails::default);
    status
}

/// Asks the kubelet of a node for a path and reads the whole answer, at most `bytes_max` of it.
pub(crate) async fn ask_kubelet(
    app: &App,
    name: &str,
    node: &Value,
    path: &str,
    bytes_max: usize,
) -> Result<Bytes, Status> {
    let destination = kubelet(name, node, path.to_owned())?;
    let stream = connect(app, &destination).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream))
            .await
            .map_err(|error| trouble(&destination, &error))?;
    let asked = async {
        let host = format!("{}:{}", destination.host, destination.port);
        let request = Request::get(path)
            .header(header::HOST, host)
            .body(Body::empty())
            .map_err(|error| Status::internal(error.to_string()))?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| trouble(&destination, &error))?;
        let code = response.status();
        let body = Limited::new(response.into_body(), bytes_max);
        let bytes = body
            .collect()
            .await
            .map_err(|error| trouble(&destination, &error))?;
        if code != StatusCode::OK {
            return Err(trouble(&destination, &format_args!("{path}: {code}")));
        }
        Ok(bytes.to_bytes())
    };
    // Both are dropped when this is: nothing goes on behind the caller's back.
    tokio::pin!(connection);
    tokio::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        ended = &mut connection => match ended {
            // What has been read of the answer before the end is all of it.
            Ok(()) => asked.await,
            Err(error) => Err(trouble(&destination, &error)),
        },
    }
}

async fn connect(app: &App, destination: &Destination) -> Result<Box<dyn Stream>, Status> {
    let connect = async {
        let tcp = TcpStream::connect((destination.host, destination.port)).await?;
        tcp.set_nodelay(true)?;
        if !destination.is_tls {
            return Ok(Box::new(tcp) as Box<dyn Stream>);
        }
        let connector = TlsConnector::from(Arc::clone(&app.kubelet_tls));
        let tls = connector
            .connect(ServerName::from(destination.host), tcp)
            .await?;
        Ok::<_, std::io::Error>(Box::new(tls) as Box<dyn Stream>)
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(trouble(destination, &error)),
        Err(_) => Err(trouble(destination, &"i/o timeout")),
    }
}

async fn send(
    call: &Call,
    mut request: Request,
    destination: &Destination,
    query: Option<&str>,
) -> Answer {
    let stream = connect(&call.app, destination).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream))
            .await
            .map_err(|error| trouble(destination, &error))?;
    let connection = tokio::spawn(connection.with_upgrades());

    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let ours = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    let host = format!("{}:{}", destination.host, destination.port);
    prepare_headers(&mut headers, &host, upgrade.as_ref());
    let path = match query {
        Some(query) if !query.is_empty() => format!("{}?{query}", destination.path),
        _ => destination.path.clone(),
    };
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = Uri::from(
        path.parse::<PathAndQuery>()
            .map_err(|error| Status::bad_request(format!("{path}: {error}")))?,
    );
    *outgoing.headers_mut() = headers;
    let mut response = sender
        .send_request(outgoing)
        .await
        .map_err(|error| trouble(destination, &error))?;

    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let theirs = hyper::upgrade::on(&mut response);
        let shutdown = call.app.shutdown.clone();
        tokio::spawn(async move {
            // Both sides have to speak before either can be joined to the other.
            let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) else {
                return;
            };
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
                () = shutdown.cancelled() => {}
            }
        });
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    let (mut parts, body) = response.into_parts();
    for name in HOP_HEADERS {
        parts.headers.remove(name);
    }
    // The connection lives as long as the body; dropping the sender does not end it.
    drop((sender, connection));
    parts.extensions.insert(Live);
    Ok(Response::from_parts(parts, Body::new(body)))
}

fn prepare_headers(headers: &mut HeaderMap, host: &str, upgrade: Option<&HeaderValue>) {
    for name in HOP_HEADERS {
        headers.remove(name);
    }
    // Whoever asks has been authenticated; the other side gets this server's word for it, not their secret.
    headers.remove(header::AUTHORIZATION);
    for name in ["impersonate-user", "impersonate-group", "impersonate-uid"] {
        headers.remove(name);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade.clone());
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_chosen_or_asked_for_in_kubernetes_words() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}],
        }});
        assert_eq!(choose_container(&one, "").unwrap(), "a");
        assert_eq!(choose_container(&two, "i").unwrap(), "i");
        assert_eq!(
            choose_container(&two, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(
            choose_container(&one, "c").unwrap_err().message,
            "container c is not valid for pod p"
        );
    }

    #[test]
    fn a_kubelet_is_where_its_node_says() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.5"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}},
        }});
        let found = kubelet("n", &node, "/pods".into()).unwrap();
        assert_eq!(
            found,
            Destination {
                host: "10.0.0.5".parse().unwrap(),
                port: 10251,
                is_tls: true,
                path: "/pods".into()
            }
        );
        assert!(
            kubelet("n", &json!({}), String::new())
                .unwrap_err()
                .message
                .contains("no preferred addresses")
        );
    }

    #[test]
    fn names_with_scheme_and_port_are_taken_apart() {
        assert_eq!(split_scheme("https:web:443"), ("https", "web:443"));
        assert_eq!(split_scheme("web:443"), ("", "web:443"));
        assert_eq!(split_port("web:443"), ("web", Some("443")));
        assert_eq!(split_port("web"), ("web", None));
    }
}
