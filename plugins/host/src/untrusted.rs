//! What a worker says is what guests made it say: whatever comes, the agent does not fall over, and does nothing that
//! is not granted. The door for the fuzz target (plugins/host/fuzz), whose property the tests here check on fewer
//! inputs.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    Exec, Grants, SecretError,
    agency::Agency,
    named::NamedHosts,
    protocol::{Answer, Ask, ExecError, FileError, ResolveError, ToAgent},
};

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
        Answer::Mounts(answer) => answer.is_err(),
    }
}

/// Takes bytes for a worker's message, and answers what it asks for as to a volume's plugin without grants.
///
/// # Panics
/// Something was done that is not granted: that is what the caller looks for.
#[doc(hidden)]
pub async fn take(bytes: &[u8]) {
    let Ok(message) = serde_json::from_slice::<ToAgent>(bytes) else {
        return;
    };
    if let ToAgent::Ask { ask, .. } = message {
        answer(ask).await;
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

    fn run(future: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(future);
    }

    fn ask() -> impl Strategy<Value = Ask> {
        let words = || prop::collection::vec(any::<String>(), 0..4);
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
