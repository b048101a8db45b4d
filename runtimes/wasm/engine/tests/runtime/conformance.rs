//! The suite that every runtime passes, on this one.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use libtest_mimic::Trial;
use wherry_runtime_api::{
    ContainerConfig, PodSandbox, PodSandboxConfig, Runtime,
    conformance::{CASES, Fixture, Program, check},
};

use crate::harness::{Node, block_on, next_ip};

/// A node, taken out while its agent is started again.
struct WasmFixture(Mutex<Option<Node>>);

/// One trial per claim of the suite.
pub(crate) fn trials() -> impl Iterator<Item = Trial> {
    CASES.iter().map(|(name, case)| {
        Trial::test(format!("conformance::{name}"), move || {
            block_on(async {
                let fixture = WasmFixture(Mutex::new(Some(Node::new().await)));
                check(&fixture, name, *case).await;
            });
            Ok(())
        })
    })
}

impl WasmFixture {
    fn with<T>(&self, f: impl FnOnce(&Node) -> T) -> T {
        f(self.0.lock().unwrap().as_ref().expect("the agent runs"))
    }
}

fn words(program: Program) -> Vec<String> {
    match program {
        Program::Print { exit_code } => vec!["print".to_owned(), exit_code.to_string()],
        Program::Wait => vec!["wait".to_owned()],
        Program::CopyStdin => vec!["copy".to_owned()],
        Program::EatMemory => vec!["eat".to_owned()],
        Program::Polite { exit_code } => vec!["polite".to_owned(), exit_code.to_string()],
        Program::Context => vec!["context".to_owned()],
        Program::Unfinished => vec!["unfinished".to_owned()],
        Program::Lines { count } => vec!["lines".to_owned(), count.to_string()],
        Program::ReadFile { path } => vec!["read".to_owned(), path.to_owned()],
        Program::WriteFile { path } => vec!["write".to_owned(), path.to_owned()],
        Program::Spin => vec!["spin".to_owned()],
        Program::Echo { port } => vec!["echo".to_owned(), port.to_string()],
        Program::TerminalSize => vec!["terminal-size".to_owned()],
        Program::Shell(script) => vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
    }
}

#[async_trait]
impl Fixture for WasmFixture {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.with(|node| node.runtime.to_arc())
    }

    async fn restart(&self) -> Arc<dyn Runtime> {
        let mut node = self.0.lock().unwrap().take().expect("the agent runs");
        node.restart().await;
        *self.0.lock().unwrap() = Some(node);
        self.runtime()
    }

    fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        self.with(|node| node.pod_config(name, "default"))
    }

    fn container_config(&self, _: &PodSandbox, name: &str, program: Program) -> ContainerConfig {
        let config = self.with(|node| node.container("programs"));
        // The end of its stdin is what tells a component that it is asked to stop.
        // A terminal tells its size there, too.
        let stdin = matches!(program, Program::Polite { .. } | Program::TerminalSize);
        ContainerConfig {
            stdin,
            name: name.to_owned(),
            args: words(program),
            ..config
        }
    }

    fn exec_command(&self, program: Program) -> Vec<String> {
        words(program)
    }

    async fn attach_network(&self, sandbox: PodSandbox) -> PodSandbox {
        PodSandbox {
            ips: vec![IpAddr::V4(next_ip())],
            ..sandbox
        }
    }
}
