//! Pods that wait for a node, in the order they get one. Pure: time comes in.
//!
//! ```text
//!  add ─▶ active ─ pop ─▶ in flight ─ done ─▶ gone
//!           ▲                 │ no node can take it
//!           │ back-off is     ▼
//!        backoff ◀─ news ─ unschedulable
//! ```

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::pod::PodInfo;

/// First and longest wait of a pod that found no node
/// (`pkg/scheduler/apis/config`: `podInitialBackoffSeconds`, `podMaxBackoffSeconds`).
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A pod looks again after this long, news or not, in case some were missed
/// (`DefaultPodMaxInUnschedulablePodsDuration`).
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    pods: HashMap<String, Entry>,
    active: BTreeSet<(Reverse<i32>, u64, String)>,
    /// Waits of both kinds by when they end.
    waiting: BTreeSet<(Instant, String)>,
    /// Those of `waiting` that wait for news.
    unschedulable: HashSet<String>,
    arrivals: u64,
    /// How often there has been news.
    news: u64,
}

#[derive(Debug)]
struct Entry {
    pod: PodInfo,
    arrival: u64,
    attempts: u32,
    /// [`Queue::news`] when it was last popped: news since then is news to it.
    news: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    InFlight { since: Instant },
    Backoff { until: Instant },
    Unschedulable { since: Instant },
}

impl Queue {
    /// Takes a pod's news: a new pod, or other needs of one that waits. Answers whether it is new.
    pub(crate) fn update(&mut self, pod: PodInfo) -> bool {
        match self.pods.get_mut(&pod.uid) {
            Some(entry) => {
                let is_changed = entry.pod.needs != pod.needs;
                let uid = pod.uid.clone();
                entry.pod = pod;
                let is_flying = matches!(entry.place, Place::InFlight { .. });
                if is_changed && !is_flying {
                    self.put(&uid, Place::Active);
                }
                false
            }
            None => {
                self.arrivals += 1;
                let uid = pod.uid.clone();
                let entry = Entry {
                    pod,
                    arrival: self.arrivals,
                    attempts: 0,
                    news: 0,
                    place: Place::Active,
                };
                self.pods.insert(uid.clone(), entry);
                self.put(&uid, Place::Active);
                true
            }
        }
    }

    /// Forgets a pod: it has a node, or has gone.
    pub(crate) fn remove(&mut self, uid: &str) {
        self.take_out(uid);
        self.pods.remove(uid);
    }

    /// The next pod: highest priority first, then who came first. It stays here, in flight.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<PodInfo> {
        while let Some((end, uid)) = self.waiting.first().filter(|(end, _)| *end <= now).cloned() {
            self.waiting.remove(&(end, uid.clone()));
            self.put(&uid, Place::Active);
        }
        let (_, _, uid) = self.active.first()?.clone();
        self.put(&uid, Place::InFlight { since: now });
        let news = self.news;
        let entry = self.pods.get_mut(&uid)?;
        entry.attempts += 1;
        entry.news = news;
        Some(entry.pod.clone())
    }

    /// No node could take a pod in flight: it waits for news, unless there was some meanwhile.
    pub(crate) fn unschedulable(&mut self, uid: &str) {
        if self
            .pods
            .get(uid)
            .is_some_and(|entry| entry.news != self.news)
        {
            return self.retry(uid);
        }
        if let Some(Place::InFlight { since }) = self.pods.get(uid).map(|entry| entry.place) {
            self.put(uid, Place::Unschedulable { since });
        }
    }

    /// Something went wrong with a pod in flight: it comes again after its back-off.
    pub(crate) fn retry(&mut self, uid: &str) {
        if let Some(Place::InFlight { since }) = self.pods.get(uid).map(|entry| entry.place) {
            let until = since + self.backoff(uid);
            self.put(uid, Place::Backoff { until });
        }
    }

    /// Nodes or pods have changed so that a pod without a node may find one now.
    pub(crate) fn news(&mut self, now: Instant) {
        self.news += 1;
        let waiting: Vec<(String, Instant)> = self
            .unschedulable
            .iter()
            .filter_map(|uid| match self.pods.get(uid)?.place {
                Place::Unschedulable { since } => Some((uid.clone(), since)),
                Place::Active | Place::InFlight { .. } | Place::Backoff { .. } => None,
            })
            .collect();
        for (uid, since) in waiting {
            let until = since + self.backoff(&uid);
            self.put(
                &uid,
                if until <= now {
                    Place::Active
                } else {
                    Place::Backoff { until }
                },
            );
        }
    }

    /// When [`Self::pop`] has something that it has not now.
    pub(crate) fn next_wait_ends(&self) -> Option<Instant> {
        self.waiting.first().map(|(end, _)| *end)
    }

    /// Whether [`Self::pop`] has something now.
    pub(crate) fn is_ready(&self) -> bool {
        !self.active.is_empty()
    }

    /// Pods that wait in any way.
    pub(crate) fn uids(&self) -> impl Iterator<Item = &String> {
        self.pods.keys()
    }

    fn backoff(&self, uid: &str) -> Duration {
        let attempts = self.pods.get(uid).map_or(0, |entry| entry.attempts);
        BACKOFF_MIN
            .saturating_mul(1 << attempts.saturating_sub(1).min(10))
            .min(BACKOFF_MAX)
    }

    fn put(&mut self, uid: &str, place: Place) {
        self.take_out(uid);
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        entry.place = place;
        match place {
            Place::Active => {
                self.active.insert((
                    Reverse(entry.pod.needs.priority),
                    entry.arrival,
                    uid.to_owned(),
                ));
            }
            Place::Backoff { until } => {
                self.waiting.insert((until, uid.to_owned()));
            }
            Place::Unschedulable { since } => {
                self.waiting
                    .insert((since + UNSCHEDULABLE_MAX, uid.to_owned()));
                self.unschedulable.insert(uid.to_owned());
            }
            Place::InFlight { .. } => {}
        }
    }

    fn take_out(&mut self, uid: &str) {
        let Some(entry) = self.pods.get(uid) else {
            return;
        };
        match entry.place {
            Place::Active => {
                let arrival = entry.arrival;
                // The priority may be another than the one it was put in with.
                if !self.active.remove(&(
                    Reverse(entry.pod.needs.priority),
                    arrival,
                    uid.to_owned(),
                )) {
                    self.active.retain(|(_, other, _)| *other != arrival);
                }
            }
            Place::Backoff { until } => {
                self.waiting.remove(&(until, uid.to_owned()));
            }
            Place::Unschedulable { since } => {
                self.waiting
                    .remove(&(since + UNSCHEDULABLE_MAX, uid.to_owned()));
                self.unschedulable.remove(uid);
            }
            Place::InFlight { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn pod(uid: &str, priority: i32) -> PodInfo {
        let mut pod = PodInfo {
            uid: uid.into(),
            ..PodInfo::default()
        };
        Arc::make_mut(&mut pod.needs).priority = priority;
        pod
    }

    fn popped(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(now))
            .map(|pod| pod.uid)
            .collect()
    }

    #[test]
    fn priority_comes_first_and_then_who_came_first() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (uid, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.update(pod(uid, priority));
        }
        queue.update(pod("c", 20));
        assert_eq!(popped(&mut queue, now), ["c", "b", "d", "a"]);
    }

    #[test]
    fn an_unschedulable_pod_waits_for_news_and_for_its_back_off() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        queue.update(pod("a", 0));
        queue.pop(start).unwrap();
        queue.unschedulable("a");
        assert!(queue.pop(at(60)).is_none(), "no news");
        queue.news(start);
        assert!(queue.pop(start).is_none(), "back-off");
        assert_eq!(queue.next_wait_ends(), Some(at(1)));
        queue.pop(at(1)).unwrap();
        queue.unschedulable("a");
        queue.news(at(1));
        assert_eq!(
            queue.next_wait_ends(),
            Some(at(3)),
            "the second wait is twice the first"
        );
        for _ in 0..20 {
            let now = queue.next_wait_ends().unwrap();
            queue.pop(now).unwrap();
            queue.retry("a");
        }
        let last = queue.next_wait_ends().unwrap();
        queue.pop(last).unwrap();
        queue.retry("a");
        assert_eq!(queue.next_wait_ends().unwrap() - last, BACKOFF_MAX);
    }

    #[test]
    fn news_that_comes_while_a_pod_is_in_flight_is_not_missed() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.update(pod("a", 0));
        queue.pop(now).unwrap();
        queue.news(now);
        queue.unschedulable("a");
        assert!(queue.pop(now + BACKOFF_MIN).is_some());
    }

    #[test]
    fn without_news_a_pod_looks_again_after_five_minutes() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.update(pod("a", 0));
        queue.pop(start).unwrap();
        queue.unschedulable("a");
        assert!(
            queue
                .pop(start + UNSCHEDULABLE_MAX - Duration::from_secs(1))
                .is_none()
        );
        assert!(queue.pop(start + UNSCHEDULABLE_MAX).is_some());
    }

    #[test]
    fn other_needs_are_news_and_other_words_are_not() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.update(pod("a", 0));
        queue.pop(now).unwrap();
        queue.unschedulable("a");
        queue.update(PodInfo {
            reported: Some("no".into()),
            ..pod("a", 0)
        });
        assert!(queue.pop(now).is_none());
        queue.update(pod("a", 1));
        assert!(queue.pop(now).is_some());
        queue.update(pod("a", 2));
        assert!(queue.pop(now).is_none(), "in flight");
        queue.remove("a");
        queue.unschedulable("a");
        assert_eq!(queue.uids().count(), 0);
    }

    proptest! {
        #[test]
        fn every_pod_is_in_exactly_one_place(steps in proptest::collection::vec((0..6u8, 0..6u8, 0..3i32), 1..80)) {
            let (mut queue, mut now) = (Queue::default(), Instant::now());
            for (step, uid, priority) in steps {
                let uid = uid.to_string();
                now += Duration::from_millis(300);
                match step {
                    0 | 1 => { queue.update(pod(&uid, priority)); }
                    2 => queue.remove(&uid),
                    3 => { queue.pop(now); }
                    4 => queue.news(now),
                    _ => if priority == 0 { queue.retry(&uid) } else { queue.unschedulable(&uid) },
                }
                let flying = queue.pods.values().filter(|entry| matches!(entry.place, Place::InFlight { .. })).count();
                prop_assert!(queue.unschedulable.len() <= queue.waiting.len());
                prop_assert_eq!(queue.active.len() + queue.waiting.len() + flying, queue.pods.len());
            }
        }
    }
}
