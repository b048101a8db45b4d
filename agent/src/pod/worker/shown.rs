//! What others see of a pod, and what is written down of it.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::core::v1::PodStatus;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, warn};
use wherry_runtime_api::{ContainerId, ContainerState, ContainerStatus};

use super::{
    super::{
        files, record, restart, spec,
        state::PodState,
        status::{self, Observed},
    },
    Worker,
};
use crate::pod;

impl Worker {
    pub(super) fn read_last_words(&mut self) {
        let pod_dir = self.context.pod_dir(&self.uid);
        for status in &self.containers {
            let ContainerState::Exited(exit) = &status.state else {
                continue;
            };
            if self.messages.contains_key(&status.id) {
                continue;
            }
            let container = pod::container(&self.pod, &status.name);
            let policy = container
                .as_ref()
                .and_then(|c| c.termination_message_policy.as_deref());
            self.messages.insert(
                status.id.clone(),
                files::last_words(&pod_dir, status, exit, policy),
            );
        }
    }

    pub(super) fn publish(&mut self) {
        if self.is_recovering && matches!(self.state, PodState::Admitted | PodState::Preparing) {
            return;
        }
        if self.state == PodState::Finished {
            return;
        }
        let is_terminal = matches!(self.state, PodState::Terminated { .. });
        if is_terminal && !self.delete_seen {
            self.record.is_terminal = true;
        }
        let actual = self.context.actual.get(&self.uid);
        let sandbox = match &self.state {
            PodState::Running { sandbox }
            | PodState::Terminating {
                sandbox: Some(sandbox),
                ..
            } => Some(sandbox),
            _ => actual.sandboxes.last(),
        };
        let started = self.started();
        let ready = self.ready(&started);
        let coming_back = self.coming_back();
        let status = status::compute(
            Observed {
                pod: &self.pod,
                sandbox: sandbox.map(|sandbox| &**sandbox),
                containers: &self.containers,
                waiting: &self.waiting,
                backing_off: &self.backing_off,
                ready: &ready,
                started: &started,
                messages: &self.messages,
                image_refs: &self.record.image_refs,
                attempts: &self.record.attempts,
                coming_back: &coming_back,
                in_hook: &self.in_hook,
                actuated: &self.record.actuated,
                resize: self.record.resize.as_ref(),
                has_recursive_readonly: &|handler| {
                    self.context
                        .known_features(handler)
                        .recursive_readonly_mounts
                },
                host_ips: self.context.host_ips(),
                verdict: self.record.verdict.as_ref(),
                is_terminal,
                previous: self.record.status.as_ref(),
            },
            self.context.now(),
        );
        self.is_urgent = is_urgent(&status) || self.waiting.values().next().is_some();
        if self.record.status.as_ref() != Some(&status) {
            self.record.status = Some(status.clone());
            self.context
                .directory
                .set(&self.uid, &self.pod, status.clone());
        } else if self
            .context
            .directory
            .get(&self.uid)
            .is_none_or(|there| there.metadata != self.pod.metadata)
        {
            self.context
                .directory
                .set(&self.uid, &self.pod, status.clone());
        }
        self.context
            .publisher
            .put(&self.uid, status, self.is_urgent);
    }

    /// Exited containers that start again whatever the policy says.
    pub(super) fn coming_back(&self) -> BTreeSet<ContainerId> {
        let is_wanted = |status: &&ContainerStatus| {
            self.doomed
                .get(&status.id)
                .is_some_and(|doom| doom.comes_back)
                || spec(&self.pod)
                    .containers
                    .iter()
                    .any(|c| c.name == status.name && restart::has_changed(c, status))
        };
        let exited = self
            .containers
            .iter()
            .filter(|status| matches!(status.state, ContainerState::Exited(_)));
        exited
            .filter(is_wanted)
            .map(|status| status.id.clone())
            .collect()
    }

    pub(super) fn save_pod(&mut self) {
        let (dir, pod) = (self.context.pod_dir(&self.uid), Arc::clone(&self.asked));
        if matches!(
            self.state,
            PodState::Terminated { deleted: true } | PodState::Finished
        ) {
            return;
        }
        // In the background: should the agent die first, the API server still has the pod.
        let before = self.pod_saving.take();
        let save = async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            let saved = tokio::task::spawn_blocking(move || {
                if let Err(error) = record::save_pod(&dir, &pod) {
                    warn!(path = %dir.display(), %error, "Pod not saved");
                }
            });
            let _ = saved.await;
        };
        self.pod_saving = Some(tokio::spawn(save.in_current_span()));
    }

    pub(super) fn save(&mut self) {
        if self.saving.is_some() || self.record == self.saved {
            return;
        }
        if matches!(
            self.state,
            PodState::Terminated { deleted: true } | PodState::Finished
        ) {
            return;
        }
        self.saved = self.record.clone();
        let (dir, record) = (self.context.pod_dir(&self.uid), self.record.clone());
        let task = tokio::task::spawn_blocking(move || {
            if let Err(error) = record::save_state(&dir, &record) {
                warn!(path = %dir.display(), %error, "Pod state not saved");
            }
        });
        self.saving = Some(AbortOnDropHandle::new(task));
    }
}

/// Whether somebody waits for this status: everything but the first steps of a start.
pub(super) fn is_urgent(status: &PodStatus) -> bool {
    status.phase.as_deref() != Some("Pending")
}

pub(super) async fn finished(saving: &mut Option<AbortOnDropHandle<()>>) {
    match saving {
        Some(task) => {
            let _ = task.await;
            *saving = None;
        }
        None => std::future::pending().await,
    }
}
