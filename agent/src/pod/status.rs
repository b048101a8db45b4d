//! What the runtimes say, as a `PodStatus`: phase, conditions, container states. Pure.

mod conditions;
mod container;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{
    Container, ContainerStateTerminated, ContainerStatus as ApiContainerStatus, HostIP, Pod, PodIP,
    PodStatus, ResourceRequirements,
};
use wherry_runtime_api::{ContainerId, ContainerStatus, PodSandbox};

use super::{
    as_container, is_sidecar, qos,
    resize::Progress,
    restart::{RestartPolicy, comes_back},
    spec, time,
};
use conditions::conditions;
pub(crate) use conditions::{DISRUPTION_TARGET, OURS, RESIZING};
use container::{Part, container};

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
    /// Containers, by name, that run and whose `postStart` has not ended: for the user they are being created still.
    pub(crate) in_hook: &'a BTreeSet<String>,
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
    // Nothing was ever made for it, so its reason is all there is to show.
    let was_refused = seen.is_terminal
        && seen.verdict.is_some()
        && seen.containers.is_empty()
        && seen.attempts.is_empty();
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
        init_container_statuses: (!inits.is_empty() && !was_refused).then_some(inits),
        container_statuses: (!was_refused).then_some(mains),
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

#[cfg(test)]
mod tests;
