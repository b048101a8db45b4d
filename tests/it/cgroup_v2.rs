//! A node on a kernel with nothing but cgroup v2, whichever the machine that runs the tests has.
//!
//! The outer test boots Debian's user-mode-linux by tests/tools/cgroup-v2.sh and runs this very program in it, with the
//! inner test alone. There kubectl, `wherry up`, bridge, veth and overlayfs are the real ones; nftables is not (that
//! kernel has no table families), so this says nothing of masquerading, and neither has it swap, huge pages or a second
//! processor.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, PATIENCE, eventually, guest, made_by_run_sh};

use crate::{
    kubectl::shell_pod,
    own_trials,
    pods::{apply, pod},
    wasm::component,
};

/// Set in the environment of the program in the other kernel.
const INSIDE: &str = "WHERRY_ON_CGROUP_V2";

pub(crate) fn trials() -> Vec<Trial> {
    if std::env::var_os(INSIDE).is_some() {
        own_trials![a_node_on_cgroup_v2]
    } else {
        own_trials![cgroup_v2_alone_is_enough_for_a_node]
    }
}

fn cgroup_v2_alone_is_enough_for_a_node() {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/cgroup-v2.sh"))
        .arg(std::env::current_exe().expect("a running program has a path"))
        .args(["--exact", "a_node_on_cgroup_v2", "--color=never"])
        .env(INSIDE, "1")
        .env(
            "WHERRY_V2_SECONDS_MAX",
            (PATIENCE.as_secs() * 4).to_string(),
        )
        .output()
        .expect("bash starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn a_node_on_cgroup_v2() {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
    assert!(
        mounts.contains(" cgroup2 ") && !mounts.contains(" cgroup "),
        "{mounts}"
    );
    let mut cluster = Cluster::start();
    cluster.import(&made_by_run_sh("WHERRY_IMAGE_BUSYBOX"), "test/busybox:1");
    for name in ["ticker", "eat-memory"] {
        cluster.import(&guest(name), &format!("test/{name}:1"));
    }
    // First, so that nothing but its own doing gives the worker's cgroup its controllers.
    a_worker_is_accounted_for(&cluster);
    limits_are_the_kernels(&cluster);
    devices_are_refused(&cluster);
    stats_are_measured(&cluster);
    the_memory_limit_ends_the_whole_container(&cluster);
    the_memory_limit_ends_a_component(&cluster);
    a_killed_node_finds_its_pods(&mut cluster);
    deleted_pods_leave_no_cgroup(&cluster);
    cluster.down();
    eventually("nothing is left", || {
        let left = cluster.leftovers();
        // The stand-in for nft speaks of tables in JSON alone.
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:#?}"))
        }
    });
}

/// `/sys/fs/cgroup/<the node's>`.
fn top(cluster: &Cluster) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(cluster.network.name())
}

/// A cgroup's file, without the line's end.
#[track_caller]
fn read(group: &Path, file: &str) -> String {
    let path = group.join(file);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim_end().to_owned(),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// The cgroups below a directory, itself included.
fn groups(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while next < found.len() {
        let entries = fs::read_dir(&found[next]).into_iter().flatten().flatten();
        let below: Vec<_> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(below);
        next += 1;
    }
    found
}

/// A pod's cgroup, by its quality of service.
fn pod_group(cluster: &Cluster, class: &str, name: &str) -> PathBuf {
    let uid = cluster.field("default", &format!("pod/{name}"), ".metadata.uid");
    let group = top(cluster)
        .join("kubepods")
        .join(class)
        .join(format!("pod{uid}"));
    assert!(group.is_dir(), "{:#?}", groups(&top(cluster)));
    group
}

/// The cgroup of a pod's only container: it has a memory limit, and the supervisor's beside it has none.
fn container_group(pod_group: &Path) -> PathBuf {
    let limited: Vec<_> = groups(pod_group)
        .into_iter()
        .skip(1)
        .filter(|group| read(group, "memory.max") != "max")
        .collect();
    let [group] = &limited[..] else {
        panic!("{:#?}", groups(pod_group))
    };
    group.clone()
}

fn exec(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.kubectl(&["exec", pod, "--", "sh", "-c", script])
}

fn a_worker_is_accounted_for(cluster: &Cluster) {
    let ticker = component("main", "ticker", &["20"]);
    apply(
        cluster,
        "default",
        &pod("ticks", &format!("  containers:\n{ticker}")),
    );
    cluster.wait_ready("default", "ticks");
    let above = top(cluster).join("wasm");
    let workers: Vec<_> = groups(&above).into_iter().skip(1).collect();
    let [worker] = &workers[..] else {
        panic!("workers' cgroups: {workers:?}")
    };
    let processes = read(worker, "cgroup.procs");
    assert_eq!(processes.lines().count(), 1, "{processes}");
    let comm = fs::read(format!("/proc/{processes}/cmdline")).expect("the worker lives");
    assert!(
        String::from_utf8_lossy(&comm).contains("wasm-worker"),
        "{comm:?}"
    );
    assert_ne!(read(worker, "memory.current"), "0");
    assert!(
        read(worker, "cpu.stat").contains("nr_periods"),
        "no controller cpu"
    );
    assert_ne!(read(worker, "pids.current"), "0");
}

fn limits_are_the_kernels(cluster: &Cluster) {
    let resources = "\n    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 250m, memory: 32Mi}}\n    image:";
    apply(
        cluster,
        "default",
        &shell_pod("limited", "sleep 1000").replace("\n    image:", resources),
    );
    cluster.wait_ready("default", "limited");
    let pod = pod_group(cluster, "burstable", "limited");
    let container = container_group(&pod);
    let bytes: u64 = 32 << 20;
    assert_eq!(read(&container, "memory.max"), bytes.to_string());
    assert_eq!(read(&container, "memory.oom.group"), "1");
    // The pod's holds its supervisor too.
    let pod_bytes: u64 = read(&pod, "memory.max").parse().expect("a number of bytes");
    assert!((bytes..=2 * bytes).contains(&pod_bytes), "{pod_bytes}");
    for group in [&pod, &container] {
        assert_eq!(
            read(group, "cpu.max"),
            "25000 100000",
            "{}",
            group.display()
        );
        // 100m are 102 shares, of which the kubelet and runc make this weight.
        assert_eq!(read(group, "cpu.weight"), "4", "{}", group.display());
    }
    assert_eq!(read(&container, "pids.max"), "max");
    assert_ne!(read(&container, "cgroup.procs"), "");
    // The container sees its own cgroup as the root, and only to read.
    assert_eq!(exec(cluster, "limited", "cat /proc/self/cgroup"), "0::/\n");
    assert_eq!(
        exec(cluster, "limited", "cat /sys/fs/cgroup/memory.max").trim(),
        bytes.to_string()
    );
    let refused = cluster.kubectl_fails(&[
        "exec",
        "limited",
        "--",
        "sh",
        "-c",
        "echo max >/sys/fs/cgroup/memory.max",
    ]);
    assert!(refused.contains("Read-only"), "{refused}");
}

/// v2 has no files for devices; a program in the kernel decides.
fn devices_are_refused(cluster: &Cluster) {
    assert_eq!(
        exec(cluster, "limited", "head -c 4 /dev/zero | wc -c").trim(),
        "4"
    );
    let said = exec(
        cluster,
        "limited",
        "mknod /kmsg c 1 11 && head -c 1 /kmsg 2>&1 || true",
    );
    assert!(said.contains("Operation not permitted"), "{said}");
}

fn stats_are_measured(cluster: &Cluster) {
    eventually("statistics of both pods", || {
        let summary = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node/proxy/stats/summary"]);
        let summary: serde_json::Value =
            serde_json::from_str(&summary).map_err(|error| error.to_string())?;
        for name in ["limited", "ticks"] {
            let container = summary["pods"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|pod| pod["podRef"]["name"] == name)
                .map(|pod| &pod["containers"][0])
                .ok_or_else(|| format!("no {name}: {summary:#}"))?;
            let is_positive = |path| {
                container
                    .pointer(path)
                    .and_then(serde_json::Value::as_u64)
                    .is_some_and(|value| value > 0)
            };
            if !is_positive("/cpu/usageCoreNanoSeconds") || !is_positive("/memory/workingSetBytes")
            {
                return Err(format!("{name}: {container:#}"));
            }
        }
        Ok(())
    });
}

/// Not only of the process that crossed it, as kubelets do on v2.
fn the_memory_limit_ends_the_whole_container(cluster: &Cluster) {
    let yaml = shell_pod(
        "greedy",
        "sh -c 'x=x; while :; do x=$x$x; done'; sleep 1000",
    )
    .replace("spec:", "spec:\n  restartPolicy: Never")
    .replace(
        "\n    image:",
        "\n    resources: {limits: {memory: 16Mi}}\n    image:",
    );
    apply(cluster, "default", &yaml);
    assert_oom_killed(cluster, "greedy");
}

fn the_memory_limit_ends_a_component(cluster: &Cluster) {
    let eater = component("main", "eat-memory", &[])
        .replace("args:", "resources: {limits: {memory: 32Mi}}, args:");
    let spec = format!("  restartPolicy: Never\n  containers:\n{eater}");
    apply(cluster, "default", &pod("eater", &spec));
    assert_oom_killed(cluster, "eater");
}

fn assert_oom_killed(cluster: &Cluster, name: &str) {
    let pod = format!("pod/{name}");
    let state = ".status.containerStatuses[0].state.terminated";
    cluster.wait_field("default", &pod, &format!("{state}.reason"), "OOMKilled");
    let code = cluster.field("default", &pod, &format!("{state}.exitCode"));
    assert_eq!(code, "137");
}

fn a_killed_node_finds_its_pods(cluster: &mut Cluster) {
    let ids = |cluster: &Cluster| {
        ["limited", "ticks"].map(|name| {
            cluster.field(
                "default",
                &format!("pod/{name}"),
                ".status.containerStatuses[*].containerID",
            )
        })
    };
    let before = ids(cluster);
    cluster.kill_and_restart();
    for name in ["limited", "ticks"] {
        cluster.wait_ready("default", name);
    }
    assert_eq!(exec(cluster, "limited", "echo again"), "again\n");
    assert_eq!(ids(cluster), before, "containers were restarted");
}

fn deleted_pods_leave_no_cgroup(cluster: &Cluster) {
    cluster.kubectl(&["delete", "pod", "limited", "greedy", "eater"]);
    eventually("no pod's cgroup is left", || {
        let pods: Vec<_> = groups(&top(cluster).join("kubepods"))
            .into_iter()
            .filter(|group| group.to_string_lossy().contains("/pod"))
            .collect();
        if pods.is_empty() {
            Ok(())
        } else {
            Err(format!("{pods:#?}"))
        }
    });
}
