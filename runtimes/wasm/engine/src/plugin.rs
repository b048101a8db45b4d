//! What the plugin worker shares with the Wasm worker: becoming harmless, the engine's settings, and
//! compiled files.

use std::os::fd::OwnedFd;

use wasmtime::{Engine, component::Component};

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

/// Maps a compiled component, whose directory only root can write to.
///
/// # Errors
/// The file is not there or was made for another engine.
pub fn load(engine: &Engine, directory: &OwnedFd) -> wasmtime::Result<Component> {
    engine::in_directory(directory, || engine::deserialize_component(engine))?
}
