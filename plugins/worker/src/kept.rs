//! Instances of built-in probes, which are called again: making one, and clearing what it has written, costs more than
//! most of their calls. Those of other plugins live for one call, so that nothing of one pod's check is there in
//! another's.

use std::sync::{Mutex, PoisonError};

use wasmtime::Store;

use crate::{bindings::Probe, state::State};

/// Instances of one plugin that wait to be called again.
const INSTANCES_MAX: usize = 4;
/// Bytes of memory and tables past which an instance is not worth keeping.
const BYTES_MAX: u64 = 2 << 20;

/// A plugin's instances between calls.
#[derive(Default)]
pub(crate) struct Kept {
    keeps: bool,
    instances: Mutex<Vec<(Store<State>, Probe)>>,
}

impl Kept {
    /// None yet, and none ever unless `keeps`.
    pub(crate) fn new(keeps: bool) -> Self {
        Self {
            keeps,
            instances: Mutex::default(),
        }
    }

    /// One to be called again.
    pub(crate) fn take(&self) -> Option<(Store<State>, Probe)> {
        let mut instances = self
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        instances.pop()
    }

    /// Keeps one whose call has ended well.
    pub(crate) fn put(&self, mut store: Store<State>, instance: Probe) {
        let state = store.data_mut();
        if !self.keeps || state.limiter.bytes() > BYTES_MAX {
            return;
        }
        state.rest();
        let mut instances = self
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if instances.len() < INSTANCES_MAX {
            instances.push((store, instance));
        }
    }
}
