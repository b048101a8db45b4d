//! A pod on this node, from being accepted to being gone.
//!
//! ```text
//!             Sync              SandboxReady
//! Admitted ─────────▶ Preparing ────────────▶ Running ──────────────┐ AllExited
//!    │ Delete           │ ▲  │ Delete           │ │ Delete          ▼
//!    │                  │ └──│── SandboxLost ────┘ └───────────▶ Terminating ─ Stopped ─▶ Terminated ─ CleanedUp ─▶ Finished
//!    │                  └────│──────────────────────────────────────▲   ▲                     ▲         (deleted)
//!    │                       └──────────────────────────────────────┘   │                     │
//!    └──────────────────────────────────────────────────────────────────┘    Reject ──────────┘
//! After an agent restart:  Admitted ─ SandboxReady ─▶ Running      (found again by the first relist)
//! ```
//!
//! | Arrow | Who causes it | What is true after |
//! |---|---|---|
//! | `Sync` | the worker, once the pod is admitted | volumes, sandbox and network are being made |
//! | `SandboxReady` | the `Prepare` effect, or the first relist | containers can be created in the sandbox |
//! | `SandboxLost` | the PLEG: the sandbox's holder is gone | a new sandbox is being made, the old one's containers are dead |
//! | `Delete` | the API server, a removed manifest, `activeDeadlineSeconds` | the deadline stands and never moves further away |
//! | `AllExited` | the worker: nothing runs, and the restart policy wants none of them back | the sandbox is being stopped |
//! | `Reject` | admission on the node | nothing was ever made for the pod |
//! | `Stopped` | the `Stop` effect | no process of the pod is left |
//! | `CleanedUp` | the `CleanUp` effect | nothing of the pod is left on the node, and the API object is gone |
//!
//! Which containers to start and to kill while Running is [`restart::plan`]'s business; how the pod
//! looks from outside is [`status`]'s. Only a pod's own [`worker`] changes its state.

pub(crate) mod admit;
pub(crate) mod affinity;
pub(crate) mod env;
pub(crate) mod files;
pub(crate) mod held;
pub(crate) mod lifecycle;
pub(crate) mod manager;
pub(crate) mod names;
pub(crate) mod prepare;
pub(crate) mod qos;
pub(crate) mod quantity;
pub(crate) mod record;
pub(crate) mod resize;
pub(crate) mod restart;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod subpath;
pub(crate) mod translate;
pub(crate) mod userns;
pub(crate) mod worker;

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::core::v1::{Container, EphemeralContainer, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use wherry_runtime_api::PodUid;

/// Says where a pod came from: `file` or `api`.
pub(crate) const CONFIG_SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// The hash of a static pod's manifest.
pub(crate) const CONFIG_HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
/// On the API's image of a static pod: the hash of the pod it mirrors.
pub(crate) const CONFIG_MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Grace period where a pod names none. Kubernetes' default.
pub(crate) const GRACE_PERIOD_DEFAULT: Duration = Duration::from_secs(30);
/// Containers always get this long to exit by themselves, as from the kubelet
/// (`minimumGracePeriodInSeconds` in pkg/kubelet/kuberuntime).
pub(crate) const GRACE_PERIOD_MIN: Duration = Duration::from_secs(2);

/// A pod's uid; static pods have one made of their manifest.
pub(crate) fn uid(pod: &Pod) -> PodUid {
    PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default())
}

/// A pod's name.
pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// A pod's namespace.
pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `name_namespace(uid)`, as the kubelet names pods in messages.
pub(crate) fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// A pod's spec. Sources drop pods without one.
pub(crate) fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// An annotation's value.
pub(crate) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

/// Whether a pod comes from a manifest on this node.
pub(crate) fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE_ANNOTATION) == Some("file")
}

/// Whether an init container is one that goes on running beside the others.
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// A container of a pod by its name, init and ephemeral containers included.
pub(crate) fn container<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    let spec = spec(pod);
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .find(|container| container.name == name)
        .map(Cow::Borrowed)
        .or_else(|| {
            ephemeral_container(pod, name).map(|container| Cow::Owned(as_container(container)))
        })
}

/// An ephemeral container of a pod by its name.
pub(crate) fn ephemeral_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a EphemeralContainer> {
    spec(pod)
        .ephemeral_containers
        .iter()
        .flatten()
        .find(|container| container.name == name)
}

/// An ephemeral container as any other; whose processes it sees is the one thing that it has more.
pub(crate) fn as_container(container: &EphemeralContainer) -> Container {
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        target_container_name: _,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = container.clone();
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    }
}

/// How long a pod's containers have to exit when it is deleted.
pub(crate) fn grace_period(pod: &Pod) -> Duration {
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds);
    seconds.map_or(GRACE_PERIOD_DEFAULT, |seconds| {
        Duration::from_secs(seconds.max(0).unsigned_abs())
    })
}

/// A moment as the API writes it: whole seconds, cut off.
pub(crate) fn time(at: SystemTime) -> Time {
    let seconds = Timestamp::try_from(at).map_or(0, Timestamp::as_second);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}
