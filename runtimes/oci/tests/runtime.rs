//! The runtime on real namespaces, cgroups and processes. Needs root, and fails without it.
//!
//! Every test has a directory, a cgroup and a runtime of its own, and ends by checking that nothing of
//! it is left on the node.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "runtime/conformance.rs"]
mod conformance;
#[path = "runtime/containers.rs"]
mod containers;
#[path = "runtime/harness.rs"]
mod harness;
#[path = "runtime/kills.rs"]
mod kills;
#[path = "runtime/namespaces.rs"]
mod namespaces;
#[path = "runtime/restarts.rs"]
mod restarts;
#[path = "runtime/security.rs"]
mod security;
#[path = "runtime/streams.rs"]
mod streams;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == "stage1") {
        return wherry_oci::stage1::main(args.split_off(1));
    }
    if args.first().is_some_and(|first| first == "agent") {
        return kills::agent(args.split_off(1));
    }
    let mut tests = Vec::new();
    tests.extend(conformance::tests());
    tests.extend(containers::tests());
    tests.extend(streams::tests());
    tests.extend(security::tests());
    tests.extend(restarts::tests());
    tests.extend(namespaces::tests());
    tests.extend(kills::tests());
    harness::run(tests)
}
