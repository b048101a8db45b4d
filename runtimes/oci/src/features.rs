//! What this machine lets the runtime offer, found by trying, in a process that does nothing else.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::CloneFlags,
};
use rustix::mount::{OpenTreeFlags, open_tree};
use wherry_runtime_api::{RuntimeFeatures, UserNamespace};

use crate::{stage2::IdMap, sys};

/// How long trying may take; a machine that is slower than this is told to offer nothing.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Any range; its IDs own nothing afterwards.
const RANGE: UserNamespace = UserNamespace {
    host_id: 1_000_000,
    length: 65_536,
};

/// Has the executable try, with `directory` for what it makes. Layers and writable layers are to be on the same file
/// system as that.
pub(crate) async fn find(exe: &Path, directory: &Path) -> RuntimeFeatures {
    let child = tokio::process::Command::new(exe)
        .arg0("wherry")
        .arg("stage1")
        .arg("probe")
        .arg(directory)
        .env_clear()
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(TIMEOUT, child).await {
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let has = |name: &str| text.lines().any(|line| line == name);
            for line in String::from_utf8_lossy(&output.stderr).lines() {
                tracing::info!(reason = line, "Not offered on this node");
            }
            RuntimeFeatures {
                user_namespaces: has("user_namespaces"),
                recursive_readonly_mounts: has("recursive_readonly_mounts"),
            }
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "Features not tried");
            RuntimeFeatures::default()
        }
        Err(_) => {
            tracing::warn!(timeout = ?TIMEOUT, "Features not found out in time");
            RuntimeFeatures::default()
        }
    }
}

/// Tries, and prints the names of what works. Changes the calling process for good.
pub(crate) fn probe(directory: &Path) {
    if let Err(error) = nix::sched::unshare(CloneFlags::CLONE_NEWNS)
        .map_err(io::Error::from)
        .and_then(|()| private(Path::new("/"), MsFlags::MS_REC))
    {
        eprintln!("mount namespace: {error}");
        return;
    }
    match recursive_readonly() {
        Ok(()) => println!("recursive_readonly_mounts"),
        Err(error) => eprintln!("recursive read-only mounts: {error}"),
    }
    match user_namespaces(directory) {
        Ok(()) => println!("user_namespaces"),
        Err(error) => eprintln!("user namespaces: {error}"),
    }
}

fn private(at: &Path, more: MsFlags) -> io::Result<()> {
    const NONE: Option<&str> = None;
    Ok(mount(NONE, at, NONE, MsFlags::MS_PRIVATE | more, NONE)?)
}

fn recursive_readonly() -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(rustix::fs::CWD, "/proc", flags)?;
    let attributes = sys::MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    sys::mount_setattr(tree.as_fd(), true, attributes)
}

/// A root file system as a container in a user namespace has it: a layer whose root belongs to the pod's.
fn user_namespaces(directory: &Path) -> io::Result<()> {
    let place = directory.join(format!("probe-{}", std::process::id()));
    let result = try_user_namespace(&place);
    // Mounts on it are seen by this process alone.
    let _ = nix::mount::umount2(&place.join("layer"), nix::mount::MntFlags::MNT_DETACH);
    let _ = nix::mount::umount2(&place.join("root"), nix::mount::MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(&place);
    result
}

fn try_user_namespace(place: &Path) -> io::Result<()> {
    for name in ["layer", "upper", "work", "root"] {
        fs::create_dir_all(place.join(name))?;
    }
    fs::write(place.join("layer/file"), "")?;
    let namespace = make_user_namespace()?;
    let ids = IdMap::new(&namespace, RANGE);
    ids.cover(&place.join("layer"))
        .map_err(|failure| io::Error::other(failure.to_string()))?;
    let at = |name: &str| place.join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("layer"),
        at("upper"),
        at("work")
    );
    mount(
        Some("overlay"),
        &place.join("root"),
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?;
    match fs::metadata(place.join("root/file"))?.uid() {
        uid if uid == RANGE.host_id => Ok(()),
        uid => Err(io::Error::other(format!(
            "overlay shows user {uid} where {} is meant",
            RANGE.host_id
        ))),
    }
}

fn make_user_namespace() -> io::Result<OwnedFd> {
    let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let child = sys::fork(libc::CLONE_NEWUSER)?;
    if child == 0 {
        drop(go);
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut [0; 1]));
        sys::exit(0);
    }
    let made = sys::map_ids(child, RANGE.host_id, RANGE.length)
        .and_then(|()| fs::File::open(format!("/proc/{child}/ns/user")));
    drop(go);
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None);
    Ok(made?.into())
}
