//! The suite that every runtime passes, a test for each of its claims.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use libtest_mimic::Trial;
use wherry_runtime_api::{
    conformance::{CASES, Case, Fixture, LINUX_CASES, Program, check},
    *,
};

use crate::{
    engine,
    node::{Node, run},
};

/// What an engine cannot do, and why.
const LIMITATIONS: &[(&str, &str)] = &[(
    "a_container_runs_in_a_sandbox_of_another_runtime",
    "a container joins its pod's pause container, which another runtime's sandbox has not",
)];

struct DockerFixture(Mutex<Node>);

impl DockerFixture {
    fn node(&self) -> Node {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Fixture for DockerFixture {
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
        LIMITATIONS
    }

    fn exec_command(&self, program: Program) -> Vec<String> {
        vec!["/bin/sh".into(), "-c".into(), program.script(), "sh".into()]
    }
}

pub(crate) fn trials() -> Vec<Trial> {
    CASES
        .iter()
        .chain(LINUX_CASES)
        .map(|(name, case)| {
            Trial::test(format!("conformance::{name}"), move || {
                check_case(name, *case);
                Ok(())
            })
        })
        .collect()
}

fn check_case(name: &'static str, case: Case) {
    run(async move {
        let node = Node::new(name, engine::shared()).await;
        let kept = node.clone();
        let fixture = DockerFixture(Mutex::new(node));
        let runtime = tokio::runtime::Handle::current();
        let checked = tokio::task::spawn_blocking(move || {
            runtime.block_on(check(&fixture, name, case));
        });
        let outcome = checked.await;
        kept.clean_up().await;
        outcome.unwrap();
    });
}
