//! The suite that every runtime passes, a test for each of its claims.

use libtest_mimic::Trial;
use wherry_runtime_api::conformance::{CASES, Case, LINUX_CASES, ShellFixture, check};

use crate::{
    engine,
    node::{Node, run},
};

/// What an engine cannot do, and why.
const LIMITATIONS: &[(&str, &str)] = &[(
    "a_container_runs_in_a_sandbox_of_another_runtime",
    "a container joins its pod's pause container, which another runtime's sandbox has not",
)];

pub(crate) fn trials() -> Vec<Trial> {
    CASES
        .iter()
        .chain(LINUX_CASES)
        .map(|(name, case)| {
            Trial::test(format!("conformance::{name}"), move || {
                check_case(name, *case);
                Ok(())
            })
        })
        .collect()
}

fn check_case(name: &'static str, case: Case) {
    run(async move {
        let node = Node::new(name, engine::shared()).await;
        let kept = node.clone();
        let fixture = ShellFixture::new(node, LIMITATIONS);
        let runtime = tokio::runtime::Handle::current();
        let checked = tokio::task::spawn_blocking(move || {
            runtime.block_on(check(&fixture, name, case));
        });
        let outcome = checked.await;
        kept.clean_up().await;
        outcome.unwrap();
    });
}
