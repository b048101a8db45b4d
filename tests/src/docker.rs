//! A real Docker engine for a node, in a directory of its own and in the node's network.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::Network;

/// An engine; dropping it ends it with all of its containers.
pub struct Engine {
    dir: tempfile::TempDir,
    network: String,
}

impl Engine {
    /// Starts Debian's engine. Its containers outlive it (`--live-restore`), as in a careful installation.
    pub fn start(network: &Network) -> Self {
        Self::start_in(network.name())
    }

    /// The same in a network namespace.
    pub fn start_in(network: &str) -> Self {
        let engine = Self {
            dir: tempfile::Builder::new()
                .prefix("wherry-dockerd-")
                .tempdir()
                .expect("a temporary directory"),
            network: network.to_owned(),
        };
        engine.up();
        engine
    }

    /// Starts the daemon and waits until it answers.
    pub fn up(&self) {
        // Not `Network::command`: the engine outlives the borrow.
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.network))
            .arg("--")
            .arg(script())
            .arg("start")
            .arg(self.dir.path())
            .arg("--live-restore")
            .stdin(Stdio::null())
            .output()
            .expect("the script starts");
        assert!(
            output.status.success(),
            "dockerd: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Ends the daemon and nothing else, and starts it again.
    pub fn restart(&self, signal: Signal) {
        let file = self.dir.path().join("dockerd.pid");
        let pid = std::fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .map(Pid::from_raw)
            .expect("the engine has written its process ID");
        nix::sys::signal::kill(pid, signal).expect("the engine is there");
        // Not /proc/<pid>: a process that nobody has waited for yet is still there, and its pid file is then refused.
        let proc = PathBuf::from(format!("/proc/{pid}/ns/net"));
        crate::eventually("the engine ends", || match std::fs::read_link(&proc) {
            Ok(_) => Err(format!("{pid} is there")),
            Err(_) => Ok(()),
        });
        // The same is true of its containerd, if that has ended with it.
        let of_containerd = self.dir.path().join("run/containerd/containerd.pid");
        let is_alive = std::fs::read_to_string(&of_containerd)
            .is_ok_and(|pid| std::fs::read_link(format!("/proc/{}/ns/net", pid.trim())).is_ok());
        if !is_alive {
            let _ = std::fs::remove_file(of_containerd);
        }
        let _ = std::fs::remove_file(file);
        self.up();
    }

    /// What `--docker-endpoint` takes.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.dir.path().join("docker.sock").display())
    }

    /// Everything of the engine is below this.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs Docker's own client, which has to succeed.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> String {
        let output = Command::new("docker")
            .args(["--host", &self.endpoint()])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("docker starts");
        assert!(
            output.status.success(),
            "docker {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let output = Command::new(script())
            .arg("stop")
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!(
                "docker.sh stop: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => eprintln!("docker.sh stop: {error}"),
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/docker.sh")
}
