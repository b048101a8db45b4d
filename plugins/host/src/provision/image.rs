//! Images of volumes on the node's disk: which may be made and removed, and doing it.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::{
    Grants, VolumeError,
    mounter::{NodeSystem, System},
};

/// Longest path of an image's directory.
const DIRECTORY_BYTES_MAX: usize = 1024;
/// Largest image.
const IMAGE_BYTES_MAX: u64 = 1 << 50;

/// An image that may be made and removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    directory: PathBuf,
    name: String,
}

impl Image {
    fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }
}

/// Checks the directory that a guest names, for the image of a volume. Pure.
pub(crate) fn check(grants: &Grants, directory: &str, volume: &str) -> Result<Image, VolumeError> {
    let invalid = |why: String| Err(VolumeError::InvalidAttributes(why));
    let is_plain = |part: &str| !matches!(part, "" | "." | "..");
    let is_path = directory.len() <= DIRECTORY_BYTES_MAX
        && directory
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(is_plain))
        && !directory.chars().any(char::is_control);
    if !is_path {
        let shown = &directory[..directory.floor_char_boundary(64)];
        return invalid(format!(
            "directory {shown:?}: not an absolute path without .."
        ));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if volume.is_empty() || volume.starts_with('.') || !volume.bytes().all(is_name) {
        return invalid(format!("volume {volume:?}: no name of a file"));
    }
    let image = Image {
        directory: directory.into(),
        name: format!("{volume}.img"),
    };
    let path = format!("{directory}/{}", image.name);
    match grants.allows_device("image", &path) {
        true => Ok(image),
        false => Err(VolumeError::Denied(format!(
            "image:{path} needs the grant devices"
        ))),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(VolumeError::Other(error.to_string())))
}

/// An error of the disk's, in words that say what can be done.
fn said(path: &Path, error: &io::Error) -> VolumeError {
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge => VolumeError::NoSpace(text),
        _ if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            VolumeError::InvalidAttributes(format!("{}: a link is on the way", path.display()))
        }
        io::ErrorKind::NotADirectory => VolumeError::InvalidAttributes(text),
        _ => VolumeError::Unavailable(text),
    }
}

/// Opens a directory to which no link leads, and makes what is missing of it where that is asked for.
fn directory(path: &Path, make: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let no_links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |from: &OwnedFd, part: &Path| {
        rustix::fs::openat2(from, part, flags, Mode::empty(), no_links)
    };
    let mut at = rustix::fs::openat(CWD, "/", flags, Mode::empty())?;
    for part in path.components() {
        let Component::Normal(part) = part else {
            continue;
        };
        let part = Path::new(part);
        at = match open(&at, part) {
            Err(Errno::NOENT) if make => {
                match rustix::fs::mkdirat(&at, part, Mode::from(0o700)) {
                    Err(Errno::EXIST) | Ok(()) => {}
                    Err(error) => return Err(error.into()),
                }
                open(&at, part)?
            }
            opened => opened?,
        };
    }
    Ok(at)
}

/// Makes an image at least so long, and answers its path.
pub(crate) async fn make(image: Image, bytes: u64) -> Result<String, VolumeError> {
    blocking(move || {
        let path = image.path();
        if bytes > IMAGE_BYTES_MAX {
            let why = format!("{}: no image has {bytes} bytes", path.display());
            return Err(VolumeError::NoSpace(why));
        }
        match lengthened(&image, bytes) {
            Ok(None) => Ok(path.to_string_lossy().into_owned()),
            Ok(Some(free)) => Err(VolumeError::NoSpace(format!(
                "{}: the disk has {free} bytes left of the {bytes} that are wanted",
                path.display()
            ))),
            Err(error) => Err(said(&path, &error)),
        }
    })
    .await
}

/// Makes an image at least so long; answers the bytes that are free where they are too few.
fn lengthened(image: &Image, bytes: u64) -> io::Result<Option<u64>> {
    let directory = directory(&image.directory, true)?;
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, &image.name, flags, Mode::from(0o600))?;
    let file = File::from(file);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    if found.len() < bytes {
        let disk = rustix::fs::fstatvfs(&file)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < bytes - found.len() {
            if found.len() == 0 {
                rustix::fs::unlinkat(&directory, &image.name, AtFlags::empty())?;
            }
            return Ok(Some(free));
        }
        file.set_len(bytes)?;
    }
    file.sync_all()?;
    // The directory itself cannot be synced by a descriptor that only names it.
    let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = rustix::fs::openat(&directory, ".", readable, Mode::empty())?;
    File::from(readable).sync_all()?;
    Ok(None)
}

/// Removes an image, should it not be attached.
pub(crate) async fn remove(image: Image) -> Result<(), VolumeError> {
    let path = image.path();
    let io = |error: io::Error| said(&path, &error);
    if !path.try_exists().map_err(io)? {
        return Ok(());
    }
    let devices = NodeSystem.loops_of(&path.to_string_lossy()).await;
    if let Some(device) = devices.map_err(io)?.first() {
        return Err(VolumeError::Unavailable(format!(
            "{}: attached as {device}",
            path.display()
        )));
    }
    blocking(move || {
        let path = image.path();
        let io = |error: io::Error| said(&path, &error);
        let directory = directory(&image.directory, false).map_err(io)?;
        match rustix::fs::unlinkat(&directory, &image.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(io(error.into())),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn grants(pattern: &str) -> Grants {
        Grants {
            devices: vec![pattern.into()],
            ..Grants::default()
        }
    }

    #[test]
    fn only_the_volumes_own_image_in_a_granted_directory_may_be_touched() {
        let granted = grants("image:/srv/images/*");
        let image = check(&granted, "/srv/images", "pvc-1").unwrap();
        assert_eq!(image.path(), Path::new("/srv/images/pvc-1.img"));
        assert!(check(&granted, "/srv/images/fast", "pvc-1").is_ok());
        for (directory, volume) in [
            ("", "v"),
            ("/", "v"),
            ("srv/images", "v"),
            ("/srv/images/", "v"),
            ("/srv/images/../../etc", "v"),
            ("/srv/./images", "v"),
            ("/srv/images/a\nb", "v"),
            ("/srv/images", ""),
            ("/srv/images", "../etc/passwd"),
            ("/srv/images", "a/b"),
            ("/srv/images", ".."),
        ] {
            let refused = check(&granted, directory, volume);
            assert!(
                matches!(refused, Err(VolumeError::InvalidAttributes(_))),
                "{directory} {volume}: {refused:?}"
            );
        }
        let long = format!("/srv/images/{}", "x".repeat(10 << 20));
        let refused = check(&granted, &long, "v").unwrap_err().to_string();
        assert!(refused.len() < 200, "{refused}");
        // What may be attached may not be made by that, nor the other way round.
        for other in [
            "loop:/srv/images/*",
            "image:/srv/images",
            "image:/srv/other/*",
        ] {
            let denied = check(&grants(other), "/srv/images", "v");
            assert!(matches!(denied, Err(VolumeError::Denied(_))), "{other}");
        }
    }

    #[tokio::test]
    async fn an_image_is_made_kept_lengthened_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let granted = grants(&format!("image:{}/*", root.display()));
        let below = |name: &str| root.join(name).to_str().unwrap().to_owned();
        let image = check(&granted, &below("new/images"), "pvc-1").unwrap();
        remove(image.clone()).await.unwrap();
        let path = make(image.clone(), 1 << 20).await.unwrap();
        assert_eq!(Path::new(&path), root.join("new/images/pvc-1.img"));
        std::fs::write(&path, "kept").unwrap();
        for _ in 0..2 {
            make(image.clone(), 2 << 20).await.unwrap();
        }
        make(image.clone(), 1 << 20).await.unwrap();
        let kept = std::fs::read(&path).unwrap();
        assert!(kept.len() == 2 << 20 && kept.starts_with(b"kept"));
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.mode() & 0o777, 0o600);
        assert!(
            found.blocks() * 512 < 1 << 20,
            "it takes space as it is used"
        );

        // More than there is.
        let full = make(image.clone(), 1 << 49).await;
        assert!(matches!(full, Err(VolumeError::NoSpace(_))), "{full:?}");
        let other = check(&granted, &below("new/images"), "pvc-2").unwrap();
        let full = make(other.clone(), 1 << 49).await;
        assert!(matches!(full, Err(VolumeError::NoSpace(_))), "{full:?}");
        assert!(!other.path().exists());
        for _ in 0..2 {
            remove(image.clone()).await.unwrap();
        }
        assert!(!Path::new(&path).exists());

        // Links lead nowhere.
        let outside = root.join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("pvc-1.img"), "theirs").unwrap();
        symlink(&outside, root.join("link")).unwrap();
        let linked = check(&granted, &below("link"), "pvc-1").unwrap();
        for refused in [
            make(linked.clone(), 1).await.map(drop),
            remove(linked).await,
        ] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("a link is on the way"), "{refused}");
        }
        symlink(outside.join("pvc-1.img"), root.join("new/images/pvc-1.img")).unwrap();
        assert!(make(image.clone(), 1 << 20).await.is_err());
        remove(image).await.unwrap();
        let theirs = std::fs::read(outside.join("pvc-1.img")).unwrap();
        assert_eq!(theirs, b"theirs");
    }
}
