//! What a pod does next. Pure: any history can be replayed in a test.

use std::sync::Arc;

use tokio::time::Instant;
use wherry_runtime_api::PodSandbox;

/// Where a pod is between being accepted and being gone.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PodState {
    /// Accepted; nothing was looked for or made yet.
    Admitted,
    /// Volumes, sandbox and network are being made.
    Preparing,
    /// Containers can run.
    Running {
        /// What they run in.
        sandbox: Arc<PodSandbox>,
    },
    /// Everything is being stopped.
    Terminating {
        /// What there is to stop, if known; the effect looks for more.
        sandbox: Option<Arc<PodSandbox>>,
        /// When what still runs is killed.
        deadline: Instant,
        /// Somebody asked for the pod to be gone; otherwise it ended by itself and stays to be looked at.
        deleted: bool,
    },
    /// Nothing runs any more.
    Terminated {
        /// The rest is being removed too.
        deleted: bool,
    },
    /// Nothing is left of it on this node.
    Finished,
}

/// What can happen to a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PodEvent {
    /// Get on with it.
    Sync,
    /// There is a sandbox that containers can be created in.
    SandboxReady(Arc<PodSandbox>),
    /// The sandbox's holder is gone.
    SandboxLost,
    /// The pod is to end by then, and to be gone after.
    Delete {
        /// When what still runs is killed.
        deadline: Instant,
    },
    /// The pod is to end by then, and to stay to be looked at.
    End {
        /// When what still runs is killed.
        deadline: Instant,
    },
    /// Nothing runs, and the restart policy wants none of them back.
    AllExited {
        /// For what the sandbox itself still holds (sidecars).
        deadline: Instant,
    },
    /// The node does not take the pod.
    Reject,
    /// The `Stop` effect is through.
    Stopped,
    /// The `CleanUp` effect is through.
    CleanedUp,
}

/// Work for the worker. One is under way at a time; a new one takes its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// Make volumes, sandbox and network; answers `SandboxReady`.
    Prepare,
    /// Stop containers, then the sandbox; answers `Stopped`.
    Stop {
        /// When what still runs is killed.
        deadline: Instant,
    },
    /// Give back what only a running pod needs: network, volumes. Containers stay to be looked at.
    Release,
    /// Remove everything, then the API object; answers `CleanedUp`.
    CleanUp,
}

/// Decides a pod's next state. Does no I/O and reads no clock.
pub(crate) fn step(state: PodState, event: PodEvent) -> (PodState, Option<Effect>) {
    use Effect::*;
    use PodEvent as E;
    use PodState as S;
    match (state, event) {
        (S::Admitted, E::Sync) => (S::Preparing, Some(Prepare)),
        (S::Admitted | S::Preparing, E::SandboxReady(sandbox)) => (S::Running { sandbox }, None),
        (S::Preparing, E::Sync) => (S::Preparing, Some(Prepare)),
        // A sandbox that an earlier attempt made and that died before it was used.
        (S::Preparing, E::SandboxLost) => (S::Preparing, None),
        (S::Running { .. }, E::SandboxLost) => (S::Preparing, Some(Prepare)),
        // The same sandbox again, or one that replaced it: the newest is the one to use.
        (S::Running { .. }, E::SandboxReady(sandbox)) => (S::Running { sandbox }, None),
        (S::Running { sandbox }, E::Sync) => (S::Running { sandbox }, None),

        (S::Admitted | S::Preparing, E::Delete { deadline }) => terminating(None, deadline, true),
        (S::Admitted | S::Preparing, E::End { deadline } | E::AllExited { deadline }) => {
            terminating(None, deadline, false)
        }
        (S::Running { sandbox }, E::Delete { deadline }) => {
            terminating(Some(sandbox), deadline, true)
        }
        (S::Running { sandbox }, E::End { deadline } | E::AllExited { deadline }) => {
            terminating(Some(sandbox), deadline, false)
        }

        // A second delete may shorten the grace period and never lengthens it.
        (
            S::Terminating {
                sandbox,
                deadline: set,
                deleted: _,
            },
            E::Delete { deadline: asked },
        ) if asked < set => terminating(sandbox, asked, true),
        (
            S::Terminating {
                sandbox,
                deadline,
                deleted: _,
            },
            E::Delete { .. },
        ) => (
            S::Terminating {
                sandbox,
                deadline,
                deleted: true,
            },
            None,
        ),
        (
            S::Terminating {
                sandbox,
                deadline: set,
                deleted,
            },
            E::End { deadline: asked },
        ) if asked < set => terminating(sandbox, asked, deleted),
        (
            S::Terminating {
                sandbox,
                deadline,
                deleted,
            },
            E::End { .. },
        ) => (
            S::Terminating {
                sandbox,
                deadline,
                deleted,
            },
            None,
        ),
        // The sandbox finished starting after the delete came in: keep hold of it, or it leaks.
        (
            S::Terminating {
                deadline, deleted, ..
            },
            E::SandboxReady(sandbox),
        ) => terminating(Some(sandbox), deadline, deleted),
        (S::Terminating { deleted, .. }, E::Stopped) => (
            S::Terminated { deleted },
            Some(if deleted { CleanUp } else { Release }),
        ),
        (
            S::Terminating {
                sandbox,
                deadline,
                deleted,
            },
            E::Sync | E::SandboxLost | E::AllExited { .. },
        ) => (
            S::Terminating {
                sandbox,
                deadline,
                deleted,
            },
            None,
        ),

        (S::Admitted | S::Preparing | S::Running { .. }, E::Reject) => {
            (S::Terminated { deleted: false }, Some(Release))
        }
        (S::Terminating { deleted, .. }, E::Reject) => (
            S::Terminated { deleted },
            Some(if deleted { CleanUp } else { Release }),
        ),
        (S::Terminated { deleted }, E::Reject) => (S::Terminated { deleted }, None),

        (S::Terminated { .. }, E::Delete { .. }) => {
            (S::Terminated { deleted: true }, Some(CleanUp))
        }
        (S::Terminated { deleted: true }, E::CleanedUp) => (S::Finished, None),
        // A sandbox that turns up after everything was stopped: both effects stop what they find.
        (S::Terminated { deleted }, E::SandboxReady(_)) => (
            S::Terminated { deleted },
            Some(if deleted { CleanUp } else { Release }),
        ),
        (S::Terminated { deleted }, E::Sync) => {
            (S::Terminated { deleted }, deleted.then_some(CleanUp))
        }
        (
            S::Terminated { deleted },
            E::SandboxLost | E::End { .. } | E::AllExited { .. } | E::Stopped | E::CleanedUp,
        ) => (S::Terminated { deleted }, None),

        // An effect that was cancelled may still have answered.
        (S::Admitted, E::SandboxLost | E::Stopped | E::CleanedUp) => (S::Admitted, None),
        (S::Preparing, E::Stopped | E::CleanedUp) => (S::Preparing, None),
        (S::Running { sandbox }, E::Stopped | E::CleanedUp) => (S::Running { sandbox }, None),
        (
            S::Terminating {
                sandbox,
                deadline,
                deleted,
            },
            E::CleanedUp,
        ) => (
            S::Terminating {
                sandbox,
                deadline,
                deleted,
            },
            None,
        ),

        (
            S::Finished,
            E::Sync
            | E::SandboxReady(_)
            | E::SandboxLost
            | E::Delete { .. }
            | E::End { .. }
            | E::AllExited { .. }
            | E::Reject
            | E::Stopped
            | E::CleanedUp,
        ) => (S::Finished, None),
    }
}

fn terminating(
    sandbox: Option<Arc<PodSandbox>>,
    deadline: Instant,
    deleted: bool,
) -> (PodState, Option<Effect>) {
    (
        PodState::Terminating {
            sandbox,
            deadline,
            deleted,
        },
        Some(Effect::Stop { deadline }),
    )
}

#[cfg(test)]
mod tests;
