//! Files that change all at once, in the layout of Kubernetes' atomic writer.
//!
//! ```text
//!  <volume>/key        ─▶ ..data/key
//!  <volume>/..data     ─▶ ..2026_11_20_12_00_00.a1b2c3   (renamed over: the one moment of change)
//!  <volume>/..2026_…/key
//! ```
//!
//! A reader that opens `..data` once sees one version whole. A write that was cut short leaves a
//! directory nobody points to, and the next one removes it.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink},
    path::{Path, PathBuf},
};

use jiff::Zoned;
use tempfile::TempDir;

use crate::{
    mounts,
    ownership::{self, Access},
    payload::{self, Payload},
};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
const DIR_MODE: u32 = 0o755;

/// Whether a payload has been written here before.
pub(crate) fn is_written(volume: &Path) -> bool {
    volume.join(DATA).is_dir()
}

/// Makes a volume hold exactly `payload`. Repeatable; answers whether anything changed.
pub(crate) fn write(volume: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<bool> {
    let current = current(volume)?;
    let changed = match &current {
        Some(current) => !holds(&volume.join(current), payload, fs_group)?,
        None => true,
    };
    let shown = if changed {
        publish(volume, payload, fs_group)?
    } else {
        current.unwrap_or_default()
    };
    link_names(volume, &names(payload))?;
    remove_strays(volume, &shown)?;
    Ok(changed)
}

/// The directory that `..data` points to.
fn current(volume: &Path) -> io::Result<Option<PathBuf>> {
    match fs::read_link(volume.join(DATA)) {
        Ok(target) if target.components().count() == 1 && volume.join(&target).is_dir() => {
            Ok(Some(target))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a version on disk is what `payload` asks for: the same files, bytes, modes and owners.
fn holds(version: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    list(version, version, &mut found)?;
    if !found
        .iter()
        .map(String::as_str)
        .eq(payload.keys().map(String::as_str))
    {
        return Ok(false);
    }
    for (path, file) in payload {
        let path = version.join(path);
        let metadata = fs::symlink_metadata(&path)?;
        let mode = if fs_group.is_some() {
            ownership::read_only_bits(file.mode)
        } else {
            file.mode
        };
        let is_same = metadata.is_file()
            && metadata.mode() & 0o7777 == mode
            && metadata.uid() == file.uid.unwrap_or(metadata.uid())
            && metadata.gid() == fs_group.unwrap_or(metadata.gid())
            && metadata.len() == file.data.len() as u64
            && fs::read(&path)? == file.data;
        if !is_same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn list(root: &Path, dir: &Path, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(root, &entry.path(), found)?;
        } else {
            let path = entry.path();
            found.insert(
                path.strip_prefix(root)
                    .unwrap_or(&path)
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    Ok(())
}

/// Writes a version and swaps it in.
fn publish(volume: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<PathBuf> {
    let version = new_version(volume)?;
    for (path, file) in payload {
        write_file(&version.path().join(path), file)?;
    }
    if let Some(group) = fs_group {
        ownership::give_to_group(version.path(), group, Access::ReadOnly)?;
    }
    swap(volume, version, &names(payload))
}

/// A directory for a version of a volume, empty and removed again unless it is shown.
pub(crate) fn new_version(volume: &Path) -> io::Result<TempDir> {
    let prefix = format!("..{}.", Zoned::now().strftime("%Y_%m_%d_%H_%M_%S"));
    let version = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(volume)?;
    fs::set_permissions(version.path(), Permissions::from_mode(DIR_MODE))?;
    Ok(version)
}

/// Makes a volume show exactly what a directory of [`new_version`] holds.
pub(crate) fn show(volume: &Path, version: TempDir) -> io::Result<()> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(version.path())? {
        names.insert(entry?.file_name());
    }
    let shown = swap(volume, version, &names)?;
    link_names(volume, &names)?;
    remove_strays(volume, &shown)
}

/// Swaps a version in. Names that are gone go first, so that no name ever points nowhere.
fn swap(volume: &Path, version: TempDir, names: &BTreeSet<OsString>) -> io::Result<PathBuf> {
    let name = PathBuf::from(version.path().file_name().unwrap_or_default());
    remove_names(volume, names)?;
    let new = volume.join(DATA_NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(&name, &new)?,
    }
    fs::rename(&new, volume.join(DATA))?;
    let _ = version.keep();
    Ok(name)
}

fn write_file(path: &Path, file: &payload::File) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(parent)?;
    }
    let mut out: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    out.write_all(&file.data)?;
    if file.uid.is_some() {
        fchown(&out, file.uid, None)?;
    }
    // After writing and past the umask.
    out.set_permissions(Permissions::from_mode(file.mode))
}

/// The names a reader sees: the first component of each path.
fn names(payload: &Payload) -> BTreeSet<OsString> {
    payload
        .keys()
        .map(|path| path.split('/').next().unwrap_or(path).into())
        .collect()
}

fn remove_names(volume: &Path, names: &BTreeSet<OsString>) -> io::Result<()> {
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b"..") && !names.contains(&name) {
            mounts::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

fn link_names(volume: &Path, names: &BTreeSet<OsString>) -> io::Result<()> {
    for name in names {
        let (link, target) = (volume.join(name), Path::new(DATA).join(name));
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            continue;
        }
        mounts::remove_tree(&link)?;
        symlink(target, link)?;
    }
    Ok(())
}

/// Removes old versions and what a write that was cut short has left.
fn remove_strays(volume: &Path, shown: &Path) -> io::Result<()> {
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("..") && name != DATA && name != shown.as_os_str() {
            mounts::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| {
                (
                    (*path).to_owned(),
                    payload::File {
                        data: text.as_bytes().to_vec(),
                        mode: 0o644,
                        uid: None,
                    },
                )
            })
            .collect()
    }

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with("..2"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_volume_holds_its_payload_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path();
        assert!(write(volume, &payload(&[("a", "1"), ("d/e", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(volume.join("d/e")).unwrap(), "2");
        assert_eq!(entries(volume), ["..data", "a", "d"]);
        assert!(
            !write(volume, &payload(&[("a", "1"), ("d/e", "2")]), None).unwrap(),
            "no change, no write"
        );

        assert!(write(volume, &payload(&[("d/f", "3"), ("b", "")]), None).unwrap());
        assert_eq!(entries(volume), ["..data", "b", "d"]);
        assert_eq!(entries(&volume.join("d")), ["f"]);
        assert_eq!(
            fs::read_dir(volume).unwrap().count(),
            4,
            "one version is kept"
        );

        assert!(write(volume, &Payload::new(), None).unwrap());
        assert_eq!(entries(volume), ["..data"]);
        assert!(is_written(volume));
    }

    #[test]
    fn modes_owners_and_groups_count_as_content() {
        let dir = tempfile::tempdir().unwrap();
        let mut wanted = payload(&[("a", "1")]);
        write(dir.path(), &wanted, None).unwrap();
        wanted.insert(
            "a".into(),
            payload::File {
                data: b"1".to_vec(),
                mode: 0o400,
                uid: Some(1234),
            },
        );
        assert!(write(dir.path(), &wanted, Some(777)).unwrap());
        let found = fs::metadata(dir.path().join("a")).unwrap();
        assert_eq!(
            (found.mode() & 0o7777, found.uid(), found.gid()),
            (0o440, 1234, 777)
        );
        assert!(!write(dir.path(), &wanted, Some(777)).unwrap());
    }

    #[test]
    fn a_directory_is_shown_as_a_payload_is() {
        let dir = tempfile::tempdir().unwrap();
        let show_files = |files: &[&str]| {
            let version = new_version(dir.path()).unwrap();
            for file in files {
                let path = version.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, *file).unwrap();
            }
            show(dir.path(), version).unwrap();
        };
        show_files(&["a", "d/e"]);
        assert!(is_written(dir.path()));
        assert_eq!(entries(dir.path()), ["..data", "a", "d"]);
        show_files(&["d/f"]);
        assert_eq!(entries(dir.path()), ["..data", "d"]);
        assert_eq!(fs::read_to_string(dir.path().join("d/f")).unwrap(), "d/f");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        drop(new_version(dir.path()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_write_that_was_cut_short_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1")]), None).unwrap();
        fs::create_dir(dir.path().join("..2020_01_01_00_00_00.x")).unwrap();
        fs::write(dir.path().join("..2020_01_01_00_00_00.x/a"), "half").unwrap();
        symlink("..2020_01_01_00_00_00.x", dir.path().join(DATA_NEW)).unwrap();
        fs::remove_file(dir.path().join("a")).unwrap();
        assert!(!write(dir.path(), &payload(&[("a", "1")]), None).unwrap());
        assert_eq!(entries(dir.path()), ["..data", "a"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn files_emptied_by_a_power_cut_are_written_again() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "12")]), None).unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        assert!(write(dir.path(), &payload(&[("a", "12")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "12");
    }

    #[test]
    fn a_reader_sees_one_version_or_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let version = |text: &str| payload(&[("a", text), ("b", text)]);
        write(dir.path(), &version("0"), None).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..200 {
                    write(dir.path(), &version(&round.to_string()), None).unwrap();
                }
                done.store(true, Ordering::SeqCst);
            });
            let mut whole = 0;
            while !done.load(Ordering::SeqCst) {
                let link = fs::read_link(dir.path().join(DATA)).unwrap();
                let read = |name: &str| fs::read_to_string(dir.path().join(&link).join(name));
                // A version that was removed in between is gone, never half there.
                if let (Ok(a), Ok(b)) = (read("a"), read("b")) {
                    assert_eq!(a, b);
                    whole += 1;
                }
                assert!(
                    !fs::read_to_string(dir.path().join("a"))
                        .unwrap_or("gone".into())
                        .is_empty()
                );
            }
            assert!(whole > 0);
        });
    }
}
