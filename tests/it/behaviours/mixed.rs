//! Containers of two runtimes in one pod: a container of the column's runtime and a component.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};
use wherry_tests::eventually;

use super::{
    Behaviour, Group, Runtime,
    case::{Case, Outcome, command_of, container_of},
    manifest::{Pod, with},
    program::{Step, append, get, read, serve, stay, tick, wait_for, write},
};

const HALF: &str = "the columns say what a component shares its pod with";

/// A row of pods that name no RuntimeClass: the node's default runs the containers, the images say what is Wasm.
const fn row(name: &'static str, test: fn(&Case<'_>) -> Outcome) -> Behaviour {
    Behaviour::new(name, test).by_default().wasm_moot(HALF)
}

pub(super) const GROUP: Group = Group {
    name: "mixed",
    title: "Mixed pods: with a Wasm container beside",
    rows: &[
        row(
            "each container runs in its own runtime with one address",
            one_address,
        ),
        row("init containers of both runtimes run in order", order),
        row(
            "sidecars of the other runtime start before and end after the rest",
            sidecars,
        ),
        row(
            "a volume is shared and its files have the right owners",
            volume,
        ),
        row("a component reaches a container on 127.0.0.1", |case| {
            loopback(case, true)
        }),
        row("a container reaches a component on 127.0.0.1", |case| {
            loopback(case, false)
        }),
        row("the container restarts without the component", |case| {
            restarts(case, "box", "wasm")
        }),
        row("the component restarts without the container", |case| {
            restarts(case, "wasm", "box")
        }),
        row("both end with the pod, each by its preStop", both_end),
        row("statistics and top show both", statistics),
        row("probes of both decide whether the pod is Ready", probes),
        row("hooks, logs and exec reach the right one", reached),
    ],
};

fn boxed(case: &Case<'_>, steps: &[Step]) -> Value {
    container_of(case.runtime, "box", steps)
}

fn component(steps: &[Step]) -> Value {
    container_of(Runtime::Wasm, "wasm", steps)
}

fn named(container: Value, name: &str) -> Value {
    with(container, json!({"name": name}))
}

/// A pod of a container `box` and a component `wasm`.
fn pod(case: &Case<'_>, in_box: &[Step], in_wasm: &[Step]) -> Pod {
    Pod::new("mixed")
        .container(boxed(case, in_box))
        .container(component(in_wasm))
}

fn exec(case: &Case<'_>, container: &str, steps: &[Step]) -> Outcome<String> {
    case.exec_in("mixed", container, runtime_of(case, container), steps)
}

fn runtime_of(case: &Case<'_>, container: &str) -> Runtime {
    if container == "wasm" {
        Runtime::Wasm
    } else {
        case.runtime
    }
}

fn of(container: &str, path: &str) -> String {
    format!(".status.containerStatuses[?(@.name==\"{container}\")]{path}")
}

fn one_address(case: &Case<'_>) -> Outcome {
    case.ready(&pod(case, &[stay()], &[stay()]))?;
    let own = format!("{}://", case.runtime.class());
    let id = case.field("mixed", &of("box", ".containerID"));
    assert!(id.starts_with(&own), "{id}");
    let id = case.field("mixed", &of("wasm", ".containerID"));
    assert!(id.starts_with("wasm://"), "{id}");
    let addresses = case.field("mixed", ".status.podIPs[*].ip");
    assert_eq!(addresses, case.field("mixed", ".status.podIP"));
    Ok(())
}

fn order(case: &Case<'_>) -> Outcome {
    let init = |container: Value, name: &str| named(container, name);
    case.ready(
        &pod(case, &[stay()], &[stay()])
            .init(init(component(&[append("/data/order", "wasm")]), "one"))
            .init(init(boxed(case, &[append("/data/order", "box")]), "two"))
            .init(init(
                component(&[append("/data/order", "wasm again")]),
                "three",
            ))
            .volume("data", json!({"emptyDir": {}})),
    )?;
    let order = exec(case, "box", &[read("/data/order")])?;
    assert_eq!(order, "wasm\nbox\nwasm again\n");
    Ok(())
}

fn sidecars(case: &Case<'_>) -> Outcome {
    let host = case.cluster.root().join(format!("mixed-{}", case.ns));
    let sidecar = |container: Value, runtime: Runtime, name: &str| {
        let ends = command_of(runtime, &[append("/data/order", &format!("{name} ends"))]);
        with(
            named(container, name),
            json!({"restartPolicy": "Always", "lifecycle": {"preStop": {"exec": {"command": ends}}}}),
        )
    };
    let starts = |name: &str| [append("/data/order", &format!("{name} starts")), stay()];
    case.ready(
        &pod(case, &[stay()], &[stay()])
            .init(sidecar(component(&starts("one")), Runtime::Wasm, "one"))
            .init(sidecar(boxed(case, &starts("two")), case.runtime, "two"))
            .volume(
                "data",
                json!({"hostPath": {"path": host, "type": "DirectoryOrCreate"}}),
            )
            .spec(json!({"terminationGracePeriodSeconds": 20})),
    )?;
    case.delete("mixed")?;
    let order = std::fs::read_to_string(host.join("order")).expect("the containers wrote it");
    let lines: Vec<&str> = order.lines().collect();
    assert!(
        order.contains("one starts") && order.contains("two starts"),
        "{order}"
    );
    assert_eq!(lines[2..], ["two ends", "one ends"]);
    Ok(())
}

fn volume(case: &Case<'_>) -> Outcome {
    let user = |user: u32| json!({"securityContext": {"runAsUser": user, "runAsGroup": user}});
    let pod = Pod::new("mixed")
        .container(with(
            boxed(case, &[write("/data/box", "from the box"), stay()]),
            user(1000),
        ))
        .container(with(
            component(&[write("/data/wasm", "from wasm"), stay()]),
            user(2000),
        ))
        .volume("data", json!({"emptyDir": {}}))
        .spec(json!({"securityContext": {"fsGroup": 3000}}));
    case.ready(&pod)?;
    let both = |container: &str| {
        eventually("both files are there", || {
            match exec(
                case,
                container,
                &[
                    wait_for("/data/box"),
                    wait_for("/data/wasm"),
                    read("/data/box"),
                    read("/data/wasm"),
                ],
            ) {
                Ok(said) if said == "from the boxfrom wasm" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    both("box");
    both("wasm");
    let uid = case.field("mixed", ".metadata.uid");
    let dir = case.cluster.root().join(format!("pods/{uid}/volumes"));
    let find = std::process::Command::new("find")
        .arg(&dir)
        .args(["-type", "f"])
        .output()
        .expect("find starts");
    for file in String::from_utf8_lossy(&find.stdout).lines() {
        let found = std::fs::metadata(file).expect("the file can be looked at");
        let owner = match std::path::Path::new(file)
            .file_name()
            .and_then(|name| name.to_str())
        {
            Some("box") => 1000,
            Some("wasm") => 2000,
            _ => continue,
        };
        // The directory hands its group down.
        assert_eq!((found.uid(), found.gid()), (owner, 3000), "{file}");
    }
    Ok(())
}

fn loopback(case: &Case<'_>, from_wasm: bool) -> Outcome {
    let (server, client) = if from_wasm {
        ("box", "wasm")
    } else {
        ("wasm", "box")
    };
    let listens = [serve(7000, server)];
    let (in_box, in_wasm): (&[Step], &[Step]) = if from_wasm {
        (&listens, &[stay()])
    } else {
        (&[stay()], &listens)
    };
    case.ready(&pod(case, in_box, in_wasm))?;
    eventually("an answer", || {
        match exec(case, client, &[get("127.0.0.1", 7000)]) {
            Ok(said) if said == format!("{server}\n") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    Ok(())
}

fn restarts(case: &Case<'_>, one: &str, other: &str) -> Outcome {
    let ends = [
        wait_for("/data/go"),
        super::program::remove("/data/go"),
        super::program::exit(1),
    ];
    let (in_box, in_wasm): (&[Step], &[Step]) = if one == "box" {
        (&ends, &[stay()])
    } else {
        (&[stay()], &ends)
    };
    case.ready(&pod(case, in_box, in_wasm).volume("data", json!({"emptyDir": {}})))?;
    let [first, second] = [one, other].map(|name| case.field("mixed", &of(name, ".containerID")));
    exec(case, other, &[write("/data/go", "")])?;
    case.until("mixed", &of(one, ".restartCount"), "1");
    case.wait_ready("mixed");
    assert_ne!(case.field("mixed", &of(one, ".containerID")), first);
    assert_eq!(case.field("mixed", &of(other, ".containerID")), second);
    assert_eq!(case.field("mixed", &of(other, ".restartCount")), "0");
    Ok(())
}

fn both_end(case: &Case<'_>) -> Outcome {
    let host = case.cluster.root().join(format!("mixed-{}", case.ns));
    let hook = |runtime: Runtime, name: &str| {
        let ends = command_of(runtime, &[write(&format!("/data/{name}"), "ended")]);
        json!({"lifecycle": {"preStop": {"exec": {"command": ends}}}})
    };
    let source = json!({"hostPath": {"path": host, "type": "DirectoryOrCreate"}});
    case.ready(
        &Pod::new("mixed")
            .container(with(boxed(case, &[stay()]), hook(case.runtime, "box")))
            .container(with(component(&[stay()]), hook(Runtime::Wasm, "wasm")))
            .volume("data", source)
            .spec(json!({"terminationGracePeriodSeconds": 20})),
    )?;
    case.delete("mixed")?;
    for name in ["box", "wasm"] {
        let said = std::fs::read_to_string(host.join(name));
        assert_eq!(said.ok().as_deref(), Some("ended"), "{name}");
    }
    Ok(())
}

fn statistics(case: &Case<'_>) -> Outcome {
    case.ready(&pod(case, &[tick("0.01")], &[tick("0.01")]))?;
    let path = "/api/v1/nodes/node/proxy/stats/summary";
    eventually("both are in the summary", || {
        let output = case
            .cluster
            .kubectl_command(&["get", "--raw", path])
            .output()
            .expect("kubectl starts");
        let summary: Value =
            serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let is_it =
            |it: &&Value| it["podRef"]["name"] == "mixed" && it["podRef"]["namespace"] == case.ns;
        let stats = pods.iter().find(is_it).ok_or("the pod is not listed")?;
        let has = |name: &str| {
            stats["containers"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| {
                    c["name"] == name
                        && c["cpu"]["usageCoreNanoSeconds"].is_u64()
                        && c["memory"]["workingSetBytes"].as_u64() > Some(0)
                })
        };
        if has("box") && has("wasm") {
            Ok(())
        } else {
            Err(stats.to_string())
        }
    });
    eventually("both are in kubectl top", || {
        let args = ["top", "pod", "mixed", "--containers", "-n", case.ns];
        let output = case
            .cluster
            .kubectl_command(&args)
            .output()
            .expect("kubectl starts");
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if said.contains(" box ") && said.contains(" wasm ") {
            Ok(())
        } else {
            Err(said)
        }
    });
    Ok(())
}

fn probes(case: &Case<'_>) -> Outcome {
    let probe = |runtime: Runtime, path: &str| {
        let command = command_of(runtime, &[super::program::exists(path)]);
        json!({"readinessProbe": {"exec": {"command": command}, "periodSeconds": 1}})
    };
    case.create(
        &Pod::new("mixed")
            .container(with(
                boxed(case, &[stay()]),
                probe(case.runtime, "/data/box"),
            ))
            .container(with(
                component(&[stay()]),
                probe(Runtime::Wasm, "/data/wasm"),
            ))
            .volume("data", json!({"emptyDir": {}})),
    )?;
    case.until("mixed", &of("wasm", ".started"), "true");
    case.until("mixed", &of("box", ".started"), "true");
    exec(case, "box", &[write("/data/box", "")])?;
    case.until("mixed", &of("box", ".ready"), "true");
    let ready = ".status.conditions[?(@.type==\"Ready\")]";
    case.until(
        "mixed",
        &format!("{ready}.message"),
        "containers with unready status: [wasm]",
    );
    exec(case, "wasm", &[write("/data/wasm", "")])?;
    case.wait_ready("mixed");
    Ok(())
}

fn reached(case: &Case<'_>) -> Outcome {
    let says = |name: &str| [super::program::print(&format!("this is {name}")), stay()];
    case.ready(&pod(case, &says("box"), &says("wasm")))?;
    for name in ["box", "wasm"] {
        assert_eq!(
            case.until_log("mixed", name, "\n"),
            format!("this is {name}\n")
        );
        assert_eq!(
            exec(case, name, &[super::program::print("here")])?,
            "here\n"
        );
    }
    let all = case.kubectl(&["logs", "mixed", "--all-containers", "--prefix"])?;
    assert!(
        all.contains("this is box") && all.contains("this is wasm"),
        "{all}"
    );
    Ok(())
}
