//! The suite that every runtime passes.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use wherry_runtime_api::{
    conformance::{CASES, Case, Fixture, LINUX_CASES, Outcome, Program, check},
    *,
};

use crate::harness::{Body, Node};

struct OciFixture(Mutex<Node>);

impl OciFixture {
    fn node(&self) -> Node {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Fixture for OciFixture {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.node().runtime
    }

    async fn restart(&self) -> Arc<dyn Runtime> {
        let mut node = self.node();
        node.restart().await;
        let runtime = node.runtime.clone();
        *self.0.lock().unwrap() = node;
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
        &[(
            "a_container_runs_in_a_sandbox_of_another_runtime",
            "a container is a child of its pod's supervisor, which another runtime's sandbox has not",
        )]
    }

    fn exec_command(&self, program: Program) -> Vec<String> {
        vec!["/bin/sh".into(), "-c".into(), program.script(), "sh".into()]
    }
}

/// A test per case, each on a node of its own.
pub(crate) fn tests() -> Vec<(String, Body)> {
    let all = CASES.iter().chain(LINUX_CASES);
    all.map(|(name, case)| {
        let body: Body = Box::new(|node| Box::pin(run(node, name, *case)));
        (format!("conformance::{name}"), body)
    })
    .collect()
}

async fn run(node: Node, name: &'static str, case: Case) {
    let fixture = OciFixture(Mutex::new(node));
    let runtime = tokio::runtime::Handle::current();
    let outcome =
        tokio::task::spawn_blocking(move || runtime.block_on(check(&fixture, name, case)));
    if let Outcome::Limited(reason) = outcome.await.unwrap() {
        println!("     {name}: {reason}");
    }
}
