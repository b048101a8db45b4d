//! logs, exec, attach, cp and port-forward.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use serde_json::json;
use wherry_tests::eventually;

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    program::{complain, copy, exit, print, sh, sleep, stay},
};

pub(super) const GROUP: Group = Group {
    name: "streams",
    title: "Streams",
    rows: &[
        Behaviour::new("logs have both streams and take all flags", logs),
        Behaviour::new("logs follow a container to its end", follow),
        Behaviour::new("logs of the run before are kept", previous),
        Behaviour::new("logs are rotated", rotated),
        Behaviour::new("exec runs a command with its streams and exit code", exec),
        Behaviour::new("exec hands over what is large", exec_large),
        Behaviour::new("exec of a command that is not there says so", exec_missing),
        Behaviour::new("exec gives a terminal that follows the window", terminal)
            .wasm_moot("WASI shows no window size; a terminal is carried as a plain stream"),
        Behaviour::new("attach joins the running program", attach),
        Behaviour::new(
            "stdinOnce ends the input with the first who leaves",
            stdin_once,
        ),
        Behaviour::new("cp copies both ways", cp).wasm_cannot(
            "kubectl cp runs tar in the container, and a component has no other programs",
            "tar",
        ),
        Behaviour::new("port-forward reaches the pod's loopback", port_forward),
        Behaviour::new("a command that is not there is a StartError", start_error)
            .wasm_moot("command is a component's first argument, not a program to be found"),
    ],
};

fn logs(case: &Case<'_>) -> Outcome {
    let steps = [
        sh("for n in 1 2 3 4 5; do echo line $n; done"),
        complain("oops"),
        stay(),
    ];
    case.ready(&case.pod("talker", &steps))?;
    let logs = |flags: &[&str]| case.kubectl(&[&["logs", "talker"], flags].concat());
    eventually("all lines are in the log", || {
        let all = case.log("talker", "main");
        let whole = (1..=5).all(|n| all.contains(&format!("line {n}\n"))) && all.contains("oops\n");
        if whole { Ok(()) } else { Err(all) }
    });
    assert_eq!(logs(&["--tail=2"])?.lines().count(), 2);
    assert_eq!(logs(&["--since=1h"])?.lines().count(), 6);
    assert_eq!(logs(&["--since-time=2099-01-01T00:00:00Z"])?, "");
    assert_eq!(logs(&["-c", "main", "--limit-bytes=6"])?.len(), 6);
    let stamped = logs(&["--timestamps", "--tail=1"])?;
    assert!(
        stamped.starts_with("20") && stamped.contains("Z "),
        "{stamped}"
    );
    let unknown = case.kubectl_fails(&["logs", "talker", "-c", "nobody"]);
    assert!(
        unknown.contains("container nobody is not valid for pod talker"),
        "{unknown}"
    );
    Ok(())
}

fn follow(case: &Case<'_>) -> Outcome {
    let count = sh("n=0; while [ $n -lt 40 ]; do n=$((n+1)); echo tick $n; sleep 0.05; done");
    let pod = case.pod("follow", &[sleep("0.5"), count]);
    case.create(&pod.spec(json!({"restartPolicy": "Never"})))?;
    eventually("the pod has started", || {
        let phase = case.field("follow", ".status.phase");
        if phase == "Pending" || phase.is_empty() {
            Err(phase)
        } else {
            Ok(())
        }
    });
    let expected: String = (1..=40).map(|n| format!("tick {n}\n")).collect();
    assert_eq!(case.kubectl(&["logs", "follow", "-f"])?, expected);
    Ok(())
}

fn previous(case: &Case<'_>) -> Outcome {
    case.create(&case.pod("counter", &[sh("echo run counter"), exit(3)]))?;
    eventually("the earlier run's log", || {
        let args = ["logs", "-n", case.ns, "counter", "--previous"];
        let output = case
            .cluster
            .kubectl_command(&args)
            .output()
            .expect("kubectl starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said == "run counter\n" {
            Ok(())
        } else {
            Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
        }
    });
    Ok(())
}

fn rotated(case: &Case<'_>) -> Outcome {
    // 12 MiB in lines of 1 KiB: past the default of 10 MiB for one file.
    let long = "x".repeat(1000);
    let count = sh(format!(
        "n=0; while [ $n -lt 12288 ]; do n=$((n+1)); echo $n {long}; done"
    ));
    case.ready(&case.pod("chatty", &[count, stay()]))?;
    let uid = case.field("chatty", ".metadata.uid");
    let dir = case
        .cluster
        .root()
        .join(format!("log/pods/{}_chatty_{uid}/main", case.ns));
    eventually("the last line is in the log", || {
        let args = ["logs", "-n", case.ns, "chatty", "--tail=1"];
        let output = case
            .cluster
            .kubectl_command(&args)
            .output()
            .expect("kubectl starts");
        let last = String::from_utf8_lossy(&output.stdout).into_owned();
        if last.starts_with("12288 ") {
            Ok(())
        } else {
            Err(last.chars().take(20).collect())
        }
    });
    eventually("a rotated file beside the live one", || {
        let files: Vec<_> = std::fs::read_dir(&dir)
            .map_err(|error| format!("{}: {error}", dir.display()))?
            .flatten()
            .collect();
        if files.len() > 1 {
            Ok(())
        } else {
            Err(format!("{files:?}"))
        }
    });
    Ok(())
}

fn exec(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("box", &[stay()]))?;
    let script = case.command(&[copy(), complain("err"), exit(7)]);
    let mut args = vec!["exec", "-i", "-n", case.ns, "box", "--"];
    args.extend(script.iter().map(String::as_str));
    let output = case.cluster.kubectl_with_input(&args, "input");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "input");
    assert!(
        stderr.starts_with("err\n") && stderr.contains("command terminated with exit code 7"),
        "{stderr}"
    );
    assert_eq!(
        case.kubectl(&["exec", "box", "--", "echo", "hello", "there"])?,
        "hello there\n"
    );
    Ok(())
}

fn exec_large(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("box", &[stay()]))?;
    let line = "x".repeat(999);
    let lines = sh(format!(
        "n=0; while [ $n -lt 5000 ]; do n=$((n+1)); echo {line}; done"
    ));
    assert_eq!(case.exec("box", &[lines])?.len(), 5_000_000);
    Ok(())
}

fn exec_missing(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("box", &[stay()]))?;
    let missing = case.kubectl_fails(&["exec", "box", "--", "no-such-program"]);
    assert!(missing.contains("no-such-program"), "{missing}");
    Ok(())
}

fn terminal(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("term", &[stay()]))?;
    // `script` gives kubectl a terminal, and `stty` there sets the size that kubectl must pass on.
    let kubectl = format!(
        "stty rows 33 cols 99; kubectl exec -it -n {} term -- sh -c 'sleep 0.5; stty size; tty; echo $TERM'",
        case.ns
    );
    let output = case
        .cluster
        .network
        .command("script")
        .args(["-qec", &kubectl, "/dev/null"])
        .env("KUBECONFIG", case.cluster.kubeconfig())
        .env("HOME", case.cluster.root())
        .stdin(Stdio::piped())
        .output()
        .expect("script starts");
    let said = String::from_utf8_lossy(&output.stdout);
    for words in ["33 99", "/dev/pts/", "xterm"] {
        assert!(said.contains(words), "no {words} in {said}");
    }
    Ok(())
}

fn attach(case: &Case<'_>) -> Outcome {
    let script =
        sh("while read line; do echo got $line; if [ $line = end ]; then exit 0; fi; done");
    let pod = case.pod_with("echoer", &[script], json!({"stdin": true}));
    case.ready(&pod.spec(json!({"restartPolicy": "Never"})))?;
    let args = ["attach", "-i", "-n", case.ns, "echoer"];
    let output = case.cluster.kubectl_with_input(&args, "one\nend\n");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("got one\n") && said.contains("got end\n"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    case.until("echoer", ".status.phase", "Succeeded");
    Ok(())
}

fn stdin_once(case: &Case<'_>) -> Outcome {
    let pod = case.pod_with("cat", &[copy()], json!({"stdin": true, "stdinOnce": true}));
    case.ready(&pod.spec(json!({"restartPolicy": "Never"})))?;
    let args = ["attach", "-i", "-n", case.ns, "cat"];
    case.cluster.kubectl_with_input(&args, "over the wire\n");
    case.until("cat", ".status.phase", "Succeeded");
    assert_eq!(case.log("cat", "main"), "over the wire\n");
    Ok(())
}

fn cp(case: &Case<'_>) -> Outcome {
    case.ready_whatever(&case.pod("files", &[stay()]));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let here = dir.path().join("here");
    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&here, &content).expect("a file can be written");
    case.kubectl(&["cp", &here.to_string_lossy(), "files:/tmp/there"])?;
    let back = dir.path().join("back");
    case.kubectl(&["cp", "files:/tmp/there", &back.to_string_lossy()])?;
    assert!(
        std::fs::read(back).expect("the copy is there") == content,
        "the copy differs"
    );
    Ok(())
}

fn port_forward(case: &Case<'_>) -> Outcome {
    case.ready(&case.empty("site").container(case.web("main")))?;
    let mut forward = case
        .cluster
        .kubectl_command(&["port-forward", "-n", case.ns, "pod/site", ":8080"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut first = String::new();
    BufReader::new(forward.stdout.as_mut().expect("stdout is piped"))
        .read_line(&mut first)
        .expect("kubectl says where");
    let port = first
        .split(" -> ")
        .next()
        .and_then(|part| part.rsplit(':').next())
        .expect("127.0.0.1:PORT -> 8080");
    for _ in 0..3 {
        let page = case
            .cluster
            .curl(&format!("http://127.0.0.1:{port}/ready"))
            .expect("the page is served");
        assert!(page.contains("hello"), "{page}");
    }
    forward.kill().expect("kubectl runs until it is killed");
    forward.wait().expect("kubectl can be waited for");
    Ok(())
}

fn start_error(case: &Case<'_>) -> Outcome {
    let mut pod = case.pod("nocommand", &[print("x")]);
    pod.object["spec"]["containers"][0]["command"] = json!(["no-such-program"]);
    case.ends(&pod.spec(json!({"restartPolicy": "Never"})), "Failed")?;
    assert_eq!(
        case.first("nocommand", ".state.terminated.reason"),
        "StartError"
    );
    let message = case.first("nocommand", ".state.terminated.message");
    assert!(
        message.contains("\"no-such-program\": executable file not found in $PATH"),
        "{message}"
    );
    Ok(())
}
