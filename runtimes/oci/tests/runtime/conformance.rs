//! The suite that every runtime passes.

use wherry_runtime_api::conformance::{CASES, Case, LINUX_CASES, Outcome, ShellFixture, check};

use crate::harness::{Body, Node};

/// What the runtime cannot do, and why.
const LIMITATIONS: &[(&str, &str)] = &[(
    "a_container_runs_in_a_sandbox_of_another_runtime",
    "a container is a child of its pod's supervisor, which another runtime's sandbox has not",
)];

/// A test per case, each on a node of its own.
pub(crate) fn tests() -> Vec<(String, Body)> {
    let all = CASES.iter().chain(LINUX_CASES);
    all.map(|(name, case)| {
        let body: Body = Box::new(|node| Box::pin(run(node, name, *case)));
        (format!("conformance::{name}"), body)
    })
    .collect()
}

async fn run(node: Node, name: &'static str, case: Case) {
    let fixture = ShellFixture::new(node, LIMITATIONS);
    let runtime = tokio::runtime::Handle::current();
    let outcome =
        tokio::task::spawn_blocking(move || runtime.block_on(check(&fixture, name, case)));
    if let Outcome::Limited(reason) = outcome.await.unwrap() {
        println!("     {name}: {reason}");
    }
}
