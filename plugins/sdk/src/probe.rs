//! The world `probe`: is a container well?
//!
//! ```
//! use wherry_plugin::probe::{self, Args, failure, success, target};
//! use wherry_plugin::tcp::Stream;
//! use std::io::{Read, Write};
//!
//! fn check(args: Args) -> probe::Result {
//!     let mut redis = Stream::connect(&target::ip(), args.parse_or("port", 6379)?)?;
//!     redis.write_all(b"PING\r\n")?;
//!     let mut answer = [0; 7];
//!     redis.read_exact(&mut answer)?;
//!     Ok(if &answer == b"+PONG\r\n" { success("PONG") } else { failure("no PONG") })
//! }
//!
//! wherry_plugin::probe!(check);
//! # fn main() {}
//! ```

use std::{fmt, io};

pub use crate::{
    args::{Args, ArgsError},
    bindings::wherry::plugin::outcomes::{Outcome, Verdict},
};
use crate::{
    bindings::wherry::plugin::{outcomes::ProbeError, probes},
    container_log, exec, files, http, secret, tcp,
};

#[doc(hidden)]
#[allow(
    missing_docs,
    reason = "the export macro is for the macro `probe!` alone"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "wherry:plugin/probe",
        with: { "wherry:plugin/outcomes@0.1.2": crate::bindings::wherry::plugin::outcomes },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "wherry_plugin::probe::bindings",
    });
}

/// The container that is probed.
pub mod target {
    use std::time::SystemTime;

    use crate::bindings::wherry::plugin::target;
    pub use crate::bindings::wherry::plugin::target::{
        annotation, container, ip, label, namespace, pod, port, restart_count,
    };

    /// When the container was started.
    pub fn started_at() -> SystemTime {
        crate::clock::to_system_time(target::started_at())
    }
}

/// Makes another check of the same container, as `exec.command` names it: `["wasm:redis-ping", "--port=6379"]`, or a
/// command. At most 16 a call.
///
/// # Errors
/// It could not be made.
pub fn run<S: AsRef<str>>(command: &[S]) -> Result {
    let command: Vec<String> = command.iter().map(|word| word.as_ref().into()).collect();
    Ok(probes::check(&command)?)
}

/// What a check says.
pub type Result = std::result::Result<Outcome, Error>;

/// All is well.
pub fn success(message: impl Into<String>) -> Outcome {
    outcome(Verdict::Success, message)
}

/// The container is not well: counts towards `failureThreshold`.
pub fn failure(message: impl Into<String>) -> Outcome {
    outcome(Verdict::Failure, message)
}

/// It cannot be told: changes nothing.
pub fn unknown(message: impl Into<String>) -> Outcome {
    outcome(Verdict::Unknown, message)
}

fn outcome(verdict: Verdict, message: impl Into<String>) -> Outcome {
    Outcome {
        verdict,
        message: message.into(),
    }
}

/// What `?` makes of troubles. Whatever the container can be blamed for (it refuses, closes, answers nonsense, takes
/// too long) is a failed check; what it cannot be blamed for is said to whom it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A failed check, as [`failure`].
    Failure(String),
    /// The arguments make no sense. The pod's event says so.
    InvalidArguments(String),
    /// A grant is missing. The Plugin's status says so.
    Denied(String),
    /// The check could not be made: counts as the Plugin's failure policy says.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Failure(text)
        | Self::InvalidArguments(text)
        | Self::Denied(text)
        | Self::Other(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for Error {}

impl From<ArgsError> for Error {
    fn from(error: ArgsError) -> Self {
        Self::InvalidArguments(error.0)
    }
}

impl From<tcp::Error> for Error {
    fn from(error: tcp::Error) -> Self {
        match error {
            tcp::Error::Denied(why) => Self::Denied(why),
            error => Self::Failure(error.message().into()),
        }
    }
}

impl From<http::Error> for Error {
    fn from(error: http::Error) -> Self {
        match error {
            http::Error::Denied(why) => Self::Denied(why),
            http::Error::InvalidRequest(why) => Self::Other(why),
            error => Self::Failure(error.message().into()),
        }
    }
}

impl From<exec::Error> for Error {
    fn from(error: exec::Error) -> Self {
        match error {
            exec::Error::Denied(why) => Self::Denied(why),
            exec::Error::Timeout => Self::Failure("the command took too long".into()),
            exec::Error::Failed(why) => Self::Other(why),
        }
    }
}

impl From<container_log::Error> for Error {
    fn from(error: container_log::Error) -> Self {
        match error {
            container_log::Error::Denied(why) => Self::Denied(why),
            container_log::Error::Unavailable(why) | container_log::Error::Other(why) => {
                Self::Other(why)
            }
        }
    }
}

impl From<files::Error> for Error {
    fn from(error: files::Error) -> Self {
        match error {
            files::Error::NotFound => Self::Failure("no such file or volume".into()),
            files::Error::Denied(why) => Self::Denied(why),
            files::Error::Other(why) => Self::Other(why),
        }
    }
}

impl From<secret::Error> for Error {
    fn from(error: secret::Error) -> Self {
        match error {
            secret::Error::NotFound => Self::Other("no such Secret or key".into()),
            secret::Error::Denied(why) => Self::Denied(why),
            secret::Error::Unavailable(why) | secret::Error::Other(why) => Self::Other(why),
        }
    }
}

impl From<ProbeError> for Error {
    fn from(error: ProbeError) -> Self {
        match error {
            ProbeError::InvalidArguments(why) => Self::InvalidArguments(why),
            ProbeError::Denied(why) => Self::Denied(why),
            ProbeError::Other(why) => Self::Other(why),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied(error.to_string()),
            _ => Self::Failure(error.to_string()),
        }
    }
}

#[doc(hidden)]
pub fn answer(result: Result) -> std::result::Result<Outcome, ProbeError> {
    match result {
        Ok(outcome) => Ok(outcome),
        Err(Error::Failure(text)) => Ok(failure(text)),
        Err(Error::InvalidArguments(text)) => Err(ProbeError::InvalidArguments(text)),
        Err(Error::Denied(text)) => Err(ProbeError::Denied(text)),
        Err(Error::Other(text)) => Err(ProbeError::Other(text)),
    }
}

/// Makes a function the component's `check`: `fn(Args) -> probe::Result`.
///
/// It has to be a macro: what a component exports is a symbol of the author's own crate.
#[macro_export]
macro_rules! probe {
    ($check:path) => {
        const _: () = {
            struct Component;

            impl $crate::probe::bindings::Guest for Component {
                fn check(
                    arguments: ::std::vec::Vec<::std::string::String>,
                ) -> ::std::result::Result<
                    $crate::probe::Outcome,
                    $crate::bindings::wherry::plugin::outcomes::ProbeError,
                > {
                    $crate::probe::answer($check($crate::Args::new(arguments)))
                }
            }

    $crate::probe::bindings::export!(Component with_types_in $crate::probe::bindings);
        };
    };
}
