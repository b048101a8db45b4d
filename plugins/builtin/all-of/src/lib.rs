//! Several probes that all have to succeed: they run in turn, and the first that fails decides.
//!
//! The arguments are commands as in `exec.command`, parted by `;`; see the kit's `compose` for parentheses.

#![no_std]

extern crate alloc;

use alloc::{string::String, vec::Vec};

use kit::{Guest, Outcome, ProbeError, Verdict, compose, success};

struct Plugin;

kit::export!(Plugin);

impl Guest for Plugin {
    fn check(words: Vec<String>) -> Result<Outcome, ProbeError> {
        compose::run(words, Verdict::Failure, |_| success(""))
    }
}
