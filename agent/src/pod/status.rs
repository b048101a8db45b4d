//! What the runtimes say, as a `PodStatus`: phase, conditions, container states. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
        ContainerStateWaiting, ContainerStatus as ApiContainerStatus, ContainerUser, HostIP,
        LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements,
        VolumeMountStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use wherry_runtime_api::{
    ContainerExit, ContainerId, ContainerState as RuntimeState, ContainerStatus, PodSandbox,
    PodSandboxState, SandboxNetwork,
};

use super::{
    as_container, full_name, is_sidecar, qos,
    resize::{Progress, Refusal},
    restart::{RestartPolicy, comes_back},
    spec, time, translate,
};

/// Reasons of a waiting container, as kubectl shows them.
pub(crate) mod reason {
    /// Nothing went wrong yet.
    pub(crate) const CONTAINER_CREATING: &str = "ContainerCreating";
    /// Init containers are not through.
    pub(crate) const POD_INITIALIZING: &str = "PodInitializing";
    /// It keeps exiting, and waits.
    pub(crate) const CRASH_LOOP_BACK_OFF: &str = "CrashLoopBackOff";
    /// The image could not be pulled.
    pub(crate) const ERR_IMAGE_PULL: &str = "ErrImagePull";
    /// The image could not be pulled, and the next try waits.
    pub(crate) const IMAGE_PULL_BACK_OFF: &str = "ImagePullBackOff";
    /// `imagePullPolicy: Never`, and it is not there.
    pub(crate) const ERR_IMAGE_NEVER_PULL: &str = "ErrImageNeverPull";
    /// The image's name makes no sense.
    pub(crate) const INVALID_IMAGE_NAME: &str = "InvalidImageName";
    /// Something the pod refers to is not there.
    pub(crate) const CREATE_CONTAINER_CONFIG_ERROR: &str = "CreateContainerConfigError";
    /// The runtime refused.
    pub(crate) const CREATE_CONTAINER_ERROR: &str = "CreateContainerError";
    /// It could not be started.
    pub(crate) const RUN_CONTAINER_ERROR: &str = "RunContainerError";
    /// Crossed its memory limit.
    pub(crate) const OOM_KILLED: &str = "OOMKilled";
    /// Exited with 0.
    pub(crate) const COMPLETED: &str = "Completed";
    /// Exited with something else.
    pub(crate) const ERROR: &str = "Error";
    /// Never ran.
    pub(crate) const START_ERROR: &str = "StartError";
    /// The runtime lost track of it.
    pub(crate) const CONTAINER_STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
}

/// Why a container waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// One of [`reason`].
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// Why a pod is Failed, whatever its containers did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Verdict {
    /// `DeadlineExceeded`, `OutOfpods`, `HostPort` …
    pub(crate) reason: String,
    /// For people.
    pub(crate) message: String,
    /// The node ended it for its own sake: shown as the condition `DisruptionTarget`.
    #[serde(default)]
    pub(crate) is_disruption: bool,
}

/// Last words over all containers of a pod, bytes (`MaxPodTerminationMessageLogLength`).
const TERMINATION_MESSAGES_BYTES_MAX: usize = 12 * 1024;

/// Everything a pod's status is made of.
#[derive(Clone, Copy)]
pub(crate) struct Observed<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// Its newest sandbox, with addresses filled in.
    pub(crate) sandbox: Option<&'a PodSandbox>,
    /// Its containers, all attempts.
    pub(crate) containers: &'a [ContainerStatus],
    /// By container name.
    pub(crate) waiting: &'a BTreeMap<String, Waiting>,
    /// By container name: the pause it is in.
    pub(crate) backing_off: &'a BTreeMap<String, Duration>,
    /// Containers whose readiness probe says yes, or that have none.
    pub(crate) ready: &'a BTreeSet<ContainerId>,
    /// Containers whose startup probe said yes, or that have none.
    pub(crate) started: &'a BTreeSet<ContainerId>,
    /// Last words of exited containers.
    pub(crate) messages: &'a BTreeMap<ContainerId, String>,
    /// What `imageID` shows, by the runtime's image ID.
    pub(crate) image_refs: &'a BTreeMap<String, String>,
    /// Highest attempt ever seen, by container name.
    pub(crate) attempts: &'a BTreeMap<String, u32>,
    /// Exited containers that start again whatever the policy says.
    pub(crate) coming_back: &'a BTreeSet<ContainerId>,
    /// What containers that run were given, by container name.
    pub(crate) actuated: &'a BTreeMap<String, ResourceRequirements>,
    /// Where a change of resources is.
    pub(crate) resize: Option<&'a Progress>,
    /// Whether a runtime makes mounts read-only with what is below them.
    pub(crate) has_recursive_readonly: &'a dyn Fn(&str) -> bool,
    /// The node's addresses.
    pub(crate) host_ips: &'a [IpAddr],
    /// Set if the pod as a whole failed.
    pub(crate) verdict: Option<&'a Verdict>,
    /// Nothing of it will run again.
    pub(crate) is_terminal: bool,
    /// The status before this one; from the API or from the disk after a restart.
    pub(crate) previous: Option<&'a PodStatus>,
}

/// Makes the status.
pub(crate) fn compute(seen: Observed<'_>, now: SystemTime) -> PodStatus {
    let spec = spec(seen.pod);
    let inits: Vec<_> = spec
        .init_containers
        .iter()
        .flatten()
        .map(|c| container(seen, c, Part::Init))
        .collect();
    let mains: Vec<_> = spec
        .containers
        .iter()
        .map(|c| container(seen, c, Part::Main))
        .collect();
    let ephemerals: Vec<_> = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|c| container(seen, &as_container(c), Part::Ephemeral))
        .collect();
    let phase = match seen.verdict {
        Some(_) => "Failed",
        None => phase(seen, &inits, &mains),
    };
    // A pod that is done stays done.
    let was = seen.previous.and_then(|p| p.phase.as_deref());
    let phase = match was {
        Some(was @ ("Succeeded" | "Failed")) if !matches!(phase, "Succeeded" | "Failed") => was,
        _ => phase,
    };
    let (pod_ip, pod_ips) = addresses(seen);
    PodStatus {
        phase: Some(phase.into()),
        conditions: Some(conditions(seen, phase, &inits, &mains, now)),
        message: seen.verdict.map(|v| v.message.clone()),
        reason: seen.verdict.map(|v| v.reason.clone()),
        host_ip: seen.host_ips.first().map(IpAddr::to_string),
        host_ips: Some(
            seen.host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect(),
        ),
        pod_ip,
        pod_ips,
        start_time: seen
            .previous
            .and_then(|p| p.start_time.clone())
            .or_else(|| Some(time(now))),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        container_statuses: Some(mains),
        ephemeral_container_statuses: (!ephemerals.is_empty()).then_some(ephemerals),
        allocated_resources: spec.resources.as_ref().and_then(|own| own.requests.clone()),
        resources: spec.resources.clone(),
        qos_class: Some(qos::class(seen.pod).as_str().into()),
        observed_generation: seen.pod.metadata.generation,
        ..PodStatus::default()
    }
}

fn addresses(seen: Observed<'_>) -> (Option<String>, Option<Vec<PodIP>>) {
    match seen.sandbox.map(|s| s.ips.as_slice()) {
        Some(ips) if !ips.is_empty() => {
            let ips: Vec<_> = ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect();
            (ips.first().map(|ip| ip.ip.clone()), Some(ips))
        }
        _ => {
            let previous = seen.previous;
            (
                previous.and_then(|p| p.pod_ip.clone()),
                previous.and_then(|p| p.pod_ips.clone()),
            )
        }
    }
}

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
pub(crate) fn container_id(status: &ContainerStatus) -> String {
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
enum Part {
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

fn container(seen: Observed<'_>, container: &Container, part: Part) -> ApiContainerStatus {
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
        Some(RuntimeState::Running { started_at }) => Some(*started_at),
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

fn end_of(status: &ApiContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn is_running(status: &ApiContainerStatus) -> bool {
    status
        .state
        .as_ref()
        .is_some_and(|state| state.running.is_some())
}

fn has_run(status: &ApiContainerStatus) -> bool {
    status
        .last_state
        .as_ref()
        .is_some_and(|state| state.terminated.is_some())
}

/// Names of init containers that are not through.
fn incomplete<'a>(seen: Observed<'_>, inits: &'a [ApiContainerStatus]) -> Vec<&'a str> {
    let containers = spec(seen.pod).init_containers.iter().flatten();
    containers
        .zip(inits)
        .filter(|(container, status)| match is_sidecar(container) {
            true => status.started != Some(true) && !has_run(status),
            false => end_of(status).is_none_or(|end| end.exit_code != 0),
        })
        .map(|(_, status)| status.name.as_str())
        .collect()
}

/// `getPhase` of the kubelet.
fn phase(
    seen: Observed<'_>,
    inits: &[ApiContainerStatus],
    mains: &[ApiContainerStatus],
) -> &'static str {
    let containers = &spec(seen.pod).containers;
    let policy = RestartPolicy::of(seen.pod);
    let init_failed = spec(seen.pod)
        .init_containers
        .iter()
        .flatten()
        .zip(inits)
        .any(|(container, status)| {
            !is_sidecar(container) && end_of(status).is_some_and(|end| end.exit_code != 0)
        });
    let main_ran = mains
        .iter()
        .any(|status| is_running(status) || end_of(status).is_some() || has_run(status));
    if init_failed && (policy == RestartPolicy::Never || seen.is_terminal) {
        return "Failed";
    }
    if !main_ran && !incomplete(seen, inits).is_empty() && !seen.is_terminal {
        return "Pending";
    }
    let running = mains.iter().filter(|status| is_running(status)).count();
    let stopped = mains
        .iter()
        .filter(|status| end_of(status).is_some() || (!is_running(status) && has_run(status)))
        .count();
    let succeeded = mains
        .iter()
        .filter(|status| end_of(status).is_some_and(|end| end.exit_code == 0))
        .count();
    let waiting = mains.len() - running - stopped;
    if seen.is_terminal {
        return if succeeded == mains.len() {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    let is_over = containers
        .iter()
        .zip(mains)
        .all(|(container, status)| stays_down(seen, container, status));
    match (waiting, running) {
        (1.., _) if stopped > 0 => "Running",
        (1.., _) => "Pending",
        (0, 1..) => "Running",
        (0, 0) if is_over && succeeded == mains.len() => "Succeeded",
        (0, 0) if is_over => "Failed",
        (0, 0) => "Running",
    }
}

/// Whether a container that ended is not started again.
fn stays_down(seen: Observed<'_>, container: &Container, status: &ApiContainerStatus) -> bool {
    let policy = RestartPolicy::of_container(seen.pod, container);
    end_of(status).is_some_and(|end| !comes_back(container, policy, end.exit_code))
}

fn conditions(
    seen: Observed<'_>,
    phase: &str,
    inits: &[ApiContainerStatus],
    mains: &[ApiContainerStatus],
    now: SystemTime,
) -> Vec<PodCondition> {
    let has_network = seen.sandbox.is_some_and(|s| {
        s.state == PodSandboxState::Ready
            && (s.network == SandboxNetwork::Host || !s.ips.is_empty())
    }) && !seen.is_terminal;
    let incomplete = incomplete(seen, inits);
    let sidecars = spec(seen.pod)
        .init_containers
        .iter()
        .flatten()
        .zip(inits)
        .filter(|(c, _)| is_sidecar(c));
    let unready: Vec<_> = sidecars
        .map(|(_, s)| s)
        .chain(mains)
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();

    let initialized = match phase {
        "Succeeded" => condition("Initialized", true, Some("PodCompleted"), None),
        _ if incomplete.is_empty() || mains.iter().any(|s| is_running(s) || has_run(s)) => {
            condition("Initialized", true, None, None)
        }
        _ => condition(
            "Initialized",
            false,
            Some("ContainersNotInitialized"),
            Some(format!(
                "containers with incomplete status: [{}]",
                incomplete.join(" ")
            )),
        ),
    };
    let containers_ready = |kind: &str| match phase {
        "Succeeded" => condition(kind, false, Some("PodCompleted"), None),
        "Failed" => condition(kind, false, Some("PodFailed"), None),
        _ if unready.is_empty() => condition(kind, true, None, None),
        _ => condition(
            kind,
            false,
            Some("ContainersNotReady"),
            Some(format!(
                "containers with unready status: [{}]",
                unready.join(" ")
            )),
        ),
    };
    let published = seen
        .pod
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let mut ready = containers_ready("Ready");
    if ready.status == "True" {
        let gates = spec(seen.pod).readiness_gates.iter().flatten();
        let closed: Vec<_> = gates
            .filter_map(|gate| {
                let kind = &gate.condition_type;
                match published.iter().find(|c| c.type_ == *kind) {
                    Some(c) if c.status == "True" => None,
                    Some(_) => Some(format!(
                        "the status of pod readiness gate \"{kind}\" is not \"True\", but False"
                    )),
                    None => Some(format!(
                        "corresponding condition of pod readiness gate \"{kind}\" does not exist."
                    )),
                }
            })
            .collect();
        if !closed.is_empty() {
            ready = condition(
                "Ready",
                false,
                Some("ReadinessGatesNotReady"),
                Some(closed.join(", ")),
            );
        }
    }
    let mut list = vec![
        condition("PodReadyToStartContainers", has_network, None, None),
        initialized,
        ready,
        containers_ready("ContainersReady"),
        condition("PodScheduled", true, None, None),
    ];
    list.extend(seen.resize.filter(|_| !seen.is_terminal).map(resizing));
    if let Some(verdict) = seen.verdict.filter(|verdict| verdict.is_disruption) {
        list.push(condition(
            DISRUPTION_TARGET,
            true,
            Some("TerminationByKubelet"),
            Some(verdict.message.clone()),
        ));
    }
    let previous = seen
        .previous
        .and_then(|p| p.conditions.as_deref())
        .unwrap_or(published);
    for condition in &mut list {
        let before = previous
            .iter()
            .chain(published)
            .find(|c| c.type_ == condition.type_);
        condition.observed_generation = seen.pod.metadata.generation;
        condition.last_transition_time = match before {
            Some(before) if before.status == condition.status => {
                before.last_transition_time.clone()
            }
            _ => Some(time(now)),
        };
        condition
            .last_transition_time
            .get_or_insert_with(|| -> Time { time(now) });
    }
    let is_disrupted = list.iter().any(|c| c.type_ == DISRUPTION_TARGET);
    // Conditions that belong to others are shown as they are.
    list.extend(
        published
            .iter()
            .filter(|c| !OURS.contains(&c.type_.as_str()))
            .filter(|c| c.type_ != DISRUPTION_TARGET || !is_disrupted)
            .cloned(),
    );
    list
}

/// Others write it too: what asks for an eviction through the API, the node's life-cycle controller.
pub(crate) const DISRUPTION_TARGET: &str = "DisruptionTarget";

fn resizing(progress: &Progress) -> PodCondition {
    match progress {
        Progress::Pending(refusal) => {
            let (reason, why) = match refusal {
                Refusal::Deferred(why) => ("Deferred", why),
                Refusal::Infeasible(why) => ("Infeasible", why),
            };
            condition(RESIZING[0], true, Some(reason), Some(why.clone()))
        }
        Progress::InProgress(None) => condition(RESIZING[1], true, None, None),
        Progress::InProgress(Some(why)) => {
            condition(RESIZING[1], true, Some("Error"), Some(why.clone()))
        }
    }
}

/// Condition types that are there only as long as they hold.
pub(crate) const RESIZING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// Condition types that the agent writes.
pub(crate) const OURS: [&str; 7] = [
    RESIZING[0],
    RESIZING[1],
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

fn condition(
    kind: &str,
    holds: bool,
    reason: Option<&str>,
    message: Option<String>,
) -> PodCondition {
    PodCondition {
        type_: kind.into(),
        status: if holds { "True" } else { "False" }.into(),
        reason: reason.map(Into::into),
        message,
        ..PodCondition::default()
    }
}

#[cfg(test)]
mod tests;
