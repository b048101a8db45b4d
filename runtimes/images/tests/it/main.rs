//! The store on real disks and against real registries.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod mount;
mod registry;
mod store;
mod support;
