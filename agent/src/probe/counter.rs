//! Counts the results of one probe of one container: when a run of them is a verdict, and what is kept so that an
//! agent goes on where the one before it was. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::Probe;
use serde::{Deserialize, Serialize};
use wherry_plugin_host::ProbeResult;

/// The last results, as they are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    /// The last one that counts.
    last: Option<bool>,
    /// How many like it there were in a row; those beyond the threshold are not told apart.
    run: u32,
    /// When the last check ended, seconds since the Unix epoch.
    checked_at: u64,
}

impl History {
    /// What is left of the period that began with the last check, however the clock was set since.
    pub(crate) fn wait(&self, period: Duration, now: SystemTime) -> Duration {
        let since = now
            .duration_since(UNIX_EPOCH + Duration::from_secs(self.checked_at))
            .unwrap_or(period);
        period.saturating_sub(since)
    }

    /// The same but for the time.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.last, self.run) == (other.last, other.run)
    }

    /// How old one is that was kept before this one, as far as the clock can be believed.
    pub(crate) fn age_of(&self, before: &Self) -> Duration {
        Duration::from_secs(self.checked_at.saturating_sub(before.checked_at))
    }
}

/// Counts results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    history: History,
    verdict: Option<bool>,
}

impl Counter {
    /// A counter with a probe's thresholds; `verdict` is what is known from before, `history` what led to it and since.
    pub(crate) fn new(probe: &Probe, verdict: Option<bool>, history: Option<History>) -> Self {
        let at_least_one =
            |n: Option<i32>, default| u32::try_from(n.unwrap_or(default)).unwrap_or(1).max(1);
        Self {
            success_threshold: at_least_one(probe.success_threshold, 1),
            failure_threshold: at_least_one(probe.failure_threshold, 3),
            history: history.unwrap_or_default(),
            verdict,
        }
    }

    /// What is to be kept.
    pub(crate) fn history(&self) -> History {
        self.history
    }

    /// Takes in a result; answers the verdict if it is a new one. Unknown does not count.
    pub(crate) fn record(&mut self, result: ProbeResult, now: SystemTime) -> Option<bool> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.history.checked_at = now.as_secs();
        let is_success = match result {
            ProbeResult::Success => true,
            ProbeResult::Failure => false,
            ProbeResult::Unknown => return None,
        };
        let run = if self.history.last == Some(is_success) {
            self.history.run.saturating_add(1)
        } else {
            1
        };
        self.history.run = run.min(self.threshold(is_success));
        self.history.last = Some(is_success);
        self.due()
    }

    /// The verdict that the results stand for and that nobody has been told of: the agent before this one may have died
    /// between the two.
    pub(crate) fn due(&mut self) -> Option<bool> {
        let is_success = self.history.last?;
        if self.history.run < self.threshold(is_success) || self.verdict == Some(is_success) {
            return None;
        }
        self.verdict = Some(is_success);
        self.verdict
    }

    fn threshold(&self, is_success: bool) -> u32 {
        if is_success {
            self.success_threshold
        } else {
            self.failure_threshold
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RESULTS: [ProbeResult; 3] = [
        ProbeResult::Success,
        ProbeResult::Failure,
        ProbeResult::Unknown,
    ];

    fn probe(success: i32, failure: i32) -> Probe {
        Probe {
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            ..Probe::default()
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_verdict_takes_as_many_results_in_a_row_as_the_threshold_says() {
        use ProbeResult::{Failure as F, Success as S, Unknown as U};
        type Row<'a> = (i32, i32, &'a [ProbeResult], &'a [Option<bool>]);
        let table: [Row<'_>; 3] = [
            (
                1,
                3,
                &[S, F, F, S, F, F, F, F],
                &[Some(true), None, None, None, None, None, Some(false), None],
            ),
            (
                2,
                1,
                &[S, F, S, S, S],
                &[None, Some(false), None, Some(true), None],
            ),
            (1, 2, &[F, U, F], &[None, None, Some(false)]),
        ];
        for (success, failure, results, expected) in table {
            let mut counter = Counter::new(&probe(success, failure), None, None);
            let verdicts: Vec<_> = results
                .iter()
                .map(|result| counter.record(*result, at(0)))
                .collect();
            assert_eq!(verdicts, expected);
        }
    }

    #[test]
    fn what_was_ready_before_a_restart_is_no_news_and_one_failure_does_not_change_it() {
        let mut counter = Counter::new(&probe(1, 3), Some(true), None);
        assert_eq!(counter.due(), None);
        assert_eq!(counter.record(ProbeResult::Success, at(0)), None);
        assert_eq!(counter.record(ProbeResult::Failure, at(0)), None);
        assert_eq!(counter.record(ProbeResult::Failure, at(0)), None);
        assert_eq!(counter.record(ProbeResult::Failure, at(0)), Some(false));
    }

    #[test]
    fn a_verdict_that_an_agent_died_with_is_told_by_the_next_one() {
        let mut first = Counter::new(&probe(1, 2), Some(true), None);
        first.record(ProbeResult::Failure, at(0));
        assert_eq!(first.record(ProbeResult::Failure, at(0)), Some(false));
        let mut second = Counter::new(&probe(1, 2), Some(true), Some(first.history()));
        assert_eq!(second.due(), Some(false));
        assert_eq!(second.due(), None);
    }

    #[test]
    fn the_next_check_comes_when_its_period_is_over() {
        let history = History {
            checked_at: 100,
            ..History::default()
        };
        let period = Duration::from_secs(30);
        for (now, wait) in [(110, 20), (130, 0), (1000, 0), (50, 0), (100, 30)] {
            assert_eq!(
                history.wait(period, at(now)),
                Duration::from_secs(wait),
                "{now}"
            );
        }
    }

    #[test]
    fn a_history_of_an_older_or_newer_agent_is_understood() {
        let history: History =
            serde_json::from_str(r#"{"last": false, "run": 2, "later": {"x": 1}}"#)
                .expect("fields");
        assert_eq!((history.last, history.run), (Some(false), 2));
        let kept = serde_json::to_string(&History::default()).expect("plain fields");
        assert_eq!(
            serde_json::from_str::<History>(&kept).expect("our own"),
            History::default()
        );
    }

    proptest! {
        #[test]
        fn two_verdicts_in_a_row_are_never_the_same(results in prop::collection::vec(0..3usize, 0..60), s in 1..4, f in 1..4) {
            let mut counter = Counter::new(&probe(s, f), None, None);
            let verdicts: Vec<bool> = results
                .into_iter()
                .filter_map(|n| counter.record(RESULTS[n], at(0)))
                .collect();
            prop_assert!(verdicts.windows(2).all(|pair| pair[0] != pair[1]));
        }

        #[test]
        fn agents_that_come_and_go_tell_what_one_that_stays_tells(
            steps in prop::collection::vec((0..3usize, any::<bool>()), 0..60), s in 1..4, f in 1..4
        ) {
            let mut stays = Counter::new(&probe(s, f), None, None);
            let mut comes = stays;
            let mut told = Vec::new();
            let mut known = None;
            let mut expected = Vec::new();
            for (n, restarts) in steps {
                if restarts {
                    comes = Counter::new(&probe(s, f), known, Some(comes.history()));
                    prop_assert_eq!(comes.due(), None);
                }
                expected.extend(stays.record(RESULTS[n], at(0)));
                if let Some(verdict) = comes.record(RESULTS[n], at(0)) {
                    known = Some(verdict);
                    told.push(verdict);
                }
            }
            prop_assert_eq!(told, expected);
        }
    }
}
