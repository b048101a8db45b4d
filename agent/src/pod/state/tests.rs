use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use wherry_runtime_api::{PodSandboxConfig, PodSandboxState, SandboxNetwork};

use super::*;

fn sandbox(attempt: u32) -> Arc<PodSandbox> {
    let config = PodSandboxConfig {
        attempt,
        ..PodSandboxConfig::new("uid", "web", "ns", PathBuf::new(), String::new())
    };
    Arc::new(PodSandbox {
        id: format!("sandbox-{attempt}").into(),
        handler: "oci".into(),
        config,
        state: PodSandboxState::Ready,
        created_at: SystemTime::UNIX_EPOCH,
        network: SandboxNetwork::Host,
        ips: Vec::new(),
        pid: None,
    })
}

/// Replays events, and answers the effects in order with the last state.
fn replay(events: impl IntoIterator<Item = PodEvent>) -> (PodState, Vec<Effect>) {
    let mut effects = Vec::new();
    let state = events.into_iter().fold(PodState::Admitted, |state, event| {
        let (state, effect) = step(state, event);
        effects.extend(effect);
        state
    });
    (state, effects)
}

#[test]
fn a_pod_that_is_deleted_goes_through_every_state() {
    let deadline = Instant::now();
    let (state, effects) = replay([
        PodEvent::Sync,
        PodEvent::SandboxReady(sandbox(0)),
        PodEvent::Delete { deadline },
        PodEvent::Stopped,
        PodEvent::CleanedUp,
    ]);
    assert_eq!(state, PodState::Finished);
    assert_eq!(
        effects,
        [Effect::Prepare, Effect::Stop { deadline }, Effect::CleanUp]
    );
}

#[test]
fn a_pod_that_ends_by_itself_stays_until_it_is_deleted() {
    let deadline = Instant::now();
    let events = [
        PodEvent::Sync,
        PodEvent::SandboxReady(sandbox(0)),
        PodEvent::AllExited { deadline },
        PodEvent::Stopped,
        PodEvent::CleanedUp,
    ];
    let (state, effects) = replay(events.clone());
    assert_eq!(state, PodState::Terminated { deleted: false });
    assert_eq!(effects.last(), Some(&Effect::Release));
    let (state, effects) = replay(
        events
            .into_iter()
            .chain([PodEvent::Delete { deadline }, PodEvent::CleanedUp]),
    );
    assert_eq!(
        (state, effects.last()),
        (PodState::Finished, Some(&Effect::CleanUp))
    );
}

#[test]
fn a_sandbox_that_starts_after_its_pod_was_deleted_is_kept_hold_of() {
    let deadline = Instant::now();
    let (state, effects) = replay([
        PodEvent::Sync,
        PodEvent::Delete { deadline },
        PodEvent::SandboxReady(sandbox(0)),
    ]);
    assert_eq!(
        state,
        PodState::Terminating {
            sandbox: Some(sandbox(0)),
            deadline,
            deleted: true
        }
    );
    assert_eq!(
        effects,
        [
            Effect::Prepare,
            Effect::Stop { deadline },
            Effect::Stop { deadline }
        ]
    );
}

#[test]
fn a_lost_sandbox_is_made_again_and_not_while_terminating() {
    let deadline = Instant::now();
    let (state, effects) = replay([
        PodEvent::Sync,
        PodEvent::SandboxReady(sandbox(0)),
        PodEvent::SandboxLost,
    ]);
    assert_eq!((state, effects.len()), (PodState::Preparing, 2));
    let (state, _) = step(
        PodState::Terminating {
            sandbox: Some(sandbox(0)),
            deadline,
            deleted: true,
        },
        PodEvent::SandboxLost,
    );
    assert_eq!(
        state,
        PodState::Terminating {
            sandbox: Some(sandbox(0)),
            deadline,
            deleted: true
        }
    );
}

#[test]
fn a_refused_pod_makes_nothing() {
    let (state, effects) = replay([PodEvent::Reject]);
    assert_eq!(state, PodState::Terminated { deleted: false });
    assert!(!effects.contains(&Effect::Prepare));
}

fn event(base: Instant) -> impl Strategy<Value = PodEvent> {
    let deadline = (0u64..1000).prop_map(move |seconds| base + Duration::from_secs(seconds));
    (0..9u8, deadline, 0..3u32).prop_map(|(kind, deadline, attempt)| match kind {
        0 => PodEvent::Sync,
        1 => PodEvent::SandboxReady(sandbox(attempt)),
        2 => PodEvent::SandboxLost,
        3 => PodEvent::Delete { deadline },
        4 => PodEvent::End { deadline },
        5 => PodEvent::AllExited { deadline },
        6 => PodEvent::Reject,
        7 => PodEvent::Stopped,
        _ => PodEvent::CleanedUp,
    })
}

proptest! {
    #[test]
    fn no_history_lengthens_a_deadline_or_takes_a_delete_back(events in prop::collection::vec(event(Instant::now()), 0..40)) {
        let mut state = PodState::Admitted;
        for event in events {
            let (next, effect) = step(state.clone(), event.clone());
            if let (PodState::Terminating { deadline: before, .. }, PodState::Terminating { deadline: after, .. }) = (&state, &next) {
                prop_assert!(after <= before);
            }
            if let PodState::Terminating { deleted: true, .. } | PodState::Terminated { deleted: true } = &state
            {
                let kept = matches!(
                    next,
                    PodState::Terminating { deleted: true, .. } | PodState::Terminated { deleted: true } | PodState::Finished
                );
                prop_assert!(kept, "{:?} on {:?} gave {:?}", state, event, next);
            }
            // Nothing is made for a pod that is on its way out.
            if !matches!(state, PodState::Admitted | PodState::Preparing | PodState::Running { .. }) {
                prop_assert_ne!(effect.clone(), Some(Effect::Prepare));
            }
            // A sandbox in hand is never let go of, unless it is lost or stopped.
            if let PodState::Terminating { sandbox: Some(_), .. } = &state
                && let PodState::Terminating { sandbox, .. } = &next
            {
                prop_assert!(sandbox.is_some());
            }
            state = next;
        }
    }

    #[test]
    fn whatever_happened_a_delete_and_its_answers_finish_the_pod(events in prop::collection::vec(event(Instant::now()), 0..40)) {
        let deadline = Instant::now();
        let end = [PodEvent::Delete { deadline }, PodEvent::Stopped, PodEvent::Delete { deadline }, PodEvent::CleanedUp];
        let (state, _) = replay(events.into_iter().chain(end));
        prop_assert_eq!(state, PodState::Finished);
    }
}
