//! Several probes of which one has to succeed: they run in turn, and the first that succeeds decides.
//!
//! The arguments are commands as in `exec.command`, parted by `;`; see the kit's `compose` for parentheses.

#![no_std]

extern crate alloc;

use alloc::{string::String, vec::Vec};

use kit::{Guest, Outcome, ProbeError, Verdict, compose, failure};

struct Plugin;

kit::export!(Plugin);

impl Guest for Plugin {
    fn check(words: Vec<String>) -> Result<Outcome, ProbeError> {
        compose::run(words, Verdict::Success, |all| {
            failure(compose::told(all, Verdict::Failure).unwrap_or_default())
        })
    }
}
