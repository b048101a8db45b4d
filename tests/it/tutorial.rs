//! docs/plugins/tutorial.md, as it stands: each block of commands is run, and has to print what the next block shows.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually, made_by_run_sh, wherry};

use crate::own_trials;

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![the_tutorial_works_as_it_is_written]
}

/// Commands, and the lines that they have to print.
#[derive(Debug, Default, PartialEq)]
struct Step {
    commands: String,
    shown: Vec<String>,
}

fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut language = None;
    for line in document.lines() {
        match (line.strip_prefix("```"), language) {
            (Some(_), Some(_)) => language = None,
            (Some("sh"), None) => {
                language = Some("sh");
                steps.push(Step::default());
            }
            (Some(other), None) => language = Some(if other == "text" { "text" } else { "" }),
            (None, Some("sh")) => {
                let step = steps.last_mut().expect("a block was begun");
                step.commands.push_str(line);
                step.commands.push('\n');
            }
            (None, Some("text")) => {
                let step = steps.last_mut().expect("text shows what commands printed");
                step.shown.push(line.to_owned());
            }
            _ => {}
        }
    }
    steps
}

/// Whether a line is as shown, `…` standing for anything and spaces for as many.
fn is_shown(shown: &str, line: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = words(line);
    let mut rest = line.as_str();
    for part in words(shown).split('…') {
        match rest.find(part.trim()) {
            Some(at) => rest = &rest[at + part.trim().len()..],
            None => return false,
        }
    }
    true
}

/// A registry in the node's network, ended with the test.
pub(crate) struct PlainRegistry {
    process: Child,
    /// Removed at the end.
    _directory: tempfile::TempDir,
}

impl PlainRegistry {
    pub(crate) fn start(cluster: &Cluster, port: u16) -> Self {
        Self::start_with(cluster, port, "", "")
    }

    /// With more of a configuration, and who gets in (`user:password@`).
    pub(crate) fn start_with(cluster: &Cluster, port: u16, more: &str, who: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("config.yml");
        let data = directory.path().join("data");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n{more}",
            data.display()
        );
        fs::write(&config, text).expect("a file");
        let process = cluster
            .network
            .command("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry starts");
        eventually("the registry answers", || {
            cluster.curl(&format!("http://{who}127.0.0.1:{port}/v2/"))
        });
        Self {
            process,
            _directory: directory,
        }
    }
}

impl Drop for PlainRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn home(variable: &str, folder: &str) -> PathBuf {
    let set = std::env::var_os(variable).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    set.unwrap_or_else(|| home().join(folder))
}

/// A new plugin's crates are fetched here, where the world can be reached; the node's network is its own.
fn fetch_crates(directory: &Path) {
    let new = Command::new(wherry())
        .args(["plugin", "new", "fetched"])
        .current_dir(directory)
        .output()
        .expect("wherry starts");
    assert!(new.status.success(), "{new:?}");
    let fetched = Command::new("cargo")
        .args(["fetch", "--quiet"])
        .current_dir(directory.join("fetched"))
        .status();
    assert!(fetched.expect("cargo starts").success());
}

/// Where it keeps caches and toolchains does not change with the test's own home.
fn author(cluster: &Cluster, directory: &Path) -> Command {
    let program = wherry();
    let programs = program.parent().expect("it is in a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = cluster.client_command("bash");
    command
        .current_dir(directory)
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("CARGO_HOME", home("CARGO_HOME", ".cargo"))
        .env("RUSTUP_HOME", home("RUSTUP_HOME", ".rustup"))
        .env("WHERRY_CACHE", home("WHERRY_CACHE", ".cache/wherry"))
        .env("CARGO_NET_OFFLINE", "true");
    command
}

fn the_tutorial_works_as_it_is_written() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins/tutorial.md");
    let document = fs::read_to_string(document).expect("the tutorial is there");
    let steps = steps(&document);
    assert!(steps.len() > 10, "{} steps", steps.len());
    let directory = tempfile::tempdir().expect("a directory");
    fetch_crates(directory.path());
    let cluster = Cluster::start();
    let _registry = PlainRegistry::start(&cluster, 5000);
    cluster.import(
        &made_by_run_sh("WHERRY_IMAGE_REDIS"),
        "docker.io/library/redis:7",
    );
    // One shell for all, as a reader has; each step's output ends in a line of its own.
    let mut script = String::from("set -e\nexec 2>&1\n");
    for step in &steps {
        script.push_str(&step.commands);
        script.push_str("echo '=== done'\n");
    }
    fs::write(directory.path().join("script"), script).expect("a file");
    let output = author(&cluster, directory.path())
        .arg("script")
        .output()
        .expect("bash starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    let parts: Vec<&str> = printed.split("=== done\n").collect();
    for (step, part) in steps.iter().zip(&parts) {
        let mut lines = part.lines();
        for shown in &step.shown {
            assert!(
                lines.any(|line| is_shown(shown, line)),
                "not printed: {shown}\nby:\n{}which printed:\n{part}",
                step.commands
            );
        }
    }
    assert!(
        output.status.success() && parts.len() == steps.len() + 1,
        "ended at:\n{}",
        parts.last().unwrap_or(&"")
    );
}
