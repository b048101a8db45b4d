//! Becoming a worker: from root with a socket as stdin to a process that can do little.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid, chdir, chroot, setgid, setgroups, setsid, setuid},
};

fn subject(what: &str) -> impl FnOnce(nix::Error) -> io::Error + '_ {
    move |error| io::Error::new(io::Error::from(error).kind(), format!("{what}: {error}"))
}

/// Leaves the agent's session, so that a signal to its terminal does not reach us.
pub fn leave_session() {
    // Fails only where we lead a session already.
    let _ = setsid();
}

/// Enters a network namespace.
pub(crate) fn enter_network_namespace(namespace: &OwnedFd) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(subject("enter network namespace"))
}

/// Enters cgroups by their `cgroup.procs`; one that is gone costs accounting and nothing else.
pub(crate) fn enter_cgroups(procs: &[std::path::PathBuf]) {
    for path in procs {
        let _ = std::fs::write(path, "0");
    }
}

/// Gives up files, user, and the way back. Without privilege to begin with, keeps what it is.
///
/// `keep` is what is left: a worker binds low ports for its pods, as any pod may on its own address.
pub fn give_up_privileges(jail: &Path, uid: u32, gid: u32, keep: &[Capability]) -> io::Result<()> {
    let limit = |kind| {
        let _ = nix::sys::resource::setrlimit(kind, 0, 0);
    };
    limit(nix::sys::resource::Resource::RLIMIT_CORE);
    if let Ok((_, hard)) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
    {
        let _ =
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard);
    }
    if Uid::effective().is_root() {
        // Later opens are of files below descriptors; the jail has no files of anybody's.
        chroot(jail).map_err(subject("enter jail"))?;
        chdir("/").map_err(subject("enter jail"))?;
        setgroups(&[]).map_err(subject("drop groups"))?;
        setgid(Gid::from_raw(gid)).map_err(subject("become group"))?;
        // Changing the user then clears what is effective, and not what is permitted.
        caps::securebits::set_keepcaps(true).map_err(io::Error::other)?;
        setuid(Uid::from_raw(uid)).map_err(subject("become user"))?;
    }
    let keep: CapsHashSet = keep
        .iter()
        .copied()
        .filter(|one| caps::has_cap(None, CapSet::Permitted, *one).unwrap_or(false))
        .collect();
    for set in [CapSet::Effective, CapSet::Inheritable] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    caps::set(None, CapSet::Permitted, &keep).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, &keep).map_err(io::Error::other)?;
    nix::sys::prctl::set_no_new_privs().map_err(subject("set no_new_privs"))
}

/// Becomes the holder of a user namespace, which the agent configures and opens: no work, no
/// privilege in the namespaces outside, gone when stdin ends.
pub(crate) fn hold_user_namespace() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(subject("make user namespace"))?;
    let stdin = io::stdin();
    wherry_wasm_aot::wire::send_blocking(stdin.as_fd(), &(), &[])?;
    let _ = wherry_wasm_aot::wire::receive_blocking::<()>(stdin.as_fd());
    Ok(())
}
