//! Plugins for Wherry nodes: probes and volumes as sandboxed components.
//!
//! A plugin exports one world. Write its function, and name it in that world's macro:
//!
//! | World | Function | Macro |
//! |---|---|---|
//! | [`probe`](mod@probe) | `fn check(args: Args) -> probe::Result` | [`probe!`](macro@probe) |
//! | [`populator`](mod@populator) | `fn populate(current: Option<String>) -> volume::Result<Populated>` | [`populator!`](macro@populator) |
//! | [`mounter`](mod@mounter) | `fn mount() -> volume::Result<()>` | [`mounter!`](macro@mounter) |
//! | [`filesystem`](mod@filesystem) | `impl FileSystem for …` | [`filesystem!`](macro@filesystem) |
//!
//! ```
//! use wherry_plugin::probe::{self, Args, success, target};
//! use wherry_plugin::http;
//!
//! fn check(args: Args) -> probe::Result {
//!     let port = args.parse_or("port", 80)?;
//!     let answer = http::Request::new(&target::ip(), port, "/healthz").send()?;
//!     Ok(success(answer.ok()?.text()))
//! }
//!
//! wherry_plugin::probe!(check);
//! # fn main() {}
//! ```
//!
//! The crate type is `cdylib`, the target `wasm32-wasip2` (or `wasm32-unknown-unknown` and
//! `wherry plugin build`, which makes a component of it: smaller, without WASI). `wherry plugin new`
//! writes all of it.
//!
//! # What a plugin may do
//! What its world imports and its `Plugin` object grants, and nothing else: a call that lacks a grant answers
//! `Denied`. Of std, files, sockets, threads, environment and arguments are absent; [`tcp`], [`http`], [`clock`] and
//! [`log`] are what there is. Memory, CPU time and time are limited; past a limit the call has failed and the
//! instance is gone. An instance is made for each call or kept: what is remembered in statics is a cache.

#![warn(missing_docs)]

mod args;
#[doc(hidden)]
pub mod bindings;
pub mod clock;
pub mod container_log;
pub mod exec;
pub mod files;
pub mod filesystem;
pub mod http;
pub mod log;
pub mod mounter;
pub mod observations;
mod pieces;
pub mod populator;
pub mod probe;
pub mod provisioner;
pub mod secret;
pub mod tcp;
pub mod volume;

pub use args::{Args, ArgsError};
