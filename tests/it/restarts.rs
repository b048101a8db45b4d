//! The agent owns no running pod: it is killed with -9 at random moments of pods' lives.

use std::{
    thread,
    time::{Duration, SystemTime},
};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{
    import_all,
    kubectl::{ready_shell_pod, shell_pod},
    own_trials,
    pods::{apply, pod},
};

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![fifty_kills_at_random_moments_leave_pods_alone_and_nothing_behind]
}

const KILLS: u32 = 50;

/// A moment up to `max` from now; from the clock, since a seed would make it the same moment every time.
fn random(max: Duration) -> Duration {
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("the clock is past 1970");
    // The last digits of the clock are noise enough to be anywhere in a pod's life.
    max.mul_f64(f64::from(now.subsec_nanos() / 7 % 1_000_000) / 1e6)
}

fn fifty_kills_at_random_moments_leave_pods_alone_and_nothing_behind() {
    let mut cluster = Cluster::start();
    import_all(&cluster);
    let empty = cluster.leftovers();
    let counter = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
    ready_shell_pod(&cluster, "default", "stays", counter);
    let ticker = "  containers:\n  - {name: main, image: 'test/ticker:1', imagePullPolicy: Never, args: ['20']}\n";
    apply(&cluster, "default", &pod("ticks", ticker));
    cluster.wait_ready("default", "ticks");
    let state = |cluster: &Cluster| {
        ["stays", "ticks"].map(|name| {
            (
                cluster.field(
                    "default",
                    &format!("pod/{name}"),
                    ".status.containerStatuses[0].containerID",
                ),
                cluster.field(
                    "default",
                    &format!("pod/{name}"),
                    ".status.containerStatuses[0].restartCount",
                ),
                cluster.field(
                    "default",
                    &format!("pod/{name}"),
                    ".status.conditions[?(@.type==\"Ready\")].lastTransitionTime",
                ),
            )
        })
    };
    let before = state(&cluster);

    for kill in 0..KILLS {
        // In turn: killed while pods are made, while they run and change, and while they are deleted.
        let names = [format!("oci{kill}"), format!("wasm{kill}")];
        let wasm =
            "  containers:\n  - {name: main, image: 'test/sleeper:1', imagePullPolicy: Never}\n";
        apply(&cluster, "default", &shell_pod(&names[0], "sleep 1000"));
        apply(&cluster, "default", &pod(&names[1], wasm));
        if kill % 2 == 1 {
            for name in &names {
                cluster.wait_ready("default", name);
            }
            let mut args = vec!["delete", "pod", "--wait=false"];
            args.extend(names.iter().map(String::as_str));
            cluster.kubectl(&args);
        }
        thread::sleep(random(Duration::from_millis(800)));
        cluster.kill_and_restart();
        let mut args = vec!["delete", "pod", "--ignore-not-found"];
        args.extend(names.iter().map(String::as_str));
        cluster.kubectl(&args);
    }

    assert_eq!(state(&cluster), before, "a kill of the agent changed a pod");
    let log = cluster.kubectl(&["logs", "stays"]);
    let numbers: Vec<u32> = log.lines().filter_map(|line| line.parse().ok()).collect();
    let gap = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert!(gap.is_none(), "the log has a gap or a line twice: {gap:?}");
    assert_eq!(
        cluster.kubectl(&["exec", "stays", "--", "echo", "here"]),
        "here\n"
    );

    cluster.kubectl(&["delete", "pod", "stays", "ticks"]);
    eventually("as few things as before the first pod", || {
        let left = cluster.leftovers();
        // The tenant's worker may stay for a while; the node's own process is another one now.
        let ours = |line: &String| line.contains(" up --root") || line.contains("wasm-worker");
        let processes: Vec<_> = left.processes.iter().filter(|line| !ours(line)).collect();
        let mounts: Vec<_> = left.mounts.difference(&empty.mounts).collect();
        let interfaces: Vec<_> = left.interfaces.difference(&empty.interfaces).collect();
        let cgroups: Vec<_> = left
            .cgroups
            .iter()
            .filter(|path| path.to_string_lossy().contains("/pod"))
            .collect();
        if processes.is_empty() && mounts.is_empty() && interfaces.is_empty() && cgroups.is_empty()
        {
            Ok(())
        } else {
            Err(format!(
                "{processes:#?}{mounts:#?}{interfaces:#?}{cgroups:#?}"
            ))
        }
    });
    let output = cluster
        .network
        .command("ip")
        .args(["-brief", "addr", "show", "wherry0"])
        .output()
        .expect("ip starts");
    let addresses = String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter(|word| word.contains("10.88."))
        .count();
    assert_eq!(
        addresses,
        1,
        "only the gateway's address is left: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    cluster.down();
    eventually("nothing at all after down", || {
        let left = cluster.leftovers();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:#?}"))
        }
    });
}
