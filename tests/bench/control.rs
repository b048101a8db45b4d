//! A control plane by itself, on this machine's loopback.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use wherry_tests::wherry;

/// `wherry control` on a root of its own.
pub(crate) struct Control {
    process: Child,
    directory: tempfile::TempDir,
}

impl Control {
    /// Starts one and waits until it answers.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let log = std::fs::File::create(directory.path().join("control.log"))?;
        let mut process = Command::new(wherry())
            .args([
                "control",
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                "0",
            ])
            .args(["--log", "warn", "--root"])
            .arg(directory.path())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("wherry control")?;
        let mut said = String::new();
        let stdout = process.stdout.take().context("stdout is piped")?;
        BufReader::new(stdout).read_line(&mut said)?;
        let this = Self { process, directory };
        ensure!(said.starts_with("ready"), "wherry control: {}", this.log());
        Ok(this)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("control.log")).unwrap_or_default()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("control/admin.kubeconfig")
    }

    /// CPU time so far, user and system.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name, in parentheses, may hold anything.
        let fields = stat.rsplit_once(')').context("a name in parentheses")?.1;
        let mut ticks = fields.split_whitespace().skip(11);
        let mut next = || -> Result<u64> { Ok(ticks.next().context("CPU times")?.parse()?) };
        let ticks = next()? + next()?;
        // USER_HZ is 100 on every architecture there is a build for.
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Nothing of it is needed any more; if it has ended by itself there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
