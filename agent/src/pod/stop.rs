//! Ending a pod: hooks, containers in parallel, sandboxes; then giving back and removing what is left.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};
use wherry_runtime_api::{ContainerState, ContainerStatus, PodSandboxState, RuntimeError};

use super::{
    GRACE_PERIOD_MIN, files, is_sidecar,
    lifecycle::{ContainerExec, Hook},
    prepare::bounded,
    spec, subpath, translate, uid,
};
use crate::{context::Context, events::Kind, services};

/// How long past its grace period a runtime may take to kill.
const KILL_SLACK: Duration = Duration::from_secs(60);
/// First and longest pause between tries.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(20);

/// A pause that grows.
struct Retry(Duration);

impl Retry {
    fn new() -> Self {
        Self(RETRY_MIN)
    }

    async fn wait(&mut self) {
        sleep(self.0.mul_f64(0.5 + rand::random::<f64>())).await;
        self.0 = (self.0 * 2).min(RETRY_MAX);
    }
}

/// Stops containers at once, without hooks or events, and takes in what became of them.
pub(crate) async fn kill(
    context: &Context,
    containers: &[ContainerStatus],
    grace_period: Duration,
) -> Vec<RuntimeError> {
    let stops = containers.iter().map(|status| async move {
        let Some(runtime) = context.runtime(&status.handler) else {
            return Ok(());
        };
        let stop = runtime.stop_container(&status.id, grace_period);
        let limit = grace_period + KILL_SLACK;
        let late = |_| RuntimeError::DeadlineExceeded {
            what: format!("stop container {}", status.id),
            after: limit,
        };
        timeout(limit, stop).await.map_err(late)??;
        match runtime.container_status(&status.id).await {
            Ok(status) => context.actual.put_container(status),
            Err(error) if error.is_not_found() => {
                context.actual.drop_container(&status.pod, &status.id)
            }
            Err(error) => return Err(error),
        }
        Ok(())
    });
    join_all(stops)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect()
}

/// Ends one running container: hook, stop signal, kill, all by the deadline.
pub(crate) async fn stop_container(
    context: &Context,
    pod: &Pod,
    status: &ContainerStatus,
    deadline: Instant,
    event: Option<&str>,
) -> Result<(), RuntimeError> {
    let container = super::container(pod, &status.name);
    let default = format!("Stopping container {}", status.name);
    let message = event.map_or(default, str::to_owned);
    context
        .recorder
        .record(pod, Some(&status.name), Kind::Normal, "Killing", message);
    if let Some(container) = &container {
        pre_stop(context, pod, container, status, deadline).await;
    }
    let grace_period = deadline
        .saturating_duration_since(Instant::now())
        .max(GRACE_PERIOD_MIN);
    kill(context, std::slice::from_ref(status), grace_period)
        .await
        .into_iter()
        .next()
        .map_or(Ok(()), Err)
}

async fn pre_stop(
    context: &Context,
    pod: &Pod,
    container: &Container,
    status: &ContainerStatus,
    deadline: Instant,
) {
    let Some(handler) = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.pre_stop.as_ref())
    else {
        return;
    };
    let Some(runtime) = context.runtime(&status.handler) else {
        return;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return;
    }
    let exec = ContainerExec {
        runtime: Arc::clone(runtime),
        id: status.id.clone(),
    };
    let actual = context.actual.get(&uid(pod));
    let ip = actual
        .sandboxes
        .last()
        .and_then(|sandbox| sandbox.ips.first().copied());
    let hook = Hook {
        prober: &*context.config.prober,
        exec: &exec,
        container,
        ip,
        timeout: left,
    };
    match timeout(left, hook.run(handler)).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => {
            let message = format!("PreStopHook failed: {why}");
            context.recorder.record(
                pod,
                Some(&container.name),
                Kind::Warning,
                "FailedPreStopHook",
                message,
            );
        }
        Err(_) => debug!(container = %status.id, "PreStop hook took the whole grace period"),
    }
}

fn is_alive(status: &ContainerStatus) -> bool {
    !matches!(status.state, ContainerState::Exited(_))
}

/// Ends everything of a pod: containers in parallel, sidecars after them in reverse order, sandboxes.
/// Tries until it is done.
///
/// # Cancel safety
/// Dropped, it leaves containers asked and not killed; run again with a nearer deadline it kills sooner.
pub(crate) async fn stop_all(context: &Context, pod: &Pod, deadline: Instant) {
    let uid = uid(pod);
    let mut retry = Retry::new();
    services::leave(context, pod, deadline).await;
    loop {
        let actual = context.actual.get(&uid);
        let sidecar_names: Vec<_> = spec(pod)
            .init_containers
            .iter()
            .flatten()
            .filter(|c| is_sidecar(c))
            .map(|c| c.name.as_str())
            .collect();
        let (sidecars, mains): (Vec<_>, Vec<_>) = actual
            .containers
            .iter()
            .filter(|status| is_alive(status))
            .partition(|status| sidecar_names.contains(&status.name.as_str()));
        let stops = mains
            .into_iter()
            .map(|status| stop_container(context, pod, status, deadline, None));
        let mut errors: Vec<_> = join_all(stops)
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        for name in sidecar_names.iter().rev() {
            for status in sidecars.iter().filter(|status| status.name == *name) {
                errors.extend(
                    stop_container(context, pod, status, deadline, None)
                        .await
                        .err(),
                );
            }
        }
        for sandbox in &actual.sandboxes {
            if !errors.is_empty() {
                break;
            }
            let Some(runtime) = context.runtime(&sandbox.handler) else {
                continue;
            };
            match bounded(
                context,
                "stop pod sandbox",
                runtime.stop_pod_sandbox(&sandbox.id),
            )
            .await
            {
                Ok(()) => {
                    let mut stopped = (**sandbox).clone();
                    stopped.state = PodSandboxState::NotReady;
                    context.actual.put_sandbox(Arc::new(stopped));
                }
                Err(error) => errors.push(error),
            }
        }
        let Some(error) = errors.first() else {
            // Containers that died with the sandbox have their end in the runtime.
            let again = context.actual.get(&uid);
            let left: Vec<_> = again.containers.into_iter().filter(is_alive).collect();
            if left.is_empty() {
                return;
            }
            kill(context, &left, Duration::ZERO).await;
            if !context.actual.get(&uid).containers.iter().any(is_alive) {
                return;
            }
            retry.wait().await;
            continue;
        };
        let message = format!("error killing pod: {error}");
        context.event(pod, Kind::Warning, "FailedKillPod", message);
        retry.wait().await;
    }
}

/// Gives back what only a running pod needs. Tries until it is done.
pub(crate) async fn release(context: &Context, pod: &Pod) {
    let uid = uid(pod);
    // Something may have turned up late.
    stop_all(context, pod, Instant::now()).await;
    let mut retry = Retry::new();
    loop {
        let pod_dir = context.pod_dir(&uid);
        let sub_paths = tokio::task::spawn_blocking(move || subpath::release_pod(&pod_dir)).await;
        if let Ok(Err(error)) = sub_paths {
            warn!(pod = super::name(pod), %uid, %error, "Sub-paths not released yet");
            retry.wait().await;
            continue;
        }
        let network = context.config.network.detach(uid.as_str()).await;
        let volumes = context.volumes.unmount(uid.as_str()).await;
        let Some(error) = network.err().or(volumes.err()) else {
            return;
        };
        warn!(pod = super::name(pod), %uid, %error, "Pod not released yet");
        retry.wait().await;
    }
}

/// Removes everything of a pod from the node. Tries until it is done.
pub(crate) async fn remove(context: &Context, pod: &Pod) {
    release(context, pod).await;
    let uid = uid(pod);
    let mut retry = Retry::new();
    loop {
        let actual = context.actual.get(&uid);
        let mut errors = Vec::new();
        for status in &actual.containers {
            let Some(runtime) = context.runtime(&status.handler) else {
                continue;
            };
            match bounded(
                context,
                "remove container",
                runtime.remove_container(&status.id),
            )
            .await
            {
                Ok(()) => context.actual.drop_container(&uid, &status.id),
                Err(error) => errors.push(error.to_string()),
            }
        }
        for sandbox in &actual.sandboxes {
            if !errors.is_empty() {
                break;
            }
            let Some(runtime) = context.runtime(&sandbox.handler) else {
                continue;
            };
            match bounded(
                context,
                "remove pod sandbox",
                runtime.remove_pod_sandbox(&sandbox.id),
            )
            .await
            {
                Ok(()) => context.actual.drop_sandbox(&uid, &sandbox.id),
                Err(error) => errors.push(error.to_string()),
            }
        }
        if errors.is_empty() {
            let pod_dir = context.pod_dir(&uid);
            let log_dir = translate::log_directory(&context.config.log_root(), pod);
            let removed =
                tokio::task::spawn_blocking(move || files::remove_pod(&pod_dir, &log_dir)).await;
            match removed {
                Ok(Ok(())) => break,
                Ok(Err(error)) => errors.push(error.to_string()),
                Err(error) => errors.push(error.to_string()),
            }
        }
        warn!(pod = super::name(pod), %uid, errors = errors.join("; "), "Pod not removed yet");
        retry.wait().await;
    }
    context.user_namespaces.release(&uid);
    context.images.forget(uid.as_str());
    info!(pod = super::name(pod), namespace = super::namespace(pod), %uid, "Pod removed");
}
