//! SPDY/3.1 as Kubernetes uses it: many streams on one connection, opened by the client.
//!
//! ```text
//!  client                                   server
//!    SYN_STREAM 1 (streamtype: stdout) ──▶
//!                              ◀────────── SYN_REPLY 1
//!                              ◀────────── DATA 1 … DATA 1 FIN
//!    PING 1 ──▶                ◀────────── PING 1
//!                              ◀────────── GOAWAY, then the client closes
//! ```
//!
//! Left out because no Kubernetes client or server uses them: streams opened by the server, priorities,
//! credentials, and flow control windows (frames about them are read and ignored: as in the Go
//! implementation, a connection is slowed as a whole).

mod connection;
mod frame;
mod headers;

use thiserror::Error;

pub(crate) use connection::{Connection, Gone, Stream, serve};

#[cfg(test)]
pub(crate) use connection::tests;

/// The other side does not speak SPDY/3.1, or the connection broke.
#[derive(Debug, Error)]
pub(crate) enum SpdyError {
    /// A frame that cannot be.
    #[error("spdy frame: {0}")]
    Protocol(&'static str),
    /// The connection broke.
    #[error("spdy connection: {0}")]
    Io(#[from] std::io::Error),
}
