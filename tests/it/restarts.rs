//! The agent owns no running pod: it is killed with -9 at random moments of pods' lives.

use std::{
    thread,
    time::{Duration, SystemTime},
};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use wherry_tests::{Cluster, eventually};

use crate::{
    import_all,
    kubectl::{ready_shell_pod, shell_pod},
    own_trials,
    pods::{apply, pod},
};

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![
        fifty_kills_at_random_moments_leave_pods_alone_and_nothing_behind,
        a_restart_of_the_engine_leaves_its_pods_alone,
    ]
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

const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";

/// A node with an engine beside.
fn with_engine() -> Cluster {
    let mut cluster = Cluster::prepare(&[]);
    cluster.add_engine();
    cluster.up();
    import_all(&cluster);
    cluster
}

/// The same pod as [`shell_pod`], run by the engine.
fn docker_pod(name: &str, script: &str) -> String {
    shell_pod(name, script).replace("spec:", "spec:\n  runtimeClassName: docker")
}

/// The log of a pod that counts has every number once.
fn assert_counted(cluster: &Cluster, name: &str) {
    let log = cluster.kubectl(&["logs", name]);
    let numbers: Vec<u32> = log.lines().filter_map(|line| line.parse().ok()).collect();
    let gap = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert!(
        gap.is_none() && numbers.first() == Some(&1),
        "the log of {name} has a gap or a line twice: {gap:?}"
    );
}

fn a_restart_of_the_engine_leaves_its_pods_alone() {
    let mut cluster = with_engine();
    let engine = |cluster: &Cluster| {
        let engine = cluster.engine.as_ref().expect("the node has an engine");
        engine.docker(&["ps", "--no-trunc", "--format", "{{.ID}}"])
    };
    // Somebody else's container, which is never touched.
    let stranger = cluster
        .engine
        .as_ref()
        .expect("the node has an engine")
        .docker(&[
            "run",
            "-d",
            "--network",
            "none",
            "test/busybox:1",
            "sleep",
            "100000",
        ]);
    apply(&cluster, "default", &docker_pod("floats", COUNTER));
    cluster.wait_ready("default", "floats");
    let id = |cluster: &Cluster| {
        let path = ".status.containerStatuses[0].containerID";
        cluster.field("default", "pod/floats", path)
    };
    let (before, all) = (id(&cluster), engine(&cluster));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        cluster
            .engine
            .as_ref()
            .expect("the node has an engine")
            .restart(signal);
        // The agent has found the engine again once it can do something there.
        eventually("exec by the new engine", || {
            let output = cluster
                .kubectl_command(&["exec", "floats", "--", "echo", "here"])
                .output()
                .expect("kubectl starts");
            if output.stdout == b"here\n" {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        });
        assert_eq!(id(&cluster), before);
        assert_eq!(engine(&cluster), all, "after {signal}");
        let path = ".status.containerStatuses[0].restartCount";
        assert_eq!(cluster.field("default", "pod/floats", path), "0");
        assert_counted(&cluster, "floats");
    }
    // A new pod is started by the new engine, and everything that is ours ends with the node.
    apply(&cluster, "default", &docker_pod("second", "sleep 1000"));
    cluster.wait_ready("default", "second");
    cluster.down();
    assert_eq!(
        engine(&cluster),
        stranger,
        "only the stranger's container is left"
    );
}

fn fifty_kills_at_random_moments_leave_pods_alone_and_nothing_behind() {
    let mut cluster = with_engine();
    let empty = cluster.leftovers();
    ready_shell_pod(&cluster, "default", "stays", COUNTER);
    apply(&cluster, "default", &docker_pod("floats", COUNTER));
    cluster.wait_ready("default", "floats");
    let ticker = "  containers:\n  - {name: main, image: 'test/ticker:1', imagePullPolicy: Never, args: ['20']}\n";
    apply(&cluster, "default", &pod("ticks", ticker));
    cluster.wait_ready("default", "ticks");
    let state = |cluster: &Cluster| {
        ["stays", "floats", "ticks"].map(|name| {
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
        let names = ["oci", "docker", "wasm"].map(|runtime| format!("{runtime}{kill}"));
        let wasm =
            "  containers:\n  - {name: main, image: 'test/sleeper:1', imagePullPolicy: Never}\n";
        apply(&cluster, "default", &shell_pod(&names[0], "sleep 1000"));
        apply(&cluster, "default", &docker_pod(&names[1], "sleep 1000"));
        apply(&cluster, "default", &pod(&names[2], wasm));
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
    for name in ["stays", "floats"] {
        assert_counted(&cluster, name);
        let said = cluster.kubectl(&["exec", name, "--", "echo", "here"]);
        assert_eq!(said, "here\n");
    }

    cluster.kubectl(&["delete", "pod", "stays", "floats", "ticks"]);
    eventually("as few things as before the first pod", || {
        let left = cluster.leftovers().since(&empty);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:#?}"))
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
