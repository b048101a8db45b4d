use std::collections::BTreeMap;

use proptest::prelude::*;
use rustix::fs::MemfdFlags;

use super::*;

fn file() -> File {
    rustix::fs::memfd_create("blocks-test", MemfdFlags::CLOEXEC)
        .unwrap()
        .into()
}

fn again(blocks: &Blocks) -> Blocks {
    Blocks::open(blocks.file().try_clone().unwrap(), 0).unwrap()
}

fn write(block: u64, offset: u32, data: &[u8]) -> BlockChange {
    BlockChange::Write {
        block,
        offset,
        length: data.len() as u32,
    }
}

/// What blocks should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model(BTreeMap<u64, Vec<u8>>);

impl Model {
    fn commit(&mut self, changes: &[BlockChange], mut data: &[u8]) {
        for change in changes {
            match *change {
                BlockChange::Write {
                    block,
                    offset,
                    length,
                } => {
                    let (bytes, rest) = data.split_at(length as usize);
                    data = rest;
                    if length > 0 {
                        let held = self.0.entry(block).or_default();
                        let end = (offset + length) as usize;
                        if held.len() < end {
                            held.resize(end, 0);
                        }
                        held[offset as usize..end].copy_from_slice(bytes);
                    }
                }
                BlockChange::Truncate { block, length } => {
                    if let Some(held) = self.0.get_mut(&block) {
                        held.truncate(length as usize);
                        if held.is_empty() {
                            self.0.remove(&block);
                        }
                    }
                }
            }
        }
    }

    fn of(blocks: &Blocks) -> Self {
        let numbers = blocks.list(0).into_iter();
        Self(
            numbers
                .map(|block| (block, blocks.read(block, 0, BLOCK_BYTES_MAX).unwrap()))
                .collect(),
        )
    }
}

fn commits() -> impl Strategy<Value = Vec<(Vec<BlockChange>, Vec<u8>)>> {
    let write = (
        1_u64..6,
        0_u32..20_000,
        prop::collection::vec(1_u8.., 0..9000),
    )
        .prop_map(|(block, offset, data)| (write(block, offset, &data), data));
    let truncate = (1_u64..6, 0_u32..25_000)
        .prop_map(|(block, length)| (BlockChange::Truncate { block, length }, Vec::new()));
    let commit = prop::collection::vec(prop_oneof![3 => write, 1 => truncate], 1..4);
    let commit = commit.prop_map(|parts| {
        let (changes, data): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        (changes, data.concat())
    });
    prop::collection::vec(commit, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn blocks_hold_what_was_committed_and_another_process_finds_it(commits in commits()) {
        let mut blocks = Blocks::open(file(), 64 * 4096).unwrap();
        let mut model = Model::default();
        for (changes, data) in &commits {
            // What does not fit changes nothing.
            if blocks.commit(changes, data).is_ok() {
                model.commit(changes, data);
            }
            prop_assert_eq!(&Model::of(&blocks), &model);
        }
        let again = again(&blocks);
        prop_assert_eq!(&Model::of(&again), &model);
        prop_assert_eq!(again.space(), blocks.space());
    }

    #[test]
    fn a_process_that_is_killed_in_a_commit_has_made_all_of_it_or_nothing(
        commits in commits(), made in 0_usize..4,
    ) {
        let mut blocks = Blocks::open(file(), 256 * 4096).unwrap();
        let mut model = Model::default();
        let (last, before) = commits.split_last().unwrap();
        for (changes, data) in before {
            blocks.commit(changes, data).unwrap();
            model.commit(changes, data);
        }
        // The journal is whole, and some of what it says has been made.
        let (changes, data) = last;
        let with_data = with_data(changes, data).unwrap();
        let length = blocks.write_journal(&with_data).unwrap();
        blocks.mark_journal(length).unwrap();
        for (change, bytes) in with_data.into_iter().take(made) {
            blocks.apply(change, bytes).unwrap();
        }
        model.commit(changes, data);
        prop_assert_eq!(Model::of(&again(&blocks)), model);
    }
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut blocks = Blocks::open(file(), 4 * 4096).unwrap();
    assert_eq!(blocks.space(), (4 * 4096, 0));
    blocks.commit(&[write(1, 0, b"kept")], b"kept").unwrap();
    let big = vec![1; 5 * 4096];
    let changes = [write(1, 0, b"lost"), write(2, 0, &big)];
    assert!(!blocks.fits(&changes));
    assert!(
        blocks
            .commit(&changes, &[b"lost", &big[..]].concat())
            .is_err()
    );
    assert_eq!(blocks.read(1, 0, 10).unwrap(), b"kept");
    assert_eq!(blocks.list(0), [1]);
    // Beyond a block's end, and with less data than is said.
    assert!(!blocks.fits(&[write(1, BLOCK_BYTES_MAX, b"x")]));
    assert!(blocks.commit(&[write(1, 0, b"12345678")], b"123").is_err());
    assert_eq!(blocks.read(1, 0, 10).unwrap(), b"kept");
    // A file that is full can be written to where it has bytes.
    let full = vec![2; 3 * 4096];
    blocks.commit(&[write(3, 0, &full)], &full).unwrap();
    blocks.commit(&[write(3, 100, b"over")], b"over").unwrap();
    assert!(!blocks.fits(&[write(4, 0, b"x")]));
    blocks
        .commit(
            &[BlockChange::Truncate {
                block: 3,
                length: 0,
            }],
            b"",
        )
        .unwrap();
    assert!(blocks.fits(&[write(4, 0, b"x")]));
}

#[test]
fn another_file_is_refused() {
    let other = file();
    other.write_all_at(&[7; 64], 0).unwrap();
    assert!(Blocks::open(other, 4096).is_err());
    let short = file();
    short.write_all_at(&[7; 3], 0).unwrap();
    assert!(Blocks::open(short, 4096).is_err());
}
