//! Instances of built-in probes, which are called again: making one, and clearing what it has written, costs more than
//! most of their calls. Those of other plugins live for one call, so that nothing of one pod's check is there in
//! another's.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;

use crate::{bindings::Probe, state::State};

/// Instances of all plugins together that may wait to be called again: those of a burst of checks.
pub(crate) const INSTANCES_MAX: usize = 64;
/// Bytes of memory and tables past which an instance is not worth keeping.
const BYTES_MAX: u64 = 2 << 20;

/// A plugin's instances between calls.
#[derive(Default)]
pub(crate) struct Kept {
    /// Shared by all plugins that keep any.
    room: Option<Arc<Semaphore>>,
    instances: Mutex<Vec<Waiting>>,
}

/// An instance, and its place in the room.
struct Waiting {
    store: Store<State>,
    instance: Probe,
    _place: OwnedSemaphorePermit,
}

impl Kept {
    /// None yet, and none ever without a room.
    pub(crate) fn new(room: Option<Arc<Semaphore>>) -> Self {
        Self {
            room,
            instances: Mutex::default(),
        }
    }

    /// One to be called again.
    pub(crate) fn take(&self) -> Option<(Store<State>, Probe)> {
        let mut instances = self
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waiting = instances.pop()?;
        Some((waiting.store, waiting.instance))
    }

    /// Keeps one whose call has ended well.
    pub(crate) fn put(&self, mut store: Store<State>, instance: Probe) {
        let state = store.data_mut();
        let Some(room) = &self.room else { return };
        if state.limiter.bytes() > BYTES_MAX {
            return;
        }
        let Ok(place) = Arc::clone(room).try_acquire_owned() else {
            return;
        };
        state.rest();
        self.instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Waiting {
                store,
                instance,
                _place: place,
            });
    }
}
