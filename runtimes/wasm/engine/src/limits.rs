//! Memory of a container, counted over all its instances.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use wasmtime::ResourceLimiter;

/// Bytes a table element takes on the host.
const TABLE_ELEMENT_BYTES: u64 = 8;
/// Elements of one table at most: 8 MiB of the host's memory.
const TABLE_ELEMENTS_MAX: usize = 1 << 20;
/// Instances, memories and tables of one store: a command has a handful of each.
const PER_STORE_MAX: usize = 1000;

/// What the container's instances use together, and what they may.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    used_bytes: AtomicU64,
    /// 0 is no limit.
    bytes_max: AtomicU64,
    crossed: AtomicBool,
}

impl Memory {
    pub(crate) fn set_max(&self, bytes_max: Option<u64>) {
        self.bytes_max
            .store(bytes_max.unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Whether an instance wanted more than the limit.
    pub(crate) fn is_crossed(&self) -> bool {
        self.crossed.load(Ordering::Relaxed)
    }

    fn charge(&self, bytes: u64) -> bool {
        let max = match self.bytes_max.load(Ordering::Relaxed) {
            0 => u64::MAX,
            max => max,
        };
        let charged = self
            .used_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|new| *new <= max)
            })
            .is_ok();
        if !charged {
            self.crossed.store(true, Ordering::Relaxed);
        }
        charged
    }
}

/// One store's share of a container's [`Memory`]; given back when the store goes.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory: Arc<Memory>,
    charged_bytes: u64,
}

impl Limiter {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        Self {
            memory,
            charged_bytes: 0,
        }
    }

    fn grow(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        if self.memory.charge(bytes) {
            self.charged_bytes += bytes;
            Ok(true)
        } else {
            // As the kernel does: whoever crosses the limit is ended, not told.
            wasmtime::bail!("memory limit crossed")
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.memory
            .used_bytes
            .fetch_sub(self.charged_bytes, Ordering::Relaxed);
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
        if desired > TABLE_ELEMENTS_MAX || maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow((desired - current) as u64 * TABLE_ELEMENT_BYTES)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_of_one_container_share_its_limit_and_give_back_what_they_used() {
        let memory = Arc::new(Memory::default());
        memory.set_max(Some(100));
        let mut first = Limiter::new(memory.clone());
        let mut second = Limiter::new(memory.clone());
        assert!(first.memory_growing(0, 60, None).unwrap());
        assert!(!memory.is_crossed());
        assert!(second.memory_growing(0, 60, None).is_err());
        assert!(memory.is_crossed());
        assert_eq!(memory.used_bytes(), 60);
        drop(first);
        assert_eq!(memory.used_bytes(), 0);
        assert!(second.memory_growing(0, 100, None).unwrap());
    }

    #[test]
    fn growth_beyond_the_modules_own_maximum_is_refused_and_not_charged() {
        let memory = Arc::new(Memory::default());
        let mut limiter = Limiter::new(memory.clone());
        assert!(!limiter.memory_growing(0, 60, Some(50)).unwrap());
        assert_eq!(memory.used_bytes(), 0);
        assert!(!memory.is_crossed());
    }
}
