//! Writes what a commit shows.

use std::io::Write;

use wherry_plugin::{
    populator::{File, make_directory, make_link},
    volume::{self, Error},
};

use crate::pack::{Id, Kind, Pack, parse_name};

/// Directories in directories.
const DEPTH_MAX: usize = 256;

/// Where to, and what from.
pub(crate) struct Checkout<'a> {
    pub(crate) pack: &'a mut Pack,
    pub(crate) repository: &'a str,
    /// What goes before each path.
    pub(crate) directory: String,
}

/// An entry of a tree.
#[derive(Debug, PartialEq, Eq)]
struct TreeEntry<'a> {
    mode: u32,
    name: &'a str,
    id: Id,
}

impl Checkout<'_> {
    fn damaged(&self, why: impl std::fmt::Display) -> Error {
        Error::Unavailable(format!("{}: {why}", self.repository))
    }

    fn object(&self, id: &Id, wanted: Kind) -> volume::Result<Vec<u8>> {
        let (kind, content) = self.pack.object(id).map_err(|why| self.damaged(why))?;
        match kind == wanted {
            true => Ok(content),
            false => Err(self.damaged("an object is of another kind than its name says")),
        }
    }

    /// Writes a commit's files; those below `subdirectory` alone, should it name one.
    pub(crate) fn write(&mut self, commit: &str, subdirectory: &str) -> volume::Result<()> {
        let mut tree = self.tree_of(commit)?;
        for part in subdirectory
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
        {
            let content = self.object(&tree, Kind::Tree)?;
            let entries = entries(&content).map_err(|why| self.damaged(why))?;
            let found = entries
                .iter()
                .find(|entry| entry.name == part && entry.mode == 0o40000);
            let missing = || {
                let repository = self.repository;
                Error::NotFound(format!(
                    "{repository}: no directory {subdirectory} in {commit}"
                ))
            };
            tree = found.ok_or_else(missing)?.id;
        }
        let directory = match self.directory.trim_matches('/') {
            "." => "",
            directory => directory,
        };
        let directory = directory.to_owned();
        if !directory.is_empty() {
            make_directory(&directory)?;
        }
        self.tree(&tree, &directory, 0)
    }

    /// The tree of a commit, or of the commit that a tag names.
    fn tree_of(&self, name: &str) -> volume::Result<Id> {
        let bad = || self.damaged("a commit that names nothing");
        let mut id = parse_name(name.as_bytes()).ok_or_else(bad)?;
        for _ in 0..8 {
            let (kind, content) = self.pack.object(&id).map_err(|why| self.damaged(why))?;
            let field = |key: &[u8]| parse_name(content.strip_prefix(key)?);
            match kind {
                Kind::Commit => return field(b"tree ").ok_or_else(bad),
                Kind::Tag => id = field(b"object ").ok_or_else(bad)?,
                Kind::Tree => return Ok(id),
                Kind::Blob => break,
            }
        }
        Err(Error::InvalidAttributes(format!(
            "{}: {name} is no commit",
            self.repository
        )))
    }

    fn tree(&mut self, id: &Id, directory: &str, depth: usize) -> volume::Result<()> {
        if depth > DEPTH_MAX {
            return Err(self.damaged(format!("directories in directories: more than {DEPTH_MAX}")));
        }
        let content = self.object(id, Kind::Tree)?;
        for entry in entries(&content).map_err(|why| self.damaged(why))? {
            let path = match directory {
                "" => entry.name.to_owned(),
                directory => format!("{directory}/{}", entry.name),
            };
            let refused = |error: volume::Error| match error {
                Error::Other(why) => Error::Other(format!("{}: {path}: {why}", self.repository)),
                error => error,
            };
            match entry.mode & 0o170_000 {
                0o040_000 => {
                    make_directory(&path).map_err(|error| refused(error.into()))?;
                    self.tree(&entry.id, &path, depth + 1)?;
                }
                0o100_000 => {
                    let content = self.object(&entry.id, Kind::Blob)?;
                    let file = match entry.mode & 0o111 {
                        0 => File::create(&path),
                        _ => File::create_executable(&path),
                    };
                    let mut file = file.map_err(|error| refused(error.into()))?;
                    file.write_all(&content)
                        .map_err(|error| refused(error.into()))?;
                }
                0o120_000 => {
                    let to = self.object(&entry.id, Kind::Blob)?;
                    let to = String::from_utf8_lossy(&to).into_owned();
                    let made = make_link(&path, &to).map_err(volume::Error::from);
                    made.map_err(|error| match refused(error) {
                        Error::Other(why) => Error::Other(format!("{why}: it leads to {to}")),
                        error => error,
                    })?;
                }
                // A submodule.
                0o160_000 => make_directory(&path).map_err(|error| refused(error.into()))?,
                mode => return Err(self.damaged(format!("{path} has the mode {mode:o}"))),
            }
        }
        Ok(())
    }
}

/// The entries of a tree.
fn entries(content: &[u8]) -> Result<Vec<TreeEntry<'_>>, String> {
    let bad = || "a tree that is none".to_owned();
    let mut rest = content;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let nul = rest
            .iter()
            .position(|byte| *byte == 0)
            .filter(|nul| *nul > space)
            .ok_or_else(bad)?;
        let mode = std::str::from_utf8(&rest[..space]).ok();
        let mode = mode
            .and_then(|mode| u32::from_str_radix(mode, 8).ok())
            .ok_or_else(bad)?;
        let name = &rest[space + 1..nul];
        let name = std::str::from_utf8(name)
            .map_err(|_| format!("a name that is no UTF-8: {}", String::from_utf8_lossy(name)))?;
        if matches!(name, "" | "." | "..") || name.contains('/') {
            return Err(format!("a file called {name:?}"));
        }
        let id = rest
            .get(nul + 1..nul + 21)
            .and_then(|id| Id::try_from(id).ok());
        entries.push(TreeEntry {
            mode,
            name,
            id: id.ok_or_else(bad)?,
        });
        rest = &rest[nul + 21..];
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_read_and_bad_names_refused() {
        let tree = |name: &[u8]| [b"100644 ", name, b"\0", &[7; 20]].concat();
        let good = tree(b"a b");
        let found = entries(&good).unwrap();
        assert_eq!(
            found,
            [TreeEntry {
                mode: 0o100_644,
                name: "a b",
                id: [7; 20]
            }]
        );
        for bad in [&b".."[..], b"a/b", b"", b".", b"\xff"] {
            assert!(entries(&tree(bad)).is_err(), "{bad:?}");
        }
        for length in 1..good.len() {
            assert!(entries(&good[..length]).is_err(), "{length}");
        }
    }
}
