//! Plugins that have been linked.

use std::os::fd::OwnedFd;

use wasmtime::{
    Engine,
    component::{HasSelf, Linker},
};
use wherry_plugin_host::protocol::{Limits, Linked, World};
use wherry_wasm_engine::plugin as sandbox;

use crate::{
    bindings::{
        Probe, ProbePre,
        expanding::ExpandingMounterPre,
        filesystem::{FilesystemVolume, FilesystemVolumePre},
        mounter::{Mounter, MounterPre},
        populator::{Populator, PopulatorPre},
        provisioning::{self, ProvisioningPre},
    },
    contract,
    kept::Kept,
    provision,
    state::State,
};

/// A plugin, ready to be instantiated.
pub(crate) struct Plugin {
    pub(crate) engine: Engine,
    pub(crate) pre: Pre,
    /// Where its volumes are made for claims.
    pub(crate) provisioner: Option<ProvisioningPre<State>>,
    pub(crate) limits: Limits,
    pub(crate) kept: Kept,
}

/// By its world.
pub(crate) enum Pre {
    Probe(ProbePre<State>),
    Populator(PopulatorPre<State>),
    Filesystem(Box<FilesystemVolumePre<State>>),
    Mounter {
        pre: MounterPre<State>,
        /// Where its volumes can be made larger.
        expanding: Option<ExpandingMounterPre<State>>,
    },
}

/// Links a compiled component as the world that it exports; answers with it what it is.
///
/// The functions of WASI are there because run-time libraries ask for them, and find nothing.
pub(crate) fn load(
    engine: &Engine,
    directory: &OwnedFd,
    limits: Limits,
) -> wasmtime::Result<(Plugin, Linked)> {
    let component = sandbox::load(engine, directory)?;
    let component_type = component.component_type();
    let names = |list: &mut dyn Iterator<Item = &str>| list.map(str::to_owned).collect::<Vec<_>>();
    let imports = names(&mut component_type.imports(engine).map(|(name, _)| name));
    let exports = names(&mut component_type.exports(engine).map(|(name, _)| name));
    contract::check(imports.iter().chain(&exports))?;
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    let world = world(&exports);
    if provision::is_one(&exports) {
        let images = provisioning::wherry::plugin::images::add_to_linker::<_, HasSelf<State>>;
        images(&mut linker, |state| state)?;
    }
    let mut provisioner = None;
    let pre = match world {
        World::Populator => {
            Populator::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
            let pre = linker.instantiate_pre(&component)?;
            provisioner = provision::of(&pre, &exports)?;
            Pre::Populator(PopulatorPre::new(pre)?)
        }
        // What exports nothing known fails here, with the words for a probe.
        World::Probe => {
            Probe::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
            Pre::Probe(ProbePre::new(linker.instantiate_pre(&component)?)?)
        }
        World::Filesystem => {
            FilesystemVolume::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
            let pre = linker.instantiate_pre(&component)?;
            provisioner = provision::of(&pre, &exports)?;
            Pre::Filesystem(Box::new(FilesystemVolumePre::new(pre)?))
        }
        World::Mounter => {
            Mounter::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
            let pre = linker.instantiate_pre(&component)?;
            provisioner = provision::of(&pre, &exports)?;
            // Of what both worlds import nothing is missing: what differs is exported.
            let expanding = match exports.iter().any(|export| export == "expand") {
                true => Some(ExpandingMounterPre::new(pre.clone())?),
                false => None,
            };
            let pre = MounterPre::new(pre)?;
            Pre::Mounter { pre, expanding }
        }
    };
    let engine = engine.clone();
    Ok((
        Plugin {
            engine,
            pre,
            provisioner,
            limits,
            kept: Kept::default(),
        },
        Linked { imports, world },
    ))
}

/// The world that exports tell.
fn world(exports: &[String]) -> World {
    let has = |name: &str| exports.iter().any(|export| export == name);
    if has("populate") {
        World::Populator
    } else if has("mount") {
        World::Mounter
    } else if has("open") {
        World::Filesystem
    } else {
        World::Probe
    }
}
