//! The server through its router, on a store in memory; over TLS where the connection is what matters.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apply;
mod audit;
mod authentication;
mod harness;
mod kubectl;
mod lists;
mod nodes;
mod proxy;
mod quota;
mod rbac;
mod verbs;
mod watches;
