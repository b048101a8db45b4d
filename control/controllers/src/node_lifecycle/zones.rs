//! How fast pods may be taken off nodes, by zone: when much fails at once the trouble is more likely here than there.
//! Pure: time comes in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// One node in so long (`--node-eviction-rate`, 0.1 a second).
const PERIOD: Duration = Duration::from_secs(10);
/// The same in a large zone of which many nodes have failed (`--secondary-node-eviction-rate`, 0.01 a second).
const PERIOD_SECONDARY: Duration = Duration::from_secs(100);
/// A zone of more nodes is large (`--large-cluster-size-threshold`).
const LARGE: usize = 50;
/// The share of nodes that makes many, in percent (`--unhealthy-zone-threshold`).
const UNHEALTHY_PERCENT: usize = 55;

/// How a zone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Normal,
    /// Many nodes are not ready.
    Partial,
    /// None is ready.
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    ready: usize,
    not_ready: usize,
    /// The next node may be given up then.
    next: Instant,
}

impl Zone {
    fn count(&mut self, is_ready: bool) -> &mut usize {
        if is_ready {
            &mut self.ready
        } else {
            &mut self.not_ready
        }
    }

    fn health(&self) -> Health {
        let all = self.ready + self.not_ready;
        if self.ready == 0 && self.not_ready > 0 {
            Health::Full
        } else if self.not_ready > 2 && self.not_ready * 100 >= all * UNHEALTHY_PERCENT {
            Health::Partial
        } else {
            Health::Normal
        }
    }

    /// How long it takes from one node to the next; `None`: none is given up.
    fn period(&self) -> Option<Duration> {
        match self.health() {
            // That it is a whole zone is no reason to wait as long as others are well.
            Health::Normal | Health::Full => Some(PERIOD),
            Health::Partial if self.ready + self.not_ready > LARGE => Some(PERIOD_SECONDARY),
            Health::Partial => None,
        }
    }
}

/// All zones.
#[derive(Debug, Default)]
pub(super) struct Zones {
    zones: HashMap<String, Zone>,
}

impl Zones {
    /// Takes a node's news: the zone in which it was and whether it was ready, and the same of now.
    pub(super) fn change(
        &mut self,
        was: Option<(&str, bool)>,
        is: Option<(&str, bool)>,
        now: Instant,
    ) {
        if was == is {
            return;
        }
        if let Some((name, is_ready)) = is {
            let first = Zone {
                ready: 0,
                not_ready: 0,
                next: now,
            };
            let zone = match self.zones.get_mut(name) {
                Some(zone) => zone,
                None => self.zones.entry(name.to_owned()).or_insert(first),
            };
            *zone.count(is_ready) += 1;
        }
        if let Some((name, is_ready)) = was
            && let Some(zone) = self.zones.get_mut(name)
        {
            *zone.count(is_ready) -= 1;
        }
    }

    /// Forgets zones without nodes, once they have kept their pace.
    pub(super) fn forget_empty(&mut self, now: Instant) {
        self.zones
            .retain(|_, zone| zone.ready + zone.not_ready > 0 || zone.next > now);
    }

    /// No node of any zone is ready: it is this control plane that is cut off, and nobody is given up.
    pub(super) fn are_all_lost(&self) -> bool {
        let mut zones = self.zones.values();
        zones.all(|zone| zone.ready == 0)
    }

    /// Whether a node of a zone may be given up now. If so, the next one may not be for a while.
    pub(super) fn give_up(&mut self, zone: &str, now: Instant) -> bool {
        let Some(zone) = self.zones.get_mut(zone) else {
            return false;
        };
        match zone.period() {
            Some(period) if zone.next <= now => {
                zone.next = now + period;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(counts: &[(&str, usize, usize)], now: Instant) -> Zones {
        let mut zones = Zones::default();
        for (zone, ready, not_ready) in counts {
            for number in 0..ready + not_ready {
                zones.change(None, Some((zone, number < *ready)), now);
            }
        }
        zones
    }

    #[test]
    fn nodes_are_given_up_one_by_one_and_not_at_all_when_it_may_be_our_own_fault() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        for (what, counts, first, after_ten, after_hundred) in [
            ("one of three", &[("a", 2, 1)][..], true, true, true),
            ("two of three", &[("a", 1, 2)], true, true, true),
            ("three of five", &[("a", 2, 3)], false, false, false),
            ("forty of sixty", &[("a", 20, 40)], true, false, true),
            (
                "a whole zone",
                &[("a", 0, 3), ("b", 3, 0)],
                true,
                true,
                true,
            ),
        ] {
            let mut zones = zones(counts, now);
            assert!(!zones.are_all_lost(), "{what}");
            assert_eq!(zones.give_up("a", now), first, "{what}");
            assert!(!zones.give_up("a", now), "{what}: one at a time");
            assert_eq!(zones.give_up("a", after(10)), after_ten, "{what}");
            assert_eq!(zones.give_up("a", after(110)), after_hundred, "{what}");
        }
        assert!(zones(&[("a", 0, 1)], now).are_all_lost());
        assert!(zones(&[("a", 0, 2), ("b", 0, 1)], now).are_all_lost());
    }

    #[test]
    fn a_zone_whose_nodes_come_and_go_keeps_its_pace() {
        let now = Instant::now();
        let mut zones = zones(&[("a", 2, 1)], now);
        assert!(zones.give_up("a", now));
        let nodes = [("a", true), ("a", true), ("a", false)];
        for node in nodes {
            zones.change(Some(node), None, now);
        }
        zones.forget_empty(now);
        zones.change(None, Some(("a", true)), now);
        zones.change(Some(("a", true)), Some(("a", false)), now);
        assert!(!zones.give_up("a", now));
        zones.change(Some(("a", false)), None, now);
        zones.forget_empty(now + PERIOD);
        assert!(zones.zones.is_empty());
    }
}
