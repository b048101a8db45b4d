//! What the plugin worker shares with the Wasm worker: becoming harmless, the engine's settings, and
//! compiled files.

use std::os::fd::OwnedFd;

use wasmtime::{Engine, PoolingAllocationConfig, component::Component};

use crate::engine::{self, Engines};
pub use crate::{
    bootstrap::{give_up_privileges, leave_session},
    seccomp::install as install_seccomp_filter,
};

/// An engine that loads what `wasm-compile` made: guests yield whenever its epoch is raised.
///
/// # Errors
/// The machine lacks what the settings need.
pub fn engine() -> wasmtime::Result<Engine> {
    Ok(Engines::new()?.on_demand)
}

/// Instances of plugins that can be alive at once in an engine made by [`pooled_engine`].
pub const POOLED_INSTANCES_MAX: u32 = 512;

/// An engine for guests that live as long as a call: instances are made in places reserved for them, which a machine
/// without the address space for that does not have. It loads what [`engine`] loads, but for components too large for
/// a place.
///
/// # Errors
/// The machine lacks what the settings need.
pub fn pooled_engine() -> wasmtime::Result<Engine> {
    engine::pooled(POOLED_INSTANCES_MAX)
}

/// Opens what tells which pages an instance has written, so that a [`pooled_engine`] has to clear no others after it. To
/// be called while `/proc` can be seen; an engine does without where it was not, or the kernel (before 6.7) cannot tell.
pub fn open_page_map() {
    PoolingAllocationConfig::is_pagemap_scan_available();
}

/// Maps a compiled component, whose directory only root can write to.
///
/// # Errors
/// The file is not there or was made for another engine.
pub fn load(engine: &Engine, directory: &OwnedFd) -> wasmtime::Result<Component> {
    engine::in_directory(directory, || engine::deserialize_component(engine))?
}
