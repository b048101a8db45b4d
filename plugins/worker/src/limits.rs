//! Memory of one call.

use std::fmt;

use wasmtime::ResourceLimiter;

/// Bytes a table element takes on the host.
const TABLE_ELEMENT_BYTES: u64 = 8;
/// Instances, memories and tables of one store: a component has a handful of each.
const PER_STORE_MAX: usize = 100;

/// The guest wanted more memory than it may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryExceeded;

impl fmt::Display for MemoryExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory limit crossed")
    }
}

impl std::error::Error for MemoryExceeded {}

/// Counts what a store's memories and tables grow by; they go all at once, with the call.
#[derive(Debug)]
pub(crate) struct Limiter {
    bytes_max: u64,
    bytes: u64,
}

impl Limiter {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes: 0,
        }
    }

    /// What has been taken so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn grow(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        let new = self.bytes.saturating_add(bytes);
        if new > self.bytes_max {
            // Told of a failure, a guest would trap with words of its own.
            return Err(MemoryExceeded.into());
        }
        self.bytes = new;
        Ok(true)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow((desired - current) as u64)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow(((desired - current) as u64).saturating_mul(TABLE_ELEMENT_BYTES))
    }

    fn instances(&self) -> usize {
        PER_STORE_MAX
    }

    fn tables(&self) -> usize {
        PER_STORE_MAX
    }

    fn memories(&self) -> usize {
        PER_STORE_MAX
    }
}
