//! What the cases have in common.

use std::{path::Path, sync::Arc, time::Duration};

use super::{Fixture, Refused};
use crate::*;

/// One limit for everything that is waited for.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at something that tells nobody when it changes.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn sandbox(fixture: &dyn Fixture, name: &str) -> PodSandbox {
    let made = ok(fixture
        .runtime()
        .run_pod_sandbox(&fixture.sandbox_config(name))
        .await);
    assert_eq!(made.state, PodSandboxState::Ready);
    fixture.attach_network(made).await
}

pub(super) async fn start(
    fixture: &dyn Fixture,
    sandbox: &PodSandbox,
    config: &ContainerConfig,
) -> ContainerId {
    let runtime = fixture.runtime();
    let id = ok(runtime.create_container(sandbox, config).await);
    ok(runtime.start_container(&id).await);
    id
}

pub(super) async fn exit(runtime: &Arc<dyn Runtime>, id: &ContainerId) -> ContainerExit {
    eventually("the container has exited", async || {
        match ok(runtime.container_status(id).await).state {
            ContainerState::Exited(exit) => Some(exit),
            _ => None,
        }
    })
    .await
}

pub(super) async fn remove(fixture: &dyn Fixture, sandbox: &PodSandbox) {
    ok(fixture.runtime().remove_pod_sandbox(&sandbox.id).await);
}

pub(super) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not within {TIMEOUT:?}: {what}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

#[track_caller]
pub(super) fn ok<T>(result: Result<T, RuntimeError>) -> T {
    match result {
        Ok(value) => value,
        Err(RuntimeError::Unsupported(why)) => std::panic::panic_any(Refused(why)),
        Err(error) => panic!("{error:?}"),
    }
}

/// Lines of a log: stream, tag, text.
pub(super) fn log_lines(path: &Path) -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ').map(str::to_owned);
            let time = parts.next().unwrap_or_default();
            assert!(
                time.len() >= 20 && time.as_bytes()[10] == b'T',
                "no time: {line}"
            );
            let mut next = || parts.next().unwrap_or_default();
            (next(), next(), next())
        })
        .collect()
}

pub(super) async fn up(config: &ContainerConfig) {
    eventually("the program says that it is up", async || {
        log_lines(&config.log_path)
            .iter()
            .any(|(_, _, text)| text == "up")
            .then_some(())
    })
    .await;
}
