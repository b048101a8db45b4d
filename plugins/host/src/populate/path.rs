//! Paths that a populator may write, and where its links may lead. Pure.

use std::path::{Component, Path};

use thiserror::Error;

/// Bytes of a path, as the kernel has it.
const PATH_BYTES_MAX: usize = 4095;
/// Bytes of one part of it.
const NAME_BYTES_MAX: usize = 255;

/// Why a path is none below a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidPath {
    /// It begins with `/`.
    #[error("an absolute path")]
    Absolute,
    /// A part is `..`, which could lead out of the volume.
    #[error("a path with ..")]
    Above,
    /// Nothing is named.
    #[error("an empty path or part of a path")]
    Empty,
    /// No file system could hold it.
    #[error("a name longer than a file system takes")]
    TooLong,
    /// A byte that no name can hold.
    #[error("a NUL in a path")]
    Nul,
    /// The link would lead out of the volume.
    #[error("a link that leads out of the volume")]
    LeadsOut,
    /// The names that the host keeps for itself, at the top of a volume.
    #[error("a name at the top of a volume that begins with ..")]
    Reserved,
}

/// Checks a path below a volume: relative, parts joined by one `/`, none of them `.` or `..`.
///
/// # Errors
/// See [`InvalidPath`].
pub fn check(path: &str) -> Result<&Path, InvalidPath> {
    if path.starts_with('/') {
        return Err(InvalidPath::Absolute);
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(InvalidPath::TooLong);
    }
    for (at, part) in path.split('/').enumerate() {
        match part {
            "" | "." => return Err(InvalidPath::Empty),
            ".." => return Err(InvalidPath::Above),
            part if part.len() > NAME_BYTES_MAX => return Err(InvalidPath::TooLong),
            part if part.contains('\0') => return Err(InvalidPath::Nul),
            part if at == 0 && part.starts_with("..") => return Err(InvalidPath::Reserved),
            _ => {}
        }
    }
    Ok(Path::new(path))
}

/// Checks where a link at `path` (which goes through no link itself) may lead: up from its own directory at most to the
/// top of the volume, and then down. A `..` further on could follow another link first, and is refused.
///
/// # Errors
/// [`InvalidPath::LeadsOut`], or what no link can hold.
pub fn check_link(path: &Path, to: &Path) -> Result<(), InvalidPath> {
    let bytes = to.as_os_str().as_encoded_bytes();
    if bytes.is_empty() {
        return Err(InvalidPath::Empty);
    }
    if bytes.len() > PATH_BYTES_MAX {
        return Err(InvalidPath::TooLong);
    }
    if bytes.contains(&0) {
        return Err(InvalidPath::Nul);
    }
    let depth = path.components().count().saturating_sub(1);
    let mut ups = 0;
    let mut has_gone_down = false;
    for part in to.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(_) => has_gone_down = true,
            Component::ParentDir if !has_gone_down && ups < depth => ups += 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(InvalidPath::LeadsOut);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_below_the_volume() {
        for good in ["a", "a/b", ".git", "a/..b", "a b/ü"] {
            assert_eq!(check(good), Ok(Path::new(good)));
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let deep = "x/".repeat(PATH_BYTES_MAX);
        for (bad, why) in [
            ("", InvalidPath::Empty),
            ("/etc/passwd", InvalidPath::Absolute),
            ("..", InvalidPath::Above),
            ("a/../b", InvalidPath::Above),
            ("../b", InvalidPath::Above),
            ("a//b", InvalidPath::Empty),
            ("a/", InvalidPath::Empty),
            ("./a", InvalidPath::Empty),
            ("a\0b", InvalidPath::Nul),
            ("..data", InvalidPath::Reserved),
            (long.as_str(), InvalidPath::TooLong),
            (deep.as_str(), InvalidPath::TooLong),
        ] {
            assert_eq!(check(bad).err(), Some(why), "{bad:.40}");
        }
    }

    #[test]
    fn a_link_stays_in_the_volume() {
        let leads = |path: &str, to: &str| check_link(Path::new(path), Path::new(to));
        for (path, to) in [
            ("l", "a"),
            ("l", "a/b/nowhere"),
            ("d/l", "../a"),
            ("d/e/l", "../../a"),
            ("d/l", "./a"),
            ("d/l", ".."),
        ] {
            assert_eq!(leads(path, to), Ok(()), "{path} -> {to}");
        }
        for (path, to) in [
            ("l", ".."),
            ("l", "/etc/passwd"),
            ("d/l", "../.."),
            ("d/l", "../../etc"),
            // By a link `a` to somewhere higher this would be out.
            ("d/l", "a/.."),
            ("d/l", "../a/../b"),
        ] {
            assert_eq!(
                leads(path, to),
                Err(InvalidPath::LeadsOut),
                "{path} -> {to}"
            );
        }
        assert_eq!(leads("l", ""), Err(InvalidPath::Empty));
        assert_eq!(leads("l", "a\0"), Err(InvalidPath::Nul));
    }
}
