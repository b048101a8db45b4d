//! Stage 1: one small supervisor per pod.
//!
//! It makes the sandbox's namespaces and holds them, has the pod's containers as its children, copies
//! their output to log files, serves exec and attach on the pod's socket, and records every exit on disk
//! before it reports it. It lives as long as the sandbox, whatever becomes of the agent.
//!
//! One thread and `poll`, no async runtime: its private memory is a budget (1.5 MB). The big code, reading
//! specs and building root file systems, runs in forked children and goes away with them.
//!
//! ```text
//!  stage 0 ── lock, ready, log ──▶ main: namespaces, hostname, loopback, sysctls ─▶ socket ─▶ "ready"
//!                                     └─▶ supervisor::run ── fork ──▶ stage 2 (create, start, exec)
//! ```

mod log;
mod supervisor;

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    process::ExitCode,
};

use nix::sched::CloneFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use wherry_cgroup::Cgroups;
use wherry_runtime_api::{NamespaceMode, PodSandboxConfig};

use crate::{
    bundle::{self, SandboxFile},
    sys,
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Kubelet's value for pause containers: the last to be killed for want of memory.
const OOM_SCORE_ADJ: &str = "-998";
/// `/dev/shm` of a pod, as in Docker and containerd.
const SHM_SIZE: &str = "64m";

/// Runs a supervisor: `wherry stage1 <sandbox directory> <pod's run directory>`.
///
/// Standard input is the pod's lock file, locked; standard output takes `ready` or what went wrong,
/// standard error is its log. Answers when the sandbox has been shut down.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let [sandbox_directory, run_directory] = args.as_slice() else {
        eprintln!("usage: wherry stage1 <sandbox directory> <run directory>");
        return ExitCode::from(2);
    };
    let (lock, mut ready) = match take_standard_descriptors() {
        Ok(taken) => taken,
        Err(error) => {
            eprintln!("standard descriptors: {error}");
            return ExitCode::FAILURE;
        }
    };
    match start(Path::new(sandbox_directory), Path::new(run_directory), lock) {
        Ok(parts) => {
            let _ = ready.write_all(b"ready");
            drop(ready);
            join_pod_cgroup(&parts);
            sys::trim_memory();
            supervisor::run(parts);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            let _ = ready.write_all(error.to_string().as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Takes the lock and the way back to the agent out of where children would inherit them.
fn take_standard_descriptors() -> io::Result<(OwnedFd, fs::File)> {
    sys::close_others()?;
    let (lock, ready) = (sys::take_fd(0)?, sys::take_fd(1)?);
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    sys::replace_fd(null.as_fd(), 0)?;
    sys::replace_fd(null.as_fd(), 1)?;
    Ok((lock, ready.into()))
}

/// What a supervisor works with.
pub(super) struct Parts {
    pub(super) listener: OwnedFd,
    pub(super) children: OwnedFd,
    /// Held, and so locked, as long as the process lives.
    pub(super) _lock: OwnedFd,

    pub(super) cgroups: Cgroups,
    pub(super) cgroup_parent: String,
    /// `/dev/shm` of the pod, attached nowhere.
    pub(super) shm: Option<OwnedFd>,
    /// This process' own process namespace, to come back to after an exec.
    pub(super) own_pid_namespace: OwnedFd,
}

fn start(sandbox_directory: &Path, run_directory: &Path, lock: OwnedFd) -> io::Result<Parts> {
    // A session of its own: no terminal's signals reach it.
    let _ = nix::unistd::setsid();
    sys::set_process_name(c"wherry-stage1");
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)?;
    // CAP_SYS_RESOURCE may be missing, and then the pod's supervisor is as killable as any process.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    let children = sys::child_signals()?;
    nix::unistd::chdir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));

    let SandboxFile { config, .. } = bundle::read(&sandbox_directory.join("sandbox.json"))?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "sandbox.json is gone"))?;
    let cgroups = Cgroups::detect()?;
    make_namespaces(&config)?;
    let shm = (config.namespaces.ipc != NamespaceMode::Node)
        .then(shared_memory)
        .transpose()?;
    let own_pid_namespace = OwnedFd::from(fs::File::open("/proc/self/ns/pid")?);
    if config.namespaces.pid == NamespaceMode::Pod {
        start_pod_init()?;
    }
    let listener = listen(run_directory)?;
    Ok(Parts {
        listener,
        children,
        _lock: lock,
        cgroups,
        cgroup_parent: config.cgroup_parent,
        shm,
        own_pid_namespace,
    })
}

fn make_namespaces(config: &PodSandboxConfig) -> io::Result<()> {
    let mut flags = CloneFlags::empty();
    if config.namespaces.network != NamespaceMode::Node {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if config.namespaces.ipc != NamespaceMode::Node {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    if config.hostname.is_some() {
        flags |= CloneFlags::CLONE_NEWUTS;
    }
    nix::sched::unshare(flags).map_err(named("unshare"))?;
    if let Some(hostname) = &config.hostname {
        nix::unistd::sethostname(hostname).map_err(named(format!("hostname {hostname}")))?;
    }
    if flags.contains(CloneFlags::CLONE_NEWNET) {
        sys::loopback_up().map_err(named("loopback interface"))?;
        // As containerd and Docker do: ports below 1024 and ping need no capability in a pod.
        for (name, value) in [
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
        ] {
            let _ = set_sysctl(name, value);
        }
    }
    for (name, value) in &config.sysctls {
        set_sysctl(name, value).map_err(named(format!("sysctl {name}={value}")))?;
    }
    Ok(())
}

fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    if name.split(['.', '/']).any(|part| part.is_empty()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Slashes may stand for dots, and then dots for slashes (sysctl(8)).
    let path = match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => name.to_owned(),
        _ => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    fs::write(Path::new("/proc/sys").join(path), value)
}

/// A file system for the pod's `/dev/shm` that is mounted nowhere: containers get clones of it, and it
/// is gone with the last descriptor, however the supervisor ends.
fn shared_memory() -> io::Result<OwnedFd> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    };
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "size", SHM_SIZE)?;
    fsconfig_set_string(&context, "mode", "1777")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Starts process 1 of the pod's shared process namespace. It reaps, and nothing else; this process'
/// later children are born in that namespace.
fn start_pod_init() -> io::Result<()> {
    let pid = sys::fork(libc::CLONE_NEWPID)?;
    if pid == 0 {
        let _ = sys::keep_only(&[]);
        let _ = sys::die_with_parent();
        sys::set_process_name(c"pause");
        loop {
            // No process is left to wait for most of the time, and SIGCHLD is blocked: take it when it comes.
            let mut set = nix::sys::signal::SigSet::empty();
            set.add(nix::sys::signal::Signal::SIGCHLD);
            let _ = set.wait();
            while nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
                .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
            {}
        }
    }
    let namespace = fs::File::open(format!("/proc/{pid}/ns/pid"))?;
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWPID)?;
    Ok(())
}

fn listen(run_directory: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // A path of any length: addresses hold 108 bytes.
    let directory = fs::File::open(run_directory)?;
    let path = format!("/proc/self/fd/{}/sock", directory.as_raw_fd());
    rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_str())?)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Counts the supervisor to its pod. Done after `ready`: the kernel takes milliseconds over it.
fn join_pod_cgroup(parts: &Parts) {
    let group = parts
        .cgroups
        .group(&format!("{}/wherry-stage1", parts.cgroup_parent));
    if let Err(error) = group.create().and_then(|()| group.join()) {
        eprintln!("cgroup: {error}");
    }
}

fn named<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> io::Error {
    let what = what.into();
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{what}: {error}"))
    }
}
