//! What the three classes of volume plugins share: what is asked for, and what can be wrong.

use std::io;

pub use crate::bindings::wherry::plugin::trouble::VolumeError as Error;
use crate::{bindings::wherry::plugin::staging::StagingError, http, tcp};

/// What is asked for.
pub mod request {
    use std::{fmt::Display, str::FromStr};

    pub use crate::bindings::wherry::plugin::request::{
        AccessMode, access, attribute, attributes, config, credential, name, pod,
    };
    use crate::volume::Error;

    /// An attribute that has to be there.
    ///
    /// # Errors
    /// [`Error::InvalidAttributes`] names it.
    pub fn required(key: &str) -> Result<String, Error> {
        attribute(key).ok_or_else(|| Error::InvalidAttributes(format!("{key} is missing")))
    }

    /// An attribute read as a `T`, or another value where it is missing.
    ///
    /// # Errors
    /// [`Error::InvalidAttributes`] when it is there and cannot be read.
    pub fn parse_or<T: FromStr>(key: &str, otherwise: T) -> Result<T, Error>
    where
        T::Err: Display,
    {
        let Some(value) = attribute(key) else {
            return Ok(otherwise);
        };
        let parsed = value.parse();
        parsed.map_err(|error| Error::InvalidAttributes(format!("{key} {value:?}: {error}")))
    }

    /// Refuses attributes that are none of these: a misspelt one is better said than ignored. What Kubernetes itself
    /// adds (`csi.storage.k8s.io/…`) passes.
    ///
    /// # Errors
    /// [`Error::InvalidAttributes`] names the first unknown one.
    pub fn only(known: &[&str]) -> Result<(), Error> {
        let is_known = |key: &str| known.contains(&key) || key.contains('/');
        match attributes().into_iter().find(|key| !is_known(key)) {
            Some(key) => Err(Error::InvalidAttributes(format!(
                "{key} is not known here; there are: {}",
                known.join(", ")
            ))),
            None => Ok(()),
        }
    }
}

/// What a volume plugin answers.
pub type Result<T> = std::result::Result<T, Error>;

impl From<http::Error> for Error {
    fn from(error: http::Error) -> Self {
        match error {
            http::Error::Denied(why) => Self::Denied(why),
            http::Error::InvalidRequest(why) => Self::InvalidAttributes(why),
            error => Self::Unavailable(error.message().into()),
        }
    }
}

impl From<tcp::Error> for Error {
    fn from(error: tcp::Error) -> Self {
        match error {
            tcp::Error::Denied(why) => Self::Denied(why),
            error => Self::Unavailable(error.message().into()),
        }
    }
}

impl From<StagingError> for Error {
    fn from(error: StagingError) -> Self {
        match error {
            StagingError::NoSpace(why) => Self::NoSpace(why),
            error => Self::Other(error.message().into()),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied(error.to_string()),
            io::ErrorKind::StorageFull => Self::NoSpace(error.to_string()),
            io::ErrorKind::TimedOut | io::ErrorKind::ConnectionRefused => {
                Self::Unavailable(error.to_string())
            }
            _ => Self::Other(error.to_string()),
        }
    }
}
