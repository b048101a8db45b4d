//! What the control plane asks for PersistentVolumes: `/storage/local-path/<name>` makes and removes directories, and
//! `/storage/claims/<namespace>/<pod>/<claim>?bytes=<n>` makes the volume of a claim larger that a pod has mounted (404 or
//! 409: it has not, yet; 501: this kind cannot).

use axum::{
    Json,
    extract::{Path, Query, State as Shared},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};
use wherry_volumes::VolumeError;

use super::{State, error::HttpError};
use crate::storage::{LocalVolumes, StorageError};

pub(crate) async fn make(
    Shared(state): Shared<State>,
    Path(name): Path<String>,
) -> Result<Json<Value>, HttpError> {
    let path = work(&state, move |volumes| volumes.make(&name)).await?;
    Ok(Json(json!({ "path": path })))
}

pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path(name): Path<String>,
) -> Result<StatusCode, HttpError> {
    work(&state, move |volumes| volumes.remove(&name)).await?;
    Ok(StatusCode::OK)
}

/// What is asked of a mounted volume.
#[derive(Deserialize)]
pub(crate) struct Expansion {
    /// That it is to hold.
    bytes: u64,
}

pub(crate) async fn expand(
    Shared(state): Shared<State>,
    Path((namespace, pod, claim)): Path<(String, String, String)>,
    Query(Expansion { bytes }): Query<Expansion>,
) -> Result<Json<Value>, HttpError> {
    let Some(found) = state.kubelet.pod(&namespace, &pod) else {
        return Err(HttpError::not_found(format!(
            "pod {namespace}/{pod} is not on this node"
        )));
    };
    let expanded = state.kubelet.expand_volume(&found, &claim, bytes).await;
    let held = expanded.map_err(|error| HttpError {
        status: match &error {
            VolumeError::NotMounted { .. } => StatusCode::CONFLICT,
            error if error.is_unsupported() => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
        message: error.to_string(),
    })?;
    Ok(Json(json!({ "bytes": held })))
}

async fn work<T: Send + 'static>(
    state: &State,
    work: impl FnOnce(LocalVolumes) -> Result<T, StorageError> + Send + 'static,
) -> Result<T, HttpError> {
    let Some(volumes) = state.kubelet.local_volumes() else {
        return Err(HttpError::not_found("this node has no local volumes"));
    };
    let done = tokio::task::spawn_blocking(move || work(volumes)).await;
    let done = done.map_err(|error| HttpError::internal(error.to_string()))?;
    done.map_err(|error| match &error {
        StorageError::Name(_) => HttpError::bad_request(error.to_string()),
        StorageError::Io { .. } => HttpError::internal(error.to_string()),
    })
}
