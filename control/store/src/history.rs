//! Whether what clients were told agrees with what happened: the checker for stores under kills and lost members.
//!
//! Clients note every call with the moments it began and ended, on one counter for all; a watch from before the first
//! call says what happened. Every write has a value of its own, so that a write and its event are easily matched.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{Durability, Event, Revision, Store, StoreError};

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The write was made, at this revision.
    Written(Revision),
    /// The write was surely not made.
    Refused,
    /// Nobody knows.
    Perhaps,
    /// The read found this, true at the revision.
    Found(Option<Bytes>, Revision),
}

/// A call, as its client noted it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The key.
    pub key: String,
    /// Of a write: the new value, its like not written by any other call; `None` is a deletion or a read.
    pub value: Option<Bytes>,
    /// When it was made.
    pub begun: u64,
    /// When it was answered.
    pub ended: u64,
    /// How.
    pub answer: Answer,
}

/// How a history contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// An acknowledged write did not happen, or not at the revision told.
    Lost(String),
    /// A write happened twice, or a revision was given twice.
    Doubled(String),
    /// A write that began after another was acknowledged got an earlier revision, or events came out of order.
    Reordered(String),
    /// Something happened that nobody asked for, or that was refused.
    Invented(String),
    /// A read did not show what was true.
    Stale(String),
}

/// Looks for a contradiction between what clients were told and the events of a watch from before the first call.
pub fn check(calls: &[Call], events: &[Event]) -> Result<(), Violation> {
    for pair in events.windows(2) {
        let (before, after) = (pair[0].revision, pair[1].revision);
        if before == after {
            return Err(Violation::Doubled(format!("revision {after}")));
        }
        if before > after {
            return Err(Violation::Reordered(format!(
                "revision {after} after {before}"
            )));
        }
    }
    let happened = writes_of(events)?;
    for call in calls {
        let Some(value) = &call.value else { continue };
        let at = happened.get(value).copied();
        let what = || format!("{} at {:?}: {call:?}", call.key, at);
        match call.answer {
            Answer::Written(revision) if at != Some(revision) => {
                return Err(Violation::Lost(what()));
            }
            Answer::Refused if at.is_some() => return Err(Violation::Invented(what())),
            _ => {}
        }
    }
    let asked: HashMap<&Bytes, ()> = calls
        .iter()
        .filter_map(|call| Some((call.value.as_ref()?, ())))
        .collect();
    if let Some(value) = happened.keys().find(|value| !asked.contains_key(*value)) {
        return Err(Violation::Invented(format!("{value:?}")));
    }
    check_order(calls)?;
    check_reads(calls, events)
}

fn writes_of(events: &[Event]) -> Result<HashMap<Bytes, Revision>, Violation> {
    let mut happened = HashMap::new();
    for event in events.iter().filter(|event| !event.deleted) {
        if let Some(first) = happened.insert(event.kv.value.bytes(), event.revision) {
            return Err(Violation::Doubled(format!(
                "{:?} at {first} and {}",
                event.kv, event.revision
            )));
        }
    }
    Ok(happened)
}

/// Revisions follow real time.
fn check_order(calls: &[Call]) -> Result<(), Violation> {
    let mut moments: Vec<(u64, bool, Revision, &Call)> = Vec::new();
    for call in calls {
        let revision = match call.answer {
            Answer::Written(revision) | Answer::Found(_, revision) => revision,
            Answer::Refused | Answer::Perhaps => continue,
        };
        moments.push((call.begun, false, revision, call));
        moments.push((call.ended, true, revision, call));
    }
    moments.sort_by_key(|(at, is_end, ..)| (*at, *is_end));
    // The newest revision known at each call's beginning.
    let mut newest = 0;
    for (_, is_end, revision, call) in moments {
        if is_end {
            newest = newest.max(revision);
            continue;
        }
        match call.answer {
            Answer::Written(_) if revision <= newest => {
                return Err(Violation::Reordered(format!(
                    "{call:?} began after revision {newest} was told"
                )));
            }
            Answer::Found(..) if revision < newest => {
                return Err(Violation::Stale(format!(
                    "{call:?} began after revision {newest} was told"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A read shows what the key was at its revision.
fn check_reads(calls: &[Call], events: &[Event]) -> Result<(), Violation> {
    let mut past: HashMap<&str, BTreeMap<Revision, Option<Bytes>>> = HashMap::new();
    for event in events {
        let value = (!event.deleted).then(|| event.kv.value.bytes());
        past.entry(&*event.kv.key)
            .or_default()
            .insert(event.revision, value);
    }
    for call in calls {
        let Answer::Found(found, revision) = &call.answer else {
            continue;
        };
        let was = past
            .get(call.key.as_str())
            .and_then(|past| past.range(..=revision).next_back())
            .and_then(|(_, value)| value.as_ref());
        if was != found.as_ref() {
            return Err(Violation::Stale(format!("{call:?} but it was {was:?}")));
        }
    }
    Ok(())
}

/// Notes calls of many clients.
#[derive(Default)]
pub struct Recorder {
    clock: AtomicU64,
    calls: Mutex<Vec<Call>>,
}

impl Recorder {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, call: Call) {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call);
    }

    /// What was noted.
    pub fn calls(&self) -> Vec<Call> {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// One client: creates, updates, deletes and reads a few keys below `prefix`, many times. `client` seeds its
    /// choices and marks its values.
    pub async fn client(&self, store: &dyn Store, prefix: &str, client: u64, calls: u32) {
        let mut random = StdRng::seed_from_u64(client);
        for number in 0..calls {
            let key = format!("{prefix}{}", random.random_range(0..4));
            let begun = self.tick();
            let read = store.get(&key).await;
            let Ok((current, at)) = read else { continue };
            self.note(Call {
                key: key.clone(),
                value: None,
                begun,
                ended: self.tick(),
                answer: Answer::Found(current.as_ref().map(|kv| kv.value.bytes()), at),
            });
            let value = Bytes::from(format!("{client}-{number}"));
            let begun = self.tick();
            let (value, result) = match current {
                None => {
                    let written = store.create(&key, value.clone(), Durability::Durable).await;
                    (Some(value), written)
                }
                Some(kv) if random.random_range(0..8) == 0 => {
                    (None, store.delete(&key, kv.mod_revision).await)
                }
                Some(kv) => {
                    let written = store
                        .update(&key, value.clone(), kv.mod_revision, Durability::Durable)
                        .await;
                    (Some(value), written)
                }
            };
            let answer = match result {
                Ok(kv) => Answer::Written(kv.mod_revision),
                Err(
                    StoreError::Exists(_) | StoreError::NotFound(_) | StoreError::Conflict { .. },
                ) => Answer::Refused,
                Err(_) => Answer::Perhaps,
            };
            self.note(Call {
                key,
                value,
                begun,
                ended: self.tick(),
                answer,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyValue;

    fn event(revision: Revision, key: &str, value: &str) -> Event {
        Event {
            revision,
            kv: KeyValue {
                key: key.into(),
                value: Bytes::copy_from_slice(value.as_bytes()).into(),
                create_revision: 1,
                mod_revision: revision,
            },
            previous: None,
            deleted: false,
        }
    }

    fn call(at: u64, key: &str, value: Option<&'static str>, answer: Answer) -> Call {
        Call {
            key: key.to_owned(),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
            begun: at,
            ended: at + 1,
            answer,
        }
    }

    fn found(value: Option<&'static str>, at: Revision) -> Answer {
        Answer::Found(value.map(|value| Bytes::from_static(value.as_bytes())), at)
    }

    #[test]
    fn a_true_history_is_believed() {
        let calls = [
            call(0, "a", Some("1"), Answer::Written(5)),
            call(2, "a", None, found(Some("1"), 5)),
            call(4, "a", Some("2"), Answer::Perhaps),
            call(6, "a", Some("3"), Answer::Refused),
            call(8, "b", None, found(None, 6)),
        ];
        assert_eq!(
            check(&calls, &[event(5, "a", "1"), event(6, "a", "2")]),
            Ok(())
        );
        assert_eq!(check(&calls[..4], &[event(5, "a", "1")]), Ok(()));
    }

    #[test]
    fn each_kind_of_lie_is_found() {
        let written = call(0, "a", Some("1"), Answer::Written(5));
        let is = |calls: &[Call], events: &[Event]| match check(calls, events) {
            Ok(()) => "fine",
            Err(Violation::Lost(_)) => "lost",
            Err(Violation::Doubled(_)) => "doubled",
            Err(Violation::Reordered(_)) => "reordered",
            Err(Violation::Invented(_)) => "invented",
            Err(Violation::Stale(_)) => "stale",
        };
        let calls = [written.clone()];
        assert_eq!(is(&calls, &[]), "lost");
        assert_eq!(is(&calls, &[event(6, "a", "1")]), "lost");
        assert_eq!(
            is(&calls, &[event(5, "a", "1"), event(6, "a", "1")]),
            "doubled"
        );
        assert_eq!(
            is(&calls, &[event(5, "a", "1"), event(5, "b", "2")]),
            "doubled"
        );
        assert_eq!(
            is(&calls, &[event(5, "a", "1"), event(6, "a", "?")]),
            "invented"
        );
        let refused = call(0, "a", Some("1"), Answer::Refused);
        assert_eq!(is(&[refused], &[event(5, "a", "1")]), "invented");
        let later = call(4, "a", Some("2"), Answer::Written(4));
        assert_eq!(
            is(
                &[written.clone(), later],
                &[event(4, "a", "2"), event(5, "a", "1")]
            ),
            "reordered"
        );
        let happened = [event(5, "a", "1")];
        let read = |answer| [written.clone(), call(4, "a", None, answer)];
        assert_eq!(is(&read(found(None, 5)), &happened), "stale");
        assert_eq!(is(&read(found(None, 4)), &happened), "stale");
        assert_eq!(is(&read(found(Some("1"), 5)), &happened), "fine");
    }
}
