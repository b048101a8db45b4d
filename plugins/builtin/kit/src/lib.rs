//! What the built-in probes share: the contract's bindings without the standard library, arguments, and the kubelet's
//! words for what went wrong.
//!
//! The built-in volumes are written on the SDK (plugins/sdk), as everybody's plugins are. Probes are not, for what it would
//! cost: every node carries all of them, compiles them, and calls them more often than anything else. The probe of a
//! redis has 71 KB by the SDK (plugins/examples/probe: the standard library, and WASI to be linked into each instance) and
//! 24 KB by this (redis-ping); nine probes have 212 KB together, and would have over 600. What they export, import, are
//! granted and limited to is no different for that: the host cannot tell which of the two a component was made with.

#![no_std]

extern crate alloc;
extern crate self as kit;

mod arguments;
pub mod compose;
mod runtime;
mod words;

pub use arguments::Arguments;
pub use words::{USER_AGENT, address, denied_or, dial_tcp, failure, http_error, seconds, success};

/// The contract.
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "probe",
        pub_export_macro: true,
        runtime_path: "kit::rt",
        default_bindings_module: "kit::bindings",
    });
}

pub use bindings::{Guest, Outcome, ProbeError, Verdict, export, wherry::plugin::*};
#[doc(hidden)]
pub use wit_bindgen::rt;
