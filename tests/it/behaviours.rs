//! The table of pod behaviours: each promise of a kubelet, written once, and run through the API with real kubectl on
//! every runtime, chosen by `runtimeClassName`.
//!
//! ```text
//!  group ── rows ── Behaviour { name, on: oci | docker | wasm → Expect, test }
//!                       │ one trial each: behaviours::<group>::<name>::<runtime>
//!                       └ the same table is docs/behaviours.md and, by group, a section of README.md
//! ```
//!
//! What a runtime cannot do is a row as well, and it is run: the pod must be refused or flagged with the stated words.
//! The words never come from this table: they are looked for in what kubectl, the pod's status and its events say.

mod bad_input;
mod case;
mod env;
mod hooks;
mod images;
mod lifecycle;
mod manifest;
mod mixed;
mod network;
mod probes;
mod program;
mod published;
mod resources;
mod restarts;
mod security;
mod streams;
mod volumes;

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use case::{Case, Outcome};

use crate::{Node, Shared, timed};

/// The runtimes, in the order of the table's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    Oci,
    Docker,
    Wasm,
}

impl Runtime {
    /// The columns.
    pub(crate) const ALL: [Self; 3] = [Self::Oci, Self::Docker, Self::Wasm];

    /// The RuntimeClass that asks for it.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::Docker => "docker",
            Self::Wasm => "wasm",
        }
    }
}

/// What a runtime makes of a behaviour.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// It holds.
    Works,
    /// It does not, for this reason; whoever asks for it is told in these words.
    Cannot {
        reason: &'static str,
        words: &'static str,
    },
    /// The question does not arise, for this reason; not run.
    Moot(&'static str),
}

/// One row.
pub(crate) struct Behaviour {
    /// The claim, in a user's words.
    name: &'static str,
    on: [Expect; 3],
    nodes: fn(Runtime) -> Node,
    test: fn(&Case<'_>) -> Outcome,
}

impl Behaviour {
    /// A row that works everywhere, unless what follows says otherwise.
    const fn new(name: &'static str, test: fn(&Case<'_>) -> Outcome) -> Self {
        Self {
            name,
            on: [Expect::Works; 3],
            nodes: |_| Node::Usual,
            test,
        }
    }

    /// On a node whose default is the runtime, so that pods need not name it.
    const fn by_default(mut self) -> Self {
        self.nodes = |runtime| match runtime {
            Runtime::Docker => Node::Strict,
            Runtime::Oci | Runtime::Wasm => Node::Usual,
        };
        self
    }

    /// On a node that does not allow privileged pods.
    const fn strictly(mut self) -> Self {
        self.nodes = |_| Node::Strict;
        self
    }

    const fn expect(mut self, runtime: Runtime, expect: Expect) -> Self {
        self.on[runtime as usize] = expect;
        self
    }

    /// Wasm cannot, and says so in these words.
    const fn wasm_cannot(self, reason: &'static str, words: &'static str) -> Self {
        self.expect(Runtime::Wasm, Expect::Cannot { reason, words })
    }

    const fn wasm_moot(self, reason: &'static str) -> Self {
        self.expect(Runtime::Wasm, Expect::Moot(reason))
    }

    /// The engine cannot, and the runtime says so in these words.
    const fn docker_cannot(self, reason: &'static str, words: &'static str) -> Self {
        self.expect(Runtime::Docker, Expect::Cannot { reason, words })
    }

    fn expected(&self, runtime: Runtime) -> Expect {
        self.on[runtime as usize]
    }
}

/// Rows about one subject.
pub(crate) struct Group {
    /// As it is in the names of trials.
    name: &'static str,
    /// As it is in the documents.
    title: &'static str,
    rows: &'static [Behaviour],
}

/// The whole table.
const GROUPS: &[Group] = &[
    lifecycle::GROUP,
    restarts::GROUP,
    hooks::GROUP,
    env::GROUP,
    volumes::GROUP,
    security::GROUP,
    resources::GROUP,
    images::GROUP,
    probes::GROUP,
    network::GROUP,
    streams::GROUP,
    mixed::GROUP,
    bad_input::GROUP,
];

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for group in GROUPS {
        for row in group.rows {
            for runtime in Runtime::ALL {
                let refusal = match row.expected(runtime) {
                    Expect::Moot(_) => continue,
                    Expect::Cannot { words, .. } => Some(words),
                    Expect::Works => None,
                };
                let name = format!(
                    "behaviours::{}::{}::{}",
                    group.name,
                    row.name.replace(' ', "_"),
                    runtime.class()
                );
                let (shared, test) = (shared.clone(), row.test);
                let node = (row.nodes)(runtime);
                trials.push(timed(name, move || {
                    let cluster = shared.cluster(node);
                    shared.in_namespace(cluster, |namespace| {
                        case::judge(test, &Case::new(cluster, namespace, runtime, refusal));
                    });
                }));
            }
        }
    }
    trials.push(Trial::test(
        "behaviours::the_documents_show_this_table",
        || published::check(GROUPS).map_err(Failed::from),
    ));
    trials
}
