//! The content store, and how images get into it: pull, import, unpack.
//!
//! ```text
//!  registry ──▶ pull ────┐   verify, unpack once          lease
//!  archive, layout ──▶ import ──▶ Store ──▶ StoredImage ◀──────── oci, wasm
//!  rootfs, .wasm ──▶ layout::pack (makes archives, for people without a builder)
//! ```
//!
//! On disk, below the store's root (`<root>/images`):
//!
//! | Path | What |
//! |---|---|
//! | `version` | the layout's number; another one is refused |
//! | `images/<id>.json` | an image: names, config, layers. Written last, so what it names is there |
//! | `layers/<diff-id>/fs` | one unpacked layer, an overlayfs lower directory |
//! | `layers/<diff-id>/layer.json` | its size, and the boot that wrote it |
//! | `blobs/<digest>` | Wasm modules, as they came |
//! | `partial/<digest>` | what an interrupted download left; the next one goes on there |
//! | `leases/<holder>` | a symbolic link whose target is the ID of an image in use |
//! | `mounts/<digest>.json` | where an image is mounted as a volume |
//! | `tmp/<random>` | work under way; without its `flock` it is rubbish |
//!
//! Compressed layers are not kept: nothing reads them again, and small nodes have small disks. A
//! compressed layer is on disk only between download and unpacking and is never synced, so that a
//! short-lived one never reaches the flash.
//!
//! Several processes may open one store: what must not interleave is done under `flock`.

mod config;
mod disk;
mod import;
mod layer;
pub mod layout;
mod manifest;
mod mount;
mod pull;
mod record;
mod reference;
mod registry;
pub mod signature;
mod store;
mod tarball;
mod unpack;

pub use config::{Limits, RegistryConfig, StoreConfig};
pub use manifest::ImageConfig;
pub use store::{Store, StoredImage};
