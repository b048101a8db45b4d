//! When the node is short of something. Pure.

use std::{collections::BTreeMap, fmt, str::FromStr};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use thiserror::Error;

use crate::pod::quantity;

/// What is watched, in the kubelet's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory that can be had without hurting anybody, bytes.
    MemoryAvailable,
    /// Free on the file system that pods write to, bytes.
    NodeFsAvailable,
    /// Free inodes there.
    NodeFsInodesFree,
    /// Free on the file system that images are on, bytes.
    ImageFsAvailable,
    /// Free inodes there.
    ImageFsInodesFree,
    /// Process IDs not in use.
    PidAvailable,
}

/// What the node tells the scheduler about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Condition {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
    /// `PIDPressure`.
    Pid,
}

impl Condition {
    /// The condition's type.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
}

impl Signal {
    /// Every signal.
    pub const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodeFsAvailable,
        Self::NodeFsInodesFree,
        Self::ImageFsAvailable,
        Self::ImageFsInodesFree,
        Self::PidAvailable,
    ];

    /// As in `--eviction-hard`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::ImageFsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// The condition that goes with it.
    pub(crate) fn condition(self) -> Condition {
        match self {
            Self::MemoryAvailable => Condition::Memory,
            Self::PidAvailable => Condition::Pid,
            Self::NodeFsAvailable
            | Self::NodeFsInodesFree
            | Self::ImageFsAvailable
            | Self::ImageFsInodesFree => Condition::Disk,
        }
    }

    /// The resource, as messages name it.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodeFsAvailable | Self::ImageFsAvailable => "ephemeral-storage",
            Self::NodeFsInodesFree | Self::ImageFsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }
}

impl FromStr for Signal {
    type Err = ThresholdError;

    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        Self::ALL
            .into_iter()
            .find(|signal| signal.as_str() == text)
            .ok_or_else(|| ThresholdError::Signal(text.into()))
    }
}

/// How little is too little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Bytes or pieces.
    Absolute(u64),
    /// A share of the capacity, between 0 and 1.
    Share(f64),
}

/// Below it, the node defends itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// What is watched.
    pub signal: Signal,
    /// How little is too little.
    pub amount: Amount,
}

/// What is wrong with a threshold as typed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ThresholdError {
    /// No such signal.
    #[error(
        "eviction signal {0:?} is not one of memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree, pid.available"
    )]
    Signal(String),
    /// Not `signal<amount>`.
    #[error("eviction threshold {0:?} is not signal<quantity or signal<percentage%")]
    Form(String),
    /// The amount is no quantity and no percentage.
    #[error(
        "eviction threshold {signal}: {amount:?} is neither a positive quantity nor a percentage between 0 and 100"
    )]
    Amount {
        /// Of which signal.
        signal: &'static str,
        /// As typed.
        amount: String,
    },
}

impl Threshold {
    /// A threshold.
    pub const fn new(signal: Signal, amount: Amount) -> Self {
        Self { signal, amount }
    }

    /// Reads `memory.available<100Mi`.
    fn parse(text: &str) -> Result<Self, ThresholdError> {
        let (signal, amount) = text
            .split_once('<')
            .ok_or_else(|| ThresholdError::Form(text.into()))?;
        let signal: Signal = signal.trim().parse()?;
        let amount = amount.trim();
        let parsed = match amount.strip_suffix('%') {
            Some(percent) => percent
                .parse::<f64>()
                .ok()
                .filter(|percent| (0.0..=100.0).contains(percent))
                .map(|percent| Amount::Share(percent / 100.0)),
            None => quantity::value(&Quantity(amount.into()))
                .and_then(|value| u64::try_from(value).ok())
                .map(Amount::Absolute),
        };
        let amount = parsed.ok_or_else(|| ThresholdError::Amount {
            signal: signal.as_str(),
            amount: amount.into(),
        })?;
        Ok(Self { signal, amount })
    }

    /// The amount, of that capacity.
    pub(crate) fn quantity(&self, capacity: u64) -> u64 {
        match self.amount {
            Amount::Absolute(amount) => amount,
            Amount::Share(share) => (capacity as f64 * share) as u64,
        }
    }
}

/// Reads `--eviction-hard`: what is named replaces the default of that signal, the others stay; an
/// amount of 0 turns a signal off.
///
/// # Errors
/// The first one that cannot be read.
pub fn parse(text: &str) -> Result<Vec<Threshold>, ThresholdError> {
    let mut thresholds = defaults();
    for word in text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let threshold = Threshold::parse(word)?;
        thresholds.retain(|there| there.signal != threshold.signal);
        thresholds.push(threshold);
    }
    thresholds.retain(|there| there.quantity(u64::MAX) > 0);
    thresholds.sort_by_key(|threshold| threshold.signal);
    Ok(thresholds)
}

/// The kubelet's hard defaults; it has none for process IDs, a node without any is as dead as one
/// without memory, so that one is ours.
pub fn defaults() -> Vec<Threshold> {
    use Amount::{Absolute, Share};
    vec![
        Threshold::new(Signal::MemoryAvailable, Absolute(100 << 20)),
        Threshold::new(Signal::NodeFsAvailable, Share(0.10)),
        Threshold::new(Signal::NodeFsInodesFree, Share(0.05)),
        Threshold::new(Signal::ImageFsAvailable, Share(0.15)),
        Threshold::new(Signal::ImageFsInodesFree, Share(0.05)),
        Threshold::new(Signal::PidAvailable, Share(0.05)),
    ]
}

/// What a signal stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// What is left.
    pub(crate) available: u64,
    /// What there is. 0: there is no such thing, as with inodes on some file systems.
    pub(crate) capacity: u64,
}

/// All that could be read.
pub(crate) type Readings = BTreeMap<Signal, Reading>;

/// A threshold that is crossed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Crossed {
    /// Which signal.
    pub(crate) signal: Signal,
    /// What it stands at.
    pub(crate) reading: Reading,
    /// What it should not be below.
    pub(crate) quantity: u64,
}

/// The thresholds that are crossed, memory first: running out of it hurts soonest.
pub(crate) fn crossed(thresholds: &[Threshold], readings: &Readings) -> Vec<Crossed> {
    let mut crossed: Vec<_> = thresholds
        .iter()
        .filter_map(|threshold| {
            let reading = *readings.get(&threshold.signal)?;
            let quantity = threshold.quantity(reading.capacity);
            (reading.capacity > 0 && reading.available < quantity).then_some(Crossed {
                signal: threshold.signal,
                reading,
                quantity,
            })
        })
        .collect();
    crossed.sort_by_key(|crossed| crossed.signal);
    crossed
}

/// As a quantity prints: the largest binary unit that leaves no rest.
pub(crate) struct BinarySi(pub(crate) u64);

impl fmt::Display for BinarySi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0, "");
        for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
            if value == 0 || !value.is_multiple_of(1024) {
                break;
            }
            (value, unit) = (value / 1024, next);
        }
        write!(f, "{value}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(list: &[(Signal, u64, u64)]) -> Readings {
        list.iter()
            .map(|(signal, available, capacity)| {
                let (available, capacity) = (*available, *capacity);
                (
                    *signal,
                    Reading {
                        available,
                        capacity,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn thresholds_are_crossed_where_the_kubelets_are() {
        use Signal::*;
        let gi = 1 << 30;
        type Given<'a> = &'a [(Signal, u64, u64)];
        let table: &[(Given<'_>, &[Signal])] = &[
            (&[(MemoryAvailable, 100 << 20, gi)], &[]),
            (
                &[(MemoryAvailable, (100 << 20) - 1, gi)],
                &[MemoryAvailable],
            ),
            (&[(NodeFsAvailable, 10, 100)], &[]),
            (&[(NodeFsAvailable, 9, 100)], &[NodeFsAvailable]),
            (&[(ImageFsAvailable, 14, 100)], &[ImageFsAvailable]),
            (&[(NodeFsInodesFree, 4, 100)], &[NodeFsInodesFree]),
            // No inodes to count.
            (&[(NodeFsInodesFree, 0, 0)], &[]),
            (&[(PidAvailable, 4, 100)], &[PidAvailable]),
            (
                &[(PidAvailable, 0, 100), (MemoryAvailable, 0, gi)],
                &[MemoryAvailable, PidAvailable],
            ),
            (&[], &[]),
        ];
        for (given, expected) in table {
            let found: Vec<_> = crossed(&defaults(), &readings(given))
                .iter()
                .map(|crossed| crossed.signal)
                .collect();
            assert_eq!(found, *expected, "{given:?}");
        }
    }

    #[test]
    fn what_is_typed_replaces_the_default_of_that_signal() {
        let thresholds = parse("memory.available<1Gi, nodefs.available<0%").expect("good");
        assert_eq!(thresholds.len(), 5);
        assert_eq!(
            thresholds[0],
            Threshold::new(Signal::MemoryAvailable, Amount::Absolute(1 << 30))
        );
        assert!(
            thresholds
                .iter()
                .all(|t| t.signal != Signal::NodeFsAvailable)
        );
        assert_eq!(parse("").expect("good"), defaults());
        for wrong in [
            "memory<1",
            "memory.available",
            "memory.available<-1",
            "memory.available<101%",
            "memory.available<much",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn quantities_print_as_in_go() {
        for (value, expected) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1Ki"),
            (100 << 20, "100Mi"),
            ((1 << 30) + 1024, "1048577Ki"),
        ] {
            assert_eq!(BinarySi(value).to_string(), expected);
        }
    }
}
