//! What the built-in probes share: the contract's bindings without the standard library, arguments, and the kubelet's
//! words for what went wrong.

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
