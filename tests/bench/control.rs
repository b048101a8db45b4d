//! A control plane by itself, on this machine's loopback.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use wherry_tests::wherry;

/// A control plane that has used less than a hundredth of a core for this long has nothing left to do.
const CALM: Duration = Duration::from_secs(1);
/// How long that may take to come.
const CALM_MAX: Duration = Duration::from_secs(60);

/// `wherry control` on a root of its own.
pub(crate) struct Control {
    process: Child,
    directory: tempfile::TempDir,
    args: Vec<String>,
}

impl Control {
    /// Starts one and waits until it answers.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let process = spawn(&directory, &args)?;
        let mut this = Self {
            process,
            directory,
            args,
        };
        this.await_ready()?;
        Ok(this)
    }

    /// Ends it, and starts it again on what it has stored; answers how long it took to be ready.
    pub(crate) fn restart(&mut self) -> Result<Duration> {
        // SIGKILL: what was acknowledged is there all the same.
        self.process.kill()?;
        self.process.wait()?;
        let begun = Instant::now();
        self.process = spawn(&self.directory, &self.args)?;
        self.await_ready()?;
        Ok(begun.elapsed())
    }

    fn await_ready(&mut self) -> Result<()> {
        let mut said = String::new();
        let stdout = self.process.stdout.take().context("stdout is piped")?;
        BufReader::new(stdout).read_line(&mut said)?;
        ensure!(said.starts_with("ready"), "wherry control: {}", self.log());
        Ok(())
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

    /// Bytes of memory that are resident.
    pub(crate) fn rss(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(rss.context("VmRSS")?.trim().parse::<f64>()? * 1024.0)
    }

    /// Waits until it has nothing left to do.
    pub(crate) async fn calm(&self) -> Result<()> {
        let begun = Instant::now();
        let mut before = self.cpu()?;
        while begun.elapsed() < CALM_MAX {
            tokio::time::sleep(CALM).await;
            let now = self.cpu()?;
            if now - before <= CALM / 100 {
                return Ok(());
            }
            before = now;
        }
        Ok(())
    }
}

fn spawn(directory: &tempfile::TempDir, args: &[String]) -> Result<Child> {
    let log = std::fs::File::create(directory.path().join("control.log"))?;
    Command::new(wherry())
        .args(["control", "--bind-address", "127.0.0.1"])
        .args(["--secure-port", "0"])
        .args(["--log", "warn", "--root"])
        .arg(directory.path())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("wherry control")
}

impl Drop for Control {
    fn drop(&mut self) {
        // Nothing of it is needed any more; if it has ended by itself there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
