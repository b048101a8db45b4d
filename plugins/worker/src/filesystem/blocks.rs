//! `wherry:plugin/blocks`: what a call changes is kept back until it has ended, and seen by that call at once.

use tokio::sync::mpsc;
use wherry_plugin_host::{
    filesystem::protocol::{
        BLOCK_BYTES_MAX, BlockChange, CHANGED_BYTES_MAX, FromGuest, GuestAnswer, GuestAsk,
    },
    protocol::{Answer, Ask},
};

use crate::{
    bindings::filesystem::wherry::plugin::blocks::{BlockError, Host},
    state::State,
};

/// Changes of one call; a handful is usual.
const CHANGES_MAX: usize = 16_384;

/// What a volume's instance keeps with the server.
pub(crate) struct Kept {
    volume: u64,
    sender: mpsc::Sender<(FromGuest, Vec<u8>)>,
    answers: mpsc::Receiver<(GuestAnswer, Vec<u8>)>,
    changes: Vec<BlockChange>,
    data: Vec<u8>,
    /// Bytes that are free for sure, whatever has been changed since the server was asked.
    free: u64,
}

impl Kept {
    pub(crate) fn new(
        volume: u64,
        sender: mpsc::Sender<(FromGuest, Vec<u8>)>,
        answers: mpsc::Receiver<(GuestAnswer, Vec<u8>)>,
    ) -> Self {
        Self {
            volume,
            sender,
            answers,
            changes: Vec::new(),
            data: Vec::new(),
            free: 0,
        }
    }

    /// Asks the server.
    pub(crate) async fn ask(&mut self, ask: GuestAsk) -> wasmtime::Result<(GuestAnswer, Vec<u8>)> {
        let ask = FromGuest::Ask {
            volume: self.volume,
            ask,
        };
        let gone = || wasmtime::format_err!("the volume server is gone");
        self.sender
            .send((ask, Vec::new()))
            .await
            .map_err(|_| gone())?;
        self.answers.recv().await.ok_or_else(gone)
    }

    /// Asks what any plugin asks.
    pub(crate) async fn ask_agent(&mut self, ask: Ask) -> wasmtime::Result<Answer> {
        match self.ask(GuestAsk::Agent(ask)).await? {
            (GuestAnswer::Agent(answer), _) => Ok(answer),
            _ => wasmtime::bail!("answer to another question"),
        }
    }

    /// What the call has changed.
    pub(crate) fn take(&mut self) -> (Vec<BlockChange>, Vec<u8>) {
        (
            std::mem::take(&mut self.changes),
            std::mem::take(&mut self.data),
        )
    }

    async fn read(&mut self, block: u64, offset: u32, length: u32) -> wasmtime::Result<Vec<u8>> {
        let length = length.min(BLOCK_BYTES_MAX);
        let touches = |change: &BlockChange| match *change {
            BlockChange::Write { block: touched, .. }
            | BlockChange::Truncate { block: touched, .. } => touched == block,
        };
        let is_changed = self.changes.iter().any(touches);
        // Where this call has changed the block, all of it is needed to say how long it is now.
        let (from, bytes) = match is_changed {
            true => (0, BLOCK_BYTES_MAX),
            false => (offset, length),
        };
        let ask = GuestAsk::Read {
            block,
            offset: from,
            length: bytes,
        };
        let (GuestAnswer::Read, mut found) = self.ask(ask).await? else {
            wasmtime::bail!("answer to another question");
        };
        if !is_changed {
            return Ok(found);
        }
        let mut at = 0;
        for change in &self.changes {
            match *change {
                BlockChange::Write {
                    block: written,
                    offset,
                    length,
                } => {
                    let (begin, end) = (offset as usize, (offset + length) as usize);
                    if written == block {
                        if found.len() < end {
                            found.resize(end, 0);
                        }
                        found[begin..end].copy_from_slice(&self.data[at..at + length as usize]);
                    }
                    at += length as usize;
                }
                BlockChange::Truncate { block: cut, length } if cut == block => {
                    found.truncate(length as usize);
                }
                BlockChange::Truncate { .. } => {}
            }
        }
        let end = found.len().min(offset.saturating_add(length) as usize);
        Ok(found.get(offset as usize..end).unwrap_or_default().to_vec())
    }

    async fn write(
        &mut self,
        block: u64,
        offset: u32,
        bytes: Vec<u8>,
    ) -> wasmtime::Result<Result<(), BlockError>> {
        let Ok(length) = u32::try_from(bytes.len()) else {
            return Ok(Err(BlockError::TooLarge));
        };
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > BLOCK_BYTES_MAX)
            || self.data.len() + bytes.len() > CHANGED_BYTES_MAX
            || self.changes.len() >= CHANGES_MAX
        {
            return Ok(Err(BlockError::TooLarge));
        }
        if length == 0 {
            return Ok(Ok(()));
        }
        self.changes.push(BlockChange::Write {
            block,
            offset,
            length,
        });
        // Pages at both ends may be new.
        let most = u64::from(length) + 2 * 4096;
        match self.free.checked_sub(most) {
            Some(left) => self.free = left,
            None => {
                let ask = GuestAsk::Fits(self.changes.clone());
                let (GuestAnswer::Fits(fits), _) = self.ask(ask).await? else {
                    wasmtime::bail!("answer to another question");
                };
                if !fits {
                    self.changes.pop();
                    return Ok(Err(BlockError::NoSpace));
                }
                // What this call has changed so far is not among the used yet.
                let (max, used) = self.space().await?;
                let changed = self.data.len() as u64 + most * self.changes.len() as u64;
                self.free = max.saturating_sub(used).saturating_sub(changed);
            }
        }
        match self.data.is_empty() {
            true => self.data = bytes,
            false => self.data.extend_from_slice(&bytes),
        }
        Ok(Ok(()))
    }

    async fn space(&mut self) -> wasmtime::Result<(u64, u64)> {
        let (GuestAnswer::Space { max, used }, _) = self.ask(GuestAsk::Space).await? else {
            wasmtime::bail!("answer to another question");
        };
        Ok((max, used))
    }
}

impl State {
    fn kept(&mut self) -> wasmtime::Result<&mut Kept> {
        let kept = self.kept.as_mut();
        kept.ok_or_else(|| wasmtime::format_err!("the call keeps nothing"))
    }
}

impl Host for State {
    async fn read(&mut self, block: u64, offset: u32, length: u32) -> wasmtime::Result<Vec<u8>> {
        self.kept()?.read(block, offset, length).await
    }

    async fn write(
        &mut self,
        block: u64,
        offset: u32,
        bytes: Vec<u8>,
    ) -> wasmtime::Result<Result<(), BlockError>> {
        self.kept()?.write(block, offset, bytes).await
    }

    async fn truncate(&mut self, block: u64, length: u32) -> wasmtime::Result<()> {
        let kept = self.kept()?;
        if kept.changes.len() >= CHANGES_MAX {
            wasmtime::bail!("too many blocks changed in one call");
        }
        kept.changes.push(BlockChange::Truncate { block, length });
        Ok(())
    }

    async fn list(&mut self, first: u64) -> wasmtime::Result<Vec<u64>> {
        let kept = self.kept()?;
        let (GuestAnswer::Listed(mut numbers), _) = kept.ask(GuestAsk::List { first }).await?
        else {
            wasmtime::bail!("answer to another question");
        };
        // Of what this call has changed, the last change of a block says whether it is there.
        for change in &kept.changes {
            match *change {
                BlockChange::Write { block, .. } if block >= first => {
                    if let Err(at) = numbers.binary_search(&block) {
                        numbers.insert(at, block);
                    }
                }
                BlockChange::Truncate { block, length: 0 } => {
                    if let Ok(at) = numbers.binary_search(&block) {
                        numbers.remove(at);
                    }
                }
                BlockChange::Write { .. } | BlockChange::Truncate { .. } => {}
            }
        }
        Ok(numbers)
    }

    async fn space(&mut self) -> wasmtime::Result<(u64, u64)> {
        self.kept()?.space().await
    }
}
