//! Secrets of the probed pod's namespace, by name and key. In the world `probe`; needs the grant `secrets`, which names
//! them, as soon as it is called anywhere.

pub use crate::bindings::wherry::plugin::secret::{SecretError as Error, get};
