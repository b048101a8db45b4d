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
        PodSandboxConfig {
            uid: format!("uid-{name}").into(),
            name: name.to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
            hostname: None,
            log_directory,
            namespaces: NamespaceOptions::default(),
            user_namespace: None,
            cgroup_parent: format!("fake/{name}"),
            resources: LinuxResources::default(),
            sysctls: Vec::new(),
            seccomp: SeccompProfile::RuntimeDefault,
            isolated: false,
            labels: Vec::new(),
            annotations: Vec::new(),
        }
    }

    fn container_config(
        &self,
        sandbox: &PodSandbox,
        name: &str,
        program: Program,
    ) -> ContainerConfig {
        ContainerConfig {
            name: name.to_owned(),
            attempt: 0,
            image_id: "sha256:image".to_owned(),
            image: "image".to_owned(),
            command: words(program),
            args: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            labels: Vec::new(),
            annotations: Vec::new(),
            log_path: sandbox.config.log_directory.join(format!("{name}.log")),
            log_rotation: LogRotation::default(),
            stdin: false,
            stdin_once: false,
            tty: false,
            stop_signal: None,
            resources: LinuxResources::default(),
            security: ContainerSecurity::default(),
            pid_target: None,
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
