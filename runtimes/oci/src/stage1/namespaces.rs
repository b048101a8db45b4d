//! The namespaces a pod's containers share, made by its supervisor.
//!
//! Without a user namespace of the pod's own the supervisor simply leaves the node's. With one, a child is born into
//! all of them at once, so that the user namespace owns the others; the supervisor follows it into the network, IPC
//! and UTS namespaces, and stays who it is: the node's root, who may still put processes into the pod's cgroups, open
//! its logs and show its volumes with other IDs.
//!
//! ```text
//!  supervisor ── fork(NEWUSER|NEWNET|NEWIPC|NEWUTS[|NEWPID]) ──▶ child: waits
//!      │ uid_map, gid_map; opens /proc/<child>/ns/*; enters
//!      └─ lets it go ──▶ ends, or is process 1 of the pod's shared process namespace
//! ```

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::sched::CloneFlags;
use wherry_runtime_api::{NamespaceMode, PodSandboxConfig, UserNamespace};

use super::named;
use crate::sys;

/// What of the pod's namespaces is held by a descriptor.
pub(crate) struct Namespaces {
    /// The pod's user namespace, if it has one.
    pub(crate) user: Option<OwnedFd>,
    /// The process namespace that the supervisor's children are born in, to come back to.
    pub(crate) pid_for_children: OwnedFd,
}

/// Makes the pod's namespaces, enters them, and sets host name, loopback interface and sysctls.
pub(super) fn make(config: &PodSandboxConfig) -> io::Result<Namespaces> {
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
    let has_pod_init = config.namespaces.pid == NamespaceMode::Pod;
    let user = match &config.user_namespace {
        None => {
            nix::sched::unshare(flags).map_err(named("unshare"))?;
            None
        }
        Some(range) => {
            if has_pod_init {
                flags |= CloneFlags::CLONE_NEWPID;
            }
            Some(enter_owned(range, flags).map_err(named("user namespace"))?)
        }
    };
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
    if has_pod_init && user.is_none() {
        start_pod_init()?;
    }
    let pid_for_children = fs::File::open("/proc/self/ns/pid_for_children")?.into();
    Ok(Namespaces {
        user,
        pid_for_children,
    })
}

/// Makes a user namespace and those it owns, and enters all but the user namespace itself.
fn enter_owned(range: &UserNamespace, flags: CloneFlags) -> io::Result<OwnedFd> {
    let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let child = sys::fork((flags | CloneFlags::CLONE_NEWUSER).bits())?;
    if child == 0 {
        drop(go);
        // End of file is the word to go on; by then there are IDs.
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut [0; 1]));
        if !flags.contains(CloneFlags::CLONE_NEWPID) {
            sys::exit(0);
        }
        let root = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
        let _ = nix::unistd::setgroups(&[]);
        let _ = nix::unistd::setresgid(root.1, root.1, root.1);
        let _ = nix::unistd::setresuid(root.0, root.0, root.0);
        reap_for_ever();
    }
    drop(wait);
    let entered = (|| {
        sys::map_ids(child, range.host_id, range.length)?;
        let open = |kind: &str| fs::File::open(format!("/proc/{child}/ns/{kind}"));
        for (kind, flag) in [
            ("net", CloneFlags::CLONE_NEWNET),
            ("ipc", CloneFlags::CLONE_NEWIPC),
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("pid", CloneFlags::CLONE_NEWPID),
        ] {
            if flags.contains(flag) {
                nix::sched::setns(open(kind)?, flag)?;
            }
        }
        Ok(OwnedFd::from(open("user")?))
    })();
    drop(go);
    if entered.is_err() || !flags.contains(CloneFlags::CLONE_NEWPID) {
        let child = nix::unistd::Pid::from_raw(child);
        let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(child, None);
    }
    entered
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
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    };
    fs::write(Path::new("/proc/sys").join(path), value)
}

/// Starts process 1 of the pod's shared process namespace; this process' later children are born in that namespace.
fn start_pod_init() -> io::Result<()> {
    let pid = sys::fork(libc::CLONE_NEWPID)?;
    if pid == 0 {
        reap_for_ever();
    }
    let namespace = fs::File::open(format!("/proc/{pid}/ns/pid"))?;
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWPID)?;
    Ok(())
}

/// Is process 1: reaps, and nothing else.
fn reap_for_ever() -> ! {
    let _ = sys::keep_only(&[]);
    let _ = sys::die_with_parent();
    // Apps see this process, and may have its user: it is still the supervisor's image.
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
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

/// Forks into a process namespace; later children are born where they were before. 0 is the child.
pub(super) fn fork_into(
    pid_namespace: Option<impl AsFd>,
    home: &OwnedFd,
    namespaces: libc::c_int,
) -> io::Result<i32> {
    let Some(pid_namespace) = pid_namespace else {
        return sys::fork(namespaces);
    };
    nix::sched::setns(pid_namespace, CloneFlags::CLONE_NEWPID)?;
    let forked = sys::fork(namespaces);
    if !matches!(forked, Ok(0)) {
        nix::sched::setns(home, CloneFlags::CLONE_NEWPID)?;
    }
    forked
}
