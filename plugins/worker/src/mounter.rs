//! `wherry:plugin/mounts`: acts of the agent's, which checks and does them.

use wherry_plugin_host::protocol::{self, Answer, Ask, MountAsk};

use crate::{
    asks::another_question,
    bindings::{
        mounter::wherry::plugin::mounts::Host, populator::wherry::plugin::trouble::VolumeError,
    },
    state::State,
};

impl State {
    async fn mounts(&mut self, ask: MountAsk) -> wasmtime::Result<Result<String, VolumeError>> {
        let Answer::Mounts(answer) = self.ask(Ask::Mounts(ask)).await? else {
            return another_question();
        };
        Ok(answer.map_err(|error| told(self, error)))
    }
}

/// An error of an act's, as the guest is told.
pub(crate) fn told(state: &mut State, error: protocol::VolumeError) -> VolumeError {
    match error {
        protocol::VolumeError::InvalidAttributes(why) => VolumeError::InvalidAttributes(why),
        protocol::VolumeError::Unauthorized(why) => VolumeError::Unauthorized(why),
        protocol::VolumeError::NotFound(why) => VolumeError::NotFound(why),
        protocol::VolumeError::Denied(why) => VolumeError::Denied(state.deny(why)),
        protocol::VolumeError::Unavailable(why) => VolumeError::Unavailable(why),
        protocol::VolumeError::NoSpace(why) => VolumeError::NoSpace(why),
        protocol::VolumeError::Other(why) => VolumeError::Other(why),
    }
}

impl Host for State {
    async fn mount(
        &mut self,
        kind: String,
        source: String,
        options: Vec<(String, String)>,
    ) -> wasmtime::Result<Result<(), VolumeError>> {
        let ask = MountAsk::Mount {
            kind,
            source,
            options,
        };
        Ok(self.mounts(ask).await?.map(drop))
    }

    async fn attach(
        &mut self,
        kind: String,
        parameters: Vec<(String, String)>,
    ) -> wasmtime::Result<Result<String, VolumeError>> {
        self.mounts(MountAsk::Attach { kind, parameters }).await
    }

    async fn format(
        &mut self,
        device: String,
        kind: String,
    ) -> wasmtime::Result<Result<(), VolumeError>> {
        let ask = MountAsk::Format { device, kind };
        Ok(self.mounts(ask).await?.map(drop))
    }

    async fn grow(&mut self, bytes: u64) -> wasmtime::Result<Result<u64, VolumeError>> {
        let grown = self.mounts(MountAsk::Grow { bytes }).await?;
        Ok(grown.and_then(|held| {
            let held = held.parse();
            held.map_err(|error| VolumeError::Other(format!("no number of bytes: {error}")))
        }))
    }
}
