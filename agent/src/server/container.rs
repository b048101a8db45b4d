//! From names in a path to a container, its sandbox and its log.

use std::{path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::{ContainerStatus as PodContainerStatus, Pod};
use wherry_runtime_api::{
    ContainerId, ContainerState, ContainerStatus, PodSandbox, PodSandboxState, Runtime,
};

use super::{Kubelet, error::HttpError};

/// A container that runs, and who runs it.
#[derive(Clone)]
pub(crate) struct RunningContainer {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) id: ContainerId,
}

/// The pod, or the kubelet's answer without one.
pub(crate) fn find_pod(
    kubelet: &dyn Kubelet,
    namespace: &str,
    name: &str,
) -> Result<Arc<Pod>, HttpError> {
    kubelet
        .pod(namespace, name)
        .ok_or_else(|| HttpError::not_found("pod does not exist"))
}

/// What a path's parts are called and are.
pub(crate) type Names = Vec<(String, String)>;

fn part<'n>(names: &'n Names, part: &str) -> Option<&'n str> {
    let mut names = names.iter();
    names
        .find(|(name, _)| name == part)
        .map(|(_, value)| value.as_str())
}

/// The pod that a path names, by its uid too where the path has one, and the container's name.
pub(crate) fn find_named_pod<'n>(
    kubelet: &dyn Kubelet,
    names: &'n Names,
) -> Result<(Arc<Pod>, &'n str), HttpError> {
    let of = |name| part(names, name).unwrap_or_default();
    let pod = find_pod(kubelet, of("namespace"), of("pod"))?;
    match part(names, "uid") {
        Some(wanted) if wanted != uid(&pod) => Err(HttpError::not_found("pod does not exist")),
        _ => Ok((pod, of("container"))),
    }
}

/// A pod's uid as the runtimes know it.
pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The container's status, whichever kind of container it is.
pub(crate) fn container_status<'p>(pod: &'p Pod, name: &str) -> Option<&'p PodContainerStatus> {
    let status = pod.status.as_ref()?;
    [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .find(|status| status.name == name)
}

/// Whether the spec has a container of that name, of whichever kind.
pub(crate) fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut names = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|container| container.name.as_str())
        .chain(
            spec.ephemeral_containers
                .iter()
                .flatten()
                .map(|container| container.name.as_str()),
        );
    names.any(|found| found == name)
}

/// Whether the spec gives that container a terminal.
pub(crate) fn has_tty(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let mut ttys = containers
        .map(|container| (container.name.as_str(), container.tty))
        .chain(
            spec.ephemeral_containers
                .iter()
                .flatten()
                .map(|container| (container.name.as_str(), container.tty)),
        );
    ttys.any(|(found, tty)| found == name && tty == Some(true))
}

/// Takes `oci://id` apart and finds the runtime.
pub(crate) fn split_id(kubelet: &dyn Kubelet, id: &str) -> Option<(Arc<dyn Runtime>, ContainerId)> {
    let (handler, id) = id.split_once("://")?;
    let runtime = kubelet
        .runtimes()
        .iter()
        .find(|runtime| runtime.handler() == handler)?;
    Some((runtime.clone(), ContainerId::from(id)))
}

/// The running container of that name. The pod's status names it as a rule; the runtimes are asked when
/// the status has not caught up yet.
pub(crate) async fn find_running(
    kubelet: &dyn Kubelet,
    pod: &Pod,
    name: &str,
) -> Result<RunningContainer, HttpError> {
    let named = container_status(pod, name).and_then(|status| status.container_id.as_deref());
    if let Some((runtime, id)) = named.and_then(|id| split_id(kubelet, id))
        && let Ok(status) = runtime.container_status(&id).await
        && is_running(&status)
    {
        return Ok(RunningContainer { runtime, id });
    }
    let mut newest: Option<(u32, RunningContainer)> = None;
    for runtime in kubelet.runtimes() {
        for status in runtime.list_containers().await.unwrap_or_default() {
            let is_it =
                status.pod.as_str() == uid(pod) && status.name == name && is_running(&status);
            if is_it
                && newest
                    .as_ref()
                    .is_none_or(|(attempt, _)| *attempt < status.attempt)
            {
                newest = Some((
                    status.attempt,
                    RunningContainer {
                        runtime: runtime.clone(),
                        id: status.id,
                    },
                ));
            }
        }
    }
    newest
        .map(|(_, container)| container)
        .ok_or_else(|| HttpError::internal(format!("container not found ({name:?})")))
}

/// Whether the app has not exited.
pub(crate) fn is_running(status: &ContainerStatus) -> bool {
    matches!(status.state, ContainerState::Running { .. })
}

/// The pod's newest sandbox that is Ready, with the pod's addresses, and the runtime that made it.
pub(crate) async fn find_sandbox(
    kubelet: &dyn Kubelet,
    pod: &Pod,
) -> Result<(Arc<dyn Runtime>, PodSandbox), HttpError> {
    let mut newest: Option<(Arc<dyn Runtime>, PodSandbox)> = None;
    for runtime in kubelet.runtimes() {
        for sandbox in runtime.list_pod_sandboxes().await.unwrap_or_default() {
            let is_it =
                sandbox.config.uid.as_str() == uid(pod) && sandbox.state == PodSandboxState::Ready;
            if is_it
                && newest
                    .as_ref()
                    .is_none_or(|(_, found)| found.config.attempt < sandbox.config.attempt)
            {
                newest = Some((runtime.clone(), sandbox));
            }
        }
    }
    let (runtime, mut sandbox) = newest.ok_or_else(|| {
        let (name, namespace) = (&pod.metadata.name, &pod.metadata.namespace);
        let full = format!(
            "{}_{}",
            name.as_deref().unwrap_or_default(),
            namespace.as_deref().unwrap_or_default()
        );
        HttpError::not_found(format!("pod not found ({full:?})"))
    })?;
    if sandbox.ips.is_empty() {
        let ips = pod
            .status
            .iter()
            .flat_map(|status| status.pod_ips.iter().flatten());
        sandbox.ips = ips.filter_map(|ip| ip.ip.parse().ok()).collect();
    }
    Ok((runtime, sandbox))
}

/// Which attempt of a container a log is asked of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogTarget {
    /// `oci://…`.
    pub(crate) container_id: String,
    /// Counts restarts; names the file where the runtime has forgotten the container.
    pub(crate) attempt: u32,
}

/// Decides from the pod's status which container's log is meant, or says why there is none yet. Pure.
pub(crate) fn log_target(pod: &Pod, name: &str, previous: bool) -> Result<LogTarget, String> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(status) = container_status(pod, name) else {
        return Err(format!(
            "container {name:?} in pod {pod_name:?} is not available"
        ));
    };
    let attempts = u32::try_from(status.restart_count).unwrap_or(0);
    let last = status
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let last_id = last
        .and_then(|state| state.container_id.clone())
        .filter(|id| !id.is_empty());
    let of = |container_id: Option<String>, attempt| {
        container_id.map(|container_id| LogTarget {
            container_id,
            attempt,
        })
    };
    let is_terminated = || format!("container {name:?} in pod {pod_name:?} is terminated");
    let state = status.state.clone().unwrap_or_default();
    if previous {
        // Between two runs the count is still that of the run that ended.
        let is_between = state.running.is_none() && state.terminated.is_none();
        let attempt = if is_between {
            attempts
        } else {
            attempts.saturating_sub(1)
        };
        return of(last_id, attempt).ok_or_else(|| {
            format!("previous terminated container {name:?} in pod {pod_name:?} not found")
        });
    }
    if state.running.is_some() {
        return of(status.container_id.clone(), attempts).ok_or_else(is_terminated);
    }
    if let Some(terminated) = state.terminated {
        let id = terminated.container_id.filter(|id| !id.is_empty());
        // The next container could not be started: the one before is the last that wrote.
        return of(id, attempts)
            .or_else(|| of(last_id, attempts.saturating_sub(1)))
            .ok_or_else(is_terminated);
    }
    if last.is_some() {
        // Waiting for its next start; the count is of the attempt that ended.
        return of(last_id, attempts).ok_or_else(is_terminated);
    }
    let waiting = |why: &str| {
        Err(format!(
            "container {name:?} in pod {pod_name:?} is waiting to start: {why}"
        ))
    };
    match state
        .waiting
        .map(|waiting| waiting.reason.unwrap_or_default())
        .as_deref()
    {
        Some("ErrImagePull") => waiting("image can't be pulled"),
        Some("ImagePullBackOff") => waiting("trying and failing to pull image"),
        Some(reason) => waiting(reason),
        None => Err(format!(
            "container {name:?} in pod {pod_name:?} is waiting to start - no logs yet"
        )),
    }
}

/// Where a target's log is.
pub(crate) async fn log_path(
    kubelet: &dyn Kubelet,
    pod: &Pod,
    name: &str,
    target: &LogTarget,
) -> PathBuf {
    if let Some((runtime, id)) = split_id(kubelet, &target.container_id)
        && let Ok(status) = runtime.container_status(&id).await
    {
        return status.log_path;
    }
    kubelet
        .log_directory(pod)
        .join(name)
        .join(format!("{}.log", target.attempt))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        let mut status = status;
        status["name"] = "c".into();
        status["image"] = "i".into();
        status["imageID"] = "".into();
        status["ready"] = false.into();
        status
            .as_object_mut()
            .expect("an object")
            .entry("restartCount")
            .or_insert(0.into());
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default"},
            "status": {"containerStatuses": [status]},
        }))
        .expect("a pod")
    }

    fn terminated(id: &str) -> Value {
        json!({"terminated": {"exitCode": 1, "containerID": id}})
    }

    #[test]
    fn the_log_meant_follows_from_the_containers_state() {
        let target = |id: &str, attempt| {
            Ok(LogTarget {
                container_id: id.into(),
                attempt,
            })
        };
        let says = |why: &str| {
            Err(format!(
                "container \"c\" in pod \"p\" is waiting to start: {why}"
            ))
        };
        let previous_not_found =
            Err("previous terminated container \"c\" in pod \"p\" not found".to_owned());
        let waiting = |reason: &str| json!({"state": {"waiting": {"reason": reason}}});
        let running = json!({"containerID": "oci://2", "restartCount": 2, "state": {"running": {}}, "lastState": terminated("oci://1")});
        let crashing = json!({"restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": terminated("oci://1")});
        let table = [
            (running.clone(), false, target("oci://2", 2)),
            (running, true, target("oci://1", 1)),
            (crashing.clone(), false, target("oci://1", 1)),
            (crashing, true, target("oci://1", 1)),
            (
                json!({"state": terminated("oci://0")}),
                false,
                target("oci://0", 0),
            ),
            (
                json!({"state": terminated("oci://0")}),
                true,
                previous_not_found.clone(),
            ),
            (
                waiting("ContainerCreating"),
                false,
                says("ContainerCreating"),
            ),
            (
                waiting("ErrImagePull"),
                false,
                says("image can't be pulled"),
            ),
            (
                waiting("ImagePullBackOff"),
                false,
                says("trying and failing to pull image"),
            ),
            (waiting("ContainerCreating"), true, previous_not_found),
            (
                json!({}),
                false,
                Err("container \"c\" in pod \"p\" is waiting to start - no logs yet".into()),
            ),
        ];
        for (status, previous, expected) in table {
            assert_eq!(
                log_target(&pod(status.clone()), "c", previous),
                expected,
                "{status} previous={previous}"
            );
        }
        let absent = log_target(&pod(json!({})), "other", false);
        assert_eq!(
            absent,
            Err("container \"other\" in pod \"p\" is not available".into())
        );
    }
}
