//! The suite that every runtime passes.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use wherry_runtime_api::{
    conformance::{CASES, Fixture, Program},
    *,
};

use crate::harness::{Node, tests};

tests! { the_conformance_suite_passes }

struct OciFixture(Mutex<Node>);

impl OciFixture {
    fn node(&self) -> Node {
        self.0.lock().unwrap().clone()
    }
}

fn script(program: Program) -> String {
    match program {
        Program::Print { exit_code } => format!("echo out; echo err >&2; exit {exit_code}"),
        Program::Wait => "trap '' TERM; echo up; sleep 1000".to_owned(),
        Program::CopyStdin => "exec cat".to_owned(),
        Program::EatMemory => "exec dd if=/dev/zero of=/dev/null bs=400M count=1".to_owned(),
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
        self.node().script(sandbox, name, &script(program))
    }

    fn exec_command(&self, program: Program) -> Vec<String> {
        vec!["/bin/sh".into(), "-c".into(), script(program)]
    }
}

async fn the_conformance_suite_passes(node: Node) {
    let fixture = OciFixture(Mutex::new(node));
    let runtime = tokio::runtime::Handle::current();
    let suite = tokio::task::spawn_blocking(move || {
        for (name, case) in CASES {
            println!("     {name}");
            runtime.block_on(case(&fixture));
        }
    });
    suite.await.unwrap();
}
