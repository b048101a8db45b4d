//! TCP connections from the node. In every world. Needs the grant `hosts` for whatever is not the probed pod.

use std::io::{self, Read, Write};

pub use crate::bindings::wherry::plugin::tcp::TcpError as Error;
use crate::{bindings::wherry::plugin::tcp::Connection, pieces};

/// A connection: [`Read`] and [`Write`], closed when dropped. A read that finds nothing waits, until the call's time
/// is up. At most 16 at a time.
#[derive(Debug)]
pub struct Stream(Connection);

impl Stream {
    /// Connects to an address or a name.
    ///
    /// # Errors
    /// See [`Error`]. In a probe `?` makes a failed check of it, and `denied` of [`Error::Denied`].
    pub fn connect(host: &str, port: u16) -> Result<Self, Error> {
        Connection::open(host, port).map(Self)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        pieces::read(buffer, |max| self.0.read(max))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Error {
    /// What it is for people: names the address.
    pub fn message(&self) -> &str {
        match self {
            Self::Timeout(text)
            | Self::ConnectionRefused(text)
            | Self::NameNotFound(text)
            | Self::ConnectionClosed(text)
            | Self::Denied(text)
            | Self::Other(text) => text,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind as K;
        let kind = match &error {
            Error::Timeout(_) => K::TimedOut,
            Error::ConnectionRefused(_) => K::ConnectionRefused,
            Error::NameNotFound(_) => K::NotFound,
            Error::ConnectionClosed(_) => K::ConnectionReset,
            Error::Denied(_) => K::PermissionDenied,
            Error::Other(_) => K::Other,
        };
        io::Error::new(kind, error.message().to_owned())
    }
}
