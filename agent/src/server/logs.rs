//! `/containerLogs`: a container's log, from the end or the beginning, and on as it is written.
//!
//! ```text
//!  <n>.log.20261120-120000   <n>.log.20261120-130000   <n>.log
//!  └──────────── rotated, oldest first ─────────────┘   └ live ┘
//!        tail: looked for from here backwards ◀───────────┘
//!        follow: to the end of each, then the next, then what inotify announces ─▶
//! ```
//!
//! Unlike the kubelet's, the reader goes on over rotated files, so a rotation loses no line for whoever
//! reads. The container's end is the end of a followed log.

mod cursor;
mod line;
mod options;
mod reader;
mod tail;
mod watcher;

use axum::{
    body::Body,
    extract::{Path, Query, State as Shared},
    http::{HeaderValue, header},
    response::Response,
};
use futures::stream;
use tracing::debug;
use wherry_runtime_api::RuntimeEvent;

use self::{
    options::LogOptions,
    reader::{Ended, LogReader},
};
use super::{
    State,
    container::{has_container, is_running, log_path, log_target, split_id},
    error::HttpError,
};

pub(crate) use self::line::LogLine;
pub(crate) use watcher::LogWatcher;

pub(crate) async fn container_logs(
    Shared(state): Shared<State>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Response, HttpError> {
    let options = LogOptions::parse(&pairs, jiff::Timestamp::now())?;
    let pod = state
        .kubelet
        .pod(&namespace, &name)
        .ok_or_else(|| HttpError::not_found(format!("pod {name:?} does not exist\n")))?;
    if !has_container(&pod, &container) {
        return Err(HttpError::not_found(format!(
            "container {container:?} not found in pod {name:?}\n"
        )));
    }
    let target = log_target(&pod, &container, options.previous).map_err(HttpError::bad_request)?;
    let path = log_path(&*state.kubelet, &pod, &container, &target).await;
    let follow = options.follow.then(|| {
        (
            state.log_watcher.watch(&path),
            ended(&state, &target.container_id),
        )
    });
    let reader = LogReader::open(path, options, follow)
        .await
        .map_err(|error| {
            HttpError::internal(format!(
                "failed to open log file of container {container:?}: {error}"
            ))
        })?;

    let body = stream::unfold(reader, async |mut reader| match reader.next_chunk().await {
        Ok(chunk) => chunk.map(|chunk| (Ok(chunk), reader)),
        Err(error) => {
            debug!(%error, "Log cannot be read on");
            Some((Err(error), reader))
        }
    });
    let mut response = Response::new(Body::from_stream(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// A future that is ready once the container no longer runs.
fn ended(state: &State, container_id: &str) -> Ended {
    let Some((runtime, id)) = split_id(&*state.kubelet, container_id) else {
        return Box::pin(std::future::ready(()));
    };
    Box::pin(async move {
        let mut events = runtime.subscribe();
        loop {
            // Asked after subscribing, so that no exit falls between; asked again now and then, because
            // events can be lost.
            match runtime.container_status(&id).await {
                Ok(status) if is_running(&status) => {}
                Err(error) if !error.is_not_found() => {
                    debug!(%error, "Container's state is not known")
                }
                _ => return,
            }
            let exited = async {
                loop {
                    match events.recv().await {
                        Ok(RuntimeEvent::ContainerExited { id: exited, .. }) if exited == id => {
                            return;
                        }
                        Ok(_) => {}
                        Err(_) => std::future::pending().await,
                    }
                }
            };
            tokio::select! {
                () = exited => {}
                () = tokio::time::sleep(reader::REPAIR_INTERVAL) => {}
            }
        }
    })
}
