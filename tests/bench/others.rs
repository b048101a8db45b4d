//! What others take to start the same image in the same run: Docker's own client, and `crun`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};
use wherry_tests::Engine;

/// The image that pods of containers run, by the name it has in the engine.
const IMAGE: &str = "bench/busybox:1";

/// Runs a program that has to succeed, and gives how long it took.
fn time(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    // Not piped: what is started in the background would hold a pipe open.
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(start.elapsed())
}

/// `docker run -d`, which returns when the container runs. With limits, and without a network: as much as a pod's
/// container is given by the runtime.
pub(crate) fn docker_run(engine: &Engine, samples: usize) -> Result<Vec<Duration>> {
    let docker = || {
        let mut command = Command::new("docker");
        command.args(["--host", &engine.endpoint()]);
        command
    };
    let mut times = Vec::with_capacity(samples);
    for n in 0..=samples {
        let name = format!("run-{n}");
        times.push(time(docker().args([
            "run",
            "-d",
            "--name",
            &name,
            "--network",
            "none",
            IMAGE,
            "sleep",
            "100000",
        ]))?);
        time(docker().args(["rm", "-f", &name]))?;
    }
    // The first warms what is warmed once.
    times.remove(0);
    Ok(times)
}

/// `crun run -d` of the image's files, unpacked before.
pub(crate) fn crun_run(engine: &Engine, samples: usize) -> Result<Vec<Duration>> {
    let dir = tempfile::tempdir()?;
    unpack(engine, dir.path())?;
    let place = dir.path().to_owned();
    // crun refuses a machine that has both versions of cgroups; in a mount namespace of this thread's own there is one.
    let thread = std::thread::spawn(move || -> Result<Vec<Duration>> {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
        let none: Option<&str> = None;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, flags, none).context("make mounts private")?;
        let unified = Path::new("/sys/fs/cgroup/unified");
        if unified.is_dir() {
            umount2(unified, MntFlags::MNT_DETACH).context("unmount the second hierarchy")?;
        }
        let crun = || {
            let mut command = Command::new("crun");
            command.arg("--root").arg(place.join("state"));
            command
        };
        let mut times = Vec::with_capacity(samples);
        for n in 0..=samples {
            let name = format!("bench-{}-{n}", std::process::id());
            times.push(time(
                crun()
                    .args(["run", "-d", "--bundle"])
                    .arg(&place)
                    .arg(&name),
            )?);
            time(crun().args(["delete", "--force", &name]))?;
        }
        times.remove(0);
        Ok(times)
    });
    thread.join().expect("the thread does not panic")
}

/// Makes an OCI bundle of the image: its files, and crun's own default configuration with the pods' program.
fn unpack(engine: &Engine, dir: &Path) -> Result<()> {
    let id = engine.docker(&["create", "--network", "none", IMAGE]);
    let tar = dir.join("files.tar");
    let path = tar.display().to_string();
    engine.docker(&["export", "--output", &path, id.trim()]);
    engine.docker(&["rm", id.trim()]);
    let root = dir.join("rootfs");
    fs::create_dir(&root)?;
    time(
        Command::new("tar")
            .arg("-xf")
            .arg(&tar)
            .arg("-C")
            .arg(&root),
    )?;
    time(Command::new("crun").arg("spec").current_dir(dir))?;
    let file = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sleep", "100000"]);
    fs::write(file, config.to_string())?;
    Ok(())
}
