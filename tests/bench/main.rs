//! Measures and prints what README.md quotes: medians with spread, and a yardstick run beside it.
//!
//! ```text
//! tests/bench/run.sh              builds a release, makes the images and guests, runs all parts
//! tests/bench/run.sh scheduler    only this part; several can be named
//! ```

mod api;
mod control;
mod filesystems;
mod host;
mod network;
mod node;
mod others;
mod plugins;
mod pods;
mod scheduler;

use anyhow::{Result, bail};

/// A name, and what measures it and prints the figures.
type Part = (&'static str, fn() -> Result<()>);

/// What can be measured by itself, in the order in which it is.
const PARTS: [Part; 6] = [
    ("node", node::run),
    ("network", network::run),
    ("api", api::run),
    ("scheduler", scheduler::run),
    ("plugins", plugins::run),
    ("filesystems", filesystems::run),
];

fn main() -> Result<()> {
    // Before the first TLS connection, and once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let known = |name: &str| PARTS.iter().any(|(part, _)| *part == name);
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        let parts: Vec<&str> = PARTS.iter().map(|(part, _)| *part).collect();
        bail!(
            "no part is called {unknown:?}; there are {}",
            parts.join(", ")
        );
    }
    println!("{}", host::describe()?);
    for (name, run) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|part| part == name) {
            println!("\n### {name}\n");
            run()?;
        }
    }
    Ok(())
}
