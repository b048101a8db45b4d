//! Compiled Wasm, as the agent has it made and kept: for containers (runtimes/wasm) and for plugins (plugins/host).
//!
//! ```text
//!  Aot ── cache.rs: <engine>/<module> ── child.rs ──▶ wherry wasm-compile
//!                                            wire.rs, protocol.rs
//! ```
//! Both halves of what it takes to speak with the program's own inner modes are here, too: starting one with a socket
//! as its stdin, and frames with descriptors beside them. Nothing here compiles or runs Wasm, and nothing links an
//! engine.

mod cache;
pub mod child;
pub mod protocol;
pub mod wire;

pub use cache::{Aot, Compiled};
pub use protocol::{ModuleKind, NO_PLUGINS_WORLD, Purpose};
