//! What the guest answered, in the form that the kernel wants, if it makes sense.

use std::borrow::Cow;

use nix::libc;
use wherry_plugin_host::filesystem::protocol::{
    Attributes, BlockChange, Entry, Errno, Operation, Reply,
};

use super::{
    Volume,
    instance::LOOKUPS_MAX,
    request::{Pending, nodes_of},
};
use crate::{
    abi::{self, Answer, Listing, NAME_BYTES_MAX, Shape},
    nodes::ROOT,
};

impl Volume {
    pub(super) fn replied(
        &mut self,
        call: u64,
        result: Result<Reply, Errno>,
        changes: &[BlockChange],
        data: &[u8],
    ) {
        let read = match &result {
            Ok(Reply::Read(bytes)) => (*bytes as usize).min(data.len()),
            _ => 0,
        };
        let (read, changed) = data.split_at(read);
        if let Err(error) = self.blocks.commit(changes, changed) {
            // The guest believes that it is kept: another instance knows better.
            self.end_request(call, Err(libc::ENOSPC));
            return self.lost(&format!("blocks: {error}"), Some(0));
        }
        let Some(position) = self.sent.iter().position(|(sent, _)| *sent == call) else {
            return;
        };
        let Some((_, mut request)) = self.sent.remove(position) else {
            return;
        };
        match result {
            Ok(reply) => self.give(request, reply, read),
            Err(Errno::Stale) if !self.opened.nodes_are_kept => {
                for node in nodes_of(&request.operation) {
                    self.nodes.stale(node);
                }
                request.lookups += 1;
                match request.lookups > LOOKUPS_MAX {
                    true => self.fail(&mut request, libc::ESTALE),
                    false => self.waiting.push_front(request),
                }
            }
            Err(errno) => self.give_error(request, errno),
        }
    }

    pub(super) fn give_error(&mut self, mut request: Pending, errno: Errno) {
        let is_done = request.is_resent
            && match (&request.operation, errno) {
                // Done by the server that had it before, which could not say so any more.
                (Operation::Remove { .. } | Operation::Rename { .. }, Errno::NotFound) => true,
                (
                    Operation::Create { parent, name, .. }
                    | Operation::CreateLink { parent, name, .. },
                    Errno::Exists,
                ) => {
                    request.operation = Operation::Lookup {
                        parent: *parent,
                        name: name.clone(),
                    };
                    return self.waiting.push_front(request);
                }
                _ => false,
            };
        match (is_done, &request.operation, errno) {
            (true, ..) => self.answer(request.unique, Ok(&[])),
            (false, Operation::Space, Errno::Unsupported) => {
                let space = Answer::space(0, 0);
                self.answer(request.unique, Ok(&space));
            }
            (false, Operation::Sync { .. }, Errno::Unsupported) => {
                self.answer(request.unique, Ok(&[]));
            }
            _ => self.fail(&mut request, abi::errno(errno)),
        }
    }

    /// Gives the kernel what the guest answered, if that makes sense.
    pub(super) fn give(&mut self, mut request: Pending, reply: Reply, read: &[u8]) {
        if let Some(lookup) = request.lookup.take() {
            let (node, mut then) = *lookup;
            then.lookups = request.lookups;
            match reply {
                Reply::Attributes(attributes) => {
                    self.nodes.found(node, attributes.node);
                    self.waiting.push_front(then);
                }
                _ => self.fail(&mut then, libc::EIO),
            }
            return;
        }
        if request.is_answered {
            // Forgotten at once: the kernel does not know what it was not told.
            return;
        }
        match self.bytes(&request, reply, read) {
            Ok(bytes) => self.answer(request.unique, Ok(&bytes)),
            Err(why) => {
                self.say(
                    "PluginError",
                    format!("{why}, in answer to {:?}", request.operation),
                );
                self.fail(&mut request, libc::EIO);
            }
        }
    }

    pub(super) fn bytes<'a>(
        &mut self,
        request: &Pending,
        reply: Reply,
        read: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, String> {
        let told = match &request.operation {
            Operation::Lookup { parent, name }
            | Operation::Create { parent, name, .. }
            | Operation::CreateLink { parent, name, .. } => Some((*parent, name.clone())),
            _ => None,
        };
        let bytes = match (request.shape, reply) {
            (Shape::Entry, Reply::Attributes(attributes)) => {
                check(&attributes)?;
                let (parent, name) = told.unwrap_or((ROOT, String::new()));
                let node = self.nodes.tell(parent, &name, attributes.node, true);
                Answer::entry(node.ok_or("too many files are in use")?, &attributes)
            }
            (Shape::Attributes, Reply::Attributes(attributes)) => {
                check(&attributes)?;
                let node = nodes_of(&request.operation).next().unwrap_or(ROOT);
                Answer::stat(node, &attributes)
            }
            (Shape::Link, Reply::Link(to)) if to.is_empty() || to.contains('\0') => {
                return Err("a link that leads nowhere".into());
            }
            (Shape::Link, Reply::Link(mut to)) => {
                // The kernel's own limit of a path.
                if to.len() > 4095 {
                    return Err("a link longer than 4,095 bytes".into());
                }
                to.shrink_to_fit();
                to.into_bytes()
            }
            (Shape::Data, Reply::Read(_)) => match &request.operation {
                Operation::Read { length, .. } if read.len() > *length as usize => {
                    return Err("more bytes than were asked for".into());
                }
                _ => return Ok(Cow::Borrowed(read)),
            },
            (Shape::Written(bytes), Reply::Done) => Answer::written(bytes),
            (Shape::Empty, Reply::Done) => {
                if let Operation::Rename {
                    parent,
                    name,
                    new_parent,
                    new_name,
                    ..
                } = &request.operation
                {
                    self.nodes.renamed(*parent, name, *new_parent, new_name);
                }
                Vec::new()
            }
            (Shape::Space, Reply::Room(bytes, free)) => Answer::space(bytes, free),
            (Shape::Directory { bytes, plus }, Reply::Entries(entries)) => {
                let Operation::ReadDirectory { node, offset, .. } = request.operation else {
                    return Err("a directory".into());
                };
                self.listing(node, offset, bytes, plus, &entries)?
            }
            (_, reply) => return Err(format!("{reply:?} is no answer")),
        };
        Ok(Cow::Owned(bytes))
    }

    pub(super) fn listing(
        &mut self,
        node: u64,
        offset: u64,
        bytes: u32,
        plus: bool,
        entries: &[Entry],
    ) -> Result<Vec<u8>, String> {
        let mut listing = Listing::new(bytes, plus);
        for (at, name) in [(0, "."), (1, "..")] {
            if offset <= at && listing.fits(name) {
                listing.push_dots(name, at + 1, node);
            }
        }
        for entry in entries {
            if !is_name(&entry.name) {
                let name: String = entry.name.chars().take(40).collect();
                self.say("PluginError", format!("a directory with the name {name:?}"));
                continue;
            }
            if !listing.fits(&entry.name) {
                break;
            }
            check(&entry.attributes)?;
            let next = entry.next.checked_add(2).filter(|next| *next < 1 << 63);
            let next = next
                .filter(|next| *next > 2)
                .ok_or("an offset of no entry")?;
            let told = self
                .nodes
                .tell(node, &entry.name, entry.attributes.node, plus);
            let told = told.ok_or("too many files are in use")?;
            listing.push(&entry.name, next, told, &entry.attributes);
        }
        Ok(listing.finish())
    }
}

fn check(attributes: &Attributes) -> Result<(), String> {
    if attributes.size > i64::MAX as u64 {
        return Err(format!("a file of {} bytes", attributes.size));
    }
    if attributes.node == 0 {
        return Err("the node 0".into());
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= NAME_BYTES_MAX && !name.contains(['/', '\0'])
}
