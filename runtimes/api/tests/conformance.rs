//! The fake is a runtime like any other: what the agent's tests rely on is what runtimes do.

#![cfg(feature = "testing")]

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use wherry_runtime_api::{
    conformance::{CASES, Fixture, Program, check},
    fake::{FakeClock, FakeRuntime},
    *,
};

struct FakeFixture {
    runtime: Arc<FakeRuntime>,
    place: PathBuf,
}

fn words(program: Program) -> Vec<String> {
    let text = match program {
        Program::Print { exit_code } => format!("program print {exit_code}"),
        Program::Wait => "program wait".to_owned(),
        Program::CopyStdin => "program copy".to_owned(),
        Program::EatMemory => "program eat".to_owned(),
        Program::Polite { exit_code } => format!("program polite {exit_code}"),
        Program::Context => "program context".to_owned(),
        Program::Unfinished => "program unfinished".to_owned(),
        Program::Lines { count } => format!("program lines {count}"),
        Program::ReadFile { path } => format!("program read {path}"),
        Program::WriteFile { path } => format!("program write {path}"),
        Program::Spin => "program spin".to_owned(),
        Program::Echo { port } => format!("program echo {port}"),
        Program::TerminalSize => "program terminal-size".to_owned(),
        Program::Shell(_) => panic!("a fake runs no Linux processes"),
    };
    text.split(' ').map(str::to_owned).collect()
}

#[async_trait]
impl Fixture for FakeFixture {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    async fn restart(&self) -> Arc<dyn Runtime> {
        // A restarted agent finds what there is; the fake is what there is.
        self.runtime.clone()
    }

    fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        let log_directory = self.place.join(name);
        std::fs::create_dir_all(&log_directory).expect("a directory can be made");
        PodSandboxConfig::new(
            format!("uid-{name}"),
            name,
            "default",
            log_directory,
            format!("fake/{name}"),
        )
    }

    fn container_config(
        &self,
        sandbox: &PodSandbox,
        name: &str,
        program: Program,
    ) -> ContainerConfig {
        ContainerConfig {
            command: words(program),

            ..ContainerConfig::new(
                name,
                "sha256:image",
                "image",
                sandbox.config.log_directory.join(format!("{name}.log")),
            )
        }
    }

    fn exec_command(&self, program: Program) -> Vec<String> {
        words(program)
    }
}

#[tokio::test]
async fn the_fake_passes_the_suite() {
    let place = std::env::temp_dir().join(format!("wherry-fake-{}", std::process::id()));
    for (name, case) in CASES {
        let runtime = FakeRuntime::new("fake", FakeClock::default());
        runtime.lack_image(&format!("sha256:{}", "0".repeat(64)));
        let fixture = FakeFixture {
            runtime,
            place: place.join(name),
        };
        println!("{name}");
        check(&fixture, name, *case).await;
    }
    std::fs::remove_dir_all(place).expect("the directory was made here");
}
