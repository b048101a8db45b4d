//! Read-only volumes of what an HTTP server lists: indexes in HTML (nginx, Apache and whoever links to what is there)
//! or JSON (nginx's `autoindex_format json`), files by ranges.
//!
//! Attributes: `url` (of the root, an index), `cacheSeconds` (how long what a file is like is not asked again, 5). The
//! Secret's `username` and `password`, or `token`, are for authentication; its `ca.crt` is whom TLS trusts.
//!
//! What was read is kept with the host in blocks of 64 KiB, under a number made of the file's path, size and date: a
//! file that has changed is read anew, and a new instance finds what the one before it read.

mod cache;
mod date;
mod index;
mod remote;

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use wherry_plugin::{
    clock,
    filesystem::{Attributes, Entry, Errno, FileSystem, Kind, Node, Opened, ROOT, Result},
    volume::{self, request},
};

use crate::{
    cache::CHUNK_BYTES,
    index::Listed,
    remote::{About, Remote},
};

wherry_plugin::filesystem!(Tree);

/// What is fetched at once where somebody reads on.
const AHEAD_BYTES: u64 = 8 * CHUNK_BYTES;
/// What is fetched at once otherwise.
const FETCHED_BYTES: u64 = 2 * CHUNK_BYTES;
/// Paths that are remembered; older ones are looked up again by the host.
const PATHS_MAX: usize = 200_000;

/// Something that the server has.
struct Place {
    path: String,
    kind: Kind,
    about: About,
}

struct Tree {
    remote: Remote,
    valid: Duration,
    places: HashMap<Node, Place>,
    numbers: HashMap<String, Node>,
    next: Node,
    /// Of the directory that was listed last: its number, when, and what is in it.
    listed: Option<(Node, Duration, Vec<Listed>)>,
    /// Where the last read of a file ended.
    read_to: (Node, u64),
}

impl Tree {
    fn path(&self, node: Node) -> Result<String> {
        match node {
            ROOT => Ok(String::new()),
            _ => {
                let place = self.places.get(&node);
                place.map(|place| place.path.clone()).ok_or(Errno::Stale)
            }
        }
    }

    fn attributes(&self, node: Node, kind: Kind, about: &About) -> Attributes {
        let mut attributes = match kind {
            Kind::Directory => Attributes::directory(node),
            Kind::File | Kind::Link => Attributes::file(node, about.size),
        };
        attributes.mode &= 0o555;
        attributes.valid_milliseconds = self.valid.as_millis().min(3_600_000) as u32;
        attributes.modified(about.modified.unwrap_or(SystemTime::UNIX_EPOCH))
    }

    fn remember(&mut self, path: String, kind: Kind, about: About) -> Node {
        let known = self.numbers.get(&path).copied();
        // A path that has become something else is something else.
        let known = known.filter(|node| {
            self.places
                .get(node)
                .is_some_and(|place| place.kind == kind)
        });
        let node = known.unwrap_or_else(|| {
            if self.places.len() >= PATHS_MAX {
                self.places.clear();
                self.numbers.clear();
            }
            self.next += 1;
            self.next
        });
        self.numbers.insert(path.clone(), node);
        self.places.insert(node, Place { path, kind, about });
        node
    }

    /// What is listed in a directory, as it was a moment ago.
    fn list(&mut self, node: Node, is_anew: bool) -> Result<&[Listed]> {
        let path = self.path(node)?;
        let now = now();
        let is_good = !is_anew
            && self
                .listed
                .as_ref()
                .is_some_and(|(of, at, _)| *of == node && now.saturating_sub(*at) < self.valid);
        if !is_good {
            let listed = self.remote.list(&path)?;
            self.listed = Some((node, now, listed));
        }
        Ok(self.listed.as_ref().map_or(&[], |(_, _, listed)| listed))
    }

    /// What a listed thing is like; the server is asked where the list does not say.
    fn about(&mut self, path: &str, listed: &Listed) -> Result<About> {
        match (listed.is_directory, listed.size) {
            (true, _) => Ok(About {
                modified: listed.modified,
                ..About::default()
            }),
            (false, Some(size)) => Ok(About {
                size,
                modified: listed.modified,
                tag: String::new(),
            }),
            (false, None) => self.remote.about(path),
        }
    }

    fn fetch(&mut self, node: Node, chunk: u64) -> Result<()> {
        let (path, about) = {
            let place = self.places.get(&node).ok_or(Errno::Stale)?;
            (place.path.clone(), place.about.clone())
        };
        let begin = chunk * CHUNK_BYTES;
        let length = match self.read_to == (node, begin) {
            true => AHEAD_BYTES,
            false => FETCHED_BYTES,
        };
        let end = begin.saturating_add(length).min(about.size);
        let bytes = self.remote.read(&path, begin, end - begin, about.size)?;
        for (n, part) in (chunk..).zip(bytes.chunks(CHUNK_BYTES as usize)) {
            cache::keep(&path, &about, n, part);
        }
        Ok(())
    }
}

/// The wall clock as a length of time.
fn now() -> Duration {
    let since = clock::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

impl FileSystem for Tree {
    fn open() -> volume::Result<(Self, Opened)> {
        request::only(&["url", "cacheSeconds", "sizeLimit", "size"])?;
        let remote = Remote::new(&request::required("url")?)?;
        let mut tree = Self {
            remote,
            valid: Duration::from_secs(request::parse_or("cacheSeconds", 5)?),
            places: HashMap::new(),
            numbers: HashMap::new(),
            next: ROOT,
            listed: None,
            read_to: (0, 0),
        };
        let listed = tree.remote.list("");
        let now = now();
        tree.listed = Some((
            ROOT,
            now,
            listed.map_err(|errno| tree.remote.trouble(errno))?,
        ));
        let opened = Opened {
            nodes_are_kept: false,
            is_read_only: true,
        };
        Ok((tree, opened))
    }

    fn find(&mut self, parent: Node, name: &str) -> Result<Attributes> {
        let above = self.path(parent)?;
        let found = |listed: &[Listed]| listed.iter().find(|listed| listed.name == name).cloned();
        let listed = match found(self.list(parent, false)?) {
            Some(listed) => listed,
            // It may be new.
            None => found(self.list(parent, true)?).ok_or(Errno::NotFound)?,
        };
        let path = format!("{above}/{name}");
        let about = self.about(&path, &listed)?;
        let kind = listed.kind();
        let node = self.remember(path, kind, about.clone());
        Ok(self.attributes(node, kind, &about))
    }

    fn stat(&mut self, node: Node) -> Result<Attributes> {
        if node == ROOT {
            return Ok(self.attributes(ROOT, Kind::Directory, &About::default()));
        }
        let place = self.places.get(&node).ok_or(Errno::Stale)?;
        let (path, kind, mut about) = (place.path.clone(), place.kind, place.about.clone());
        if kind == Kind::File {
            let asked = self.remote.about(&path)?;
            if asked.size != about.size || asked.modified != about.modified {
                about = asked;
                if let Some(place) = self.places.get_mut(&node) {
                    place.about = about.clone();
                }
            }
        }
        Ok(self.attributes(node, kind, &about))
    }

    fn read_directory(&mut self, node: Node, offset: u64, count: u32) -> Result<Vec<Entry>> {
        let above = self.path(node)?;
        let listed = self.list(node, false)?;
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(listed.len());
        let to = from.saturating_add(count as usize).min(listed.len());
        let listed = listed[from..to].to_vec();
        let mut entries = Vec::with_capacity(listed.len());
        for (next, listed) in (offset + 1..).zip(listed) {
            let path = format!("{above}/{}", listed.name);
            // What is listed and cannot be had is left out.
            let Ok(about) = self.about(&path, &listed) else {
                continue;
            };
            let kind = listed.kind();
            let node = self.remember(path, kind, about.clone());
            entries.push(Entry {
                name: listed.name,
                next,
                attributes: self.attributes(node, kind, &about),
            });
        }
        Ok(entries)
    }

    fn read(&mut self, node: Node, offset: u64, length: u32) -> Result<Vec<u8>> {
        let place = self.places.get(&node).ok_or(Errno::Stale)?;
        let (path, about) = (place.path.clone(), place.about.clone());
        let end = offset.saturating_add(length.into()).min(about.size);
        let mut read = Vec::with_capacity(length as usize);
        let mut at = offset;
        while at < end {
            let (chunk, within) = (at / CHUNK_BYTES, at % CHUNK_BYTES);
            let wanted = (CHUNK_BYTES - within).min(end - at);
            let kept = match cache::kept(&path, &about, chunk, within, wanted) {
                Some(kept) => kept,
                None => {
                    self.fetch(node, chunk)?;
                    let fetched = cache::kept(&path, &about, chunk, within, wanted);
                    match fetched {
                        Some(fetched) => fetched,
                        // Nothing finds room: straight from the server.
                        None => self.remote.read(&path, at, wanted, about.size)?,
                    }
                }
            };
            if kept.len() as u64 != wanted {
                return Err(Errno::Io);
            }
            at += wanted;
            read.extend(kept);
        }
        self.read_to = (node, at.next_multiple_of(CHUNK_BYTES));
        Ok(read)
    }
}
