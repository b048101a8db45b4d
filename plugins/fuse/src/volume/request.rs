//! Requests of the kernel on their way to an answer.

use std::sync::Arc;

use tokio::time::Instant;
use wherry_plugin_host::filesystem::protocol::Operation;

use crate::abi::Shape;

/// A request on its way. Nodes are the kernel's.
pub(super) struct Pending {
    pub(super) unique: u64,
    pub(super) operation: Operation,
    pub(super) shape: Shape,
    /// Kept for another instance, should this one not answer.
    pub(super) data: Arc<Vec<u8>>,
    pub(super) arrived: Instant,
    pub(super) attempts: u32,
    pub(super) lookups: u32,
    /// The kernel asks for it again: an earlier server may have done it.
    pub(super) is_resent: bool,
    pub(super) interrupted: Option<Instant>,
    pub(super) is_answered: bool,
    /// Not the kernel's: a node's path is looked up, so that another request can be made.
    pub(super) lookup: Option<Box<(u64, Pending)>>,
}

/// The nodes that an operation is about.
pub(super) fn nodes_of(operation: &Operation) -> impl Iterator<Item = u64> + use<> {
    let mut operation = operation.clone();
    let nodes = nodes_mut(&mut operation).map(|node| node.map(|node| *node));
    nodes.into_iter().flatten()
}

/// The same, to be written in other words.
pub(super) fn nodes_mut(operation: &mut Operation) -> [Option<&mut u64>; 2] {
    match operation {
        Operation::Lookup { parent: node, .. }
        | Operation::Stat { node }
        | Operation::Change { node, .. }
        | Operation::ReadDirectory { node, .. }
        | Operation::Read { node, .. }
        | Operation::ReadLink { node }
        | Operation::Write { node, .. }
        | Operation::Create { parent: node, .. }
        | Operation::CreateLink { parent: node, .. }
        | Operation::Remove { parent: node, .. }
        | Operation::Forget { node }
        | Operation::Sync { node } => [Some(node), None],
        Operation::Rename {
            parent, new_parent, ..
        } => [Some(parent), Some(new_parent)],
        Operation::Space => [None, None],
    }
}
