//! Runs scripts on a component, with no node, no cluster and no privileges.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;
use wasmtime::{
    AsContextMut, Engine, Store,
    component::{Component, Func, Instance, InstancePre, Type, Val},
};

use crate::{
    component::{Description, World},
    diff,
    live::{Live, Target},
    script::{Case, Expected, Script, Step},
    scripted::{self, Host, Mismatch},
    value::{self, from_wasmtime},
};

/// Time of one case. A Plugin's limits are tighter and are the node's business.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// A component that is ready to be called.
pub(crate) struct Plugin {
    engine: Engine,
    pre: InstancePre<Host>,
    pub(crate) world: World,
}

impl Plugin {
    /// Compiles and links a component.
    ///
    /// # Errors
    /// It is none of the contract's worlds.
    pub(crate) fn load(wasm: &[u8]) -> Result<Self> {
        let world = Description::read(wasm)?.world()?;
        let engine = scripted::engine()?;
        let component = Component::new(&engine, wasm).map_err(from_wasmtime)?;
        let linker = scripted::linker(&engine, &component).map_err(from_wasmtime)?;
        let pre = linker.instantiate_pre(&component).map_err(from_wasmtime)?;
        Ok(Self { engine, pre, world })
    }

    /// A store with a host, whose guest ends when [`Self::tick`] is called.
    pub(crate) fn store(&self, script: &Script, case: &Case) -> Store<Host> {
        let mut given = script.given.clone();
        given.extend(case.given.clone());
        let memory = script.memory_bytes.unwrap_or(u64::MAX);
        let mut store = Store::new(&self.engine, Host::new(given, memory));
        store.limiter(|host| host.limiter());
        store.set_epoch_deadline(1);
        store
    }

    pub(crate) fn instantiate(&self, store: &mut Store<Host>) -> Result<Instance> {
        self.pre.instantiate(store).map_err(from_wasmtime)
    }

    /// Ends a guest that runs for too long: call it from another thread.
    pub(crate) fn tick(&self) {
        self.engine.increment_epoch();
    }

    /// The function that a step calls.
    pub(crate) fn function(
        &self,
        store: &mut Store<Host>,
        instance: &Instance,
        step: &Step,
    ) -> Result<Func> {
        let name = step.call.as_deref().unwrap_or(self.world.function());
        let missing = || format!("the plugin exports no function {name}");
        let Some((interface, function)) = name.split_once('.') else {
            return instance.get_func(&mut *store, name).with_context(missing);
        };
        let component = self.pre.component();
        let exports: Vec<_> = component
            .component_type()
            .exports(&self.engine)
            .map(|(name, _)| name.to_owned())
            .collect();
        let full = exports
            .iter()
            .find(|export| scripted::short_name(export) == interface)
            .with_context(missing)?;
        let outer = instance.get_export_index(&mut *store, None, full);
        let inner = instance
            .get_export_index(&mut *store, outer.as_ref(), function)
            .with_context(missing)?;
        instance.get_func(store, inner).with_context(missing)
    }
}

/// Arguments of a function, out of a script.
pub(crate) fn arguments(
    store: &mut Store<Host>,
    function: &Func,
    given: &[Value],
) -> Result<Vec<Val>> {
    let ty = function.ty(&*store);
    let types: Vec<Type> = ty.params().map(|(_, ty)| ty).collect();
    let whole = Value::Array(given.to_vec());
    // `arguments: [--port=1]` of a function that takes a list is that list.
    let is_list = matches!(types.as_slice(), [Type::List(_)])
        && !matches!(given, [Value::Array(_)] | [Value::Null]);
    if !is_list && given.len() > types.len() {
        bail!(
            "{} arguments for a function that takes {}",
            given.len(),
            types.len()
        );
    }
    let values = types.iter().enumerate().map(|(i, ty)| {
        let value = if is_list {
            &whole
        } else {
            given.get(i).unwrap_or(&Value::Null)
        };
        value::to_val(store, ty, value).with_context(|| format!("argument {}", i + 1))
    });
    values.collect()
}

/// Runs the cases of a script whose names contain `filter`; prints how each went, and answers how many failed.
pub(crate) fn run(plugin: &Plugin, script: &Script, filter: &str) -> Result<Tally> {
    let mut tally = Tally::default();
    for case in script
        .cases
        .iter()
        .filter(|case| case.name.contains(filter))
    {
        let begun = Instant::now();
        let (troubles, memory) = within(plugin, || try_case(plugin, script, case));
        if troubles.is_empty() {
            tally.passed += 1;
            println!(
                "ok    {} ({} ms, {} KiB)",
                case.name,
                begun.elapsed().as_millis(),
                memory >> 10
            );
        } else {
            tally.failed += 1;
            println!("FAIL  {}", case.name);
            for trouble in troubles {
                for line in trouble.lines() {
                    println!("      {line}");
                }
            }
        }
    }
    Ok(tally)
}

/// How cases went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

/// Runs something that ends by [`Plugin::tick`] should it take too long.
pub(crate) fn within<T>(plugin: &Plugin, work: impl FnOnce() -> T) -> T {
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(CASE_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
                plugin.tick();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// Makes one check for real; answers the script that says the same.
pub(crate) fn record(
    plugin: &Plugin,
    target: Target,
    runtime: Handle,
    memory_bytes: u64,
    given: &[String],
) -> Result<Script> {
    if plugin.world != World::Probe {
        bail!("a {} cannot be recorded: only probes can", plugin.world);
    }
    let mut script = Script {
        given: target.given.clone(),
        memory_bytes: Some(memory_bytes),
        ..Script::default()
    };
    let mut case = Case {
        name: format!("as on {}/{}", target.namespace, target.pod),
        ..Case::default()
    };
    case.only.arguments = given.iter().map(|argument| json!(argument)).collect();
    let mut store = plugin.store(&script, &case);
    store.data_mut().go_live(Live::new(target, runtime));
    let instance = plugin.instantiate(&mut store)?;
    let function = plugin.function(&mut store, &instance, &case.only)?;
    let arguments = arguments(&mut store, &function, &case.only.arguments)?;
    case.only.expect = within(plugin, || call(&mut store, &function, &arguments))?;
    let (calls, redactor) = store.data_mut().recorded();
    case.only.calls = calls.iter().map(Expected::to_entry).collect();
    case.only.expect = redactor.value(&case.only.expect);
    let arguments = case.only.arguments.iter();
    case.only.arguments = arguments.map(|argument| redactor.value(argument)).collect();
    script.memory_bytes = None;
    script.cases.push(case);
    Ok(script)
}

/// What is wrong with a case, and the memory it took.
fn try_case(plugin: &Plugin, script: &Script, case: &Case) -> (Vec<String>, u64) {
    let mut store = plugin.store(script, case);
    let mut troubles = Vec::new();
    if let Err(error) = steps(plugin, &mut store, case, &mut troubles) {
        troubles.push(format!("{error:#}"));
    }
    let host = store.data();
    if let Some(expected) = &case.log
        && !value::matches(&json!(expected), &json!(host.log))
    {
        troubles.push(format!(
            "the log differs\n{}",
            diff::values(&json!(expected), &json!(host.log))
        ));
    }
    if let Some(expected) = &case.volume {
        let wrote: BTreeMap<_, _> = host
            .volume
            .iter()
            .map(|(path, content)| (path, value::bytes_to_value(content)))
            .collect();
        let is_same = expected.len() == wrote.len()
            && expected.iter().all(|(path, content)| {
                wrote
                    .get(path)
                    .is_some_and(|got| value::matches(content, got))
            });
        if !is_same {
            troubles.push(format!(
                "the volume differs\n{}",
                diff::values(&json!(expected), &json!(wrote))
            ));
        }
    }
    (troubles, host.memory_bytes())
}

fn steps(
    plugin: &Plugin,
    store: &mut Store<Host>,
    case: &Case,
    troubles: &mut Vec<String>,
) -> Result<()> {
    let instance = plugin.instantiate(store)?;
    for step in case.steps()? {
        let calls = step.calls.iter().map(Expected::read);
        let calls: VecDeque<_> = calls.collect::<Result<_>>()?;
        store.data_mut().expect(calls);
        let function = plugin.function(store, &instance, step)?;
        let arguments = arguments(store, &function, &step.arguments)?;
        let got = call(store, &function, &arguments);
        if let Some(mismatch) = store.data_mut().mismatch.take() {
            troubles.push(describe(&mismatch));
            return Ok(());
        }
        let got = got?;
        let left: Vec<_> = store.data().left().iter().map(Expected::to_entry).collect();
        if !left.is_empty() {
            let left = Value::Array(left.into_iter().map(Value::Object).collect());
            troubles.push(format!(
                "calls that were not made\n{}",
                diff::values(&left, &json!([]))
            ));
        }
        if !is_as_expected(&step.expect, &got) {
            troubles.push(format!(
                "the result differs\n{}",
                diff::values(&step.expect, &got)
            ));
        }
        if got.get("trap").is_some() {
            return Ok(());
        }
    }
    Ok(())
}

/// A trap is expected by a part of its message; nothing expects nothing.
fn is_as_expected(expected: &Value, got: &Value) -> bool {
    match (expected, got.get("trap")) {
        (Value::Null, None) => true,
        (expected, Some(trap)) => {
            let part = expected.get("trap").and_then(Value::as_str);
            let trap = trap.as_str().unwrap_or_default();
            part.is_some_and(|part| trap.contains(part))
        }
        (expected, None) => value::matches(expected, got),
    }
}

/// What a function answers, written down; a trap as `{trap: message}`.
pub(crate) fn call(store: &mut Store<Host>, function: &Func, arguments: &[Val]) -> Result<Value> {
    let ty = function.ty(&*store);
    let mut results = vec![Val::Bool(false); ty.results().len()];
    match function.call(store.as_context_mut(), arguments, &mut results) {
        Ok(()) => match results.first() {
            Some(result) => value::from_val(store, result, "resource"),
            None => Ok(json!("ok")),
        },
        Err(error) => Ok(json!({"trap": error.root_cause().to_string()})),
    }
}

fn describe(mismatch: &Mismatch) -> String {
    let Mismatch {
        number,
        expected,
        function,
        arguments,
    } = mismatch;
    let got = Expected {
        function: function.clone(),
        arguments: arguments.clone(),
        answer: Value::Null,
    };
    let mut expected_entry = Map::new();
    if let Some(expected) = expected {
        expected_entry = expected.to_entry();
        expected_entry.remove("answer");
    }
    let expected = match expected {
        Some(_) => Value::Object(expected_entry),
        None => json!("(no further call)"),
    };
    format!(
        "call {number} of the host differs\n{}",
        diff::values(&expected, &Value::Object(got.to_entry()))
    )
}
