//! `wherry:plugin/images`, acts of the agent's, and what a provisioner is asked and answers.

use wasmtime::{AsContextMut, component::InstancePre};
use wherry_plugin_host::protocol::{self, Answer, Ask, Fault, ImageAsk, Provision, Said};

use crate::{
    asks::another_question,
    bindings::{
        populator::wherry::plugin::trouble::VolumeError,
        provisioning::{
            ProvisioningPre,
            exports::wherry::plugin::provisioner::{ClaimAccess, Created, Reach, Wanted},
            wherry::plugin::images::Host,
        },
    },
    mounter::told,
    populate::declared,
    state::State,
};

impl State {
    async fn image(&mut self, ask: ImageAsk) -> wasmtime::Result<Result<String, VolumeError>> {
        let Answer::Images(answer) = self.ask(Ask::Images(ask)).await? else {
            return another_question();
        };
        Ok(answer.map_err(|error| told(self, error)))
    }
}

impl Host for State {
    async fn make(
        &mut self,
        directory: String,
        bytes: u64,
    ) -> wasmtime::Result<Result<String, VolumeError>> {
        self.image(ImageAsk::Make { directory, bytes }).await
    }

    async fn remove(&mut self, directory: String) -> wasmtime::Result<Result<(), VolumeError>> {
        Ok(self.image(ImageAsk::Remove { directory }).await?.map(drop))
    }
}

/// The export that makes a component one, whatever the version's last number.
const PROVISIONER: &str = "wherry:plugin/provisioner@";

/// What makes and takes away the volumes of a component, if it exports that.
pub(crate) fn of(
    pre: &InstancePre<State>,
    exports: &[String],
) -> wasmtime::Result<Option<ProvisioningPre<State>>> {
    match is_one(exports) {
        true => ProvisioningPre::new(pre.clone()).map(Some),
        false => Ok(None),
    }
}

/// Whether these are the exports of a provisioner.
pub(crate) fn is_one(exports: &[String]) -> bool {
    exports.iter().any(|export| export.starts_with(PROVISIONER))
}

/// Calls a fresh instance.
pub(crate) async fn call(
    pre: Option<&ProvisioningPre<State>>,
    mut store: impl AsContextMut<Data = State>,
    provision: &Provision,
) -> wasmtime::Result<Result<Said, Fault>> {
    let Some(pre) = pre else {
        return Ok(Err(Fault::CannotProvision));
    };
    let instance = pre.instantiate_async(&mut store).await?;
    let guest = instance.wherry_plugin_provisioner();
    match provision {
        Provision::Create(wanted) => {
            let wanted = Wanted {
                bytes_min: wanted.bytes_min,
                bytes_max: wanted.bytes_max,
                access: wanted.access.iter().copied().map(access).collect(),
                claim: wanted.claim.clone(),
            };
            let said = guest.call_create(&mut store, &wanted).await?;
            Ok(said.map(created).map_err(declared))
        }
        Provision::Delete { handle } => {
            let said = guest.call_delete(&mut store, handle).await?;
            Ok(said.map(|()| Said::Done).map_err(declared))
        }
    }
}

fn access(access: protocol::ClaimAccess) -> ClaimAccess {
    match access {
        protocol::ClaimAccess::ReadWriteOnce => ClaimAccess::ReadWriteOnce,
        protocol::ClaimAccess::ReadOnlyMany => ClaimAccess::ReadOnlyMany,
        protocol::ClaimAccess::ReadWriteMany => ClaimAccess::ReadWriteMany,
        protocol::ClaimAccess::ReadWriteOncePod => ClaimAccess::ReadWriteOncePod,
    }
}

fn created(created: Created) -> Said {
    let created = protocol::Created {
        handle: created.handle,
        bytes: created.bytes,
        attributes: created.attributes,
        is_of_this_node: match created.reach {
            Reach::EveryNode => false,
            Reach::ThisNode => true,
        },
    };
    Said::Created(created.cut())
}
