//! What a container may use, what it does use, and what happens past that.

use std::path::PathBuf;

use serde_json::{Value, json};
use wherry_tests::eventually;

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    manifest::with,
    program::{eat, print, sh, spin, stay, tick},
};

pub(super) const GROUP: Group = Group {
    name: "resources",
    title: "Resources",
    rows: &[
        Behaviour::new("requests and limits decide the QoS class", qos_class),
        Behaviour::new("pods have cgroups by QoS class", cgroups)
            .wasm_moot("components of a namespace share a worker; each has its store's limits"),
        Behaviour::new("oom_score_adj goes by QoS class", oom_score)
            .wasm_moot("a component is not a process; its memory limit is its store's"),
        Behaviour::new("limits are the container's cgroup's", limits)
            .wasm_moot("a component's limits are its store's: the rows below show them"),
        Behaviour::new("crossing the memory limit is OOMKilled", oom_killed),
        Behaviour::new(
            "a kill that is not for memory is not called OOMKilled",
            killed,
        )
        .wasm_moot("nothing but its runtime can end a component"),
        Behaviour::new("a CPU limit holds back who computes for ever", cpu_limit),
        Behaviour::new("who uses too much starves nobody else", starves_nobody),
        Behaviour::new("ephemeral-storage limits end the pod", ephemeral_storage),
        Behaviour::new("a resize takes effect without a restart", resize),
        Behaviour::new(
            "a resize restarts where resizePolicy says so",
            resize_restarts,
        ),
        Behaviour::new(
            "a resize that the node cannot hold is Infeasible",
            resize_infeasible,
        ),
        Behaviour::new("a RuntimeClass's overhead is added to the pod", overhead),
        Behaviour::new("kubectl top shows pods and containers", top_pod),
        Behaviour::new("kubectl top shows the node", top_node),
        Behaviour::new("stats/summary shows what a pod uses", summary),
        Behaviour::new(
            "pod-level limits hold for all containers together",
            pod_level,
        ),
    ],
};

fn resources(requests: Value, limits: Value) -> Value {
    json!({"resources": {"requests": requests, "limits": limits}})
}

/// Memory limit that every runtime is at home in.
const SMALL: &str = "32Mi";

fn qos_class(case: &Case<'_>) -> Outcome {
    let guaranteed = json!({"cpu": "50m", "memory": SMALL});
    for (name, more, class) in [
        ("best", json!({}), "BestEffort"),
        (
            "burst",
            resources(json!({"cpu": "10m"}), json!({})),
            "Burstable",
        ),
        (
            "sure",
            resources(guaranteed.clone(), guaranteed),
            "Guaranteed",
        ),
    ] {
        case.ready(&case.pod_with(name, &[stay()], more))?;
        assert_eq!(case.field(name, ".status.qosClass"), class);
    }
    Ok(())
}

/// Directories of the pod's containers' cgroups, on every hierarchy.
fn groups_of(case: &Case<'_>, pod: &str) -> Vec<PathBuf> {
    let uid = case.field(pod, ".metadata.uid");
    let left = case.cluster.leftovers();
    left.cgroups
        .into_iter()
        .filter(|path| path.to_string_lossy().contains(&uid))
        .collect()
}

/// The values that a file has in any of the pod's cgroups.
fn values(case: &Case<'_>, pod: &str, files: &[&str]) -> Vec<String> {
    groups_of(case, pod)
        .iter()
        .flat_map(|dir| files.iter().map(|file| dir.join(file)))
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
        .collect()
}

fn cgroups(case: &Case<'_>) -> Outcome {
    let guaranteed = json!({"cpu": "50m", "memory": SMALL});
    for (name, more, part) in [
        ("best", json!({}), "/besteffort/pod"),
        (
            "burst",
            resources(json!({"cpu": "10m"}), json!({})),
            "/burstable/pod",
        ),
        (
            "sure",
            resources(guaranteed.clone(), guaranteed),
            "/kubepods/pod",
        ),
    ] {
        case.ready(&case.pod_with(name, &[stay()], more))?;
        let groups = groups_of(case, name);
        assert!(
            !groups.is_empty()
                && groups
                    .iter()
                    .all(|path| path.to_string_lossy().contains(part)),
            "no {part} in {groups:?}"
        );
    }
    Ok(())
}

fn oom_score(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("best", &[stay()]))?;
    let look = [sh("cat /proc/1/oom_score_adj")];
    assert_eq!(case.exec("best", &look)?, "1000\n");
    let burst = resources(json!({"cpu": "10m", "memory": SMALL}), json!({}));
    case.ready(&case.pod_with("burst", &[stay()], burst))?;
    let score: i32 = case.exec("burst", &look)?.trim().parse().expect("a number");
    assert!((2..1000).contains(&score), "{score}");
    Ok(())
}

fn limits(case: &Case<'_>) -> Outcome {
    let more = resources(
        json!({"cpu": "100m", "memory": "16Mi"}),
        json!({"cpu": "250m", "memory": SMALL}),
    );
    case.ready(&case.pod_with("limited", &[stay()], more))?;
    let memory = values(case, "limited", &["memory.limit_in_bytes", "memory.max"]);
    assert!(memory.contains(&(32 << 20).to_string()), "{memory:?}");
    let cpu = values(case, "limited", &["cpu.cfs_quota_us", "cpu.max"]);
    assert!(
        cpu.iter()
            .any(|quota| quota == "25000" || quota == "25000 100000"),
        "{cpu:?}"
    );
    let shares = values(case, "limited", &["cpu.shares", "cpu.weight"]);
    assert!(
        shares.iter().any(|share| share == "102" || share == "4"),
        "{shares:?}"
    );
    Ok(())
}

fn oom_killed(case: &Case<'_>) -> Outcome {
    let more = json!({"resources": {"limits": {"memory": SMALL}}});
    let pod = case.pod_with("greedy", &[eat()], more);
    case.ends(&pod.spec(json!({"restartPolicy": "Never"})), "Failed")?;
    assert_eq!(
        case.first("greedy", ".state.terminated.reason"),
        "OOMKilled"
    );
    assert_eq!(case.first("greedy", ".state.terminated.exitCode"), "137");
    Ok(())
}

fn killed(case: &Case<'_>) -> Outcome {
    let pod = case.pod(
        "killed",
        &[
            sh("kill -9 $$; sh -c 'kill -9 $PPID'; sleep 1"),
            sh("exit 137"),
        ],
    );
    case.ends(&pod.spec(json!({"restartPolicy": "Never"})), "Failed")?;
    assert_eq!(case.first("killed", ".state.terminated.reason"), "Error");
    assert_eq!(case.first("killed", ".state.terminated.exitCode"), "137");
    Ok(())
}

/// CPU time that the pod's containers have used, in nanoseconds, by the kubelet's statistics.
fn cpu_nanos(case: &Case<'_>, pod: &str) -> Option<u64> {
    let found = pod_stats(case, pod)?;
    found["containers"]
        .as_array()?
        .iter()
        .map(|c| c["cpu"]["usageCoreNanoSeconds"].as_u64())
        .sum()
}

fn pod_stats(case: &Case<'_>, pod: &str) -> Option<Value> {
    let path = "/api/v1/nodes/node/proxy/stats/summary";
    let output = case
        .cluster
        .kubectl_command(&["get", "--raw", path])
        .output()
        .expect("kubectl starts");
    let summary: Value = serde_json::from_slice(&output.stdout).ok()?;
    let pods = summary["pods"].as_array()?;
    let is_it = |it: &&Value| it["podRef"]["name"] == pod && it["podRef"]["namespace"] == case.ns;
    pods.iter().find(is_it).cloned()
}

fn cpu_limit(case: &Case<'_>) -> Outcome {
    let more = json!({"resources": {"limits": {"cpu": "100m"}}});
    case.ready(&case.pod_with("spins", &[spin()], more))?;
    let read = || {
        eventually("CPU time in the statistics", || {
            cpu_nanos(case, "spins")
                .filter(|nanos| *nanos > 0)
                .ok_or_else(|| case.told("spins"))
        })
    };
    let (start, before) = (std::time::Instant::now(), read());
    // Enough periods for the limit to show.
    let after = eventually("it computes", || {
        let now = read();
        if start.elapsed() > std::time::Duration::from_secs(3) {
            Ok(now)
        } else {
            Err(now.to_string())
        }
    });
    let share = (after - before) as f64 / start.elapsed().as_nanos() as f64;
    assert!(
        share < 0.25,
        "used {share} of a core, of which 0.1 are allowed"
    );
    case.delete("spins")
}

fn starves_nobody(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("neighbour", &[tick("0.05")]))?;
    let more = |limits: Value| json!({"resources": {"limits": limits}});
    for n in 0..3 {
        let name = format!("spins{n}");
        case.ready(&case.pod_with(&name, &[spin()], more(json!({"cpu": "100m"}))))?;
    }
    let eater = case.pod_with("eats", &[eat()], more(json!({"memory": SMALL})));
    case.ends(&eater.spec(json!({"restartPolicy": "Never"})), "Failed")?;
    let ticks = || case.log("neighbour", "main").lines().count();
    let before = ticks();
    eventually("the neighbour ticks on", || {
        if ticks() > before + 5 {
            Ok(())
        } else {
            Err(ticks().to_string())
        }
    });
    assert_eq!(case.first("neighbour", ".restartCount"), "0");
    case.kubectl(&["delete", "pod", "spins0", "spins1", "spins2"])
        .map(drop)
}

fn ephemeral_storage(case: &Case<'_>) -> Outcome {
    let more = json!({"resources": {"limits": {"ephemeral-storage": "1Mi"}}});
    let fill = sh("dd if=/dev/zero of=/data/big bs=1000000 count=3 2>/dev/null");
    let pod = case.pod_with("greedy", &[fill, stay()], more);
    case.ends(&pod.volume("data", json!({"emptyDir": {}})), "Failed")?;
    assert_eq!(case.field("greedy", ".status.reason"), "Evicted");
    let message = case.field("greedy", ".status.message");
    assert!(
        message.contains("phemeral") && message.contains("exceeds the"),
        "{message}"
    );
    Ok(())
}

fn resized(case: &Case<'_>, pod: &str, resources: Value) -> Outcome {
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}});
    case.kubectl(&[
        "patch",
        "pod",
        pod,
        "--subresource=resize",
        "-p",
        &patch.to_string(),
    ])
    .map(drop)
}

fn resize(case: &Case<'_>) -> Outcome {
    let more = resources(
        json!({"cpu": "50m", "memory": SMALL}),
        json!({"cpu": "100m", "memory": SMALL}),
    );
    case.ready(&case.pod_with("grows", &[stay()], more))?;
    let id = case.first("grows", ".containerID");
    resized(
        case,
        "grows",
        json!({"requests": {"cpu": "50m", "memory": "48Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}}),
    )?;
    case.until_first("grows", ".resources.limits.cpu", "200m");
    case.until_first("grows", ".resources.limits.memory", "64Mi");
    case.until_first("grows", ".allocatedResources.memory", "48Mi");
    assert_eq!(case.first("grows", ".containerID"), id, "it was restarted");
    if !case.is_wasm() {
        eventually("the cgroup follows", || {
            let memory = values(case, "grows", &["memory.limit_in_bytes", "memory.max"]);
            if memory.contains(&(64 << 20).to_string()) {
                Ok(())
            } else {
                Err(format!("{memory:?}"))
            }
        });
        let cpu = values(case, "grows", &["cpu.cfs_quota_us", "cpu.max"]);
        assert!(
            cpu.iter().any(|quota| quota.starts_with("20000")),
            "{cpu:?}"
        );
    }
    // The class is for life.
    let said = case.kubectl_fails(&["patch", "pod", "grows", "--subresource=resize", "-p",
        r#"{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"200m","memory":"64Mi"}}}]}}"#]);
    assert!(
        said.contains("Pod QOS Class may not change as a result of resizing"),
        "{said}"
    );
    // Resources are not changed by the pod's own door.
    let said = case.kubectl_fails(&[
        "patch",
        "pod",
        "grows",
        "-p",
        r#"{"spec":{"containers":[{"name":"main","resources":{"limits":{"cpu":"300m"}}}]}}"#,
    ]);
    assert!(
        said.contains("pod updates may not change fields other than"),
        "{said}"
    );
    Ok(())
}

fn resize_restarts(case: &Case<'_>) -> Outcome {
    let more = with(
        resources(
            json!({"cpu": "50m", "memory": SMALL}),
            json!({"cpu": "100m", "memory": SMALL}),
        ),
        json!({"resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}),
    );
    case.ready(&case.pod_with("grows", &[stay()], more))?;
    resized(case, "grows", json!({"limits": {"memory": "64Mi"}}))?;
    case.until_first("grows", ".restartCount", "1");
    case.until_first("grows", ".resources.limits.memory", "64Mi");
    Ok(())
}

fn resize_infeasible(case: &Case<'_>) -> Outcome {
    let more = resources(json!({"cpu": "50m"}), json!({"cpu": "1000"}));
    case.ready(&case.pod_with("grows", &[stay()], more))?;
    resized(case, "grows", json!({"requests": {"cpu": "999"}}))?;
    let pending = ".status.conditions[?(@.type==\"PodResizePending\")]";
    case.until("grows", &format!("{pending}.reason"), "Infeasible");
    case.until_contains(
        "grows",
        &format!("{pending}.message"),
        "Node didn't have enough capacity: cpu",
    );
    assert_eq!(case.first("grows", ".restartCount"), "0");
    Ok(())
}

fn overhead(case: &Case<'_>) -> Outcome {
    let class = format!("heavy-{}", case.ns);
    case.apply(&json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class},
        "handler": case.runtime.class(), "overhead": {"podFixed": {"memory": "8Mi", "cpu": "10m"}},
    }))?;
    let more = resources(json!({}), json!({"cpu": "100m", "memory": SMALL}));
    let mut pod = case.pod_with("heavy", &[stay()], more);
    pod.object["spec"]["runtimeClassName"] = json!(class);
    case.ready(&pod)?;
    assert_eq!(case.field("heavy", ".spec.overhead.memory"), "8Mi");
    if !case.is_wasm() {
        assert_limited(case, "heavy", 32 + 8);
    }
    case.delete("heavy")?;
    case.kubectl(&["delete", "runtimeclass", &class]).map(drop)
}

fn top_pod(case: &Case<'_>) -> Outcome {
    let pod = case.pod("works", &[tick("0.01")]);
    case.ready(&pod.container(case.container("rests", &[stay()])))?;
    eventually("kubectl top pod", || {
        let args = ["top", "pod", "works", "--containers", "-n", case.ns];
        let output = case.cluster.kubectl_command(&args).output();
        let output = output.expect("kubectl starts");
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let shows = |name: &str| {
            let row = rows.iter().find(|row| row.get(1) == Some(&name));
            row.is_some_and(|row| row[2].ends_with('m') && row[3].ends_with("Mi"))
        };
        let head = ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"];
        if rows.first().is_some_and(|first| *first == head) && shows("main") && shows("rests") {
            Ok(())
        } else {
            Err(format!(
                "{table}{}",
                String::from_utf8_lossy(&output.stderr)
            ))
        }
    });
    Ok(())
}

fn top_node(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("works", &[print("here"), stay()]))?;
    let table = eventually("kubectl top node", || {
        let output = case
            .cluster
            .kubectl_command(&["top", "node"])
            .output()
            .expect("kubectl starts");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    let row = table.lines().find(|line| line.starts_with("node "));
    let row: Vec<&str> = row.unwrap_or_default().split_whitespace().collect();
    assert!(
        row.len() == 5 && row[1].ends_with('m') && row[3].ends_with("Mi"),
        "{table}"
    );
    Ok(())
}

fn summary(case: &Case<'_>) -> Outcome {
    let pod = case.pod("works", &[tick("0.01")]);
    case.ready(&pod.volume("data", json!({"emptyDir": {}})))?;
    eventually("the pod's statistics", || {
        let Some(stats) = pod_stats(case, "works") else {
            return Err("it is not listed".to_owned());
        };
        let main = &stats["containers"][0];
        let numbers = [
            &main["cpu"]["usageCoreNanoSeconds"],
            &main["cpu"]["usageNanoCores"],
            &main["memory"]["workingSetBytes"],
            &stats["cpu"]["usageCoreNanoSeconds"],
            &stats["memory"]["workingSetBytes"],
            &stats["ephemeral-storage"]["usedBytes"],
        ];
        let volumes = stats["volume"].as_array().into_iter().flatten();
        let has_volume = volumes.clone().any(|volume| volume["name"] == "data");
        if main["name"] == "main" && has_volume && numbers.iter().all(|n| n.is_u64()) {
            Ok(())
        } else {
            Err(stats.to_string())
        }
    });
    Ok(())
}

fn pod_level(case: &Case<'_>) -> Outcome {
    let pod = case
        .pod("both", &[stay()])
        .container(case.container("eats", &[eat()]));
    case.create(&pod.spec(json!({
        "restartPolicy": "Never",
        "resources": {"limits": {"memory": "48Mi", "cpu": "500m"}, "requests": {"cpu": "10m"}},
    })))?;
    case.until(
        "both",
        ".status.containerStatuses[?(@.name==\"eats\")].state.terminated.reason",
        "OOMKilled",
    );
    if !case.is_wasm() {
        assert_limited(case, "both", 48);
    }
    Ok(())
}

/// One of the pod's cgroups has this limit, or up to 16 MiB more for the pod's supervisor.
fn assert_limited(case: &Case<'_>, pod: &str, mebibytes: u64) {
    let limits = values(case, pod, &["memory.limit_in_bytes", "memory.max"]);
    let allowed = (mebibytes << 20)..=((mebibytes + 16) << 20);
    let is_limited = limits
        .iter()
        .filter_map(|text| text.parse().ok())
        .any(|bytes: u64| allowed.contains(&bytes));
    assert!(is_limited, "no {mebibytes} MiB in {limits:?}");
}
