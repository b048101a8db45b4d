//! A pod's volumes: the agent's own (emptyDir, hostPath, configMap, secret, downwardAPI, projected), those of
//! claims, and those that plugins give.
//!
//! The agent's own are the ground that volume plugins stand on. What a volume is to hold is worked out by pure
//! code (a [`payload::Payload`]: path → bytes and mode); putting it on the node is kept apart.
//!
//! ```text
//!  Pod ─ plan ─▶ fetch (ObjectSource) ─▶ payload, downward (pure) ─▶ atomic::write ─▶ <pods>/<uid>/volumes/…
//!                                        empty_dir, host_path ──────▶
//!        claim ─▶ PersistentVolume ─▶ one of these, or
//!        plugin (pure) ─▶ VolumePlugins ── a populator's directory ─▶ atomic::show ─▶
//! ```
//!
//! Nothing is kept in memory: a new agent finds everything by the directory of the pod. Left to
//! others: when to mount, when to refresh ([`Changes`] says by what), and caching of the objects a
//! volume shows.

mod atomic;
mod claim;
mod empty_dir;
mod error;
mod event;
mod host_path;
mod manager;
mod mounts;
mod ownership;
mod plan;
mod plugin;
mod record;
mod refs;
mod source;
mod token;

pub mod downward;
pub mod payload;

pub use error::{SetUpError, VolumeError};
pub use event::{VolumeEvent, VolumeEvents};
pub use manager::{PodContext, Refreshed, VolumeConfig, VolumeManager, image_volume_dir};
pub use mounts::is_mount_point;
pub use refs::{Changes, ObjectRef};
pub use source::{ObjectSource, TokenParams};
pub use wherry_api::provision::{CreateVolume, CreatedVolume, DeleteVolume};
pub use wherry_plugin_host::volume::VolumeFailure;
