//! What a guest's store holds: WASI, HTTP, and its share of the container's limits.

use std::sync::Arc;

use wasmtime::{Engine, Store, component::ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView, p1::WasiP1Ctx};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::{limits::Limiter, outgoing::Outgoing, pod::Pod};

/// Store data of a component.
pub(crate) struct State {
    pub(crate) wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    pub(crate) pod: Arc<Pod>,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    limiter: Limiter,
}

/// Store data of a core module.
pub(crate) struct ModuleState {
    pub(crate) wasi: WasiP1Ctx,
    limiter: Limiter,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.outgoing,
        }
    }
}

/// A store for a component, which yields whenever the epoch is raised.
pub(crate) fn component_store(
    engine: &Engine,
    wasi: WasiCtx,
    pod: Arc<Pod>,
    limiter: Limiter,
) -> Store<State> {
    let state = State {
        wasi,
        table: ResourceTable::new(),
        outgoing: Outgoing::new(pod.clone()),
        pod,
        http: WasiHttpCtx::new(),
        limiter,
    };
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    store
}

/// A store for a core module, which yields whenever the epoch is raised.
pub(crate) fn module_store(
    engine: &Engine,
    wasi: WasiP1Ctx,
    limiter: Limiter,
) -> Store<ModuleState> {
    let mut store = Store::new(engine, ModuleState { wasi, limiter });
    store.limiter(|state| &mut state.limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    store
}
