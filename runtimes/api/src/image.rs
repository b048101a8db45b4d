//! Images, as far as the agent needs to know them.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its config (`sha256:…`).
    pub id: String,
    /// Names it was pulled or imported under (`registry/name:tag`), in canonical form.
    pub repo_tags: Vec<String>,
    /// `registry/name@sha256:…`, what a container's `imageID` shows.
    pub repo_digests: Vec<String>,
    /// Bytes on disk, unpacked.
    pub size_bytes: u64,
    /// The user it names, as written (`1000:1000`, `nginx`), if any.
    pub user: Option<String>,
    /// Which runtime it is for.
    pub kind: ImageKind,
}

/// Which runtime an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageKind {
    /// An OCI image with a root file system.
    Container,
    /// A Wasm OCI artifact, or an image whose entry point is a Wasm module.
    Wasm,
}

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryAuth {
    /// User and password, for Basic or for asking a token.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A registry token, sent as it is.
    Bearer(String),
    /// A refresh token to be exchanged at the token server.
    IdentityToken(String),
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::Bearer(_) => "Bearer(…)",
            Self::IdentityToken(_) => "IdentityToken(…)",
        })
    }
}

/// Where a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Layers of the image.
    pub layers_total: u32,
    /// Layers fetched and unpacked.
    pub layers_done: u32,
    /// Bytes to fetch, as far as known.
    pub bytes_total: u64,
    /// Bytes fetched.
    pub bytes_done: u64,
}

/// Told of a pull's progress; only the newest state counts.
pub type PullProgressSender = watch::Sender<PullProgress>;

/// Bytes and inodes used by a part of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsUsage {
    /// Bytes used by this part.
    pub used_bytes: u64,
    /// Inodes used by this part.
    pub inodes_used: u64,
    /// Bytes of the whole file system that are used or can be: blocks kept for root are not counted.
    pub capacity_bytes: u64,
    /// Bytes free on the whole file system.
    pub available_bytes: u64,
}
