//! Probes of kind tcpSocket: connecting is success.
//!
//! `--port=` (name or number), `--host=` (the pod, where it is missing).

#![no_std]

extern crate alloc;

use alloc::{string::String, vec::Vec};

use kit::{Arguments, Guest, Outcome, ProbeError, denied_or, success, tcp::Connection};

struct Plugin;

kit::export!(Plugin);

impl Guest for Plugin {
    fn check(arguments: Vec<String>) -> Result<Outcome, ProbeError> {
        let mut arguments = Arguments::new(arguments);
        let port = arguments.port(None)?;
        let host = arguments.host();
        arguments.end()?;
        match Connection::open(&host, port) {
            Ok(_connection) => success(""),
            Err(error) => denied_or(error),
        }
    }
}
