//! Usage of a container.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Usage of a container at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// When it was read.
    pub at: SystemTime,
    /// CPU time used since it started, over all cores, ns.
    pub cpu_usage_core_nanoseconds: u64,
    /// Memory in use, bytes.
    pub memory_usage_bytes: u64,
    /// Memory in use less what can be dropped at once, bytes. What limits are compared with.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory, bytes.
    pub memory_rss_bytes: u64,
    /// Processes and threads.
    pub process_count: u64,
    /// Bytes in its writable layer.
    pub writable_layer_bytes: u64,
}
