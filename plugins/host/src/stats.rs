//! What is counted of a plugin.

use std::time::{Duration, SystemTime};

use crate::protocol::{Ended, Fault};

/// Counters of one plugin on this node, since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginStats {
    /// Calls that were made.
    pub calls: u64,
    /// Of those, ends by trap.
    pub traps: u64,
    /// Of those, ends by a limit of memory, CPU time or time.
    pub limits_exceeded: u64,
    /// Of those, errors that the plugin declared.
    pub errors: u64,
    /// Calls that were lost with the worker, or could not be made for want of one.
    pub lost: u64,
    /// Requests of the plugin for what is not granted.
    pub denied: u64,
    /// Calls that were not made, their input being set apart.
    pub not_made: u64,
    /// Inputs that are set apart now.
    pub set_apart: usize,
    /// Time of all calls.
    pub duration_total: Duration,
    /// Time of the longest call.
    pub duration_max: Duration,
    /// CPU time of the plugin's own code.
    pub cpu_time_total: Duration,
    /// Most bytes of memory that a call used.
    pub memory_bytes_peak: u64,
    /// The last trouble, and when.
    pub last_error: Option<(SystemTime, String)>,
}

impl PluginStats {
    pub(crate) fn record(&mut self, ended: &Ended, took: Duration, now: SystemTime) {
        self.calls += 1;
        self.duration_total += took;
        self.duration_max = self.duration_max.max(took);
        self.cpu_time_total += ended.cpu_time;
        self.memory_bytes_peak = self.memory_bytes_peak.max(ended.memory_bytes_peak);
        if let Some(denied) = &ended.denied {
            self.denied += 1;
            self.last_error = Some((now, format!("not granted: {denied}")));
        }
        let Err(fault) = &ended.result else {
            return;
        };
        match fault {
            Fault::Trap(_) => self.traps += 1,
            Fault::MemoryExceeded { .. }
            | Fault::CpuTimeExceeded { .. }
            | Fault::TimedOut { .. } => self.limits_exceeded += 1,
            Fault::InvalidArguments(_) | Fault::Denied(_) | Fault::Other(_) | Fault::Volume(_) => {
                self.errors += 1
            }
            Fault::WorkerLost(_) => self.lost += 1,
        }
        self.last_error = Some((now, fault.to_string()));
    }
}
