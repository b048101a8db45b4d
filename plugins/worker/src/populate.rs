//! What a volume plugin is asked (`wherry:plugin/request`), and what it answered.

pub(crate) mod staging;

use std::os::fd::OwnedFd;

use wherry_plugin_host::protocol::{self, Fault, Said, VolumeCall};

use crate::{
    bindings::populator::{
        Populated,
        wherry::plugin::{
            request::{self, AccessMode},
            trouble::{self, VolumeError},
        },
    },
    populate::staging::Staging,
    state::State,
};

/// The volume of a call.
pub(crate) struct Volume {
    call: VolumeCall,
    pub(crate) staging: Option<Staging>,
}

impl Volume {
    /// `directory` is where a populator writes.
    pub(crate) fn new(call: VolumeCall, directory: Option<OwnedFd>) -> Self {
        let limits = call.staging;
        Self {
            call,
            staging: directory.map(|directory| Staging::new(directory, limits)),
        }
    }

    /// The version that is there.
    pub(crate) fn current(&self) -> Option<String> {
        self.call.current.clone()
    }
}

/// What a populator wrote.
pub(crate) fn said(populated: Populated) -> Said {
    Said::Populated(protocol::Populated {
        version: protocol::cut(populated.version),
        refresh_seconds: populated.refresh_seconds,
    })
}

/// Why a volume cannot be had.
pub(crate) fn declared(error: VolumeError) -> Fault {
    use protocol::{VolumeError as E, cut};
    Fault::Volume(match error {
        VolumeError::InvalidAttributes(why) => E::InvalidAttributes(cut(why)),
        VolumeError::Unauthorized(why) => E::Unauthorized(cut(why)),
        VolumeError::NotFound(why) => E::NotFound(cut(why)),
        VolumeError::Denied(why) => E::Denied(cut(why)),
        VolumeError::Unavailable(why) => E::Unavailable(cut(why)),
        VolumeError::NoSpace(why) => E::NoSpace(cut(why)),
        VolumeError::Other(why) => E::Other(cut(why)),
    })
}

impl State {
    fn asked(&self) -> wasmtime::Result<&VolumeCall> {
        let volume = self.volume.as_ref().map(|volume| &volume.call);
        volume.ok_or_else(|| wasmtime::format_err!("the call is about no volume"))
    }
}

impl trouble::Host for State {}

impl request::Host for State {
    async fn name(&mut self) -> wasmtime::Result<String> {
        Ok(self.asked()?.name.clone())
    }

    async fn attribute(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.asked()?.attributes.get(&key).cloned())
    }

    async fn attributes(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.asked()?.attributes.keys().cloned().collect())
    }

    async fn credential(&mut self, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        Ok(self.asked()?.credentials.get(&key).cloned())
    }

    async fn access(&mut self) -> wasmtime::Result<AccessMode> {
        Ok(match self.asked()?.is_read_only {
            true => AccessMode::ReadOnly,
            false => AccessMode::ReadWrite,
        })
    }

    async fn pod(&mut self) -> wasmtime::Result<String> {
        Ok(self.asked()?.pod.clone())
    }

    async fn config(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.asked()?.config.get(&key).cloned())
    }
}
