//! Volumes in memory.
//!
//! Attributes: `size` (as `64Mi`, which the host keeps to), `mode` (of the volume's root, `0777`).
//!
//! Everything is kept with the host in blocks, so that any instance finds what the one before it left: a block for each
//! node, and blocks of 128 KiB for what files hold. In the instance is a copy of the nodes alone.

mod record;
mod tree;

use wherry_plugin::{
    clock,
    filesystem::{
        Attributes, Changes, Creation, Entry, Errno, FileSystem, Kind, Node, Opened, ROOT, Result,
        Room, blocks,
    },
    volume::{self, request},
};

use crate::{
    record::Inode,
    tree::{Tree, kept},
};

wherry_plugin::filesystem!(Memory);

/// Bytes of a block of a file.
const DATA_BYTES: u64 = 128 << 10;
/// Numbers of data blocks: this, the node and which block of it.
const DATA: u64 = 1 << 62;
const INDEX_BITS: u32 = 20;
/// Longest file.
const FILE_BYTES_MAX: u64 = DATA_BYTES << INDEX_BITS;
/// The kernel may remember for as long as it likes: nobody else changes anything.
const VALID_MILLISECONDS: u32 = 3_600_000;
/// Mode bit of directories whose children get their group.
const SETGID: u32 = 0o2000;

struct Memory {
    tree: Tree,
}

fn data_block(node: Node, index: u64) -> u64 {
    DATA | node << INDEX_BITS | index
}

/// Parts of a range of bytes, each in one block: index, offset in it, length.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (u64, u32, u32)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let next = ((at / DATA_BYTES + 1) * DATA_BYTES).min(end);
        let part = (
            at / DATA_BYTES,
            (at % DATA_BYTES) as u32,
            (next - at) as u32,
        );
        at = next;
        Some(part)
    })
}

/// Removes the blocks of a node from one on.
fn drop_blocks(node: Node, from: u64) {
    let end = data_block(node + 1, 0);
    let mut first = data_block(node, from);
    loop {
        let found = blocks::list(first);
        let mut last = None;
        for block in found.into_iter().take_while(|block| *block < end) {
            blocks::truncate(block, 0);
            last = Some(block);
        }
        match last {
            Some(last) => first = last + 1,
            None => return,
        }
    }
}

impl Memory {
    fn attributes(&self, node: Node) -> Result<Attributes> {
        let inode = self.tree.get(node)?;
        let mut attributes = match inode.kind {
            Kind::File => Attributes::file(node, inode.size),
            Kind::Directory => Attributes::directory(node),
            Kind::Link => Attributes::link(node, &inode.target),
        };
        attributes.mode = inode.mode;
        attributes.owner = inode.owner;
        attributes.group = inode.group;
        attributes.modified = inode.modified;
        attributes.valid_milliseconds = VALID_MILLISECONDS;
        Ok(attributes)
    }

    fn make(
        &mut self,
        parent: Node,
        name: &str,
        kind: Kind,
        creation: Creation,
        target: &str,
    ) -> Result<Attributes> {
        let above = self.tree.directory(parent)?;
        let (mut mode, mut group) = (creation.mode, creation.group);
        if above.mode & SETGID != 0 {
            group = above.group;
            if kind == Kind::Directory {
                mode |= SETGID;
            }
        }
        let inode = Inode {
            kind,
            mode,
            owner: creation.owner,
            group,
            size: 0,
            modified: now(),
            parent,
            name: name.to_owned(),
            target: target.to_owned(),
        };
        let node = self.tree.add(inode)?;
        self.touch(parent)?;
        self.attributes(node)
    }

    fn touch(&mut self, node: Node) -> Result<()> {
        self.tree.change(node, |inode| inode.modified = now())
    }
}

fn now() -> wherry_plugin::filesystem::Datetime {
    Attributes::file(ROOT, 0).modified(clock::now()).modified
}

impl FileSystem for Memory {
    fn open() -> volume::Result<(Self, Opened)> {
        request::only(&["size", "sizeLimit", "mode"])?;
        let mode = request::attribute("mode").unwrap_or_else(|| "0777".into());
        let mode = u32::from_str_radix(&mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .ok_or_else(|| {
                volume::Error::InvalidAttributes(format!("mode {mode:?} is no octal mode"))
            })?;
        let root = Inode {
            kind: Kind::Directory,
            mode,
            owner: 0,
            group: 0,
            size: 0,
            modified: now(),
            parent: ROOT,
            name: String::new(),
            target: String::new(),
        };
        let tree = Tree::open(root)
            .map_err(|_| volume::Error::NoSpace("size: not even a directory finds room".into()))?;
        Ok((Self { tree }, Opened::READ_WRITE))
    }

    fn find(&mut self, parent: Node, name: &str) -> Result<Attributes> {
        self.tree.directory(parent)?;
        self.attributes(self.tree.find(parent, name).ok_or(Errno::NotFound)?)
    }

    fn stat(&mut self, node: Node) -> Result<Attributes> {
        self.attributes(node)
    }

    fn change(&mut self, node: Node, changes: Changes) -> Result<Attributes> {
        if let Some(size) = changes.size {
            let inode = self.tree.get(node)?;
            if inode.kind != Kind::File {
                return Err(Errno::IsDirectory);
            }
            if size > FILE_BYTES_MAX {
                return Err(Errno::TooLarge);
            }
            if size < inode.size {
                drop_blocks(node, size.div_ceil(DATA_BYTES));
                if !size.is_multiple_of(DATA_BYTES) {
                    let last = data_block(node, size / DATA_BYTES);
                    blocks::truncate(last, (size % DATA_BYTES) as u32);
                }
            }
            self.touch(node)?;
        }
        self.tree.change(node, |inode| {
            inode.size = changes.size.unwrap_or(inode.size);
            inode.mode = changes.mode.unwrap_or(inode.mode);
            inode.owner = changes.owner.unwrap_or(inode.owner);
            inode.group = changes.group.unwrap_or(inode.group);
            inode.modified = changes.modified.unwrap_or(inode.modified);
        })?;
        self.attributes(node)
    }

    fn read_directory(&mut self, node: Node, offset: u64, count: u32) -> Result<Vec<Entry>> {
        self.tree.directory(node)?;
        // In the order of their numbers, which no removal and no renaming changes.
        let children = self.tree.children(node, offset, count as usize);
        let entries = children.into_iter().map(|child| {
            Ok(Entry {
                name: self.tree.get(child)?.name.clone(),
                next: child,
                attributes: self.attributes(child)?,
            })
        });
        entries.collect()
    }

    fn read(&mut self, node: Node, offset: u64, length: u32) -> Result<Vec<u8>> {
        let inode = self.tree.get(node)?;
        let end = offset.saturating_add(length.into()).min(inode.size);
        let Some(length) = end.checked_sub(offset) else {
            return Ok(Vec::new());
        };
        let mut read = Vec::with_capacity(length as usize);
        for (index, at, bytes) in parts(offset, length) {
            let filled = read.len() + bytes as usize;
            read.extend(blocks::read(data_block(node, index), at, bytes));
            // What was never written is zeros.
            read.resize(filled, 0);
        }
        Ok(read)
    }

    fn read_link(&mut self, node: Node) -> Result<String> {
        let inode = self.tree.get(node)?;
        match inode.kind {
            Kind::Link => Ok(inode.target.clone()),
            Kind::File | Kind::Directory => Err(Errno::Invalid),
        }
    }

    fn write(&mut self, node: Node, offset: u64, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        let end = offset.checked_add(length).ok_or(Errno::TooLarge)?;
        if end > FILE_BYTES_MAX {
            return Err(Errno::TooLarge);
        }
        if self.tree.get(node)?.kind != Kind::File {
            return Err(Errno::IsDirectory);
        }
        let mut written = 0;
        for (index, at, part) in parts(offset, length) {
            let part = &bytes[written..written + part as usize];
            blocks::write(data_block(node, index), at, part).map_err(kept)?;
            written += part.len();
        }
        let modified = now();
        self.tree.change(node, |inode| {
            inode.size = inode.size.max(end);
            inode.modified = modified;
        })
    }

    fn create(
        &mut self,
        parent: Node,
        name: &str,
        kind: Kind,
        creation: Creation,
    ) -> Result<Attributes> {
        self.make(parent, name, kind, creation, "")
    }

    fn create_link(
        &mut self,
        parent: Node,
        name: &str,
        to: &str,
        creation: Creation,
    ) -> Result<Attributes> {
        self.make(parent, name, Kind::Link, creation, to)
    }

    fn remove(&mut self, parent: Node, name: &str) -> Result<()> {
        let node = self.tree.find(parent, name).ok_or(Errno::NotFound)?;
        self.tree.detach(node)?;
        self.touch(parent)
    }

    fn rename(&mut self, from: (Node, &str), to: (Node, &str), replace: bool) -> Result<()> {
        let node = self.tree.find(from.0, from.1).ok_or(Errno::NotFound)?;
        self.tree.directory(to.0)?;
        match self.tree.find(to.0, to.1) {
            Some(there) if there == node => return Ok(()),
            Some(_) if !replace => return Err(Errno::Exists),
            Some(there) => self.tree.detach(there)?,
            None => {}
        }
        self.tree.move_to(node, to.0, to.1)?;
        self.touch(from.0)?;
        if to.0 != from.0 {
            self.touch(to.0)?;
        }
        Ok(())
    }

    fn forget(&mut self, node: Node) {
        if self.tree.drop_if_detached(node) {
            drop_blocks(node, 0);
        }
    }

    fn space(&mut self) -> Result<Room> {
        let (bytes, used) = blocks::space();
        Ok(Room {
            bytes,
            bytes_free: bytes.saturating_sub(used),
        })
    }
}
