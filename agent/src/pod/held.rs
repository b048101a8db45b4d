//! What is shown of a pod that the node takes once others are gone: it is Pending, and says what it waits for. Pure.

use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::{
    admit::Refused,
    name, namespace, spec,
    status::{self, Observed, Waiting, reason},
};

/// Reason of the event.
pub(crate) const WAITING_FOR_TERMINATION: &str = "WaitingForTermination";

/// Pods that are waited for, named before the rest is counted.
const NAMED_MAX: usize = 3;

/// Conditions that say why it does not run yet.
const TOLD: [&str; 3] = ["PodReadyToStartContainers", "Ready", "ContainersReady"];

/// A pod that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Why it would be refused now.
    reason: &'static str,
    /// The same for people, and for whose sake.
    pub(crate) message: String,
}

impl Held {
    /// One that the node refuses as long as `leaving` are there.
    pub(crate) fn new<'a>(refused: Refused, leaving: impl Iterator<Item = &'a Pod>) -> Self {
        let mut names: Vec<String> = leaving
            .map(|pod| format!("{}/{}", namespace(pod), name(pod)))
            .collect();
        names.sort();
        let more = names.len().saturating_sub(NAMED_MAX);
        names.truncate(NAMED_MAX);
        let mut names = names.join(", ");
        if more > 0 {
            names = format!("{names} and {more} more");
        }
        let Refused { reason, message } = refused;
        Self {
            reason,
            message: format!(
                "Waiting for pods that are being ended on this node ({names}): {message}"
            ),
        }
    }

    /// Its status meanwhile.
    pub(crate) fn status(&self, pod: &Pod, host_ips: &[IpAddr], now: SystemTime) -> PodStatus {
        let containers = spec(pod).init_containers.iter().flatten();
        let waiting: BTreeMap<String, Waiting> = containers
            .chain(&spec(pod).containers)
            .map(|container| {
                let waiting = Waiting {
                    reason: reason::CONTAINER_CREATING,
                    message: self.message.clone(),
                };
                (container.name.clone(), waiting)
            })
            .collect();
        let seen = Observed {
            pod,
            sandbox: None,
            containers: &[],
            waiting: &waiting,
            backing_off: &BTreeMap::new(),
            ready: &Default::default(),
            started: &Default::default(),
            messages: &BTreeMap::new(),
            image_refs: &BTreeMap::new(),
            attempts: &BTreeMap::new(),
            coming_back: &Default::default(),
            in_hook: &Default::default(),
            actuated: &BTreeMap::new(),
            resize: None,
            has_recursive_readonly: &|_| false,
            host_ips,
            verdict: None,
            is_terminal: false,
            previous: pod.status.as_ref(),
        };
        let mut status = status::compute(seen, now);
        let conditions = status.conditions.iter_mut().flatten();
        for condition in conditions.filter(|condition| TOLD.contains(&condition.type_.as_str())) {
            condition.reason = Some(self.reason.into());
            condition.message = Some(self.message.clone());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::pod;

    #[test]
    fn a_pod_that_waits_is_pending_and_says_for_whom_and_why() {
        let refused = Refused {
            reason: "NodePorts",
            message: "no free port".into(),
        };
        let others = ["e", "d", "c", "b", "a"].map(|name| pod(name, json!({ "containers": [] })));
        let held = Held::new(refused, others.iter());
        let message = "Waiting for pods that are being ended on this node (ns/a, ns/b, ns/c and 2 more): no free port";
        assert_eq!(held.message, message);
        let spec = json!({
            "initContainers": [{ "name": "i", "image": "x" }],
            "containers": [{ "name": "a", "image": "x" }],
        });
        let status = held.status(&pod("w", spec), &[], SystemTime::UNIX_EPOCH);
        let status = serde_json::to_value(status).expect("a status is JSON");
        assert_eq!(status["phase"], "Pending");
        for kind in ["initContainerStatuses", "containerStatuses"] {
            let waiting = json!({ "reason": "ContainerCreating", "message": message });
            assert_eq!(status[kind][0]["state"]["waiting"], waiting, "{kind}");
        }
        let conditions = status["conditions"].as_array().expect("conditions");
        for kind in TOLD {
            let found = conditions.iter().find(|it| it["type"] == kind);
            let found = found.unwrap_or_else(|| panic!("no {kind}"));
            assert_eq!(
                [&found["status"], &found["reason"], &found["message"]],
                ["False", "NodePorts", message]
            );
        }
        let scheduled = conditions.iter().find(|it| it["type"] == "PodScheduled");
        assert_eq!(scheduled.expect("it is said")["status"], "True");
    }
}
