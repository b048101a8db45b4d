//! What a cluster begins with: four namespaces, a class for each runtime, and the Service that is the server itself.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use wherry_store::{Store, WatchMessage};

use crate::{admission::priority::SYSTEM_CLASSES, client::ClientService};

/// Before trying again what failed.
const RETRY: Duration = Duration::from_secs(1);

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Handlers that the agent knows, each with a RuntimeClass of the same name.
const RUNTIME_CLASSES: &[&str] = &["oci", "docker", "wasm", "wasm-isolated"];

/// A first object could not be made.
#[derive(Debug, Error)]
#[error("bootstrap {path}: {message}")]
pub struct BootstrapError {
    /// The object's path.
    pub path: String,
    /// What the server said.
    pub message: String,
}

/// Where the server is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    pub(crate) service_ip: IpAddr,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

impl Endpoint {
    /// Whether pods can reach the address.
    fn is_reachable(self) -> bool {
        !self.address.is_loopback() && !self.address.is_unspecified()
    }
}

/// Makes what is not there. Repeatable.
pub(crate) async fn bootstrap(
    client: &ClientService,
    endpoint: Endpoint,
) -> Result<(), BootstrapError> {
    for name in NAMESPACES {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(client, "/api/v1/namespaces", &namespace).await?;
    }
    for name in RUNTIME_CLASSES {
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": name});
        ensure(client, "/apis/node.k8s.io/v1/runtimeclasses", &class).await?;
    }
    for (name, value, description) in SYSTEM_CLASSES {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value, "description": description});
        ensure(client, "/apis/scheduling.k8s.io/v1/priorityclasses", &class).await?;
    }
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": "local-path",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "local-path.wherry.dev",
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    });
    ensure(client, "/apis/storage.k8s.io/v1/storageclasses", &class).await?;
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "clusterIP": endpoint.service_ip.to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": endpoint.port}],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
    });
    ensure(client, "/api/v1/namespaces/default/services", &service).await?;
    if !endpoint.is_reachable() {
        tracing::warn!(address = %endpoint.address, "Service kubernetes has no endpoint: pods cannot reach this address");
        return Ok(());
    }
    let subsets = json!([{
        "addresses": [{"ip": endpoint.address.to_string()}],
        "ports": [{"name": "https", "port": endpoint.port, "protocol": "TCP"}],
    }]);
    let path = "/api/v1/namespaces/default/endpoints/kubernetes";
    let (code, found) = client.request(Method::GET, path, &Value::Null).await;
    if code == StatusCode::OK && found["subsets"] == subsets {
        return slice(client, endpoint).await;
    }
    let endpoints = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    });
    let (code, answer) = client.request(Method::PUT, path, &endpoints).await;
    check(path, code, &answer)?;
    slice(client, endpoint).await
}

/// The same as an EndpointSlice, which is what nodes read.
async fn slice(client: &ClientService, endpoint: Endpoint) -> Result<(), BootstrapError> {
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let family = if endpoint.address.is_ipv6() {
        "IPv6"
    } else {
        "IPv4"
    };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [endpoint.address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": endpoint.port, "protocol": "TCP"}],
    });
    let (code, found) = client.request(Method::GET, path, &Value::Null).await;
    if code == StatusCode::OK
        && ["addressType", "endpoints", "ports"]
            .iter()
            .all(|field| found[field] == slice[field])
    {
        return Ok(());
    }
    let (method, path) = match code {
        StatusCode::OK => (Method::PUT, path),
        // Unlike Endpoints, a PUT does not make one.
        _ => (Method::POST, path.trim_end_matches("/kubernetes")),
    };
    let (code, answer) = client.request(method, path, &slice).await;
    check(path, code, &answer)
}

/// Makes again what somebody removed, until told to stop.
pub(crate) async fn keep(
    client: ClientService,
    store: Arc<dyn Store>,
    endpoint: Endpoint,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = removed(&store, "/registry/services/default/kubernetes") => {}
            () = removed(&store, "/registry/endpoints/default/kubernetes"), if endpoint.is_reachable() => {}
            () = removed(&store, "/registry/endpointslices/default/kubernetes"), if endpoint.is_reachable() => {}
        }
        if let Err(error) = bootstrap(&client, endpoint).await {
            tracing::warn!(%error, "Service kubernetes is missing");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Lasts until a key is not there.
async fn removed(store: &Arc<dyn Store>, key: &str) {
    loop {
        if let Ok(mut watch) = store.watch(key, 0).await {
            loop {
                if matches!(store.get(key).await, Ok((None, _))) {
                    return;
                }
                match watch.recv().await {
                    Some(WatchMessage::Events(_) | WatchMessage::Progress(_)) => {}
                    Some(WatchMessage::Lost) | None => break,
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Makes an object that is not there. Asked for first: a Service that is there has its address already.
async fn ensure(
    client: &ClientService,
    collection: &str,
    object: &Value,
) -> Result<(), BootstrapError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let (code, _) = client
        .request(Method::GET, &format!("{collection}/{name}"), &Value::Null)
        .await;
    if code == StatusCode::OK {
        return Ok(());
    }
    let (code, answer) = client.request(Method::POST, collection, object).await;
    check(collection, code, &answer)
}

fn check(path: &str, code: StatusCode, answer: &Value) -> Result<(), BootstrapError> {
    if code.is_success() {
        return Ok(());
    }
    let message = answer["message"].as_str().unwrap_or_default().to_owned();
    Err(BootstrapError {
        path: path.to_owned(),
        message,
    })
}
