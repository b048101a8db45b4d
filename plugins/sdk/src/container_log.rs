//! What the probed container has written. In the world `probe`; needs the grant `logs` as soon as it is called anywhere.

use crate::bindings::wherry::plugin::container_log;
pub use crate::bindings::wherry::plugin::container_log::LogError as Error;

/// The last lines of stdout and stderr since the container was started, oldest first and without their times. At most
/// 100, and no more than fit into 64 KiB.
///
/// # Errors
/// See [`Error`].
pub fn tail(lines: u32) -> Result<Vec<String>, Error> {
    container_log::tail(lines)
}
