//! A node whose containers run shell scripts: what the tests of runtimes of Linux containers begin with.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;

use super::{
    Fixture, Program, read_log,
    support::{TIMEOUT, ok},
};
use crate::*;

/// A node of a test. What goes wrong panics.
#[async_trait]
pub trait ShellNode: Clone + Send + Sync + 'static {
    /// Its runtime, as the agent holds it now.
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// The agent ends and another begins.
    async fn restart(&mut self);
    /// A directory of its own.
    fn place(&self) -> &Path;
    /// A cgroup of its own.
    fn cgroup(&self) -> &str;
    /// An image with a shell and busybox's programs: its ID, and the reference that it was imported as.
    fn shell_image(&self) -> (String, &'static str);

    /// A pod's sandbox, with a log directory that exists.
    fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        let logs = self.place().join("log").join(name);
        if let Err(error) = std::fs::create_dir_all(&logs) {
            panic!("{}: {error}", logs.display());
        }
        PodSandboxConfig {
            hostname: Some(name.into()),
            ..PodSandboxConfig::new(
                format!("uid-{name}"),
                name,
                "default",
                logs,
                format!("{}/kubepods/besteffort/pod-{name}", self.cgroup()),
            )
        }
    }

    /// A sandbox that is Ready.
    async fn sandbox(&self, name: &str) -> PodSandbox {
        ok(self
            .runtime()
            .run_pod_sandbox(&self.sandbox_config(name))
            .await)
    }

    /// A container that runs a shell script.
    fn script(&self, sandbox: &PodSandbox, name: &str, script: &str) -> ContainerConfig {
        let (image_id, image) = self.shell_image();
        ContainerConfig {
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            labels: vec![("k".into(), "v".into())],
            ..ContainerConfig::new(
                name,
                image_id,
                image,
                sandbox.config.log_directory.join(format!("{name}.log")),
            )
        }
    }

    /// Creates a container and starts it.
    async fn start(&self, sandbox: &PodSandbox, config: &ContainerConfig) -> ContainerId {
        let runtime = self.runtime();
        let id = ok(runtime.create_container(sandbox, config).await);
        ok(runtime.start_container(&id).await);
        id
    }

    /// Waits until a container has exited.
    async fn exit(&self, id: &ContainerId) -> ContainerExit {
        let runtime = self.runtime();
        let mut events = runtime.subscribe();
        let wait = async {
            loop {
                if let ContainerState::Exited(exit) = ok(runtime.container_status(id).await).state {
                    return exit;
                }
                let _ = events.recv().await;
            }
        };
        match tokio::time::timeout(TIMEOUT, wait).await {
            Ok(exit) => exit,
            Err(_) => panic!("container {id} has not exited within {TIMEOUT:?}"),
        }
    }

    /// Runs a container to its end: how it ended, and its log without the marks.
    async fn run(&self, sandbox: &PodSandbox, config: &ContainerConfig) -> (ContainerExit, String) {
        let id = self.start(sandbox, config).await;
        let exit = self.exit(&id).await;
        (exit, read_log(&config.log_path))
    }

    /// Runs a script beside a container.
    async fn exec(&self, id: &ContainerId, script: &str) -> ExecSyncResponse {
        let command = ["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        ok(self.runtime().exec_sync(id, &command, TIMEOUT).await)
    }

    /// What such a script says.
    async fn exec_text(&self, id: &ContainerId, script: &str) -> String {
        let said = self.exec(id, script).await.stdout;
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// Such a node for the suite.
pub struct ShellFixture<N> {
    node: Mutex<N>,
    limitations: &'static [(&'static str, &'static str)],
}

impl<N: ShellNode> ShellFixture<N> {
    /// With what its runtime cannot do ([`Fixture::limitations`]).
    pub fn new(node: N, limitations: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            node: Mutex::new(node),
            limitations,
        }
    }

    fn node(&self) -> N {
        self.node
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[async_trait]
impl<N: ShellNode> Fixture for ShellFixture<N> {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.node().runtime()
    }

    async fn restart(&self) -> Arc<dyn Runtime> {
        let mut node = self.node();
        node.restart().await;
        let runtime = node.runtime();
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = node;
        runtime
    }

    fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        self.node().sandbox_config(name)
    }

    fn container_config(
        &self,
        sandbox: &PodSandbox,
        name: &str,
        program: Program,
    ) -> ContainerConfig {
        let mut config = self.node().script(sandbox, name, &program.script());
        // What `$0` is; what follows are the script's own arguments.
        config.command.push("sh".into());
        config
    }

    fn limitations(&self) -> &'static [(&'static str, &'static str)] {
        self.limitations
    }

    fn exec_command(&self, program: Program) -> Vec<String> {
        vec!["/bin/sh".into(), "-c".into(), program.script(), "sh".into()]
    }
}
