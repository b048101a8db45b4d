//! Usage of a container.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Usage of a container at a moment. What a runtime cannot tell is `None`, never zero.
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
    /// Most memory it may use, bytes; `None` without a limit.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
    /// Page faults since it started.
    #[serde(default)]
    pub page_faults: Option<u64>,
    /// Those of them that had to read from a disk.
    #[serde(default)]
    pub major_page_faults: Option<u64>,
    /// Swap in use, bytes.
    #[serde(default)]
    pub swap_usage_bytes: Option<u64>,
    /// Processes and threads.
    pub process_count: u64,
    /// Bytes in its writable layer.
    pub writable_layer_bytes: u64,
    /// Inodes in its writable layer.
    #[serde(default)]
    pub writable_layer_inodes: Option<u64>,
}

/// Nothing used, nothing known, in 1970: for `..ContainerStats::default()`.
impl Default for ContainerStats {
    fn default() -> Self {
        Self {
            at: SystemTime::UNIX_EPOCH,
            cpu_usage_core_nanoseconds: 0,
            memory_usage_bytes: 0,
            memory_working_set_bytes: 0,
            memory_rss_bytes: 0,
            memory_limit_bytes: None,
            page_faults: None,
            major_page_faults: None,
            swap_usage_bytes: None,
            process_count: 0,
            writable_layer_bytes: 0,
            writable_layer_inodes: None,
        }
    }
}
