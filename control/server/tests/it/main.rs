//! The server through its router, on a store in memory; over TLS where the connection is what matters.

mod authentication;
mod harness;
mod kubectl;
mod lists;
mod proxy;
mod verbs;
mod watches;
