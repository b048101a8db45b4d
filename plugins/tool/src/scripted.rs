//! A host that answers as a script says: every import of a component, whatever its types.
//!
//! What only tells (the target, the request, time) and what only collects (the log, the staging directory) is answered
//! without a script, from `given` or in memory; everything else has to stand in `calls`, in its place.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};
use wasmtime::{
    AsContextMut, Engine, ResourceLimiter, StoreContextMut,
    component::{
        Component, Linker, ResourceType, Val,
        types::{ComponentFunc, ComponentItem},
    },
};
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use crate::{
    live::Live,
    redact::Redactor,
    script::Expected,
    value::{self, Handle},
};

/// What a store of a test holds.
pub(crate) struct Host {
    wasi: WasiCtx,
    table: ResourceTable,
    memory: Memory,
    given: Map<String, Value>,
    calls: VecDeque<Expected>,
    made: usize,
    live: Option<Live>,
    next_handle: u32,
    staged: BTreeMap<u32, String>,
    /// Lines of the log.
    pub(crate) log: Vec<Value>,
    /// What was written into the staging directory.
    pub(crate) volume: BTreeMap<String, Vec<u8>>,
    /// The first call that was not in the script.
    pub(crate) mismatch: Option<Mismatch>,
}

/// A call that the script does not expect.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mismatch {
    /// Counted from 1.
    pub(crate) number: usize,
    /// What was expected; nothing, at the script's end.
    pub(crate) expected: Option<Expected>,
    /// What was called.
    pub(crate) function: String,
    /// With what.
    pub(crate) arguments: Vec<Value>,
}

struct Memory {
    bytes_max: u64,
    bytes: u64,
}

impl ResourceLimiter for Memory {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.bytes = self.bytes.saturating_add((desired - current) as u64);
        if self.bytes > self.bytes_max {
            let bytes = self.bytes_max >> 10;
            return Err(wasmtime::format_err!("more than {bytes} KiB of memory"));
        }
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, _: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(true)
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl Host {
    pub(crate) fn new(given: Map<String, Value>, memory_bytes_max: u64) -> Self {
        Self {
            wasi: WasiCtx::builder().build(),
            table: ResourceTable::new(),
            memory: Memory {
                bytes_max: memory_bytes_max,
                bytes: 0,
            },
            given,
            calls: VecDeque::new(),
            made: 0,
            live: None,
            next_handle: 1 << 16,
            staged: BTreeMap::new(),
            log: Vec::new(),
            volume: BTreeMap::new(),
            mismatch: None,
        }
    }

    pub(crate) fn limiter(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.memory
    }

    /// Most bytes of memory so far.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.bytes
    }

    /// Does for real, from now on, what would have to be in `calls`.
    pub(crate) fn go_live(&mut self, live: Live) {
        self.live = Some(live);
    }

    /// What was done since, and what must not be seen of anything that came of it.
    pub(crate) fn recorded(&mut self) -> (Vec<Expected>, Redactor) {
        self.live.take().map(Live::recorded).unwrap_or_default()
    }

    /// What the next call of the plugin may ask.
    pub(crate) fn expect(&mut self, calls: VecDeque<Expected>) {
        self.calls = calls;
        self.made = 0;
    }

    /// The calls that were expected and not made.
    pub(crate) fn left(&self) -> &VecDeque<Expected> {
        &self.calls
    }

    fn answer(
        &mut self,
        function: &str,
        arguments: &[Value],
        ty: &ComponentFunc,
    ) -> Result<Answer> {
        self.made += 1;
        let is_next = self
            .calls
            .front()
            .is_some_and(|next| next.function == function);
        if !is_next && let Some(answer) = self.simulate(function, arguments, ty) {
            self.made -= 1;
            return Ok(answer);
        }
        if let Some(live) = &mut self.live {
            return live.perform(function, arguments).map(Answer::Value);
        }
        let expected = self.calls.pop_front();
        let is_it = expected.as_ref().is_some_and(|expected| {
            // Arguments that a script leaves out at the end may be any.
            let looked_at = arguments.iter().take(expected.arguments.len()).cloned();
            expected.function == function
                && value::matches(
                    &Value::Array(expected.arguments.clone()),
                    &Value::Array(looked_at.collect()),
                )
        });
        match expected {
            Some(expected) if is_it => Ok(Answer::Value(expected.answer)),
            expected => {
                self.mismatch = Some(Mismatch {
                    number: self.made,
                    expected,
                    function: function.to_owned(),
                    arguments: arguments.to_vec(),
                });
                bail!("not what the script expects")
            }
        }
    }

    /// What needs no script.
    fn simulate(
        &mut self,
        function: &str,
        arguments: &[Value],
        ty: &ComponentFunc,
    ) -> Option<Answer> {
        let key = arguments.first().map(|argument| match argument {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        if let Some(given) = self.given.get(function) {
            let answer = match (&key, given) {
                (None, given) => given.clone(),
                (Some(key), Value::Object(map)) => map
                    .get(key)
                    .or_else(|| map.get("*"))
                    .cloned()
                    .unwrap_or_default(),
                (Some(_), given) => given.clone(),
            };
            return Some(Answer::Value(answer));
        }
        let (interface, name) = function.split_once('.')?;
        match (interface, name) {
            ("log", "write") => {
                let level = arguments.first()?.as_str()?;
                let line = arguments.get(1)?.as_str()?;
                self.log.push(json!(format!("{level}: {line}")));
                Some(Answer::Nothing)
            }
            ("clock", "now") => Some(Answer::Value(json!({"seconds": 1_767_225_600}))),
            ("clock", "monotonic") => Some(Answer::Value(json!(1_000_000_000))),
            ("clock", "remaining") => Some(Answer::Value(json!(10_000_000_000_u64))),
            ("target", "port") => {
                let port = key?.parse::<u16>().ok();
                Some(Answer::Value(port.map_or(Value::Null, Value::from)))
            }
            ("request", "attributes") => {
                let keys = self
                    .given
                    .get("request.attribute")
                    .and_then(Value::as_object);
                let keys: Vec<_> = keys.into_iter().flat_map(Map::keys).cloned().collect();
                Some(Answer::Value(json!(keys)))
            }
            ("target" | "request", _) | ("observations", "usage") => {
                Some(Answer::Value(Value::Null))
            }
            ("staging", _) => self.stage(name, arguments),
            _ if ty.results().len() == 0 => Some(Answer::Nothing),
            _ => None,
        }
    }

    fn stage(&mut self, name: &str, arguments: &[Value]) -> Option<Answer> {
        let path = || arguments.first()?.as_str().map(str::to_owned);
        let is_bad = |path: &str| {
            path.is_empty()
                || path.starts_with('/')
                || path.split('/').any(|part| matches!(part, ".." | "." | ""))
        };
        let answer = match name {
            "make-directory" => {
                let path = path()?;
                match is_bad(&path) {
                    true => json!({"err": {"invalid-path": path}}),
                    false => json!("ok"),
                }
            }
            "make-link" => {
                let to = arguments.get(1)?.as_str()?;
                self.volume.insert(path()?, format!("-> {to}").into_bytes());
                json!("ok")
            }
            "file.create" => {
                let path = path()?;
                if is_bad(&path) {
                    return Some(Answer::Value(json!({"err": {"invalid-path": path}})));
                }
                if self.volume.contains_key(&path) {
                    return Some(Answer::Value(json!({"err": {"exists": path}})));
                }
                self.volume.insert(path.clone(), Vec::new());
                self.next_handle += 1;
                self.staged.insert(self.next_handle, path);
                json!({"ok": format!("file {}", self.next_handle)})
            }
            "file.append" => {
                let handle = arguments.first()?.as_str()?.rsplit(' ').next()?;
                let path = self.staged.get(&handle.parse().ok()?)?;
                let bytes = value::value_to_bytes(arguments.get(1)?)?;
                self.volume.get_mut(path)?.extend(bytes);
                json!("ok")
            }
            "progress" => return Some(Answer::Nothing),
            _ => return None,
        };
        Some(Answer::Value(answer))
    }
}

enum Answer {
    Value(Value),
    Nothing,
}

/// Links every import of a component to the scripted host; WASI to one that has nothing.
pub(crate) fn linker(engine: &Engine, component: &Component) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_sync(&mut linker)?;
    for (interface, item) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(instance) = item.ty else {
            if !interface.starts_with("wasi:") {
                wasmtime::bail!("imports {interface}, which is no interface");
            }
            continue;
        };
        if interface.starts_with("wasi:") {
            continue;
        }
        let short = short_name(interface);
        let mut linked = linker.instance(interface)?;
        for (name, item) in instance.exports(engine) {
            match item.ty {
                ComponentItem::ComponentFunc(_) => {
                    let (resource, method) = method_name(name);
                    let function = format!("{short}.{method}");
                    let resource = resource.unwrap_or("resource").to_owned();
                    linked.func_new(name, move |store, ty, arguments, results| {
                        call(store, &function, &resource, &ty, arguments, results)
                            .map_err(|error| wasmtime::format_err!("{error:#}"))
                    })?;
                }
                ComponentItem::Resource(_) => {
                    let ty = ResourceType::host::<Handle>();
                    linked.resource(name, ty, |_, _| Ok(()))?;
                }
                _ => {}
            }
        }
    }
    Ok(linker)
}

fn call(
    mut store: StoreContextMut<'_, Host>,
    function: &str,
    resource: &str,
    ty: &ComponentFunc,
    arguments: &[Val],
    results: &mut [Val],
) -> Result<()> {
    let arguments = arguments
        .iter()
        .map(|argument| value::from_val(&mut store, argument, resource));
    let arguments: Vec<_> = arguments.collect::<Result<_>>()?;
    let answer = store.data_mut().answer(function, &arguments, ty)?;
    if let (Some(result), Some(ty)) = (results.first_mut(), ty.results().next()) {
        let answer = match answer {
            Answer::Value(answer) => answer,
            Answer::Nothing => Value::Null,
        };
        *result = value::to_val(&mut store.as_context_mut(), &ty, &answer)
            .with_context(|| format!("answer to {function}: {answer}"))?;
    }
    Ok(())
}

/// `wherry:plugin/tcp@0.1.0` → `tcp`.
pub(crate) fn short_name(interface: &str) -> &str {
    let name = interface.rsplit('/').next().unwrap_or(interface);
    name.split('@').next().unwrap_or(name)
}

/// `[method]connection.read` → (`connection`, `connection.read`).
fn method_name(name: &str) -> (Option<&str>, &str) {
    match name.split_once(']') {
        Some((_, method)) => (method.split('.').next(), method),
        None => (None, name),
    }
}

/// An engine for tests: guests end at the first tick after their time.
pub(crate) fn engine() -> Result<Engine> {
    let mut config = wasmtime::Config::new();
    config.epoch_interruption(true).wasm_component_model(true);
    Engine::new(&config).map_err(|error| anyhow!("engine: {error:#}"))
}
