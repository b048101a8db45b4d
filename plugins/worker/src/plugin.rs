//! Plugins that have been linked.

use std::os::fd::OwnedFd;

use wasmtime::{
    Engine,
    component::{HasSelf, Linker},
};
use wherry_plugin_host::protocol::Limits;
use wherry_wasm_engine::plugin as sandbox;

use crate::{
    bindings::{Probe, ProbePre},
    state::State,
};

/// A plugin, ready to be instantiated.
pub(crate) struct Plugin {
    pub(crate) pre: ProbePre<State>,
    pub(crate) limits: Limits,
}

/// Links a compiled component; answers with it the interfaces it imports.
///
/// The functions of WASI are there because run-time libraries ask for them, and find nothing.
pub(crate) fn load(
    engine: &Engine,
    directory: &OwnedFd,
    limits: Limits,
) -> wasmtime::Result<(Plugin, Vec<String>)> {
    let component = sandbox::load(engine, directory)?;
    let imports = component
        .component_type()
        .imports(engine)
        .map(|(name, _)| name.to_owned())
        .collect();
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    Probe::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
    let pre = ProbePre::new(linker.instantiate_pre(&component)?)?;
    Ok((Plugin { pre, limits }, imports))
}
