//! The runtime on a real engine. Needs root, dockerd and busybox, and fails without them.
//!
//! The test binary moves to a network and a mount namespace of its own and starts an engine there, which most tests
//! share; those that restart it have one each. Every test has a node of its own: a label, directories, a cgroup.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "runtime/conformance.rs"]
mod conformance;
#[path = "runtime/containers.rs"]
mod containers;
#[path = "runtime/engine.rs"]
mod engine;
#[path = "runtime/images.rs"]
mod images;
#[path = "runtime/node.rs"]
mod node;
#[path = "runtime/restarts.rs"]
mod restarts;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = libtest_mimic::Arguments::from_args();
    if args.list {
        return libtest_mimic::run(&args, trials()).exit_code();
    }
    // Tests mostly wait.
    args.test_threads.get_or_insert(8);
    engine::enter_namespaces();
    let code = libtest_mimic::run(&args, trials()).exit_code();
    engine::stop_shared();
    code
}

fn trials() -> Vec<libtest_mimic::Trial> {
    let mut trials = conformance::trials();
    trials.extend(containers::trials());
    trials.extend(images::trials());
    trials.extend(restarts::trials());
    trials
}
