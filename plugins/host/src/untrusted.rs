//! What a worker says is what guests made it say: whatever comes, the agent does not fall over, and does nothing that
//! is not granted. The doors for the fuzz targets (plugins/host/fuzz), whose properties the tests here check on what
//! is near their seeds.

use std::{
    io::Write,
    os::unix::net::UnixStream,
    time::{Duration, UNIX_EPOCH},
};

use async_trait::async_trait;
use serde::Deserialize;
use tokio::runtime::{Builder, Runtime};
use wherry_wasm_aot::wire;

use crate::{
    Exec, Grants, MountAsk, PluginStats, SecretError,
    agency::Agency,
    filesystem::{frames, protocol::FromGuest},
    mounter,
    named::NamedHosts,
    protocol::{Answer, Ask, ExecError, FileError, ResolveError, ToAgent},
};

/// Bytes that a socket takes without being read.
const STREAM_BYTES_MAX: usize = 64 << 10;

/// What must not be reached without a grant.
struct Forbidden;

#[async_trait]
impl Exec for Forbidden {
    async fn exec(
        &self,
        command: &[String],
        _: Duration,
    ) -> Result<(i32, Vec<u8>), Option<String>> {
        panic!("{command:?} was run without a grant")
    }

    async fn secret(&self, name: &str, key: &str) -> Result<Vec<u8>, SecretError> {
        panic!("secret {name}/{key} was read without a grant")
    }

    async fn log_tail(&self, _: u32) -> Result<Vec<String>, String> {
        panic!("the log was read without a grant")
    }

    fn volume(&self, name: &str) -> Option<std::path::PathBuf> {
        panic!("volume {name} was looked at without a grant")
    }
}

/// Whether an answer gives nothing away.
fn is_refusal(answer: &Answer) -> bool {
    match answer {
        Answer::Exec(answer) => matches!(answer, Err(ExecError::Denied(_))),
        Answer::Resolve(answer) => matches!(answer, Err(ResolveError::Denied(_))),
        Answer::Secret(answer) => matches!(answer, Err(SecretError::Denied(_))),
        Answer::Stat(answer) => matches!(answer, Err(FileError::Denied(_))),
        Answer::Read(answer) => matches!(answer, Err(FileError::Denied(_))),
        Answer::Check(answer) => answer.is_err(),
        Answer::Mounts(answer) | Answer::Images(answer) => answer.is_err(),
        // What a container uses is no secret of its own.
        Answer::Usage(_) => true,
        Answer::LogTail(answer) => answer.is_err(),
    }
}

/// Waits for what a target does. Making a runtime each time takes longer than what is tried.
///
/// # Panics
/// This machine has no more descriptors.
#[doc(hidden)]
pub fn run(what: impl Future<Output = ()>) {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("without a runtime nothing can be tried");
    }
    RUNTIME.with(|runtime| runtime.block_on(what));
}

/// A connection whose other side has said this and gone.
fn spoken(bytes: &[u8]) -> Option<tokio::net::UnixStream> {
    let (mut worker, agent) = UnixStream::pair().ok()?;
    let bytes = &bytes[..bytes.len().min(STREAM_BYTES_MAX)];
    worker.write_all(bytes).ok()?;
    agent.set_nonblocking(true).ok()?;
    tokio::net::UnixStream::from_std(agent).ok()
}

/// Takes bytes for a worker's message: answers what it asks for as to a volume's plugin without grants, and counts what
/// it says of a call's end.
///
/// # Panics
/// Something was done that is not granted: that is what the caller looks for.
#[doc(hidden)]
pub async fn take(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<ToAgent>(bytes) {
        take_in(message).await;
    }
}

/// Takes bytes for what a worker's connection carries, frames and all, to its end or the first that is no message.
///
/// # Panics
/// As [`take`].
#[doc(hidden)]
pub async fn take_stream(bytes: &[u8]) {
    let Some(agent) = spoken(bytes) else {
        return;
    };
    let (_sender, mut receiver) = wire::split(agent);
    while let Ok(Some((message, _))) = receiver.receive::<ToAgent>().await {
        take_in(message).await;
    }
}

/// Takes bytes for what a file system's worker sends to the volume server, to its end or the first that is no message.
#[doc(hidden)]
pub async fn take_frames(bytes: &[u8]) {
    if let Some(worker) = spoken(bytes) {
        let (_sender, mut receiver) = frames::split(worker);
        while let Ok(Some(_)) = receiver.receive::<FromGuest>().await {}
    }
}

/// Something to mount, and what of it is granted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mounting {
    grants: Grants,
    #[serde(default)]
    attributes: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    attached: Vec<String>,
    ask: MountAsk,
}

/// Takes bytes for grants, a volume's attributes, and what a mounter asks for: what is let through is within the grants.
///
/// # Panics
/// It is not: that is what the caller looks for.
#[doc(hidden)]
pub fn take_mounting(bytes: &[u8]) {
    if let Ok(mounting) = serde_json::from_slice::<Mounting>(bytes) {
        let Mounting {
            grants,
            attributes,
            attached,
            ask,
        } = mounting;
        let named = match grants.named_hosts {
            true => NamedHosts::of(&attributes),
            false => NamedHosts::default(),
        };
        mounter::assert_granted(&grants, &named, &attached, &ask);
    }
}

async fn take_in(message: ToAgent) {
    match message {
        ToAgent::Ask { ask, .. } => answer(ask).await,
        ToAgent::Ended { ended, .. } => {
            // Twice: sums of what a worker says have no bound of their own.
            let mut stats = PluginStats::default();
            for _ in 0..2 {
                stats.record(&ended, Duration::MAX, UNIX_EPOCH);
            }
        }
        ToAgent::Ready(_) | ToAgent::Loaded { .. } | ToAgent::Progress { .. } => {}
    }
}

async fn answer(ask: Ask) {
    let grants = Grants::default();
    let agency = Agency {
        grants: &grants,
        named: NamedHosts::default(),
        exec: &Forbidden,
        progress: &|_, _| {},
        checks: None,
    };
    let answer = agency.answer(ask, Duration::from_secs(1)).await;
    assert!(is_refusal(&answer), "{answer:?}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{files, protocol};

    /// Inputs made from seeds: as many as take a few seconds.
    const NEAR_SEEDS: u32 = 4000;

    /// What a fuzz target begins with.
    fn seeds_of(target: &str) -> Vec<Vec<u8>> {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds");
        let dir = std::path::Path::new(seeds).join(target);
        let files = std::fs::read_dir(dir).expect("seeds");
        let mut paths: Vec<_> = files.flatten().map(|file| file.path()).collect();
        paths.sort();
        let seeds = paths
            .iter()
            .map(|path| std::fs::read(path).expect("a seed"));
        seeds.collect()
    }

    /// Those of messages, one each.
    fn seeds() -> Vec<Vec<u8>> {
        seeds_of("from_worker")
    }

    fn seeds_once() -> &'static [Vec<u8>] {
        static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
        SEEDS.get_or_init(seeds)
    }

    fn frame(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("short");
        [&length.to_le_bytes()[..], &[0], message].concat()
    }

    /// A way to spoil bytes, as fuzzers do.
    #[derive(Clone, Debug)]
    enum Spoil {
        Set(prop::sample::Index, u8),
        Insert(prop::sample::Index, Vec<u8>),
        Remove(prop::sample::Index, usize),
        Repeat(prop::sample::Index, usize),
        Splice(
            prop::sample::Index,
            prop::sample::Index,
            prop::sample::Index,
        ),
    }

    fn spoil() -> impl Strategy<Value = Spoil> {
        let at = any::<prop::sample::Index>;
        let word = prop_oneof![
            prop::collection::vec(any::<u8>(), 1..8),
            prop::sample::select(vec![
                "\"", "{", "[", "}", "]", "-1", "1e999", "null", "\\u0000", "\\ud800"
            ])
            .prop_map(|word| word.as_bytes().to_vec()),
        ];
        prop_oneof![
            (at(), any::<u8>()).prop_map(|(at, byte)| Spoil::Set(at, byte)),
            (at(), word).prop_map(|(at, bytes)| Spoil::Insert(at, bytes)),
            (at(), 1..32usize).prop_map(|(at, length)| Spoil::Remove(at, length)),
            (at(), 1..64usize).prop_map(|(at, length)| Spoil::Repeat(at, length)),
            (at(), at(), at()).prop_map(|(seed, at, from)| Spoil::Splice(seed, at, from)),
        ]
    }

    fn spoiled(mut bytes: Vec<u8>, how: &[Spoil], seeds: &[Vec<u8>]) -> Vec<u8> {
        for one in how {
            if bytes.is_empty() {
                break;
            }
            match one {
                Spoil::Set(at, byte) => *at.get_mut(&mut bytes) = *byte,
                Spoil::Insert(at, word) => {
                    let at = at.index(bytes.len());
                    bytes.splice(at..at, word.iter().copied());
                }
                Spoil::Remove(at, length) => {
                    let at = at.index(bytes.len());
                    bytes.drain(at..(at + length).min(bytes.len()));
                }
                Spoil::Repeat(at, length) => {
                    let at = at.index(bytes.len());
                    bytes.extend_from_within(at..(at + length).min(bytes.len()));
                }
                Spoil::Splice(seed, at, from) => {
                    let other = seed.get(seeds);
                    bytes.truncate(at.index(bytes.len()));
                    bytes.extend_from_slice(&other[from.index(other.len())..]);
                }
            }
        }
        bytes
    }

    #[test]
    fn every_kind_of_message_has_a_seed_and_is_taken() {
        let mut said = String::new();
        for seed in seeds() {
            let message: ToAgent = serde_json::from_slice(&seed).unwrap_or_else(|error| {
                panic!("{}: {error}", String::from_utf8_lossy(&seed));
            });
            said += &format!("{message:?}\n");
            run(take(&seed));
        }
        run(take_stream(
            &seeds()
                .iter()
                .flat_map(|seed| frame(seed))
                .collect::<Vec<_>>(),
        ));
        for kind in [
            "Ready(",
            "Loaded {",
            "Progress {",
            "Ended {",
            "Exec {",
            "Resolve {",
            "Check {",
            "Secret {",
            "Stat {",
            "Read {",
            "Mount {",
            "Attach {",
            "Format {",
            "Usage",
            "LogTail {",
        ] {
            assert!(said.contains(kind), "fuzz/seeds/from_worker has no {kind}");
        }
    }

    #[test]
    fn what_has_a_seed_to_be_mounted_is_granted() {
        let (grants, named) = (Grants::default(), NamedHosts::default());
        for seed in seeds_of("mounting") {
            let mounting: Mounting =
                serde_json::from_slice(&seed).expect("grants and what is asked for");
            take_mounting(&seed);
            let hosts = mounter::check::Hosts {
                grants: &mounting.grants,
                named: &NamedHosts::of(&mounting.attributes),
            };
            let none = mounter::check::Hosts {
                grants: &grants,
                named: &named,
            };
            let is_let_through = |hosts: &mounter::check::Hosts<'_>| match &mounting.ask {
                MountAsk::Mount {
                    kind,
                    source,
                    options,
                } => mounter::check::mount(kind, source, options, hosts, &mounting.attached, false)
                    .map(|_| ()),
                MountAsk::Attach { kind, parameters } => {
                    mounter::check::device(kind, parameters, hosts).map(|_| ())
                }
                _ => Ok(()),
            };
            assert_eq!(is_let_through(&hosts), Ok(()), "{mounting:?}");
            assert!(is_let_through(&none).is_err(), "{mounting:?}");
        }
    }

    #[test]
    fn frames_have_seeds_that_are_messages_to_their_end() {
        for seed in seeds_of("frames") {
            run(async {
                let (_sender, mut receiver) = frames::split(spoken(&seed).expect("a connection"));
                let mut taken = 0;
                while receiver
                    .receive::<FromGuest>()
                    .await
                    .expect("a message")
                    .is_some()
                {
                    taken += 1;
                }
                assert!(taken > 0);
            });
        }
    }

    fn ask() -> impl Strategy<Value = Ask> {
        let words = || prop::collection::vec(any::<String>(), 0..4);
        let pairs = || prop::collection::vec((any::<String>(), any::<String>()), 0..3);
        let host = prop_oneof![
            any::<String>(),
            "[a-z.*:0-9/\\[\\]]{0,20}",
            Just("127.0.0.1".to_owned()),
            Just("localhost".to_owned()),
        ];
        prop_oneof![
            words().prop_map(|command| Ask::Exec { command }),
            (host, any::<u16>()).prop_map(|(host, port)| Ask::Resolve { host, port }),
            words().prop_map(|command| Ask::Check { command }),
            (any::<String>(), any::<String>()).prop_map(|(name, key)| Ask::Secret { name, key }),
            (any::<String>(), any::<String>())
                .prop_map(|(volume, path)| Ask::Stat { volume, path }),
            (any::<String>(), any::<String>(), pairs()).prop_map(|(kind, source, options)| {
                Ask::Mounts(crate::MountAsk::Mount {
                    kind,
                    source,
                    options,
                })
            }),
            (any::<String>(), pairs()).prop_map(|(kind, parameters)| {
                Ask::Mounts(crate::MountAsk::Attach { kind, parameters })
            }),
            (any::<String>(), any::<String>(), any::<u64>(), any::<u32>()).prop_map(
                |(volume, path, offset, length)| Ask::Read {
                    volume,
                    path,
                    offset,
                    length
                }
            ),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(NEAR_SEEDS))]

        #[test]
        fn what_is_near_a_seed_is_taken(
            seed in any::<prop::sample::Index>(),
            how in prop::collection::vec(spoil(), 1..6),
        ) {
            let seeds = seeds_once();
            run(take(&spoiled(seed.get(seeds).clone(), &how, seeds)));
        }

        #[test]
        fn what_is_near_a_mount_is_granted_or_refused(
            seed in any::<prop::sample::Index>(),
            how in prop::collection::vec(spoil(), 1..6),
        ) {
            static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
            let seeds = SEEDS.get_or_init(|| seeds_of("mounting"));
            take_mounting(&spoiled(seed.get(seeds).clone(), &how, seeds));
        }

        #[test]
        fn what_is_near_a_conversation_is_taken(
            said in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
            how in prop::collection::vec(spoil(), 0..4),
        ) {
            let seeds = seeds_once();
            let stream = said.iter().flat_map(|seed| frame(&seeds[seed.index(seeds.len())])).collect();
            run(take_stream(&spoiled(stream, &how, seeds)));
        }
    }

    proptest! {
        #[test]
        fn nothing_is_done_without_a_grant(ask in ask()) {
            run(answer(ask));
        }

        #[test]
        fn a_message_with_wrong_bytes_is_an_error_or_another_message(
            ask in ask(),
            wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut bytes = serde_json::to_vec(&ToAgent::Ask { call: 1, ask }).expect("plain fields");
            for (at, byte) in wrong {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            run(take(&bytes));
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            run(take(&bytes));
        }

        #[test]
        fn a_text_is_cut_between_characters(text in "\\PC{0,3000}") {
            let cut = protocol::cut(text.clone());
            prop_assert!(cut.len() <= protocol::TEXT_BYTES_MAX && text.starts_with(&cut));
        }

        #[test]
        fn no_path_leads_out_of_a_volume(
            parts in prop::collection::vec(
                prop_oneof![Just("..".to_owned()), Just("in".to_owned()), Just("up".to_owned()),
                    Just(String::new()), Just(".".to_owned()), Just("outside".to_owned()), any::<String>()],
                0..6,
            ),
        ) {
            let above = tempfile::tempdir().expect("a directory");
            let root = above.path().join("volume");
            std::fs::create_dir_all(root.join("in")).expect("writable");
            std::fs::write(above.path().join("outside"), "secret").expect("writable");
            std::os::unix::fs::symlink("../..", root.join("in/up")).expect("a link");
            let seen = files::read(&root, &parts.join("/"), 0, 100);
            prop_assert_ne!(seen, Ok(b"secret".to_vec()));
        }
    }
}
