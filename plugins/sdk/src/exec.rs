//! Commands in the probed container. In the world `probe`; needs the grant `exec` as soon as it is called anywhere.

use crate::bindings::wherry::plugin::exec;
pub use crate::bindings::wherry::plugin::exec::{Ended, ExecError as Error};

/// Runs a command in the probed container and waits for it.
///
/// # Errors
/// It did not run to its end. Any exit code is an end.
pub fn run<S: AsRef<str>>(command: &[S]) -> Result<Ended, Error> {
    let command: Vec<String> = command.iter().map(|word| word.as_ref().into()).collect();
    exec::run(&command)
}

impl Ended {
    /// What it printed, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}
