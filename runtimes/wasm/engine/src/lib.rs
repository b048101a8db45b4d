//! The inside of a Wasm worker: engine, linkers, limits, confined sockets.
//!
//! Two programs come out of this crate, both started by `wherry_wasm` with a socket as stdin:
//!
//! - [`compile::main`] (`wherry wasm-compile`) turns a module into machine code, once per image and
//!   engine, and says what the module is or why it cannot run here;
//! - [`worker::main`] (`wherry wasm-worker`) runs the containers of one tenant.
//!
//! ```text
//!  control threads (tokio)                     guest threads (sched.rs)
//!  ├ serve.rs     requests of the agent        ├ poll the guest with the least CPU time so far,
//!  ├ container.rs one state machine each       │ for one tick at most, then the next
//!  ├ http.rs      accepts, one instance each   └ a guest over its CPU limit waits
//!  └ output.rs    stdout and stderr → log      ticker: ends a guest's turn by raising the epoch
//! ```
//!
//! Guest code never runs on a control thread, so no guest can delay a request of the agent, a log
//! or a neighbour's I/O by more than its turn.
//!
//! [`plugin`] is what the worker of plugins (plugins/worker) shares with these two.
//!
//! This crate links the compiler and is therefore slow to link; the agent's side is in
//! `wherry_wasm`, which does not depend on it.

mod bootstrap;
pub mod compile;
mod container;
mod engine;
mod http;
mod limits;
mod log;
mod names;
mod network;
mod outgoing;
mod output;
pub mod plugin;
mod pod;
mod sched;
mod seccomp;
mod serve;
mod sockets;
mod state;
mod terminal;
mod tls;
pub mod worker;
