//! `/storage/local-path/<name>`: directories for PersistentVolumes, made and removed for the control plane.

use axum::{
    Json,
    extract::{Path, State as Shared},
    http::StatusCode,
};
use serde_json::{Value, json};

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
