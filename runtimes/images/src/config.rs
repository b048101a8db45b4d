//! What a store is told: limits, and how registries are reached.

use std::{path::PathBuf, time::Duration};

/// What a store is told when it is opened.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Bounds on what an image may cost.
    pub limits: Limits,
    /// Layers fetched and unpacked at a time, over all pulls. Default: 3, as Docker's.
    pub parallel_layers: usize,
    /// Sync to disk before an image counts as present. Off only where a power cut cannot matter.
    pub is_durable: bool,
    /// What an interrupted pull left is kept this long. Default: 24 hours.
    pub leftover_age_max: Duration,
    /// How registries are reached.
    pub registries: RegistryConfig,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            parallel_layers: 3,
            is_durable: true,
            leftover_age_max: Duration::from_secs(24 * 3600),
            registries: RegistryConfig::default(),
        }
    }
}

/// Bounds on what an image may cost. Past one of them: [`wherry_runtime_api::ImageError::TooLarge`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of an image's files, unpacked, holes included. Default: 32 GiB.
    pub unpacked_bytes_max: u64,
    /// Files, directories and links of an image. Default: 2,000,000 (the largest images of public
    /// registries have a tenth).
    pub entries_max: u64,
    /// Unpacked over compressed bytes of a layer, looked at from 256 MiB on. Default: 1,000, just
    /// below what gzip makes of zeros.
    pub ratio_max: u64,
    /// Bytes of a Wasm module. Default: 1 GiB.
    pub wasm_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes_max: 32 << 30,
            entries_max: 2_000_000,
            ratio_max: 1_000,
            wasm_bytes_max: 1 << 30,
        }
    }
}

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Hosts (`host` or `host:port`) that are spoken to in plain HTTP. Loopback addresses need not
    /// be named: they are asked over TLS, then without.
    pub insecure: Vec<String>,
    /// PEM files with certificate authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Host → hosts that are asked before it, in order.
    pub mirrors: Vec<(String, Vec<String>)>,
    /// A connection that is not there after this long counts as unreachable. Default: 10 s.
    pub connect_timeout: Duration,
    /// A registry that sends nothing for this long counts as unreachable. Default: 30 s.
    pub read_timeout: Duration,
    /// Times a broken transfer is taken up again where it broke. Default: 5.
    pub resume_max: u32,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            ca_files: Vec::new(),
            mirrors: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            resume_max: 5,
        }
    }
}
