//! What is known of the probed container from outside. In the world `probe`; needs no grant.

pub use crate::bindings::wherry::plugin::observations::{ResourceUsage, usage};
