//! How long a plugin takes, without what it asks for: the host's answers come from a script.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    run::{self, Plugin},
    script::{Case, Expected, Script},
};

/// How long it is measured.
const DURATION: Duration = Duration::from_secs(2);

/// Makes calls of a case on a fresh instance each, and prints what they took.
pub(crate) fn run(plugin: &Plugin, script: &Script, filter: &str) -> Result<()> {
    let case = script
        .cases
        .iter()
        .find(|case| case.name.contains(filter))
        .with_context(|| format!("no case with {filter:?} in its name"))?;
    let mut starts = Vec::new();
    let mut calls = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < DURATION {
        let (start, call) = run::within(plugin, || once(plugin, script, case))?;
        starts.push(start);
        calls.push(start + call);
    }
    let per_second = calls.len() as f64 / begun.elapsed().as_secs_f64();
    println!(
        "{}: {} calls, a fresh instance each",
        case.name,
        calls.len()
    );
    print("store and instance", &mut starts);
    print("with the call", &mut calls);
    println!("{per_second:.0} calls a second on one thread, one after the other");
    if cfg!(debug_assertions) {
        println!("by a wherry that is not optimised: a node's takes a fraction of it");
    }
    Ok(())
}

fn once(plugin: &Plugin, script: &Script, case: &Case) -> Result<(Duration, Duration)> {
    let begun = Instant::now();
    let mut store = plugin.store(script, case);
    let instance = plugin.instantiate(&mut store)?;
    let start = begun.elapsed();
    let begun = Instant::now();
    for step in case.steps()? {
        let calls = step.calls.iter().map(Expected::read);
        store
            .data_mut()
            .expect(calls.collect::<Result<VecDeque<_>>>()?);
        let function = plugin.function(&mut store, &instance, step)?;
        let arguments = run::arguments(&mut store, &function, &step.arguments)?;
        run::call(&mut store, &function, &arguments)?;
        if store.data().mismatch.is_some() {
            bail!(
                "{}: the plugin does not do what the script says; see `wherry plugin test`",
                case.name
            );
        }
    }
    Ok((start, begun.elapsed()))
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: usize| {
        times
            .get(times.len() * share / 100)
            .copied()
            .unwrap_or_default()
    };
    println!(
        "  {what:<20} median {:>8.1} µs   p99 {:>8.1} µs",
        at(50).as_nanos() as f64 / 1e3,
        at(99).as_nanos() as f64 / 1e3
    );
}
