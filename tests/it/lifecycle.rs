//! A node's life: up, stopped with pods running on, up again, down; and starts that must fail.

use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use wherry_tests::{Cluster, eventually};

use crate::{import_all, kubectl::ready_shell_pod, own_trials, pods::apply};

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![
        a_node_comes_stays_and_goes,
        a_damaged_store_is_refused_and_left_alone
    ]
}

fn a_node_comes_stays_and_goes() {
    let mut cluster = Cluster::start();
    import_all(&cluster);
    ready_shell_pod(
        &cluster,
        "default",
        "stays",
        "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done",
    );
    let manifest = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/examples/mixed-pod/pod.yaml"
    ))
    .expect("the example is there");
    apply(&cluster, "default", &manifest);
    cluster.wait_ready("default", "mixed");
    let ids = |cluster: &Cluster| {
        ["stays", "mixed"].map(|pod| {
            cluster.field(
                "default",
                &format!("pod/{pod}"),
                ".status.containerStatuses[*].containerID",
            )
        })
    };
    let before = ids(&cluster);

    cluster.signal(Signal::SIGINT);
    assert!(
        !cluster.leftovers().processes.is_empty(),
        "the pods ended with the node's programs"
    );
    cluster.up();
    for pod in ["stays", "mixed"] {
        cluster.wait_ready("default", pod);
    }
    assert_eq!(ids(&cluster), before, "containers were restarted");
    // The log has every number: nothing was lost while nobody was there.
    let log = cluster.kubectl(&["logs", "stays"]);
    let numbers: Vec<u32> = log.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(
        numbers.len() > 10 && numbers.iter().zip(1..).all(|(found, n)| *found == n),
        "{log}"
    );
    assert_eq!(
        cluster.kubectl(&["exec", "stays", "--", "echo", "again"]),
        "again\n"
    );

    let said = cluster.down();
    assert!(!said.is_empty(), "wherry down says what it ended");
    let left = eventually("nothing is left", || {
        let left = cluster.leftovers();
        if left.is_empty() {
            Ok(left)
        } else {
            Err(format!("{left:#?}"))
        }
    });
    assert!(left.is_empty());
    // And once more: there is nothing to end, which is no error.
    cluster.wherry(&["down"]);
}

fn a_damaged_store_is_refused_and_left_alone() {
    let mut cluster = Cluster::start();
    cluster.signal(Signal::SIGTERM);
    let store = cluster.root().join("control/store");
    let mut bytes = std::fs::read(&store).expect("the store is there");
    let end = bytes.len();
    bytes[4096..end.min(200_000)].fill(0xa5);
    std::fs::write(&store, &bytes).expect("the store can be written");
    let said = cluster.spawn();
    assert!(said.recv().is_err(), "a node with a damaged store came up");
    cluster.signal(Signal::SIGKILL);
    let log = cluster.log();
    assert!(
        log.contains("damaged") && log.contains("left as it is"),
        "{log}"
    );
    assert!(
        std::fs::read(&store).expect("the store is there") == bytes,
        "the file was changed"
    );
}
