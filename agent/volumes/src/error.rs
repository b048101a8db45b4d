//! What can go wrong with a volume, in the kubelet's words.

use std::{io, path::PathBuf};

use k8s_openapi::api::core::v1::Pod;
use thiserror::Error;
use wherry_plugin_host::volume::VolumeFailure;

/// Failure of a [`crate::VolumeManager`] call. `Display` is the message of a `FailedMount` event.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// A volume could not be set up. Retry with back-off; [`SetUpError`] says what may help.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
    SetUp {
        /// The volume's name in the pod.
        volume: String,
        /// Why.
        #[source]
        cause: SetUpError,
    },
    /// A claim of the pod's cannot be followed to a volume. Retry with back-off.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process \
         volumes=[{volume}]: error processing PVC {claim}: {why}"
    )]
    Claim {
        /// The volume's name in the pod.
        volume: String,
        /// `namespace/name`.
        claim: String,
        /// In the kubelet's words.
        why: String,
    },
    /// A volume could not be made larger. It is there as it was.
    #[error("NodeExpandVolume failed for volume \"{volume}\" : {cause}")]
    Expand {
        /// The volume's name in the pod.
        volume: String,
        /// Why.
        #[source]
        cause: SetUpError,
    },
    /// No volume of the pod's is of that claim, or it has not been set up.
    #[error("no volume of claim {claim} is mounted for pod {pod}")]
    NotMounted {
        /// `namespace/name`.
        claim: String,
        /// The pod's name.
        pod: String,
    },
    /// A volume could not be taken down. Retry with back-off.
    #[error("UnmountVolume.TearDown failed for pod \"{pod}\" : {}: {source}", path.display())]
    TearDown {
        /// The pod's uid.
        pod: String,
        /// What could not be unmounted or removed.
        path: PathBuf,
        /// The trouble.
        #[source]
        source: io::Error,
    },
}

impl VolumeError {
    /// [`Self::NotMounted`] of a pod's claim.
    pub fn not_mounted(pod: &Pod, claim: &str) -> Self {
        let metadata = &pod.metadata;
        Self::NotMounted {
            claim: format!(
                "{}/{claim}",
                metadata.namespace.as_deref().unwrap_or_default()
            ),
            pod: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// Whether a volume of this kind cannot be made larger at all.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Expand { cause, .. } => match cause {
                SetUpError::Plugin(failure) => failure.is_unsupported(),
                cause => matches!(cause, SetUpError::CannotExpand(_)),
            },
            Self::SetUp { .. }
            | Self::Claim { .. }
            | Self::NotMounted { .. }
            | Self::TearDown { .. } => false,
        }
    }
}

/// Why a volume could not be set up.
#[derive(Debug, Error)]
pub enum SetUpError {
    /// An object or key that the volume names is not there. It may come.
    #[error("{0}")]
    NotFound(String),
    /// The API server could not be asked. Retry with back-off.
    #[error("{0}")]
    Unavailable(String),
    /// The volume cannot work as written, or what is on the node does not fit it.
    #[error("{0}")]
    Invalid(String),
    /// The plugin that was asked for it gave none.
    #[error(transparent)]
    Plugin(#[from] VolumeFailure),
    /// Volumes that are as large as they are.
    #[error("{0} cannot be made larger")]
    CannotExpand(String),
    /// No code for this kind of volume.
    #[error("no volume plugin matched: {0} volumes are not supported on this node")]
    Unsupported(String),
    /// The disk or the kernel refused.
    #[error("{what}: {source}")]
    Io {
        /// The thing before the trouble.
        what: String,
        /// The trouble.
        #[source]
        source: io::Error,
    },
}

impl SetUpError {
    /// Gives an I/O error its subject.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Says which volume it was.
    pub(crate) fn in_volume(self, volume: &str) -> VolumeError {
        VolumeError::SetUp {
            volume: volume.to_owned(),
            cause: self,
        }
    }
}
