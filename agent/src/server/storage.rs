//! What the control plane asks for PersistentVolumes: `/storage/local-path/<name>` makes and removes directories;
//! `/storage/claims/<namespace>/<pod>/<claim>?bytes=<n>` makes the volume of a claim larger that a pod has mounted (404 or
//! 409: it has not, yet; 501: this kind cannot); `/storage/plugins/<plugin>/volumes/<name>` has a plugin make a volume, and
//! with `/delete` take it away (404: it is not installed here; 501: its volumes need no making; 507: no space; 422: it does
//! not get better by trying again).

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State as Shared},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};
use wherry_volumes::{CreateVolume, CreatedVolume, DeleteVolume, VolumeError, VolumeFailure};

use super::{State, error::HttpError};
use crate::{
    storage::{LocalVolumes, StorageError},
    volume::Volumes,
};

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

pub(crate) async fn create(
    Shared(state): Shared<State>,
    Path((plugin, name)): Path<(String, String)>,
    Json(asked): Json<CreateVolume>,
) -> Result<Json<CreatedVolume>, HttpError> {
    let created = volumes(&state)?.create(&plugin, &name, asked).await;
    created.map(Json).map_err(failed)
}

pub(crate) async fn delete(
    Shared(state): Shared<State>,
    Path((plugin, name)): Path<(String, String)>,
    Json(asked): Json<DeleteVolume>,
) -> Result<StatusCode, HttpError> {
    let deleted = volumes(&state)?.delete(&plugin, &name, asked).await;
    deleted.map(|()| StatusCode::OK).map_err(failed)
}

fn volumes(state: &State) -> Result<Arc<dyn Volumes>, HttpError> {
    let volumes = state.kubelet.volumes();
    volumes.ok_or_else(|| HttpError::not_found("this node has no volumes of plugins"))
}

fn failed(failure: VolumeFailure) -> HttpError {
    let status = match &failure {
        VolumeFailure::NotInstalled(_) => StatusCode::NOT_FOUND,
        failure if failure.is_no_provisioner() => StatusCode::NOT_IMPLEMENTED,
        failure if failure.is_no_space() => StatusCode::INSUFFICIENT_STORAGE,
        failure if failure.is_final() => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    HttpError {
        status,
        message: failure.to_string(),
    }
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
