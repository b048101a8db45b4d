//! One container's status: its state, the one before, and what it was made with. Pure.

use std::{collections::BTreeSet, time::SystemTime};

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus as ApiContainerStatus, ContainerUser,
    LinuxContainerUser, Pod, ResourceRequirements, VolumeMountStatus,
};
use wherry_runtime_api::{ContainerExit, ContainerState as RuntimeState, ContainerStatus};

use super::{
    super::{full_name, is_sidecar, spec, time, translate},
    Observed, reason,
};

/// Last words over all containers of a pod, bytes (`MaxPodTerminationMessageLogLength`).
const TERMINATION_MESSAGES_BYTES_MAX: usize = 12 * 1024;

/// What is left of last words where many containers share the pod's room for them.
fn cut(seen: Observed<'_>, mut words: String) -> String {
    let spec = spec(seen.pod);
    let count = spec.containers.len()
        + spec.init_containers.as_ref().map_or(0, Vec::len)
        + spec.ephemeral_containers.as_ref().map_or(0, Vec::len);
    let mut at = (TERMINATION_MESSAGES_BYTES_MAX / count.max(1)).min(words.len());
    while !words.is_char_boundary(at) {
        at -= 1;
    }
    words.truncate(at);
    words
}

/// The state of an exited container.
fn terminated(
    seen: Observed<'_>,
    status: &ContainerStatus,
    exit: &ContainerExit,
) -> ContainerStateTerminated {
    let reason = match exit {
        exit if exit.oom_killed => reason::OOM_KILLED,
        exit if exit.started_at.is_none() && exit.exit_code != 0 => reason::START_ERROR,
        exit if exit.exit_code == 0 => reason::COMPLETED,
        _ => reason::ERROR,
    };
    ContainerStateTerminated {
        container_id: Some(container_id(status)),
        exit_code: exit.exit_code,
        signal: None,
        reason: Some(reason.into()),
        message: seen
            .messages
            .get(&status.id)
            .filter(|m| !m.is_empty())
            .cloned()
            .or_else(|| exit.message.clone())
            .map(|words| cut(seen, words)),
        started_at: Some(time(exit.started_at.unwrap_or(SystemTime::UNIX_EPOCH))),
        finished_at: Some(time(exit.finished_at)),
    }
}

fn lost(status: &ContainerStatus) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(container_id(status)),
        exit_code: 137,
        reason: Some(reason::CONTAINER_STATUS_UNKNOWN.into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        ..ContainerStateTerminated::default()
    }
}

/// `oci://…`, as in `status.containerStatuses[].containerID`.
fn container_id(status: &ContainerStatus) -> String {
    format!("{}://{}", status.handler, status.id)
}

fn ended(seen: Observed<'_>, status: &ContainerStatus) -> Option<ContainerStateTerminated> {
    match &status.state {
        RuntimeState::Exited(exit) => Some(terminated(seen, status, exit)),
        RuntimeState::Unknown => Some(lost(status)),
        RuntimeState::Created | RuntimeState::Running { .. } => None,
    }
}

/// Which of a pod's lists a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Init,
    Main,
    Ephemeral,
}

/// Whom it runs as, where the pod says it all.
fn user(pod: &Pod, container: &Container) -> Option<ContainerUser> {
    let own = container.security_context.as_ref();
    let of_pod = spec(pod).security_context.as_ref();
    let uid = own
        .and_then(|c| c.run_as_user)
        .or(of_pod.and_then(|c| c.run_as_user))?;
    let gid = own
        .and_then(|c| c.run_as_group)
        .or(of_pod.and_then(|c| c.run_as_group))?;
    let groups = of_pod.and_then(|c| c.supplemental_groups.as_ref());
    let mut all = BTreeSet::from([gid]);
    all.extend(of_pod.and_then(|c| c.fs_group));
    all.extend(groups.into_iter().flatten());
    Some(ContainerUser {
        linux: Some(LinuxContainerUser {
            gid,
            supplemental_groups: Some(all.into_iter().collect()),
            uid,
        }),
    })
}

/// Its mounts as they were made.
fn volume_mounts(
    seen: Observed<'_>,
    container: &Container,
    status: &ContainerStatus,
) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?.iter().map(|mount| {
        let mode = mount.recursive_read_only.as_deref();
        let is_recursive = match mode {
            Some("Enabled") => true,
            Some("IfPossible") => (seen.has_recursive_readonly)(&status.handler),
            _ => false,
        };
        let is_readonly = mount.read_only == Some(true);
        let shown = if is_recursive { "Enabled" } else { "Disabled" };
        VolumeMountStatus {
            mount_path: mount.mount_path.clone(),
            name: mount.name.clone(),
            read_only: is_readonly.then_some(true),
            recursive_read_only: is_readonly.then(|| shown.into()),
            ..VolumeMountStatus::default()
        }
    });
    Some(mounts.collect())
}

pub(super) fn container(
    seen: Observed<'_>,
    container: &Container,
    part: Part,
) -> ApiContainerStatus {
    let name = &container.name;
    let mut attempts: Vec<_> = seen.containers.iter().filter(|c| c.name == *name).collect();
    attempts.sort_by_key(|c| std::cmp::Reverse(c.attempt));
    let newest = attempts.first().copied();
    let older = attempts.get(1).copied();
    let before = seen.previous.and_then(|p| {
        let list = match part {
            Part::Init => &p.init_container_statuses,
            Part::Main => &p.container_statuses,
            Part::Ephemeral => &p.ephemeral_container_statuses,
        };
        list.iter().flatten().find(|c| c.name == *name)
    });

    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message,
        }),
        ..ContainerState::default()
    };
    let running = match newest.map(|c| &c.state) {
        Some(RuntimeState::Running { started_at }) if !seen.in_hook.contains(name) => {
            Some(*started_at)
        }
        _ => None,
    };
    let has_init = spec(seen.pod)
        .init_containers
        .as_ref()
        .is_some_and(|c| !c.is_empty());
    let mut last = None;
    let state = if let Some(started_at) = running {
        last = older.and_then(|c| ended(seen, c));
        ContainerState {
            running: Some(ContainerStateRunning {
                started_at: Some(time(started_at)),
            }),
            ..ContainerState::default()
        }
    } else if let Some(trouble) = seen.waiting.get(name).filter(|_| !seen.is_terminal) {
        last = attempts.iter().find_map(|c| ended(seen, c));
        waiting(
            trouble.reason,
            Some(trouble.message.clone()).filter(|m| !m.is_empty()),
        )
    } else if let Some(delay) = seen.backing_off.get(name).filter(|_| !seen.is_terminal) {
        last = attempts.iter().find_map(|c| ended(seen, c));
        let message = format!(
            "back-off {} restarting failed container={name} pod={}",
            crate::text::go_duration(*delay),
            full_name(seen.pod),
        );
        waiting(reason::CRASH_LOOP_BACK_OFF, Some(message))
    } else if let Some(end) = newest
        .filter(|c| seen.coming_back.contains(&c.id) && !seen.is_terminal)
        .and_then(|c| ended(seen, c))
    {
        last = Some(end);
        waiting(reason::CONTAINER_CREATING, None)
    } else if let Some(end) = newest.and_then(|c| ended(seen, c)) {
        last = older.and_then(|c| ended(seen, c));
        ContainerState {
            terminated: Some(end),
            ..ContainerState::default()
        }
    } else if let Some(end) = before
        .and_then(|b| b.state.as_ref()?.terminated.clone())
        .filter(|_| newest.is_none())
    {
        // The runtime has forgotten it; what was published stays true.
        ContainerState {
            terminated: Some(end),
            ..ContainerState::default()
        }
    } else {
        last = older.and_then(|c| ended(seen, c));
        waiting(
            if has_init && part != Part::Ephemeral {
                reason::POD_INITIALIZING
            } else {
                reason::CONTAINER_CREATING
            },
            None,
        )
    };
    let last = last.or_else(|| {
        let before = before?;
        let is_same =
            newest.is_none() || before.restart_count == i32::try_from(newest?.attempt).ok()?;
        before
            .last_state
            .as_ref()?
            .terminated
            .clone()
            .filter(|_| is_same)
    });
    let started = running.is_some() && newest.is_some_and(|c| seen.started.contains(&c.id));
    let ready = if part == Part::Ephemeral {
        false
    } else if part == Part::Init && !is_sidecar(container) {
        state
            .terminated
            .as_ref()
            .is_some_and(|end| end.exit_code == 0)
    } else {
        started && newest.is_some_and(|c| seen.ready.contains(&c.id))
    };
    let attempt = newest
        .map(|c| c.attempt)
        .max(seen.attempts.get(name).copied());
    let granted = container.resources.as_ref();
    let resources = seen
        .actuated
        .get(name)
        .filter(|_| running.is_some())
        .or(granted)
        .filter(|resources| **resources != ResourceRequirements::default());
    ApiContainerStatus {
        allocated_resources: granted.and_then(|resources| resources.requests.clone()),
        resources: resources.cloned(),
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone()),
        user: newest
            .filter(|c| c.handler != translate::HANDLER_WASM)
            .and_then(|_| user(seen.pod, container)),
        volume_mounts: newest.and_then(|c| volume_mounts(seen, container, c)),
        name: name.clone(),
        container_id: newest
            .map(container_id)
            .or_else(|| before.and_then(|b| b.container_id.clone())),
        image: container.image.clone().unwrap_or_default(),
        image_id: newest
            .map(|c| {
                seen.image_refs
                    .get(&c.image_id)
                    .unwrap_or(&c.image_id)
                    .clone()
            })
            .or_else(|| before.map(|b| b.image_id.clone()))
            .unwrap_or_default(),
        last_state: Some(ContainerState {
            terminated: last,
            ..ContainerState::default()
        }),
        ready,
        restart_count: attempt
            .and_then(|n| i32::try_from(n).ok())
            .unwrap_or_else(|| before.map_or(0, |b| b.restart_count)),
        started: (part != Part::Ephemeral).then_some(started),
        state: Some(state),
        ..ApiContainerStatus::default()
    }
}
