//! Where an archive's content goes.

use std::io::{self, Read, Write};

use wherry_plugin::populator::{self, File};

/// What is read at first: most files of an archive are no longer.
const SMALL_BYTES: usize = 16 << 10;
/// What is read at once of those that are.
const LARGE_BYTES: usize = 256 << 10;

/// What archives are written to.
pub trait Tree {
    /// Makes a directory.
    fn directory(&mut self, path: &str) -> io::Result<()>;
    /// Writes a file.
    fn file(&mut self, path: &str, is_executable: bool, content: &mut dyn Read) -> io::Result<()>;
    /// Makes a symbolic link.
    fn link(&mut self, path: &str, to: &str) -> io::Result<()>;
}

/// The volume that is being populated.
pub struct Volume;

impl Tree for Volume {
    fn directory(&mut self, path: &str) -> io::Result<()> {
        Ok(populator::make_directory(path).map_err(|error| at(path, error))?)
    }

    fn file(&mut self, path: &str, is_executable: bool, content: &mut dyn Read) -> io::Result<()> {
        let made = match is_executable {
            true => File::create_executable(path),
            false => File::create(path),
        };
        let mut file = made.map_err(|error| at(path, error))?;
        let mut buffer = vec![0; SMALL_BYTES];
        loop {
            let length = content.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..length])?;
            if length == SMALL_BYTES {
                buffer.resize(LARGE_BYTES, 0);
            }
        }
    }

    fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        populator::make_link(path, to).map_err(|error| at(&format!("link {path} to {to}"), error))
    }
}

fn at(path: &str, error: populator::Error) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// Which part of an archive is wanted, and where it goes.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Leading parts of each path that are left out; what is shorter is left out whole.
    pub strip_components: usize,
    /// Only what is below this, without it. Parts joined by `/`.
    pub subdirectory: String,
    /// What goes before each path.
    pub directory: String,
}

impl Place {
    /// Where a path of the archive goes; `None`: it is not wanted. What leads out of the archive's root is an error.
    pub(crate) fn of(&self, path: &str) -> io::Result<Option<String>> {
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err(crate::invalid(format!("{path:?} leads out of the volume"))),
                part => parts.push(part),
            }
        }
        if parts.len() <= self.strip_components {
            return Ok(None);
        }
        let mut parts = &parts[self.strip_components..];
        for wanted in self.subdirectory.split('/').filter(|part| !part.is_empty()) {
            match parts.split_first() {
                Some((first, rest)) if *first == wanted => parts = rest,
                _ => return Ok(None),
            }
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let before = self.directory.trim_matches('/');
        Ok(Some(match before {
            "" | "." => parts.join("/"),
            before => format!("{before}/{}", parts.join("/")),
        }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What was written, by path.
    #[derive(Default)]
    pub(crate) struct Map(pub(crate) BTreeMap<String, String>);

    impl Tree for Map {
        fn directory(&mut self, path: &str) -> io::Result<()> {
            self.0.insert(path.to_owned(), "/".into());
            Ok(())
        }

        fn file(
            &mut self,
            path: &str,
            is_executable: bool,
            content: &mut dyn Read,
        ) -> io::Result<()> {
            let mut text = String::from(if is_executable { "*" } else { "" });
            content.read_to_string(&mut text)?;
            self.0.insert(path.to_owned(), text);
            Ok(())
        }

        fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
            self.0.insert(path.to_owned(), format!("-> {to}"));
            Ok(())
        }
    }

    #[test]
    fn paths_are_cut_and_moved_as_asked() {
        for (strip, subdirectory, directory, path, expected) in [
            (0, "", "", "a/b", Some("a/b")),
            (0, "", "", "./a//b/", Some("a/b")),
            (1, "", "", "a/b", Some("b")),
            (1, "", "", "a", None),
            (2, "", "", "a/b", None),
            (0, "a", "", "a/b", Some("b")),
            (0, "a/", "", "b/a", None),
            (1, "b/c", "x", "a/b/c/d", Some("x/d")),
            (0, "a", "", "a", None),
            (0, "", ".", "a", Some("a")),
            (0, "", "x/y/", "a", Some("x/y/a")),
        ] {
            let place = Place {
                strip_components: strip,
                subdirectory: subdirectory.into(),
                directory: directory.into(),
            };
            assert_eq!(place.of(path).unwrap().as_deref(), expected, "{path}");
        }
        for bad in ["..", "a/../b", "../../etc/passwd"] {
            assert!(Place::default().of(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Place::default().of("/etc/passwd").unwrap().as_deref(),
            Some("etc/passwd")
        );
    }
}
