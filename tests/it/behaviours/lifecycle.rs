//! From the first init container to the last word.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wherry_tests::eventually;

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    manifest::with,
    program::{
        append, complain, exists, exit, list, print, read, remove, serve, sh, sleep, stay,
        wait_for, write,
    },
};

pub(super) const GROUP: Group = Group {
    name: "lifecycle",
    title: "Life cycle",
    rows: &[
        Behaviour::new("init containers run one after the other before the rest", init_order),
        Behaviour::new("a failing init container fails a pod that never restarts", init_fails),
        Behaviour::new("a failing init container is run again", init_again),
        Behaviour::new("sidecars start in order before the rest and end after it in reverse", sidecars),
        Behaviour::new("a sidecar that ends is started again", sidecar_restarts),
        Behaviour::new("a sidecar does not keep a finished pod from finishing", sidecar_ends),
        Behaviour::new("kubectl debug adds a container to a running pod", debug),
        Behaviour::new("kubectl debug --target shows the processes of the target", debug_target)
            .wasm_cannot("a component is not a process, so there are none to see", "targetContainerName means nothing"),
        Behaviour::new("a busybox joins any pod by kubectl debug", debug_foreign)
            .wasm_cannot(
                "a pod of Wasm containers alone has no namespaces that a process could join; a Wasm debug image can",
                "namespace",
            ),
        Behaviour::new("a container is asked to end and has its grace period to do so", polite)
            .wasm_moot("WASI has no signals: a component is ended at once, after its preStop hook"),
        Behaviour::new("a container that does not listen is killed after its grace period", stubborn),
        Behaviour::new("deletion by force does not wait", forced),
        Behaviour::new("lifecycle.stopSignal chooses the signal", stop_signal)
            .wasm_cannot("WASI has no signals", "stopSignal means nothing"),
        Behaviour::new("activeDeadlineSeconds ends a pod", deadline),
        Behaviour::new("the termination message is what the container wrote", last_words),
        Behaviour::new("the termination message can be elsewhere", last_words_elsewhere),
        Behaviour::new("the termination message falls back to the log of a failure", last_log),
        Behaviour::new("shareProcessNamespace lets containers see each other's processes", share_pid)
            .wasm_cannot("a component is not a process, so there are none to see", "shareProcessNamespace means nothing"),
        Behaviour::new("hostPID shows the node's processes", host_pid)
            .wasm_cannot("a component is not a process, so there are none to see", "hostPID means nothing"),
        Behaviour::new("hostIPC is the node's IPC namespace", host_ipc)
            .wasm_cannot("WASI has no System V IPC", "hostIPC means nothing"),
        Behaviour::new("readiness gates hold a pod back until they are true", gates),
        Behaviour::new("conditions come with their times and reasons", conditions),
        Behaviour::new("a container's status says what was and what is", statuses),
        Behaviour::new("a deleted pod is gone with all that it had", gone),
    ],
};

fn init_order(case: &Case<'_>) -> Outcome {
    case.ready(
        &case
            .pod("ordered", &[read("/shared/order"), stay()])
            .init(case.container("first", &[append("/shared/order", "first")]))
            .init(case.container("second", &[append("/shared/order", "second")]))
            .volume("shared", json!({"emptyDir": {}})),
    )?;
    assert_eq!(
        case.until_log("ordered", "main", "second\n"),
        "first\nsecond\n"
    );
    let states = case.field(
        "ordered",
        ".status.initContainerStatuses[*].state.terminated.reason",
    );
    assert_eq!(states, "Completed Completed");
    Ok(())
}

fn init_fails(case: &Case<'_>) -> Outcome {
    case.ends(
        &case
            .pod("stuck", &[print("never")])
            .init(case.container("bad", &[exit(1)]))
            .spec(json!({"restartPolicy": "Never"})),
        "Failed",
    )?;
    let table = case.kubectl(&["get", "pod", "stuck"])?;
    assert!(table.contains("Init:Error"), "{table}");
    assert_eq!(case.log("stuck", "main"), "");
    Ok(())
}

fn init_again(case: &Case<'_>) -> Outcome {
    let marks = [append("/data/tries", "x"), exists("/data/lucky")];
    let pod = case
        .pod("again", &[stay()])
        .init(case.container("unlucky", &marks));
    let host = case.cluster.root().join(format!("again-{}", case.ns));
    let source = json!({"hostPath": {"path": host, "type": "DirectoryOrCreate"}});
    case.create(&pod.volume("data", source))?;
    let restarts = ".status.initContainerStatuses[?(@.restartCount>0)].name";
    assert_eq!(case.some("again", restarts), "unlucky");
    assert_eq!(case.field("again", ".status.phase"), "Pending");
    std::fs::write(host.join("lucky"), "").expect("a file can be written");
    case.wait_ready("again");
    let tries = std::fs::read_to_string(host.join("tries")).expect("the container wrote it");
    assert!(tries.lines().count() > 1, "{tries}");
    Ok(())
}

fn sidecars(case: &Case<'_>) -> Outcome {
    let sidecar = |name: &str| {
        with(
            case.container(
                name,
                &[append("/shared/order", &format!("{name} starts")), stay()],
            ),
            json!({
                "restartPolicy": "Always",
                "startupProbe": {"exec": {"command": case.command(&[exists("/shared/order")])}, "periodSeconds": 1},
                "lifecycle": {"preStop": {"exec": {"command": case.command(&[append("/shared/order", &format!("{name} ends"))])}}},
            }),
        )
    };
    let host = case.cluster.root().join(format!("sidecars-{}", case.ns));
    let source = json!({"hostPath": {"path": host, "type": "DirectoryOrCreate"}});
    case.ready(
        &case
            .pod("boat", &[append("/shared/order", "main starts"), stay()])
            .init(sidecar("one"))
            .init(sidecar("two"))
            .volume("shared", source)
            .spec(json!({"terminationGracePeriodSeconds": 20})),
    )?;
    assert_eq!(
        case.field("boat", ".status.initContainerStatuses[*].started"),
        "true true"
    );
    case.delete("boat")?;
    let order = std::fs::read_to_string(host.join("order")).expect("the containers wrote it");
    assert_eq!(
        order,
        "one starts\ntwo starts\nmain starts\ntwo ends\none ends\n"
    );
    Ok(())
}

fn sidecar_restarts(case: &Case<'_>) -> Outcome {
    let sidecar = with(
        case.container("side", &[sleep("1"), exit(1)]),
        json!({"restartPolicy": "Always"}),
    );
    case.ready(
        &case
            .pod("boat", &[stay()])
            .init(sidecar)
            .spec(json!({"restartPolicy": "Never"})),
    )?;
    let path = ".status.initContainerStatuses[?(@.restartCount>0)].name";
    assert_eq!(case.some("boat", path), "side");
    assert_eq!(case.first("boat", ".restartCount"), "0");
    Ok(())
}

fn sidecar_ends(case: &Case<'_>) -> Outcome {
    let sidecar = with(
        case.container("side", &[stay()]),
        json!({"restartPolicy": "Always"}),
    );
    case.ends(
        &case
            .pod("job", &[sleep("0.5")])
            .init(sidecar)
            .spec(json!({"restartPolicy": "Never"})),
        "Succeeded",
    )
}

fn debug(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("patient", &[stay()]))?;
    let container = case.container("doctor", &[print("here"), stay()]);
    add_ephemeral(case, "patient", &container, &[])?;
    case.until_log("patient", "doctor", "here");
    assert_eq!(
        case.exec_in("patient", "doctor", case.runtime, &[print("at work")])?,
        "at work\n"
    );
    assert_eq!(case.first("patient", ".restartCount"), "0");
    assert_eq!(
        case.field("patient", ".status.ephemeralContainerStatuses[0].name"),
        "doctor"
    );
    Ok(())
}

/// `kubectl debug` with the image and words of this container.
fn add_ephemeral(case: &Case<'_>, pod: &str, container: &Value, more: &[&str]) -> Outcome<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut args = vec![
        "debug".to_owned(),
        pod.to_owned(),
        format!("--image={}", text(&container["image"])),
        format!("--container={}", text(&container["name"])),
        "--image-pull-policy=Never".to_owned(),
        "--profile=general".to_owned(),
    ];
    args.extend(more.iter().map(ToString::to_string));
    args.push("--".to_owned());
    args.extend(
        container["command"]
            .as_array()
            .into_iter()
            .flatten()
            .map(text),
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    case.kubectl(&args)
}

fn debug_target(case: &Case<'_>) -> Outcome {
    case.ready_whatever(&case.pod("patient", &[stay()]));
    let count = sh("ps -o args | grep -c '[s]leep 100000'");
    let doctor = case.container("doctor", &[count, stay()]);
    add_ephemeral(case, "patient", &doctor, &["--target=main"])?;
    case.refusal_told("patient")?;
    let log = case.until_log("patient", "doctor", "\n");
    assert_ne!(log.trim(), "0", "the target's process is not seen");
    Ok(())
}

fn debug_foreign(case: &Case<'_>) -> Outcome {
    case.ready_whatever(&case.pod("patient", &[serve(7000, "patient")]));
    let doctor = super::case::container_of(
        super::Runtime::Oci,
        "doctor",
        &[super::program::get("127.0.0.1", 7000), stay()],
    );
    add_ephemeral(case, "patient", &doctor, &[])?;
    case.refusal_told("patient")?;
    case.until_log("patient", "doctor", "patient\n");
    Ok(())
}

fn polite(case: &Case<'_>) -> Outcome {
    let host = case.cluster.root().join(format!("polite-{}", case.ns));
    let source = json!({"hostPath": {"path": host, "type": "DirectoryOrCreate"}});
    let script =
        "trap 'echo bye > /shared/bye; exit 0' TERM; echo here; while :; do sleep 0.1; done";
    case.ready(
        &case
            .pod("polite", &[sh(script)])
            .volume("shared", source)
            .spec(json!({"terminationGracePeriodSeconds": 30})),
    )?;
    case.until_log("polite", "main", "here");
    case.delete("polite")?;
    let bye = std::fs::read_to_string(host.join("bye")).expect("the container wrote it");
    assert_eq!(bye, "bye\n");
    Ok(())
}

fn stubborn(case: &Case<'_>) -> Outcome {
    let steps = if case.is_wasm() {
        vec![super::program::spin()]
    } else {
        vec![sh("trap '' TERM; while :; do sleep 1; done")]
    };
    let limits = json!({"resources": {"limits": {"cpu": "100m"}}});
    case.ready(&case.pod_with("stubborn", &steps, limits))?;
    case.kubectl(&["delete", "pod", "stubborn", "--grace-period=1"])?;
    case.kubectl_fails(&["get", "pod", "stubborn"]);
    Ok(())
}

fn forced(case: &Case<'_>) -> Outcome {
    let pod = case.pod(
        "gone",
        &[sh("trap '' TERM; while :; do sleep 1; done"), stay()],
    );
    case.ready(&pod.spec(json!({"terminationGracePeriodSeconds": 300})))?;
    let start = Instant::now();
    case.kubectl(&["delete", "pod", "gone", "--force", "--grace-period=0"])?;
    assert!(
        start.elapsed() < Duration::from_secs(200),
        "it waited for the grace period"
    );
    case.kubectl_fails(&["get", "pod", "gone"]);
    Ok(())
}

fn stop_signal(case: &Case<'_>) -> Outcome {
    let host = case.cluster.root().join(format!("signal-{}", case.ns));
    let source = json!({"hostPath": {"path": host, "type": "DirectoryOrCreate"}});
    let script =
        "trap 'echo usr1 > /shared/got; exit 0' USR1; echo here; while :; do sleep 0.1; done";
    let signal = json!({"lifecycle": {"stopSignal": "SIGUSR1"}});
    case.ready(
        &case
            .pod_with("signalled", &[sh(script), stay()], signal)
            .volume("shared", source)
            .spec(json!({"os": {"name": "linux"}, "terminationGracePeriodSeconds": 30})),
    )?;
    case.until_log("signalled", "main", "here");
    case.delete("signalled")?;
    let got = std::fs::read_to_string(host.join("got")).expect("the container wrote it");
    assert_eq!(got, "usr1\n");
    Ok(())
}

fn deadline(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("late", &[stay()]))?;
    let patch = json!({"spec": {"activeDeadlineSeconds": 1}}).to_string();
    case.kubectl(&["patch", "pod", "late", "-p", &patch])?;
    case.until("late", ".status.phase", "Failed");
    assert_eq!(case.field("late", ".status.reason"), "DeadlineExceeded");
    assert_eq!(
        case.field("late", ".status.message"),
        "Pod was active on the node longer than the specified deadline"
    );
    case.some(
        "late",
        ".status.containerStatuses[0].state.terminated.finishedAt",
    );
    Ok(())
}

const NEVER: &str = "Never";

fn last_words(case: &Case<'_>) -> Outcome {
    let steps = [write("/dev/termination-log", "last words"), exit(1)];
    case.ends(
        &case
            .pod("said", &steps)
            .spec(json!({"restartPolicy": NEVER})),
        "Failed",
    )?;
    case.until_first("said", ".state.terminated.message", "last words");
    Ok(())
}

fn last_words_elsewhere(case: &Case<'_>) -> Outcome {
    let steps = [write("/tmp/words", "elsewhere"), exit(0)];
    let path = json!({"terminationMessagePath": "/tmp/words"});
    let pod = case
        .pod_with("said", &steps, path)
        .spec(json!({"restartPolicy": NEVER}));
    case.ends(&pod, "Succeeded")?;
    case.until_first("said", ".state.terminated.message", "elsewhere");
    Ok(())
}

fn last_log(case: &Case<'_>) -> Outcome {
    let steps = [complain("from the log"), exit(1)];
    let policy = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let pod = case
        .pod_with("logged", &steps, policy)
        .spec(json!({"restartPolicy": NEVER}));
    case.ends(&pod, "Failed")?;
    case.until_first("logged", ".state.terminated.message", "from the log\n");
    // A success has nothing to explain.
    let policy = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let pod = case
        .pod_with("fine", &[print("fine")], policy)
        .spec(json!({"restartPolicy": NEVER}));
    case.ends(&pod, "Succeeded")?;
    assert_eq!(case.first("fine", ".state.terminated.message"), "");
    Ok(())
}

fn share_pid(case: &Case<'_>) -> Outcome {
    case.ready(
        &case
            .pod("open", &[stay()])
            .container(case.container("other", &[sh("sleep 77777")]))
            .spec(json!({"shareProcessNamespace": true})),
    )?;
    let seen = case.exec("open", &[sh("ps -o args")])?;
    assert!(seen.contains("sleep 77777"), "{seen}");
    Ok(())
}

fn host_pid(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("open", &[stay()]).spec(json!({"hostPID": true})))?;
    let seen = case.exec(
        "open",
        // By the shell alone: a process that ends before it is looked at is no failure.
        &[sh(
            "tr '\\0' ' ' < /proc/$PPID/cmdline; echo; printf '%s\\n' /proc/[0-9]*",
        )],
    )?;
    let node = format!("\n/proc/{}\n", case.cluster.pid());
    assert!(seen.contains(&node), "no {node} in {seen}");
    Ok(())
}

fn host_ipc(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("open", &[stay()]).spec(json!({"hostIPC": true})))?;
    case.ready(&case.pod("closed", &[stay()]))?;
    let own = std::fs::read_link("/proc/self/ns/ipc").expect("a process has an IPC namespace");
    let own = format!("{}\n", own.display());
    let look = [sh("readlink /proc/self/ns/ipc")];
    assert_eq!(case.exec("open", &look)?, own);
    assert_ne!(case.exec("closed", &look)?, own);
    Ok(())
}

fn gates(case: &Case<'_>) -> Outcome {
    let gate = json!({"readinessGates": [{"conditionType": "harbour.example/open"}]});
    case.create(&case.pod("gated", &[stay()]).spec(gate))?;
    let condition =
        |kind: &str, field: &str| format!(".status.conditions[?(@.type==\"{kind}\")].{field}");
    case.until("gated", &condition("ContainersReady", "status"), "True");
    case.until(
        "gated",
        &condition("Ready", "reason"),
        "ReadinessGatesNotReady",
    );
    let message = case.field("gated", &condition("Ready", "message"));
    assert_eq!(
        message,
        "corresponding condition of pod readiness gate \"harbour.example/open\" does not exist."
    );
    let patch =
        json!({"status": {"conditions": [{"type": "harbour.example/open", "status": "True"}]}});
    case.kubectl(&[
        "patch",
        "pod",
        "gated",
        "--subresource=status",
        "-p",
        &patch.to_string(),
    ])?;
    case.wait_ready("gated");
    Ok(())
}

fn conditions(case: &Case<'_>) -> Outcome {
    let probe = json!({"readinessProbe": {"exec": {"command": case.command(&[exists("/data/ready")])}, "periodSeconds": 1}});
    case.create(
        &case
            .pod_with("shown", &[stay()], probe)
            .volume("data", json!({"emptyDir": {}})),
    )?;
    let condition =
        |kind: &str, field: &str| format!(".status.conditions[?(@.type==\"{kind}\")].{field}");
    case.until("shown", ".status.containerStatuses[0].started", "true");
    for (kind, status) in [
        ("PodScheduled", "True"),
        ("PodReadyToStartContainers", "True"),
        ("Initialized", "True"),
        ("ContainersReady", "False"),
        ("Ready", "False"),
    ] {
        case.until("shown", &condition(kind, "status"), status);
        let time = case.some("shown", &condition(kind, "lastTransitionTime"));
        assert!(
            time.starts_with("20") && time.ends_with('Z'),
            "{kind}: {time}"
        );
    }
    for kind in ["Ready", "ContainersReady"] {
        assert_eq!(
            case.field("shown", &condition(kind, "reason")),
            "ContainersNotReady"
        );
        assert_eq!(
            case.field("shown", &condition(kind, "message")),
            "containers with unready status: [main]"
        );
    }
    case.exec("shown", &[write("/data/ready", "")])?;
    case.wait_ready("shown");
    assert_eq!(case.field("shown", &condition("Ready", "reason")), "");
    Ok(())
}

fn statuses(case: &Case<'_>) -> Outcome {
    let steps = [
        print("first"),
        wait_for("/data/go"),
        remove("/data/go"),
        exit(1),
    ];
    case.create(
        &case
            .pod("told", &steps)
            .volume("data", json!({"emptyDir": {}})),
    )?;
    case.wait_ready("told");
    for (path, value) in [
        (".ready", "true"),
        (".started", "true"),
        (".restartCount", "0"),
        (".name", "main"),
    ] {
        assert_eq!(case.first("told", path), value, "{path}");
    }
    let image = if case.is_wasm() {
        "toolbox:1"
    } else {
        "busybox:1"
    };
    assert!(case.first("told", ".image").ends_with(image));
    assert!(case.first("told", ".imageID").contains("sha256:"));
    let id = case.first("told", ".containerID");
    assert!(
        id.starts_with(&format!("{}://", case.runtime.class())),
        "{id}"
    );
    case.some(
        "told",
        ".status.containerStatuses[0].state.running.startedAt",
    );
    for path in [
        ".status.podIP",
        ".status.hostIP",
        ".status.startTime",
        ".status.podIPs[0].ip",
    ] {
        case.some("told", path);
    }
    assert_eq!(case.field("told", ".status.qosClass"), "BestEffort");
    case.exec("told", &[write("/data/go", "")])?;
    case.until_first("told", ".lastState.terminated.containerID", &id);
    for path in ["startedAt", "finishedAt", "exitCode"] {
        case.some(
            "told",
            &format!(".status.containerStatuses[0].lastState.terminated.{path}"),
        );
    }
    Ok(())
}

fn gone(case: &Case<'_>) -> Outcome {
    case.ready(
        &case
            .pod("gone", &[stay()])
            .volume("disk", json!({"emptyDir": {}}))
            .volume("memory", json!({"emptyDir": {"medium": "Memory"}})),
    )?;
    let uid = case.field("gone", ".metadata.uid");
    case.exec("gone", &[list("/disk")])?;
    case.delete("gone")?;
    eventually("nothing of the pod is left", || {
        let left = case.cluster.leftovers();
        let named = |text: &String| text.contains(&uid);
        let mut found: Vec<String> = left.mounts.into_iter().filter(named).collect();
        found.extend(left.processes.into_iter().filter(named));
        found.extend(
            left.cgroups
                .iter()
                .map(|path| path.display().to_string())
                .filter(named),
        );
        if found.is_empty() {
            Ok(())
        } else {
            Err(format!("{found:#?}"))
        }
    });
    Ok(())
}
