//! What mounters have done on the node. Tests bring one that notes it.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use nix::mount::{MsFlags, mount};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

/// A program that takes longer is ended.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(60);
/// A mount that takes longer goes on in the kernel, and is undone when it is there.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// A device that is not there by then will not come.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between looks for a device.
const DEVICE_PERIOD: Duration = Duration::from_millis(50);
/// Of what a program prints, what is told.
const PRINTED_BYTES_MAX: usize = 1024;
/// Where programs are, whatever the agent's own environment says.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";

/// A mount as the kernel is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountCall {
    /// Of file system.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Nobody writes.
    pub is_read_only: bool,
    /// `noexec`, `noatime`, `nodiratime`, `relatime`, `sync`.
    pub flags: Vec<&'static str>,
    /// The file system's own options, parted by commas.
    pub data: String,
}

/// The node, as mounters need it.
#[async_trait]
pub trait System: Send + Sync {
    /// Mounts, always without set-user-id programs and devices.
    async fn mount(&self, call: &MountCall, target: &Path) -> io::Result<()>;

    /// Takes off whatever is mounted there.
    async fn unmount(&self, target: &Path) -> io::Result<()>;

    /// Runs a program of the node's to its end; what it printed. `NotFound` where there is none.
    async fn run(&self, program: &str, arguments: &[String]) -> io::Result<String>;

    /// Writes a line to a file of the kernel's.
    async fn write(&self, path: &str, line: &str) -> io::Result<()>;

    /// The beginning of a device.
    async fn read(&self, path: &str, bytes: usize) -> io::Result<Vec<u8>>;

    /// The addresses of a host.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<IpAddr>>;

    /// Waits for a device, and answers its own path.
    async fn device(&self, path: &str) -> io::Result<String>;

    /// Whether a path leads to a file without links on the way.
    fn check_image(&self, path: &str) -> io::Result<()>;

    /// The file that a loop device is of.
    async fn loop_file(&self, device: &str) -> io::Result<Option<String>>;

    /// The number of a mapped `pool/image`.
    async fn rbd_number(&self, spec: &str) -> io::Result<Option<String>>;
}

/// This node.
pub struct NodeSystem;

fn flags(call: &MountCall) -> MsFlags {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, call.is_read_only);
    for flag in &call.flags {
        flags |= match *flag {
            "noexec" => MsFlags::MS_NOEXEC,
            "noatime" => MsFlags::MS_NOATIME,
            "nodiratime" => MsFlags::MS_NODIRATIME,
            "relatime" => MsFlags::MS_RELATIME,
            "sync" => MsFlags::MS_SYNCHRONOUS,
            _ => MsFlags::empty(),
        };
    }
    flags
}

/// On a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work);
    done.await.unwrap_or_else(|error| Err(error.into()))
}

#[async_trait]
impl System for NodeSystem {
    async fn mount(&self, call: &MountCall, target: &Path) -> io::Result<()> {
        let (call, target) = (call.clone(), target.to_owned());
        let work = blocking(move || {
            // The directory itself, whatever is put in its place meanwhile.
            let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::open(&target, open, Mode::empty())?;
            let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
            mount(
                Some(call.source.as_str()),
                &path,
                Some(call.kind.as_str()),
                flags(&call),
                Some(call.data.as_str()),
            )?;
            Ok(())
        });
        timeout(MOUNT_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn unmount(&self, target: &Path) -> io::Result<()> {
        let target = target.to_owned();
        blocking(move || super::take_off(&target)).await
    }

    async fn run(&self, program: &str, arguments: &[String]) -> io::Result<String> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .stdin(std::process::Stdio::null())
            .current_dir("/")
            .kill_on_drop(true);
        let output = match timeout(PROGRAM_TIMEOUT, command.output()).await {
            Ok(output) => output?,
            Err(_) => {
                let why = format!("{program}: no end after {PROGRAM_TIMEOUT:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut printed = String::from_utf8_lossy(&output.stderr).into_owned();
        if printed.trim().is_empty() {
            printed = String::from_utf8_lossy(&output.stdout).into_owned();
        }
        let printed: String = printed.trim().chars().take(PRINTED_BYTES_MAX).collect();
        Err(io::Error::other(format!(
            "{program}: {}: {printed}",
            output.status
        )))
    }

    async fn write(&self, path: &str, line: &str) -> io::Result<()> {
        let (path, line) = (path.to_owned(), line.to_owned());
        blocking(move || std::fs::write(path, line)).await
    }

    async fn read(&self, path: &str, bytes: usize) -> io::Result<Vec<u8>> {
        let path = path.to_owned();
        blocking(move || {
            let mut read = Vec::new();
            File::open(path)?
                .take(bytes as u64)
                .read_to_end(&mut read)?;
            Ok(read)
        })
        .await
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((host, port)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }

    async fn device(&self, path: &str) -> io::Result<String> {
        let until = Instant::now() + DEVICE_TIMEOUT;
        loop {
            match std::fs::canonicalize(path) {
                Ok(device) => return Ok(device.to_string_lossy().into_owned()),
                Err(error) if Instant::now() > until => {
                    return Err(io::Error::new(error.kind(), format!("{path}: {error}")));
                }
                Err(_) => sleep(DEVICE_PERIOD).await,
            }
        }
    }

    fn check_image(&self, path: &str) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)?;
        match File::from(file).metadata()?.is_file() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file")),
        }
    }

    async fn loop_file(&self, device: &str) -> io::Result<Option<String>> {
        let name = device.strip_prefix("/dev/").unwrap_or(device);
        match std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")) {
            Ok(file) => Ok(Some(file.trim_end_matches('\n').to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn rbd_number(&self, spec: &str) -> io::Result<Option<String>> {
        let devices = match std::fs::read_dir("/sys/bus/rbd/devices") {
            Ok(devices) => devices,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        for device in devices {
            let device = device?;
            let read = |name: &str| {
                let text = std::fs::read_to_string(device.path().join(name));
                text.unwrap_or_default().trim().to_owned()
            };
            if format!("{}/{}", read("pool"), read("name")) == spec {
                return Ok(device.file_name().into_string().ok());
            }
        }
        Ok(None)
    }
}
