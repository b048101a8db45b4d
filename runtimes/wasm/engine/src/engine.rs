//! The engine's settings, and loading of modules compiled for it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig,
    component::{Component, InstancePre, Linker, types::ComponentItem},
};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::{p2::bindings::ProxyPre, p3::bindings::ServicePre};
use wherry_wasm_aot::{ModuleKind, NO_PLUGINS_WORLD};

use crate::{
    sockets,
    state::{ModuleState, State},
};

/// File name of the compiled code in its directory.
pub(crate) const COMPILED_FILE: &str = "module.cwasm";

/// Instances of HTTP components alive at once in one worker; further requests wait.
pub(crate) const POOLED_INSTANCES_MAX: u32 = 256;

/// Stack of a guest, of which only touched pages cost memory.
const STACK_BYTES: usize = 1 << 20;

/// Settings that the compiled code depends on.
fn config() -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES / 2)
        .async_stack_size(STACK_BYTES)
        // The compressed address map costs about a fifth of the code's size and gives backtraces.
        .generate_address_map(false)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(20));
    config
}

/// An engine whose instances take turns in places that were made for them; it loads what the on-demand one loads.
pub(crate) fn pooled(instances: u32) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances * 4)
        .total_memories(instances)
        .total_tables(instances * 2)
        .total_stacks(instances)
        .total_gc_heaps(instances)
        .max_unused_warm_slots(8)
        .linear_memory_keep_resident(64 * 1024)
        .pagemap_scan(Enabled::Auto)
        .table_keep_resident(16 * 1024)
        .max_memory_size(4 << 30);
    let mut config = config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// The engines of a worker: both load the same compiled files.
pub(crate) struct Engines {
    /// For instances that live as long as their container: nothing is reserved for them.
    pub(crate) on_demand: Engine,
    /// For instances that live as long as a request. The on-demand one where address space for a
    /// pool could not be reserved.
    pooled: std::sync::OnceLock<Engine>,
}

impl Engines {
    pub(crate) fn new() -> wasmtime::Result<Self> {
        Ok(Self {
            on_demand: Engine::new(&config())?,
            pooled: std::sync::OnceLock::new(),
        })
    }

    fn pooled(&self) -> Engine {
        self.pooled
            .get_or_init(|| pooled(POOLED_INSTANCES_MAX).unwrap_or_else(|_| self.on_demand.clone()))
            .clone()
    }

    /// Ends the turn of every guest that runs now.
    pub(crate) fn increment_epoch(&self) {
        self.on_demand.increment_epoch();
        if let Some(pooled) = self.pooled.get() {
            pooled.increment_epoch();
        }
    }

    /// Names version and settings of the engine: a compiled file is good for this name only.
    pub(crate) fn name(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.on_demand
            .precompile_compatibility_hash()
            .hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Maps a compiled file and links it.
    pub(crate) fn load(&self, kind: ModuleKind, directory: &OwnedFd) -> wasmtime::Result<Loaded> {
        in_directory(directory, || match kind {
            ModuleKind::Module => {
                let module = deserialize_module(&self.on_demand)?;
                Ok(Loaded::Module(
                    module_linker(&self.on_demand)?.instantiate_pre(&module)?,
                ))
            }
            ModuleKind::Command | ModuleKind::CommandP3 => {
                let component = deserialize_component(&self.on_demand)?;
                Loaded::link_component(&self.on_demand, kind, &component)
            }
            ModuleKind::Plugin => wasmtime::bail!("a plugin is no container"),
            ModuleKind::Http | ModuleKind::HttpP3 => {
                // A component too large for the pool's slots gets instances on demand.
                let pooled = self.pooled();
                let (engine, component) = match deserialize_component(&pooled) {
                    Ok(component) => (pooled, component),
                    Err(_) => (
                        self.on_demand.clone(),
                        deserialize_component(&self.on_demand)?,
                    ),
                };
                Loaded::link_component(&engine, kind, &component)
            }
        })?
    }
}

/// A module or component, linked and ready to be instantiated.
pub(crate) enum Loaded {
    Module(wasmtime::InstancePre<ModuleState>),
    Command(CommandPre<State>),
    CommandP3(wasmtime_wasi::p3::bindings::CommandPre<State>),
    Http {
        serve: ProxyPre<State>,
        run: Option<Run>,
    },
    HttpP3 {
        serve: ServicePre<State>,
        run: Option<Run>,
    },
}

/// What an HTTP component can be told to do besides: what exec runs.
pub(crate) enum Run {
    P2(CommandPre<State>),
    P3(wasmtime_wasi::p3::bindings::CommandPre<State>),
}

impl Run {
    fn find(pre: &InstancePre<State>) -> Option<Self> {
        let p3 = wasmtime_wasi::p3::bindings::CommandPre::new(pre.clone()).map(Self::P3);
        p3.or_else(|_| CommandPre::new(pre.clone()).map(Self::P2))
            .ok()
    }
}

impl Loaded {
    fn link_component(
        engine: &Engine,
        kind: ModuleKind,
        component: &Component,
    ) -> wasmtime::Result<Self> {
        let pre = component_linker(engine)?.instantiate_pre(component)?;
        Ok(match kind {
            ModuleKind::CommandP3 => {
                Self::CommandP3(wasmtime_wasi::p3::bindings::CommandPre::new(pre)?)
            }
            ModuleKind::Http => Self::Http {
                run: Run::find(&pre),
                serve: ProxyPre::new(pre)?,
            },
            ModuleKind::HttpP3 => Self::HttpP3 {
                run: Run::find(&pre),
                serve: ServicePre::new(pre)?,
            },
            ModuleKind::Command | ModuleKind::Module | ModuleKind::Plugin => {
                Self::Command(CommandPre::new(pre)?)
            }
        })
    }

    /// Whether it is served instead of run.
    pub(crate) fn is_http(&self) -> bool {
        matches!(self, Self::Http { .. } | Self::HttpP3 { .. })
    }

    /// Whether an exec has something to run.
    pub(crate) fn can_run(&self) -> bool {
        !matches!(
            self,
            Self::Http { run: None, .. } | Self::HttpP3 { run: None, .. }
        )
    }
}

/// Compiles and links a module in memory, to find out what it is and what it lacks.
pub(crate) fn compile(engines: &Engines, wasm: &[u8]) -> wasmtime::Result<(ModuleKind, Vec<u8>)> {
    let engine = &engines.on_demand;
    if wasm.get(..4) != Some(b"\0asm") {
        wasmtime::bail!("not a Wasm binary: it does not begin with \\0asm");
    }
    // The second half of the version says whether it is a module (0) or a component (1).
    if wasm.get(6..8) == Some(&[0, 0]) {
        let module = wasmtime::Module::new(engine, wasm)?;
        module_linker(engine)?.instantiate_pre(&module)?;
        if module
            .get_export("_start")
            .and_then(|export| export.func().cloned())
            .is_none()
        {
            wasmtime::bail!("core module exports no function `_start`");
        }
        return Ok((ModuleKind::Module, module.serialize()?));
    }
    let component = Component::new(engine, wasm)?;
    let kind = kind_of(engine, &component)?;
    Loaded::link_component(engine, kind, &component)?;
    Ok((kind, component.serialize()?))
}

/// What tells the worlds of plugins: probe, populator, mounter, filesystem-volume.
const PLUGIN_EXPORTS: [&str; 4] = ["check", "populate", "mount", "open"];

/// Compiles a plugin, which is linked by the worker that will call it.
pub(crate) fn compile_plugin(
    engines: &Engines,
    wasm: &[u8],
) -> wasmtime::Result<(ModuleKind, Vec<u8>)> {
    let engine = &engines.on_demand;
    if wasm.get(..4) != Some(b"\0asm") {
        wasmtime::bail!("not a Wasm binary: it does not begin with \\0asm");
    }
    if wasm.get(6..8) == Some(&[0, 0]) {
        wasmtime::bail!("a core module, and a plugin is a component");
    }
    let component = Component::new(engine, wasm)?;
    let mut exported = Vec::new();
    for (name, item) in component.component_type().exports(engine) {
        if PLUGIN_EXPORTS.contains(&name) && matches!(item.ty, ComponentItem::ComponentFunc(_)) {
            return Ok((ModuleKind::Plugin, component.serialize()?));
        }
        exported.push(name.to_owned());
    }
    let found = if exported.is_empty() {
        "nothing".to_owned()
    } else {
        exported.join(", ")
    };
    wasmtime::bail!(
        "component exports {found}, but {NO_PLUGINS_WORLD}, nor `populate`, `mount` or `open` of a volume's"
    )
}

fn kind_of(engine: &Engine, component: &Component) -> wasmtime::Result<ModuleKind> {
    let mut exported = Vec::new();
    for (name, item) in component.component_type().exports(engine) {
        if let ComponentItem::ComponentInstance(_) = item.ty {
            exported.push(name.to_owned());
        }
    }
    let exports = |prefix: &str| exported.iter().any(|name| name.starts_with(prefix));
    if exports("wasi:http/handler@0.3") {
        Ok(ModuleKind::HttpP3)
    } else if exports("wasi:http/incoming-handler@0.2") {
        Ok(ModuleKind::Http)
    } else if exports("wasi:cli/run@0.3") {
        Ok(ModuleKind::CommandP3)
    } else if exports("wasi:cli/run@0.2") {
        Ok(ModuleKind::Command)
    } else {
        let found = if exported.is_empty() {
            "nothing".to_owned()
        } else {
            exported.join(", ")
        };
        wasmtime::bail!(
            "component exports {found}, but neither `wasi:cli/run` (0.2 or 0.3) nor `wasi:http/incoming-handler` (0.2) nor `wasi:http/handler` (0.3)"
        )
    }
}

fn module_linker(engine: &Engine) -> wasmtime::Result<wasmtime::Linker<ModuleState>> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut ModuleState| &mut state.wasi)?;
    Ok(linker)
}

fn component_linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    sockets::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// Runs `f` with `directory` as the working directory, which is how a descriptor becomes a path in
/// a process that cannot see `/proc`. Nothing else in the worker uses relative paths.
pub(crate) fn in_directory<T>(directory: impl AsFd, f: impl FnOnce() -> T) -> wasmtime::Result<T> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    rustix::process::fchdir(directory.as_fd()).map_err(std::io::Error::from)?;
    let result = f();
    rustix::process::chdir("/").map_err(std::io::Error::from)?;
    Ok(result)
}

#[expect(
    unsafe_code,
    reason = "compiled code is trusted: only root can write the cache, and only `compile` fills it"
)]
fn deserialize_module(engine: &Engine) -> wasmtime::Result<wasmtime::Module> {
    // SAFETY: the file was made by `Module::serialize` in `compile`, in a directory of root's.
    unsafe { wasmtime::Module::deserialize_file(engine, COMPILED_FILE) }
}

#[expect(
    unsafe_code,
    reason = "compiled code is trusted: only root can write the cache, and only `compile` fills it"
)]
pub(crate) fn deserialize_component(engine: &Engine) -> wasmtime::Result<Component> {
    // SAFETY: the file was made by `Component::serialize` in `compile`, in a directory of root's.
    unsafe { Component::deserialize_file(engine, COMPILED_FILE) }
}
