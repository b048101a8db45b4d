//! hostPath: something of the node, checked before a pod gets it.

use std::{
    fs::{self, DirBuilder, FileType, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
    path::{Component, Path},
};

use crate::{
    SetUpError,
    ownership::{self, Access},
};

/// Checks `path` by the volume's `type`, making what the type says may be made.
///
/// Without a type nothing is checked, and a path that is not there becomes a directory, as CRI
/// runtimes do it.
///
/// # Errors
/// In the kubelet's words: `hostPath type check failed: /x is not a directory`.
pub(crate) fn set_up(path: &Path, type_: &str) -> Result<(), SetUpError> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(SetUpError::Invalid(format!(
            "{}: must not contain '..'",
            path.display()
        )));
    }
    let found = match fs::metadata(path) {
        Ok(found) => Some(found.file_type()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            None
        }
        Err(error) => return Err(SetUpError::io(path.display().to_string())(error)),
    };
    let check = |is_it: fn(&FileType) -> bool, what: &str| match &found {
        Some(type_) if is_it(type_) => Ok(()),
        _ => Err(SetUpError::Invalid(format!(
            "hostPath type check failed: {} is not {what}",
            path.display()
        ))),
    };
    match (type_, &found) {
        ("", Some(_)) => Ok(()),
        ("" | "DirectoryOrCreate", None) => make_dir(path),
        ("FileOrCreate", None) => make_file(path),
        ("Directory" | "DirectoryOrCreate", _) => check(FileType::is_dir, "a directory"),
        ("File" | "FileOrCreate", _) => check(FileType::is_file, "a file"),
        ("Socket", _) => check(FileType::is_socket, "a socket file"),
        ("CharDevice", _) => check(FileType::is_char_device, "a character device"),
        ("BlockDevice", _) => check(FileType::is_block_device, "a block device"),
        (other, _) => Err(SetUpError::Invalid(format!(
            "{other} is an invalid volume type"
        ))),
    }
}

/// Checks the directory that a `local` PersistentVolume names, and gives it to the pod's group.
///
/// # Errors
/// It is not there, or no directory.
pub(crate) fn set_up_local(path: &Path, fs_group: Option<u32>) -> Result<(), SetUpError> {
    if !path.exists() {
        let why = format!("path \"{}\" does not exist", path.display());
        return Err(SetUpError::NotFound(why));
    }
    set_up(path, "Directory")?;
    match fs_group {
        Some(group) => ownership::give_to_group(path, group, Access::ReadWrite)
            .map_err(SetUpError::io(path.display().to_string())),
        None => Ok(()),
    }
}

fn make_dir(path: &Path) -> Result<(), SetUpError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(SetUpError::io(format!("mkdir {}", path.display())))
}

fn make_file(path: &Path) -> Result<(), SetUpError> {
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path);
    made.map(drop)
        .map_err(SetUpError::io(format!("open {}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn each_type_takes_what_it_names_and_says_what_it_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let null = Path::new("/dev/null").to_path_buf();
        for (path, type_, want) in [
            (at("."), "", None),
            (at("file"), "", None),
            (at("."), "Directory", None),
            (at("file"), "Directory", Some("a directory")),
            (at("gone"), "Directory", Some("a directory")),
            (at("file"), "DirectoryOrCreate", Some("a directory")),
            (at("file"), "File", None),
            (at("."), "File", Some("a file")),
            (at("."), "FileOrCreate", Some("a file")),
            (at("socket"), "Socket", None),
            (at("file"), "Socket", Some("a socket file")),
            (null.clone(), "CharDevice", None),
            (null.clone(), "BlockDevice", Some("a block device")),
            (at("gone"), "CharDevice", Some("a character device")),
        ] {
            let want = want.map(|what| {
                format!(
                    "hostPath type check failed: {} is not {what}",
                    path.display()
                )
            });
            assert_eq!(
                set_up(&path, type_).err().map(|error| error.to_string()),
                want,
                "{type_}"
            );
        }
        assert_eq!(
            set_up(&null, "Floppy").unwrap_err().to_string(),
            "Floppy is an invalid volume type"
        );
        assert!(set_up(&at("x/../y"), "").is_err());
    }

    #[test]
    fn what_may_be_created_is() {
        let dir = tempfile::tempdir().unwrap();
        for (path, type_) in [("a/b", ""), ("c/d", "DirectoryOrCreate")] {
            set_up(&dir.path().join(path), type_).unwrap();
            assert!(dir.path().join(path).is_dir());
        }
        set_up(&dir.path().join("f"), "FileOrCreate").unwrap();
        assert!(dir.path().join("f").is_file());
        assert!(set_up(&dir.path().join("no/parent"), "FileOrCreate").is_err());
    }
}
