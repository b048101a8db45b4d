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
mod namespaces;
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

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use wherry_cgroup::Cgroups;
use wherry_runtime_api::NamespaceMode;

use crate::{
    bundle::{self, SandboxFile},
    shm::SharedMemory,
    sys,
};
use namespaces::Namespaces;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Kubelet's value for pause containers: the last to be killed for want of memory.
const OOM_SCORE_ADJ: &str = "-998";

/// Runs a supervisor: `wherry stage1 <sandbox directory> <pod's run directory>`.
///
/// Standard input is the pod's lock file, locked; standard output takes `ready` or what went wrong,
/// standard error is its log. Answers when the sandbox has been shut down.
///
/// `wherry stage1 probe <directory>` prints what this machine offers, a name per line, and ends.
pub fn main(args: Vec<OsString>) -> ExitCode {
    if let [word, directory] = args.as_slice()
        && word == "probe"
    {
        crate::features::probe(Path::new(directory));
        return ExitCode::SUCCESS;
    }
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
    /// `/dev/shm` of the pod.
    pub(super) shm: Option<SharedMemory>,
    /// The namespaces of the pod that descriptors hold.
    pub(super) namespaces: Namespaces,
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
    let owner = config.user_namespace.map_or(0, |range| range.host_id);
    let shm = (config.namespaces.ipc != NamespaceMode::Node)
        .then(|| SharedMemory::make(owner))
        .transpose()
        .map_err(named("/dev/shm"))?;
    let namespaces = namespaces::make(&config)?;
    let listener = listen(run_directory)?;
    Ok(Parts {
        listener,
        children,
        _lock: lock,
        cgroups,
        cgroup_parent: config.cgroup_parent,
        shm,
        namespaces,
    })
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
