//! What a Node object says of its node. Pure.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{
    ContainerImage, NodeCondition, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus,
};
use serde_json::Value;
use wherry_runtime_api::{Image, RuntimeFeatures};

use crate::{
    eviction::threshold::Condition,
    pod::{time, translate::HANDLER_WASM_ISOLATED},
};

/// Images listed in the status (`--node-status-max-images`).
const IMAGES_MAX: usize = 50;

/// What the conditions are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// Why the node is not ready, if it is not.
    pub(crate) not_ready: Option<String>,
    /// What is missing on a node that is ready all the same, for instance a runtime beside the default one.
    pub(crate) lacks: Option<String>,
    /// Memory is short.
    pub(crate) memory_pressure: bool,
    /// Disk is short.
    pub(crate) disk_pressure: bool,
    /// Process IDs are short.
    pub(crate) pid_pressure: bool,
}

impl Health {
    /// By what eviction sees. Pure.
    pub(crate) fn new(
        pressure: &[Condition],
        not_ready: Option<String>,
        lacks: Option<String>,
    ) -> Self {
        Self {
            not_ready,
            lacks,
            memory_pressure: pressure.contains(&Condition::Memory),
            disk_pressure: pressure.contains(&Condition::Disk),
            pid_pressure: pressure.contains(&Condition::Pid),
        }
    }
}

/// Conditions with the kubelet's reasons. `before` keeps the times of those that did not change. Pure.
pub(crate) fn conditions(
    health: &Health,
    before: &[NodeCondition],
    now: SystemTime,
) -> Vec<NodeCondition> {
    let pressure = |kind: &str, holds: bool, yes: (&str, &str), no: (&str, &str)| {
        let (reason, message) = if holds { yes } else { no };
        (
            kind.to_owned(),
            holds,
            reason.to_owned(),
            message.to_owned(),
        )
    };
    let mut list = vec![
        pressure(
            "MemoryPressure",
            health.memory_pressure,
            (
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
            (
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
        ),
        pressure(
            "DiskPressure",
            health.disk_pressure,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            health.pid_pressure,
            (
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ),
            (
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
        ),
    ];
    list.push(match &health.not_ready {
        None => (
            "Ready".into(),
            true,
            "KubeletReady".into(),
            match &health.lacks {
                None => "kubelet is posting ready status".to_owned(),
                Some(what) => format!("kubelet is posting ready status; {what}"),
            },
        ),
        Some(why) => ("Ready".into(), false, "KubeletNotReady".into(), why.clone()),
    });
    list.into_iter()
        .map(|(type_, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let same = before
                .iter()
                .find(|c| c.type_ == type_ && c.status == status);
            NodeCondition {
                last_heartbeat_time: Some(time(now)),
                last_transition_time: same
                    .and_then(|c| c.last_transition_time.clone())
                    .or_else(|| Some(time(now))),
                type_,
                status: status.into(),
                reason: Some(reason),
                message: Some(message),
            }
        })
        .collect()
}

/// What changed between two looks, as the kubelet's events name it. Pure.
pub(crate) fn changes(before: &[NodeCondition], after: &[NodeCondition]) -> Vec<&'static str> {
    let name = |condition: &NodeCondition| {
        let holds = condition.status == "True";
        Some(match (condition.type_.as_str(), holds) {
            ("MemoryPressure", true) => "NodeHasInsufficientMemory",
            ("MemoryPressure", false) => "NodeHasSufficientMemory",
            ("DiskPressure", true) => "NodeHasDiskPressure",
            ("DiskPressure", false) => "NodeHasNoDiskPressure",
            ("PIDPressure", true) => "NodeHasInsufficientPID",
            ("PIDPressure", false) => "NodeHasSufficientPID",
            ("Ready", true) => "NodeReady",
            ("Ready", false) => "NodeNotReady",
            _ => return None,
        })
    };
    let is_new = |condition: &&NodeCondition| {
        let same = |c: &NodeCondition| c.type_ == condition.type_ && c.status == condition.status;
        !before.iter().any(same)
    };
    after.iter().filter(is_new).filter_map(name).collect()
}

/// The images in a node's status, largest first. Pure.
pub(crate) fn images(list: &[Image]) -> Vec<ContainerImage> {
    let mut list: Vec<_> = list.iter().collect();
    list.sort_by(|a, b| {
        b.size_bytes
            .cmp(&a.size_bytes)
            .then_with(|| a.id.cmp(&b.id))
    });
    list.into_iter()
        .take(IMAGES_MAX)
        .map(|image| ContainerImage {
            names: Some(
                image
                    .repo_digests
                    .iter()
                    .chain(&image.repo_tags)
                    .cloned()
                    .collect(),
            ),
            size_bytes: i64::try_from(image.size_bytes).ok(),
        })
        .collect()
}

/// `status.runtimeHandlers`: what pods can name by a RuntimeClass, and without a name the default. Pure.
pub(crate) fn handlers(runtimes: &[(&str, RuntimeFeatures)]) -> Vec<NodeRuntimeHandler> {
    let handler = |name: &str, offers: &RuntimeFeatures| NodeRuntimeHandler {
        name: Some(name.into()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(offers.recursive_readonly_mounts),
            user_namespaces: Some(offers.user_namespaces),
        }),
    };
    let default = runtimes.first().map(|(_, offers)| handler("", offers));
    let named = runtimes.iter().flat_map(|(name, offers)| {
        let isolated = (*name == "wasm").then(|| handler(HANDLER_WASM_ISOLATED, offers));
        std::iter::once(handler(name, offers)).chain(isolated)
    });
    default.into_iter().chain(named).collect()
}

/// A status without its heartbeats: what makes a report worth its write.
pub(crate) fn essence(status: &NodeStatus) -> Value {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    serde_json::to_value(status).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_condition_that_stays_keeps_the_time_it_began() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let well = Health::new(&[], None, None);
        let first = conditions(&well, &[], at(1));
        let ill = Health::new(&[Condition::Memory], Some("runtime is down".into()), None);
        let second = conditions(&ill, &first, at(2));
        let of = |list: &[NodeCondition], kind: &str| {
            list.iter()
                .find(|c| c.type_ == kind)
                .cloned()
                .expect("there")
        };
        assert_eq!(
            of(&second, "DiskPressure").last_transition_time,
            Some(time(at(1)))
        );
        assert_eq!(of(&second, "MemoryPressure").status, "True");
        assert_eq!(of(&second, "PIDPressure").status, "False");
        assert_eq!(of(&second, "Ready").last_transition_time, Some(time(at(2))));
        assert_eq!(
            of(&second, "Ready").reason.as_deref(),
            Some("KubeletNotReady")
        );
        assert_eq!(
            of(&first, "Ready").message.as_deref(),
            Some("kubelet is posting ready status")
        );
    }

    #[test]
    fn what_changed_is_told_once() {
        let at = SystemTime::UNIX_EPOCH;
        let lacks = Health::new(&[], None, Some("docker is down".into()));
        let ready = conditions(&lacks, &[], at).pop().unwrap();
        assert_eq!(ready.status, "True");
        assert!(ready.message.unwrap().ends_with("; docker is down"));
        let well = conditions(&Health::new(&[], None, None), &[], at);
        assert_eq!(
            changes(&[], &well),
            [
                "NodeHasSufficientMemory",
                "NodeHasNoDiskPressure",
                "NodeHasSufficientPID",
                "NodeReady"
            ]
        );
        let ill = Health::new(&[Condition::Disk], Some("runtime is down".into()), None);
        let ill = conditions(&ill, &well, at);
        assert_eq!(
            changes(&well, &ill),
            ["NodeHasDiskPressure", "NodeNotReady"]
        );
        assert!(changes(&ill, &ill).is_empty());
    }

    #[test]
    fn handlers_tell_what_they_offer_and_the_default_has_no_name() {
        let offers = |user_namespaces, recursive_readonly_mounts| RuntimeFeatures {
            user_namespaces,
            recursive_readonly_mounts,
        };
        let list = handlers(&[("oci", offers(true, true)), ("wasm", offers(false, true))]);
        let found: Vec<_> = list
            .iter()
            .map(|handler| {
                let features = handler.features.as_ref().expect("told");
                (
                    handler.name.as_deref(),
                    features.user_namespaces,
                    features.recursive_read_only_mounts,
                )
            })
            .collect();
        let yes = Some(true);
        assert_eq!(
            found,
            [
                (Some(""), yes, yes),
                (Some("oci"), yes, yes),
                (Some("wasm"), Some(false), yes),
                (Some("wasm-isolated"), Some(false), yes),
            ]
        );
    }

    #[test]
    fn the_largest_images_are_shown() {
        let image = |id: usize| Image {
            id: format!("sha256:{id:03}"),
            repo_tags: vec![format!("i:{id}")],
            repo_digests: vec![],
            size_bytes: id as u64,
            user: None,
            kind: wherry_runtime_api::ImageKind::Container,
        };
        let list: Vec<_> = (0..60).map(image).collect();
        let shown = images(&list);
        assert_eq!(shown.len(), IMAGES_MAX);
        assert_eq!(shown[0].names, Some(vec!["i:59".into()]));
        assert_eq!(shown[IMAGES_MAX - 1].size_bytes, Some(10));
    }
}
