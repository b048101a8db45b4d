//! Nodes by the kernel's numbers and by the guest's. Pure.
//!
//! Where the guest's numbers are kept they are the kernel's, too. Where they are not, the kernel gets
//! numbers of the server's own, each with its parent and name, by which it is looked up again when the
//! instance that made the guest's number is gone.

use std::collections::HashMap;

/// Number of the volume's root, on either side.
pub(crate) const ROOT: u64 = 1;
/// Most nodes that are remembered; the kernel forgets what it does not use as memory gets tight.
const NODES_MAX: usize = 4 << 20;

/// Names of a path that are shown.
const DEPTH_MAX: usize = 256;

#[derive(Clone, Debug)]
struct Node {
    /// As the instance numbered `epoch` says it.
    guest: u64,
    epoch: u64,
    parent: u64,
    name: String,
    /// How often the kernel has been told.
    told: u64,
}

/// How a node of the kernel's is called by the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// So.
    Guest(u64),
    /// It has to be looked up: in the kernel's node `parent`, by `name`.
    Lookup { parent: u64, name: String },
    /// Nobody knows any more.
    Lost,
}

/// The nodes of a volume.
pub(crate) struct Nodes {
    is_kept: bool,
    epoch: u64,
    next: u64,
    nodes: HashMap<u64, Node>,
    /// Kernel's numbers of the guest's nodes of this epoch; used where they are not kept.
    by_guest: HashMap<u64, u64>,
}

impl Nodes {
    /// `first` is where the server's own numbers begin: above all that an earlier server gave.
    pub(crate) fn new(first: u64) -> Self {
        Self {
            is_kept: true,
            epoch: 0,
            next: first.max(ROOT + 1),
            nodes: HashMap::new(),
            by_guest: HashMap::new(),
        }
    }

    /// A new instance serves the volume.
    pub(crate) fn opened(&mut self, is_kept: bool) {
        self.is_kept = is_kept;
        self.epoch += 1;
        self.by_guest.clear();
    }

    /// How the guest calls a node.
    pub(crate) fn guest(&self, node: u64) -> Found {
        if node == ROOT {
            return Found::Guest(ROOT);
        }
        match self.nodes.get(&node) {
            Some(known) if self.is_kept || known.epoch == self.epoch => Found::Guest(known.guest),
            Some(known) => Found::Lookup {
                parent: known.parent,
                name: known.name.clone(),
            },
            // Told to the kernel by a server before this one.
            None if self.is_kept => Found::Guest(node),
            None => Found::Lost,
        }
    }

    /// The guest does not know a node any more: where it is to be looked up.
    pub(crate) fn stale(&mut self, node: u64) -> Found {
        match self.nodes.get_mut(&node) {
            Some(known) => {
                known.epoch = 0;
                Found::Lookup {
                    parent: known.parent,
                    name: known.name.clone(),
                }
            }
            None => Found::Lost,
        }
    }

    /// A node has been looked up again.
    pub(crate) fn found(&mut self, node: u64, guest: u64) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.guest = guest;
            known.epoch = self.epoch;
            if !self.is_kept {
                self.by_guest.insert(guest, node);
            }
        }
    }

    /// The kernel's number for what the guest found or made in `parent`; `told` says whether the kernel will
    /// count it. `None`: there are too many.
    pub(crate) fn tell(&mut self, parent: u64, name: &str, guest: u64, told: bool) -> Option<u64> {
        if guest == ROOT {
            return Some(ROOT);
        }
        let number = match self.by_guest.get(&guest) {
            Some(number) if !self.is_kept => *number,
            _ if self.is_kept => guest,
            _ => {
                self.next += 1;
                self.next - 1
            }
        };
        if !told {
            // Only a number to show: what is not told is not remembered.
            return Some(number);
        }
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&number) {
            return None;
        }
        let node = self.nodes.entry(number).or_insert_with(|| Node {
            guest,
            epoch: 0,
            parent,
            name: String::new(),
            told: 0,
        });
        node.guest = guest;
        node.epoch = self.epoch;
        node.parent = parent;
        name.clone_into(&mut node.name);
        node.told += 1;
        if !self.is_kept {
            self.by_guest.insert(guest, number);
        }
        Some(number)
    }

    /// The kernel has a node no more, of so many times that it was told. Answers the guest's number when
    /// that was the last.
    pub(crate) fn forget(&mut self, node: u64, times: u64) -> Option<u64> {
        let known = self.nodes.get_mut(&node)?;
        known.told = known.told.saturating_sub(times);
        if known.told > 0 {
            return None;
        }
        let gone = self.nodes.remove(&node)?;
        if self.by_guest.get(&gone.guest) == Some(&node) {
            self.by_guest.remove(&gone.guest);
        }
        (self.is_kept || gone.epoch == self.epoch).then_some(gone.guest)
    }

    /// How people call a node, whatever its number: its path, as far as it is known.
    pub(crate) fn path(&self, node: u64) -> String {
        let mut names = Vec::new();
        let mut at = node;
        while at != ROOT && names.len() < DEPTH_MAX {
            let Some(known) = self.nodes.get(&at) else {
                names.push(format!("#{at}"));
                break;
            };
            names.push(known.name.clone());
            at = known.parent;
        }
        names.iter().rev().map(|name| format!("/{name}")).collect()
    }

    /// A node has another name. Nodes are few and renames rare.
    pub(crate) fn renamed(&mut self, parent: u64, name: &str, new_parent: u64, new_name: &str) {
        for node in self.nodes.values_mut() {
            if node.parent == parent && node.name == name {
                node.parent = new_parent;
                new_name.clone_into(&mut node.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_kept_are_the_kernels_too() {
        let mut nodes = Nodes::new(1000);
        nodes.opened(true);
        assert_eq!(nodes.tell(ROOT, "a", 17, true), Some(17));
        nodes.opened(true);
        assert_eq!(nodes.guest(17), Found::Guest(17));
        // What a server before this one told.
        assert_eq!(nodes.guest(99), Found::Guest(99));
        assert_eq!(nodes.forget(99, 1), None);
        assert_eq!(nodes.forget(17, 1), Some(17));
    }

    #[test]
    fn a_new_instance_is_asked_by_path_where_numbers_are_not_kept() {
        let mut nodes = Nodes::new(1000);
        nodes.opened(false);
        let dir = nodes.tell(ROOT, "dir", 2, true).unwrap();
        let file = nodes.tell(dir, "file", 3, true).unwrap();
        assert_eq!((dir, file), (1000, 1001));
        assert_eq!(
            (nodes.path(file), nodes.path(ROOT)),
            ("/dir/file".into(), String::new())
        );
        assert_eq!(nodes.path(7), "/#7");
        assert_eq!(nodes.tell(dir, "file", 3, true), Some(file));
        assert_eq!(nodes.guest(file), Found::Guest(3));

        nodes.opened(false);
        // The new instance gave 2 to the file: nobody is served the wrong one.
        let lookup = |parent, name: &str| Found::Lookup {
            parent,
            name: name.into(),
        };
        assert_eq!(nodes.guest(file), lookup(dir, "file"));
        assert_eq!(nodes.guest(dir), lookup(ROOT, "dir"));
        nodes.found(dir, 3);
        nodes.found(file, 2);
        assert_eq!(nodes.guest(file), Found::Guest(2));
        assert_eq!(nodes.tell(dir, "file", 2, true), Some(file));

        assert_eq!(nodes.forget(file, 2), None);
        assert_eq!(nodes.forget(file, 1), Some(2));
        assert_eq!(nodes.guest(file), Found::Lost);
        assert_eq!(nodes.stale(file), Found::Lost);
    }

    #[test]
    fn a_renamed_node_is_looked_up_by_its_new_name() {
        let mut nodes = Nodes::new(10);
        nodes.opened(true);
        nodes.tell(ROOT, "old", 5, true);
        nodes.renamed(ROOT, "old", 7, "new");
        assert_eq!(
            nodes.stale(5),
            Found::Lookup {
                parent: 7,
                name: "new".into()
            }
        );
    }
}
