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
    // What is being written this moment is not there yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
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

/// The text of a container's log: streams mixed, marks taken off.
#[must_use]
pub fn read_log(path: &Path) -> String {
    let mut text = String::new();
    for (_, tag, part) in log_lines(path) {
        text.push_str(&part);
        if tag == "F" {
            text.push('\n');
        }
    }
    text
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

/// Waits until the container's log has a line.
pub(super) async fn logged(config: &ContainerConfig, line: &str) {
    let what = format!("the log of {} says {line}", config.name);
    eventually(&what, async || {
        log_lines(&config.log_path)
            .iter()
            .any(|(_, _, text)| text == line)
            .then_some(())
    })
    .await;
}

/// Runs a script to its end: its exit code, and its log's lines.
pub(super) async fn run_script(
    fixture: &dyn Fixture,
    sandbox: &PodSandbox,
    name: &str,
    script: &'static str,
    change: impl FnOnce(&mut ContainerConfig),
) -> (i32, Vec<String>) {
    let mut config = fixture.container_config(sandbox, name, super::Program::Shell(script));
    change(&mut config);
    let id = start(fixture, sandbox, &config).await;
    let ended = exit(&fixture.runtime(), &id).await;
    let lines = log_lines(&config.log_path);
    (
        ended.exit_code,
        lines.into_iter().map(|(_, _, text)| text).collect(),
    )
}

/// A mount as most are.
pub(super) fn mount(host: &Path, container: &str) -> Mount {
    Mount {
        container_path: container.into(),
        host_path: host.to_owned(),
        readonly: false,
        recursive_readonly: false,
        propagation: MountPropagation::None,
    }
}

/// A directory for a volume, as the agent would make it.
pub(super) fn volume(sandbox: &PodSandbox, name: &str) -> std::path::PathBuf {
    let path = sandbox.config.log_directory.join("volumes").join(name);
    std::fs::create_dir_all(&path).expect("a volume can be made");
    path
}
