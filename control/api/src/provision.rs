//! What the control plane asks of a node that has to make a plugin's volume, or to take one away, and what it answers
//! (`/storage/plugins/<plugin>/volumes/<name>` of the kubelet's HTTP).

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};

/// A volume is to be made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateVolume {
    /// The claim, as `namespace/name`.
    pub claim: String,
    /// The claim's.
    pub access_modes: Vec<String>,
    /// That it has to hold.
    pub bytes_min: u64,
    /// That it may hold.
    #[serde(default)]
    pub bytes_max: Option<u64>,
    /// The class's, but for Kubernetes' own.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// The file system that it is to have (`csi.storage.k8s.io/fstype`).
    #[serde(default)]
    pub fs_type: Option<String>,
    /// What is in the provisioner's Secret.
    #[serde(default)]
    pub secret: BTreeMap<String, ByteString>,
}

/// A volume was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreatedVolume {
    /// `csi.volumeHandle`.
    pub handle: String,
    /// That it holds.
    pub bytes: u64,
    /// `csi.volumeAttributes`.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// It can be mounted on this node alone.
    #[serde(default)]
    pub is_of_this_node: bool,
}

/// A volume is to be taken away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteVolume {
    /// `csi.volumeHandle`.
    pub handle: String,
    /// `csi.volumeAttributes`.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// `csi.fsType`.
    #[serde(default)]
    pub fs_type: Option<String>,
    /// What is in the provisioner's Secret.
    #[serde(default)]
    pub secret: BTreeMap<String, ByteString>,
}
