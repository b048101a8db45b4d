//! What can go wrong at the seam, by what the caller can do about it.

use std::time::Duration;

use thiserror::Error;

/// Failure of a [`crate::Runtime`] call.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// The sandbox or container is not there (any more). Relist.
    #[error("{0} not found")]
    NotFound(String),
    /// The config cannot work with this image or node. Retrying does not help until it changes.
    #[error("{0}")]
    InvalidArgument(String),
    /// This runtime cannot honour a field. Said before work starts.
    #[error("{0}")]
    Unsupported(String),
    /// The image is not in the store (any more). Pull again.
    #[error("image {0} not found in the store")]
    ImageNotFound(String),
    /// The call cannot be made in the present state (exec in an exited container).
    #[error("{0}")]
    FailedPrecondition(String),
    /// The command did not finish in time.
    #[error("{what}: not done after {after:?}")]
    DeadlineExceeded {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// No space, memory, address or process left. Retry with back-off.
    #[error("{0}")]
    ResourceExhausted(String),
    /// The runtime's process cannot be reached now. Retry with back-off.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else; retry with back-off.
    #[error("{what}: {source}")]
    Io {
        /// The thing before the trouble.
        what: String,
        /// The trouble.
        #[source]
        source: std::io::Error,
    },
    /// Anything else; retry with back-off.
    #[error("{0}")]
    Internal(String),
}

impl RuntimeError {
    /// Gives an I/O error its subject.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| match source.raw_os_error() {
            Some(28 /* ENOSPC */ | 122 /* EDQUOT */) => Self::ResourceExhausted(format!("{what}: {source}")),
            _ => Self::Io { what, source },
        }
    }

    /// Whether the thing asked for is gone.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}

/// Failure of a [`crate::ImageService`] call.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The reference cannot be parsed. Kubernetes' reason: `InvalidImageName`.
    #[error("couldn't parse image name \"{reference}\": {why}")]
    InvalidName {
        /// As the user wrote it.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// The registry has no such image, or does not say that it has.
    #[error("pull {reference}: not found")]
    NotFound {
        /// The image.
        reference: String,
    },
    /// No credentials offered are good for it.
    #[error("pull {reference}: {why}")]
    Unauthorized {
        /// The image.
        reference: String,
        /// What the registry answered.
        why: String,
    },
    /// The registry cannot be reached or answers 5xx or 429; retry with back-off.
    /// Kubernetes' reason: `RegistryUnavailable`.
    #[error("pull {reference}: {why}")]
    Unavailable {
        /// The image.
        reference: String,
        /// What happened.
        why: String,
    },
    /// The content is not what its digest says, escapes its root, or is no image.
    #[error("image {reference}: {why}")]
    Corrupt {
        /// The image.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// Larger than the stated limit after unpacking.
    #[error("image {reference}: {why}")]
    TooLarge {
        /// The image.
        reference: String,
        /// Which limit.
        why: String,
    },
    /// The disk is full. Nothing half-written is left behind.
    #[error("image {reference}: no space left under {path}")]
    NoSpace {
        /// The image.
        reference: String,
        /// Where.
        path: String,
    },
    /// A container uses it.
    #[error("image {0} is in use")]
    InUse(String),
    /// Anything else of the disk.
    #[error("{what}: {source}")]
    Io {
        /// The thing before the trouble.
        what: String,
        /// The trouble.
        #[source]
        source: std::io::Error,
    },
}
