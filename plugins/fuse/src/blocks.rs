//! Blocks that a guest keeps with its volume: bytes under numbers, in a file without a name that every
//! process which holds the volume has open. What one commit changes is there as a whole or not at all,
//! whenever a process is killed; the file is memory, so nothing needs to reach a disk.
//!
//! ```text
//!  header │ index: 16 bytes a page │ journal │ pages of 4 KiB
//!  commit: write the changes to the journal, mark it whole, make them, mark it empty
//!  open:   read the index; make what a whole journal says once more, which changes nothing that is there
//! ```

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, IoSlice},
    os::unix::fs::FileExt,
};

use rustix::fs::FallocateFlags;
use wherry_plugin_host::filesystem::protocol::{
    BLOCK_BYTES_MAX, BlockChange, CHANGED_BYTES_MAX, LISTED_MAX,
};

/// What space is counted in.
const PAGE: u32 = 4096;
const PAGES_OF_BLOCK: usize = (BLOCK_BYTES_MAX / PAGE) as usize;
const MAGIC: u64 = 0x7768_6272_626c_6b31;
const HEADER_BYTES: u64 = PAGE as u64;
/// Where the header says how long the journal is; 0 is empty.
const JOURNAL_LENGTH_AT: u64 = 16;
const SLOT_BYTES: u64 = 16;
/// One change in the journal, without its bytes.
const RECORD_BYTES: usize = 24;
/// Parts that the kernel takes in one call.
const PARTS_MAX: usize = 1024;
/// Changes of one commit: a byte each would be the most, were it not for this.
const RECORDS_MAX: usize = 65_536;
const JOURNAL_BYTES: u64 = (CHANGED_BYTES_MAX + RECORDS_MAX * RECORD_BYTES) as u64;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Block {
    length: u32,
    /// Page of the file that holds each page of the block; a hole is zeros.
    pages: Vec<Option<u32>>,
}

/// A volume's blocks.
pub(crate) struct Blocks {
    file: File,
    pages_max: u32,
    blocks: BTreeMap<u64, Block>,
    /// Pages that are free, the first one last.
    free: Vec<u32>,
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("blocks: {why}"))
}

impl Blocks {
    /// Finds what is in a file; an empty one gets room for so many bytes.
    ///
    /// # Errors
    /// It is another file.
    pub(crate) fn open(file: File, bytes_max: u64) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            let pages = u32::try_from(bytes_max / u64::from(PAGE)).unwrap_or(u32::MAX);
            file.write_all_at(&u64::from(pages).to_le_bytes(), 8)?;
            file.write_all_at(&[0; 8], JOURNAL_LENGTH_AT)?;
            file.write_all_at(&MAGIC.to_le_bytes(), 0)?;
        }
        let mut header = [0; 24];
        file.read_exact_at(&mut header, 0)
            .map_err(|_| invalid("no header"))?;
        let word = |at: usize| {
            header[at..at + 8]
                .try_into()
                .map(u64::from_le_bytes)
                .unwrap_or_default()
        };
        if word(0) != MAGIC {
            return Err(invalid("not such a file"));
        }
        let pages_max = u32::try_from(word(8)).map_err(|_| invalid("too many pages"))?;
        let mut this = Self {
            file,
            pages_max,
            blocks: BTreeMap::new(),
            free: Vec::new(),
        };
        // Holes are zeros to its very end, and take nothing.
        this.file.set_len(this.page_at(pages_max))?;
        this.read_index()?;
        let journal = word(JOURNAL_LENGTH_AT as usize);
        if journal > 0 {
            let mut bytes = vec![0; usize::try_from(journal.min(JOURNAL_BYTES)).unwrap_or(0)];
            this.file.read_exact_at(&mut bytes, this.journal_at())?;
            for (change, data) in records(&bytes).ok_or_else(|| invalid("journal"))? {
                this.apply(change, data)?;
            }
            this.mark_journal(0)?;
        }
        Ok(this)
    }

    /// The same file, for another process.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn read_index(&mut self) -> io::Result<()> {
        let mut index = vec![0; self.pages_max as usize * SLOT_BYTES as usize];
        let mut read = 0;
        while read < index.len() {
            match self
                .file
                .read_at(&mut index[read..], HEADER_BYTES + read as u64)?
            {
                // The file is no longer than what was written to it: the rest was never used.
                0 => break,
                n => read += n,
            }
        }
        for (page, slot) in (0..).zip(index.chunks_exact(SLOT_BYTES as usize)) {
            let [block, place] = [0, 8].map(|at| {
                let word = slot[at..at + 8].try_into().map(u64::from_le_bytes);
                word.unwrap_or_default()
            });
            // Number in the block plus one, and the bytes used of it.
            let (number, bytes) = ((place >> 32) as usize, place as u32);
            if number == 0 {
                self.free.push(page);
                continue;
            }
            if number > PAGES_OF_BLOCK || bytes > PAGE {
                return Err(invalid("index"));
            }
            let found = self.blocks.entry(block).or_default();
            if found.pages.len() < number {
                found.pages.resize(number, None);
            }
            found.pages[number - 1] = Some(page);
            found.length = found.length.max((number as u32 - 1) * PAGE + bytes);
        }
        self.free.reverse();
        Ok(())
    }

    fn journal_at(&self) -> u64 {
        HEADER_BYTES + u64::from(self.pages_max) * SLOT_BYTES
    }

    fn page_at(&self, page: u32) -> u64 {
        let pages_at = (self.journal_at() + JOURNAL_BYTES).next_multiple_of(u64::from(PAGE));
        pages_at + u64::from(page) * u64::from(PAGE)
    }

    fn mark_journal(&self, length: u64) -> io::Result<()> {
        self.file
            .write_all_at(&length.to_le_bytes(), JOURNAL_LENGTH_AT)
    }

    /// Bytes of a block; fewer than asked for at its end.
    pub(crate) fn read(&self, block: u64, offset: u32, length: u32) -> io::Result<Vec<u8>> {
        let Some(found) = self.blocks.get(&block) else {
            return Ok(Vec::new());
        };
        let end = offset.saturating_add(length).min(found.length);
        let Some(length) = end.checked_sub(offset) else {
            return Ok(Vec::new());
        };
        let mut bytes = vec![0; length as usize];
        let mut rows = Vec::new();
        for run in runs(offset, length) {
            if let Some(page) = found.pages.get(run.page).copied().flatten() {
                self.add(&mut rows, page, run);
            }
        }
        for row in rows {
            self.file.read_exact_at(&mut bytes[row.bytes], row.at)?;
        }
        Ok(bytes)
    }

    /// Numbers of blocks that are not empty, from `first` on.
    pub(crate) fn list(&self, first: u64) -> Vec<u64> {
        let numbers = self.blocks.range(first..).map(|(number, _)| *number);
        numbers.take(LISTED_MAX).collect()
    }

    /// Bytes that may be kept, and that are.
    pub(crate) fn space(&self) -> (u64, u64) {
        let used = self.pages_max as usize - self.free.len();
        (
            u64::from(self.pages_max) * u64::from(PAGE),
            used as u64 * u64::from(PAGE),
        )
    }

    /// Whether changes find room, one after the other.
    pub(crate) fn fits(&self, changes: &[BlockChange]) -> bool {
        let mut added = std::collections::HashSet::new();
        for change in changes {
            let BlockChange::Write {
                block,
                offset,
                length,
            } = *change
            else {
                continue;
            };
            if !is_within(offset, length) {
                return false;
            }
            let there = self.blocks.get(&block);
            for run in runs(offset, length) {
                let page = there.and_then(|found| found.pages.get(run.page).copied().flatten());
                if page.is_none() {
                    added.insert((block, run.page));
                }
            }
            if added.len() > self.free.len() {
                return false;
            }
        }
        true
    }

    /// Makes changes, all of them or, with an error, none. `data` is what they write, one behind the other.
    ///
    /// # Errors
    /// They do not fit, or say more than there is data for; nothing has been changed.
    pub(crate) fn commit(&mut self, changes: &[BlockChange], data: &[u8]) -> io::Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        if changes.len() > RECORDS_MAX || data.len() > CHANGED_BYTES_MAX || !self.fits(changes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let with_data = with_data(changes, data)?;
        let length = self.write_journal(&with_data)?;
        self.mark_journal(length)?;
        for (change, bytes) in with_data {
            self.apply(change, bytes)?;
        }
        self.mark_journal(0)
    }

    /// Writes changes with what they write one behind the other, and answers how many bytes those are.
    fn write_journal(&self, changes: &[(BlockChange, &[u8])]) -> io::Result<u64> {
        let records: Vec<_> = changes.iter().map(|(change, _)| record(*change)).collect();
        let bytes = changes.iter().map(|(_, bytes)| *bytes);
        let parts = records.iter().zip(bytes);
        let mut parts: Vec<_> = parts
            .flat_map(|(record, bytes)| [IoSlice::new(record), IoSlice::new(bytes)])
            .collect();
        let (mut parts, mut at) = (&mut parts[..], self.journal_at());
        while !parts.is_empty() {
            let some = &parts[..parts.len().min(PARTS_MAX)];
            match rustix::io::pwritev(&self.file, some, at)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => {
                    IoSlice::advance_slices(&mut parts, written);
                    at += written as u64;
                }
            }
        }
        Ok(at - self.journal_at())
    }

    fn apply(&mut self, change: BlockChange, data: &[u8]) -> io::Result<()> {
        match change {
            BlockChange::Write { block, offset, .. } => self.write(block, offset, data),
            BlockChange::Truncate { block, length } => self.truncate(block, length),
        }
    }

    fn write(&mut self, block: u64, offset: u32, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).map_err(|_| invalid("write"))?;
        if length == 0 || !is_within(offset, length) {
            return Ok(());
        }
        let mut found = self.blocks.remove(&block).unwrap_or_default();
        let mut rows = Vec::new();
        // The same of the index: the first page, and what is said of it and those behind it.
        let mut slots = Vec::<(u32, Vec<u8>)>::new();
        for run in runs(offset, length) {
            if found.pages.len() <= run.page {
                found.pages.resize(run.page + 1, None);
            }
            let before = found
                .length
                .saturating_sub(run.page as u32 * PAGE)
                .min(PAGE);
            let end = run.within + run.bytes.len() as u32;
            let known = found.pages[run.page];
            let page = match known {
                Some(page) => page,
                None => self.free.pop().ok_or(io::ErrorKind::StorageFull)?,
            };
            found.pages[run.page] = Some(page);
            if known.is_none() || end > before {
                let slot = slot(block, run.page, end.max(before));
                match slots.last_mut() {
                    Some((first, row))
                        if *first + (row.len() as u64 / SLOT_BYTES) as u32 == page =>
                    {
                        row.extend_from_slice(&slot);
                    }
                    _ => slots.push((page, slot.to_vec())),
                }
            }
            self.add(&mut rows, page, run);
        }
        // Noted first: a page that is not noted is free, and free pages are zeros.
        for (first, row) in slots {
            let at = HEADER_BYTES + u64::from(first) * SLOT_BYTES;
            self.file.write_all_at(&row, at)?;
        }
        for row in rows {
            self.file.write_all_at(&data[row.bytes], row.at)?;
        }
        found.length = found.length.max(offset + length);
        self.blocks.insert(block, found);
        Ok(())
    }

    /// Adds a run in a page to what is read or written, to the last row where it goes on.
    fn add(&self, rows: &mut Vec<Row>, page: u32, run: Run) {
        match rows.last_mut() {
            Some(row) if row.next == page && row.bytes.end == run.bytes.start => {
                row.next += 1;
                row.bytes.end = run.bytes.end;
            }
            _ => rows.push(Row {
                at: self.page_at(page) + u64::from(run.within),
                next: page + 1,
                bytes: run.bytes,
            }),
        }
    }

    /// Says in the index what a page is.
    fn note(&self, page: u32, block: u64, number: usize, bytes: u32) -> io::Result<()> {
        let at = HEADER_BYTES + u64::from(page) * SLOT_BYTES;
        self.file.write_all_at(&slot(block, number, bytes), at)
    }

    fn truncate(&mut self, block: u64, length: u32) -> io::Result<()> {
        let Some(mut found) = self.blocks.remove(&block) else {
            return Ok(());
        };
        if found.length <= length {
            self.blocks.insert(block, found);
            return Ok(());
        }
        let keep = length.div_ceil(PAGE) as usize;
        let dropped = found.pages.split_off(keep.min(found.pages.len()));
        // The last page first: what is left after a crash is a longer block, not one with a hole.
        for page in dropped.into_iter().flatten().rev() {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, flags, self.page_at(page), u64::from(PAGE))?;
            let at = HEADER_BYTES + u64::from(page) * SLOT_BYTES;
            self.file.write_all_at(&[0; SLOT_BYTES as usize], at)?;
            self.free.push(page);
        }
        if length == 0 {
            return Ok(());
        }
        // The end has to be in a page of its own, or the length would be lost with the process.
        let (last, within) = (keep - 1, (length - 1) % PAGE + 1);
        found.length = length;
        match found.pages.get(last).copied().flatten() {
            Some(page) => {
                let zeros = vec![0; (PAGE - within) as usize];
                let at = self.page_at(page) + u64::from(within);
                self.file.write_all_at(&zeros, at)?;
                self.note(page, block, last, within)?;
                self.blocks.insert(block, found);
                Ok(())
            }
            None => {
                self.blocks.insert(block, found);
                self.write(block, length - 1, &[0])
            }
        }
    }
}

fn is_within(offset: u32, length: u32) -> bool {
    offset
        .checked_add(length)
        .is_some_and(|end| end <= BLOCK_BYTES_MAX)
}

/// Part of a range that is in one page.
struct Run {
    page: usize,
    within: u32,
    bytes: std::ops::Range<usize>,
}

fn runs(offset: u32, length: u32) -> impl Iterator<Item = Run> {
    let end = offset.saturating_add(length);
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let next = (at / PAGE + 1).saturating_mul(PAGE).min(end);
        let run = Run {
            page: (at / PAGE) as usize,
            within: at % PAGE,
            bytes: (at - offset) as usize..(next - offset) as usize,
        };
        at = next;
        Some(run)
    })
}

/// What is read from or written to pages of the file that follow one another.
struct Row {
    /// Where in the file.
    at: u64,
    /// The page behind it.
    next: u32,
    /// Which bytes of the data.
    bytes: std::ops::Range<usize>,
}

/// What the index says of a page: which of a block, and how many bytes of it are used.
fn slot(block: u64, number: usize, bytes: u32) -> [u8; SLOT_BYTES as usize] {
    let mut slot = [0; SLOT_BYTES as usize];
    slot[..8].copy_from_slice(&block.to_le_bytes());
    let place = ((number as u64 + 1) << 32) | u64::from(bytes);
    slot[8..].copy_from_slice(&place.to_le_bytes());
    slot
}

/// Changes, each with what it writes.
fn with_data<'a>(
    changes: &[BlockChange],
    mut data: &'a [u8],
) -> io::Result<Vec<(BlockChange, &'a [u8])>> {
    let mut found = Vec::with_capacity(changes.len());
    for change in changes {
        let mut bytes = &[][..];
        if let BlockChange::Write { length, .. } = *change {
            (bytes, data) = data
                .split_at_checked(length as usize)
                .ok_or_else(|| invalid("data is missing"))?;
        }
        found.push((*change, bytes));
    }
    Ok(found)
}

/// A change as it stands in the journal before what it writes.
fn record(change: BlockChange) -> [u8; RECORD_BYTES] {
    let (kind, block, offset, length) = match change {
        BlockChange::Write {
            block,
            offset,
            length,
        } => (1_u64, block, offset, length),
        BlockChange::Truncate { block, length } => (2, block, 0, length),
    };
    let mut record = [0; RECORD_BYTES];
    record[..8].copy_from_slice(&kind.to_le_bytes());
    record[8..16].copy_from_slice(&block.to_le_bytes());
    record[16..20].copy_from_slice(&offset.to_le_bytes());
    record[20..].copy_from_slice(&length.to_le_bytes());
    record
}

/// The changes of a journal with what they write.
fn records(mut journal: &[u8]) -> Option<Vec<(BlockChange, &[u8])>> {
    let mut found = Vec::new();
    while !journal.is_empty() {
        let (record, rest) = journal.split_at_checked(RECORD_BYTES)?;
        journal = rest;
        let kind = u64::from_le_bytes(record[..8].try_into().ok()?);
        let block = u64::from_le_bytes(record[8..16].try_into().ok()?);
        let offset = u32::from_le_bytes(record[16..20].try_into().ok()?);
        let length = u32::from_le_bytes(record[20..24].try_into().ok()?);
        match kind {
            1 => {
                let (data, rest) = journal.split_at_checked(length as usize)?;
                journal = rest;
                let change = BlockChange::Write {
                    block,
                    offset,
                    length,
                };
                found.push((change, data));
            }
            2 => found.push((BlockChange::Truncate { block, length }, &[])),
            _ => return None,
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests;
