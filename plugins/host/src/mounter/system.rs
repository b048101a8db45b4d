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
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};
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

    /// The loop devices that a file is attached as, by whatever path.
    async fn loops_of(&self, file: &str) -> io::Result<Vec<String>>;

    /// The number of a mapped `pool/image`.
    async fn rbd_number(&self, spec: &str) -> io::Result<Option<String>>;

    /// Kind and source of what is mounted on a directory.
    async fn mounted(&self, target: &Path) -> io::Result<Option<(String, String)>>;

    /// Makes a file at least so long. Repeatable.
    async fn lengthen(&self, path: &str, bytes: u64) -> io::Result<()>;
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

/// The path of what is open, whatever is put in its place meanwhile.
fn of(open: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()))
}

#[async_trait]
impl System for NodeSystem {
    async fn mount(&self, call: &MountCall, target: &Path) -> io::Result<()> {
        let (call, target) = (call.clone(), target.to_owned());
        let work = blocking(move || {
            // The directory itself, whatever is put in its place meanwhile.
            let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::open(&target, open, Mode::empty())?;
            let mount = |flags| {
                mount(
                    Some(call.source.as_str()),
                    &of(&directory),
                    Some(call.kind.as_str()),
                    flags,
                    Some(call.data.as_str()),
                )
            };
            let flags = flags(&call);
            match mount(flags) {
                // A disk that is mounted writable already is read-only by the mount, and not by the file system.
                Err(Errno::EBUSY) if call.is_read_only => {
                    mount(flags.difference(MsFlags::MS_RDONLY))?;
                    let mounted = rustix::fs::open(&target, open, Mode::empty())?;
                    let again = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
                    nix::mount::mount(
                        None::<&str>,
                        &of(&mounted),
                        None::<&str>,
                        again,
                        None::<&str>,
                    )?;
                }
                mounted => mounted?,
            }
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
        image(path, OFlags::PATH).map(drop)
    }

    async fn loop_file(&self, device: &str) -> io::Result<Option<String>> {
        let name = device.strip_prefix("/dev/").unwrap_or(device);
        match std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")) {
            Ok(file) => Ok(Some(file.trim_end_matches('\n').to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn loops_of(&self, file: &str) -> io::Result<Vec<String>> {
        let asked = ["--associated", file, "--noheadings", "--output", "NAME"];
        let printed = self.run("losetup", &asked.map(str::to_owned)).await?;
        Ok(printed.split_whitespace().map(str::to_owned).collect())
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

    async fn mounted(&self, target: &Path) -> io::Result<Option<(String, String)>> {
        let target = target.to_owned();
        blocking(move || {
            let table = std::fs::read_to_string("/proc/self/mountinfo")?;
            Ok(mounted_in(&table, &target))
        })
        .await
    }

    async fn lengthen(&self, path: &str, bytes: u64) -> io::Result<()> {
        let path = path.to_owned();
        blocking(move || {
            let file = image(&path, OFlags::WRONLY | OFlags::NONBLOCK)?;
            match file.metadata()?.len() < bytes {
                true => file.set_len(bytes),
                false => Ok(()),
            }
        })
        .await
    }
}

/// A file that no link is on the way to.
fn image(path: &str, access: OFlags) -> io::Result<File> {
    let flags = access | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(
        CWD,
        path,
        flags,
        Mode::empty(),
        resolve,
    )?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file")),
    }
}

/// Kind and source of the topmost mount on a directory, from the kernel's table (proc_pid_mountinfo(5)).
fn mounted_in(table: &str, target: &Path) -> Option<(String, String)> {
    let line = table.lines().rev().find(|line| {
        let path = line.split(' ').nth(4).unwrap_or_default();
        Path::new(&unescape(path)) == target
    })?;
    let (_, about) = line.split_once(" - ")?;
    let mut words = about.split(' ').map(unescape);
    Some((words.next()?, words.next()?))
}

/// Blanks, tabs, line feeds and backslashes are written as `\040`, as they are in octal.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let code = match (first, more) {
            (b'\\', [a, b, c, ..]) => std::str::from_utf8(&[*a, *b, *c])
                .ok()
                .and_then(|octal| u8::from_str_radix(octal, 8).ok()),
            _ => None,
        };
        out.push(code.unwrap_or(*first));
        rest = if code.is_some() { &more[3..] } else { more };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_on_a_directory_is_found() {
        let table = "30 1 0:1 / /a rw - ext4 /dev/loop1 rw\n\
                     31 1 0:2 / /a\\040b rw,nosuid shared:1 - xfs /dev/loop2 rw\n\
                     32 1 0:3 / /a rw - tmpfs none rw\n";
        let of = |path: &str| mounted_in(table, Path::new(path));
        let pair = |kind: &str, source: &str| Some((kind.to_owned(), source.to_owned()));
        assert_eq!(of("/a"), pair("tmpfs", "none"));
        assert_eq!(of("/a b"), pair("xfs", "/dev/loop2"));
        assert_eq!(of("/b"), None);
        assert_eq!(unescape("a\\134\\0"), "a\\\\0");
    }
}
