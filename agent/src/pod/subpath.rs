//! Sub-paths of volumes, so that no workload can make one lead out of its volume.
//!
//! A path below a volume belongs to whoever writes there, and may be swapped for a link between the
//! look at it and its mount. So it is opened once, held within the volume by the kernel, and what was
//! opened is bound below the pod's own directory, where nobody else writes:
//! `<pod>/volumes/wherry.dev~subpaths/<container>/<attempt>/<index of the mount>`. Runtimes are shown that.
//! It is among the pod's volumes because those are taken down without ever entering what is mounted.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, mkdirat},
};

const DIR: &str = "volumes/wherry.dev~subpaths";

/// Where the sub-paths of an attempt are bound.
fn attempt_dir(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir.join(DIR).join(container).join(attempt.to_string())
}

/// Binds `sub` of `volume` and answers where it is; what is not there is made as a directory.
/// Repeatable: what is bound there already goes first.
///
/// # Errors
/// It leads out of the volume, or cannot be made.
pub(crate) fn bind(
    pod_dir: &Path,
    (container, attempt, index): (&str, u32, usize),
    volume: &Path,
    sub: &Path,
) -> io::Result<PathBuf> {
    let source = open_beneath(volume, sub)?;
    let target = attempt_dir(pod_dir, container, attempt).join(index.to_string());
    take_off(&target)?;
    let held = format!("/proc/self/fd/{}", source.as_raw_fd());
    if fs::metadata(&held)?.is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        fs::create_dir_all(target.parent().unwrap_or(pod_dir))?;
        fs::write(&target, [])?;
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(
        Some(held.as_str()),
        &target,
        None::<&str>,
        flags,
        None::<&str>,
    )?;
    Ok(target)
}

/// Opens a path below `volume` without leaving it, making directories that are missing. Links that
/// stay within are followed, as a ConfigMap's are.
fn open_beneath(volume: &Path, sub: &Path) -> io::Result<OwnedFd> {
    let leaves = || {
        io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "subpath \"{}\" not within volume path \"{}\"",
                volume.join(sub).display(),
                volume.display()
            ),
        )
    };
    let told = |error: Errno| match error {
        Errno::EXDEV | Errno::ELOOP => leaves(),
        error => error.into(),
    };
    let mut parts = Vec::new();
    for part in sub.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(leaves());
            }
        }
    }
    let root = open(
        volume,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let whole: PathBuf = if parts.is_empty() {
        ".".into()
    } else {
        parts.iter().collect()
    };
    match openat2(&root, &whole, how) {
        Ok(found) => return Ok(found),
        Err(Errno::ENOENT) => {}
        Err(error) => return Err(told(error)),
    }
    // As the kubelet does: made with the volume's own mode.
    let mode = Mode::from_bits_truncate(nix::sys::stat::fstat(&root)?.st_mode & Mode::all().bits());
    make_beneath(root, &parts, how, mode).map_err(told)
}

/// Walks down, making directories that are missing. Every step stays beneath the one before, so a
/// link leads on only within the directory it is in.
fn make_beneath(
    root: OwnedFd,
    parts: &[&OsStr],
    how: OpenHow,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let mut at = root;
    for part in parts {
        at = match openat2(&at, *part, how) {
            Ok(found) => found,
            Err(Errno::ENOENT) => match mkdirat(&at, *part, mode) {
                Ok(()) => {
                    let made = openat2(&at, *part, how)?;
                    // The process's umask took bits away; by descriptor, as it may be swapped already.
                    let path = format!("/proc/self/fd/{}", made.as_raw_fd());
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode.bits())).map_err(
                        |error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)),
                    )?;
                    made
                }
                Err(Errno::EEXIST) => openat2(&at, *part, how)?,
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        };
    }
    Ok(at)
}

/// Unmounts and removes one place. Gone already: `Ok`.
fn take_off(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Bound more than once, by an agent that was killed in between.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    // A directory that is not empty is still somebody's: never removed with what is in it.
    let removed = match fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(error) => Err(error),
    };
    gone(removed)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes back what was bound for one attempt. Nothing there: `Ok`.
pub(crate) fn release_attempt(pod_dir: &Path, container: &str, attempt: u32) -> io::Result<()> {
    release_dir(&attempt_dir(pod_dir, container, attempt))
}

/// Takes back everything of a pod. Nothing there: `Ok`.
pub(crate) fn release_pod(pod_dir: &Path) -> io::Result<()> {
    let dir = pod_dir.join(DIR);
    for container in entries(&dir)? {
        for attempt in entries(&container)? {
            release_dir(&attempt)?;
        }
        gone(fs::remove_dir(&container))?;
    }
    gone(fs::remove_dir(&dir))
}

fn release_dir(dir: &Path) -> io::Result<()> {
    for target in entries(dir)? {
        take_off(&target)?;
    }
    gone(fs::remove_dir(dir))
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Place {
        root: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a temporary directory");
            for dir in ["volume", "outside", "pod"] {
                fs::create_dir(root.path().join(dir)).expect("writable");
            }
            Self { root }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn bind(&self, index: usize, sub: &str) -> io::Result<PathBuf> {
            let volume = self.path("volume");
            bind(&self.path("pod"), ("c", 0, index), &volume, Path::new(sub))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            release_pod(&self.path("pod")).expect("unmounted before it is removed");
        }
    }

    #[test]
    fn a_sub_path_is_made_shown_and_taken_back_without_its_content() {
        let place = Place::new();
        let volume = place.path("volume");
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2770)).expect("ours");
        let shown = place.bind(0, "a/b").expect("below the volume");
        fs::write(shown.join("x"), "y").expect("writable");
        assert_eq!(fs::read(volume.join("a/b/x")).expect("there"), b"y");
        let mode = fs::metadata(volume.join("a/b"))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o2770, "as the volume is");
        // Again, as a restarted agent does.
        assert_eq!(place.bind(0, "a/b").expect("again"), shown);
        release_attempt(&place.path("pod"), "c", 0).expect("unmounted");
        assert!(!shown.exists());
        assert_eq!(fs::read(volume.join("a/b/x")).expect("there"), b"y");
    }

    #[test]
    fn a_link_out_of_the_volume_is_refused_and_one_within_is_followed() {
        let place = Place::new();
        let (volume, outside) = (place.path("volume"), place.path("outside"));
        symlink(&outside, volume.join("absolute")).expect("writable");
        symlink("../outside", volume.join("relative")).expect("writable");
        fs::create_dir(volume.join("..data")).expect("writable");
        fs::write(volume.join("..data/key"), "value").expect("writable");
        symlink("..data/key", volume.join("key")).expect("writable");
        for (index, sub) in [
            "absolute",
            "relative",
            "absolute/new",
            "relative/new",
            "../outside",
        ]
        .into_iter()
        .enumerate()
        {
            let error = place.bind(index, sub).expect_err(sub).to_string();
            assert!(error.contains("not within volume path"), "{sub}: {error}");
        }
        assert!(!outside.join("new").exists());
        let shown = place.bind(9, "key").expect("stays within");
        assert_eq!(fs::read(shown).expect("bound"), b"value");
    }

    #[test]
    fn what_is_shown_stays_what_was_opened() {
        let place = Place::new();
        let volume = place.path("volume");
        fs::write(place.path("outside").join("secret"), "s").expect("writable");
        let shown = place.bind(0, "dir").expect("made");
        fs::remove_dir(volume.join("dir")).expect("empty");
        symlink("../outside", volume.join("dir")).expect("writable");
        assert!(!shown.join("secret").exists());
    }
}
