//! All nodes, in the instance's memory and in their blocks.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use wherry_plugin::filesystem::{Errno, Kind, Node, ROOT, Result, blocks};

use crate::record::Inode;

/// The block that holds the next node's number. Nodes' own blocks have their numbers.
const NEXT: u64 = 0;
/// Longest record: name and link.
const RECORD_BYTES_MAX: u32 = 8192;

pub(crate) fn kept(error: blocks::BlockError) -> Errno {
    match error {
        blocks::BlockError::NoSpace => Errno::NoSpace,
        blocks::BlockError::TooLarge => Errno::TooLarge,
    }
}

fn save(node: Node, inode: &Inode) -> Result<()> {
    let bytes = inode.to_bytes();
    blocks::write(node, 0, &bytes).map_err(kept)?;
    // Of a longer name that it had.
    blocks::truncate(node, bytes.len() as u32);
    Ok(())
}

/// The nodes of a volume. Those of one directory are found by name and in the order of their numbers.
pub(crate) struct Tree {
    nodes: HashMap<Node, Inode>,
    names: HashMap<Node, BTreeMap<String, Node>>,
    numbers: HashMap<Node, BTreeSet<Node>>,
    next: Node,
}

impl Tree {
    /// The nodes that are kept; the first time `root` alone.
    pub(crate) fn open(root: Inode) -> Result<Self> {
        let mut tree = Self {
            nodes: HashMap::new(),
            names: HashMap::new(),
            numbers: HashMap::new(),
            next: ROOT + 1,
        };
        let mut first = ROOT;
        loop {
            let found = blocks::list(first);
            let mut last = None;
            for node in found.into_iter().take_while(|block| *block < crate::DATA) {
                let bytes = blocks::read(node, 0, RECORD_BYTES_MAX);
                if let Some(inode) = Inode::from_bytes(&bytes) {
                    tree.insert(node, inode);
                }
                last = Some(node);
            }
            match last {
                Some(last) => first = last + 1,
                None => break,
            }
        }
        if let Ok(next) = blocks::read(NEXT, 0, 8).try_into() {
            tree.next = u64::from_le_bytes(next);
        }
        if !tree.nodes.contains_key(&ROOT) {
            save(ROOT, &root)?;
            tree.insert(ROOT, root);
        }
        Ok(tree)
    }

    fn insert(&mut self, node: Node, inode: Inode) {
        if node != ROOT && inode.parent != 0 {
            self.link(node, inode.parent, &inode.name);
        }
        self.nodes.insert(node, inode);
    }

    fn link(&mut self, node: Node, parent: Node, name: &str) {
        let names = self.names.entry(parent).or_default();
        names.insert(name.to_owned(), node);
        self.numbers.entry(parent).or_default().insert(node);
    }

    fn unlink(&mut self, node: Node, parent: Node, name: &str) {
        if let Some(names) = self.names.get_mut(&parent) {
            names.remove(name);
        }
        if let Some(numbers) = self.numbers.get_mut(&parent) {
            numbers.remove(&node);
        }
    }

    pub(crate) fn get(&self, node: Node) -> Result<&Inode> {
        self.nodes.get(&node).ok_or(Errno::Stale)
    }

    pub(crate) fn directory(&self, node: Node) -> Result<&Inode> {
        let inode = self.get(node)?;
        match inode.kind {
            Kind::Directory if inode.parent != 0 => Ok(inode),
            Kind::Directory => Err(Errno::NotFound),
            Kind::File | Kind::Link => Err(Errno::NotDirectory),
        }
    }

    pub(crate) fn find(&self, parent: Node, name: &str) -> Option<Node> {
        self.names.get(&parent)?.get(name).copied()
    }

    /// Children of a directory with numbers above `offset`.
    pub(crate) fn children(&self, node: Node, offset: u64, count: usize) -> Vec<Node> {
        let Some(numbers) = self.numbers.get(&node) else {
            return Vec::new();
        };
        numbers.range(offset + 1..).take(count).copied().collect()
    }

    pub(crate) fn add(&mut self, inode: Inode) -> Result<Node> {
        if self.find(inode.parent, &inode.name).is_some() {
            return Err(Errno::Exists);
        }
        let node = self.next;
        blocks::write(NEXT, 0, &(node + 1).to_le_bytes()).map_err(kept)?;
        save(node, &inode)?;
        self.next = node + 1;
        self.insert(node, inode);
        Ok(node)
    }

    /// Changes a node but for its place.
    pub(crate) fn change(&mut self, node: Node, change: impl FnOnce(&mut Inode)) -> Result<()> {
        let mut inode = self.get(node)?.clone();
        change(&mut inode);
        save(node, &inode)?;
        self.nodes.insert(node, inode);
        Ok(())
    }

    /// Takes a node out of its directory; it can still be used until it is forgotten.
    pub(crate) fn detach(&mut self, node: Node) -> Result<()> {
        if self
            .numbers
            .get(&node)
            .is_some_and(|children| !children.is_empty())
        {
            return Err(Errno::NotEmpty);
        }
        let (parent, name) = {
            let inode = self.get(node)?;
            (inode.parent, inode.name.clone())
        };
        self.change(node, |inode| inode.parent = 0)?;
        self.unlink(node, parent, &name);
        Ok(())
    }

    pub(crate) fn move_to(&mut self, node: Node, parent: Node, name: &str) -> Result<()> {
        let (old, old_name) = {
            let inode = self.get(node)?;
            (inode.parent, inode.name.clone())
        };
        self.change(node, |inode| {
            inode.parent = parent;
            name.clone_into(&mut inode.name);
        })?;
        self.unlink(node, old, &old_name);
        self.link(node, parent, name);
        Ok(())
    }

    /// Removes a node that is in no directory. Whether it was one.
    pub(crate) fn drop_if_detached(&mut self, node: Node) -> bool {
        if self.nodes.get(&node).is_none_or(|inode| inode.parent != 0) {
            return false;
        }
        blocks::truncate(node, 0);
        self.nodes.remove(&node);
        self.names.remove(&node);
        self.numbers.remove(&node);
        true
    }
}
