//! Inputs that keep killing a plugin's instances are set apart: not tried for a while, and a longer
//! one each time. Pure.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Violent ends in a row before an input is set apart.
const STRIKES_MAX: u32 = 5;
/// How long at first.
const APART: Duration = Duration::from_secs(10);
/// How long at most.
const APART_MAX: Duration = Duration::from_secs(300);
/// Inputs remembered; past it those that have waited are forgotten, and then anything.
const INPUTS_MAX: usize = 1024;

struct Input {
    strikes: u32,
    until: Option<Instant>,
}

/// What is known of the inputs of one plugin, or of one volume of a plugin's.
#[derive(Default)]
pub struct Apart {
    inputs: HashMap<String, Input>,
}

impl Apart {
    /// How long an input must still wait; `None` if it may be tried.
    pub fn wait(&self, input: &str, now: Instant) -> Option<Duration> {
        let until = self.inputs.get(input)?.until?;
        until
            .checked_duration_since(now)
            .filter(|wait| !wait.is_zero())
    }

    /// Takes in how a call with an input ended. Answers for how long the input is now set apart.
    pub fn record(&mut self, input: &str, was_violent: bool, now: Instant) -> Option<Duration> {
        if !was_violent {
            self.inputs.remove(input);
            return None;
        }
        if self.inputs.len() >= INPUTS_MAX && !self.inputs.contains_key(input) {
            self.inputs
                .retain(|_, input| input.until.is_some_and(|until| until > now));
            if self.inputs.len() >= INPUTS_MAX {
                self.inputs.clear();
            }
        }
        let entry = self.inputs.entry(input.to_owned()).or_insert(Input {
            strikes: 0,
            until: None,
        });
        entry.strikes = entry.strikes.saturating_add(1);
        let over = entry.strikes.checked_sub(STRIKES_MAX)?;
        let apart = APART
            .saturating_mul(2u32.saturating_pow(over))
            .min(APART_MAX);
        entry.until = Some(now + apart);
        Some(apart)
    }

    /// Whether no input has done harm lately: there is nothing to ask for.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// Inputs that may not be tried now.
    pub fn count(&self, now: Instant) -> usize {
        let apart = |input: &&Input| input.until.is_some_and(|until| until > now);
        self.inputs.values().filter(apart).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_kills_again_and_again_is_set_apart_and_for_longer_each_time() {
        let now = Instant::now();
        let mut apart = Apart::default();
        for _ in 1..STRIKES_MAX {
            assert_eq!(apart.record("bad", true, now), None);
        }
        assert_eq!(apart.wait("bad", now), None);
        assert_eq!(apart.record("bad", true, now), Some(APART));
        assert_eq!(apart.wait("bad", now), Some(APART));
        assert_eq!(apart.wait("good", now), None);
        assert_eq!(apart.count(now), 1);
        let later = now + APART;
        assert_eq!(apart.wait("bad", later), None);
        assert_eq!(apart.record("bad", true, later), Some(APART * 2));
        assert_eq!(apart.record("bad", false, later), None);
        assert_eq!(apart.record("bad", true, later), None);
    }

    #[test]
    fn memory_of_inputs_is_bounded_and_no_wait_is_longer_than_the_longest() {
        let now = Instant::now();
        let mut apart = Apart::default();
        for n in 0..3 * INPUTS_MAX {
            apart.record(&n.to_string(), true, now);
        }
        assert!(apart.inputs.len() <= INPUTS_MAX);
        for _ in 0..100 {
            apart.record("bad", true, now);
        }
        assert_eq!(apart.wait("bad", now), Some(APART_MAX));
    }
}
