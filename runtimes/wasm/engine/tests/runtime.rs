//! The Wasm runtime with real workers, compilers and guests (tests/guests, compiled by tests/run.sh).
//!
//! The program starts itself as worker and compiler. All of it runs in a network namespace of its
//! own, whose loopback interface carries the pods' addresses.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "runtime/conformance.rs"]
mod conformance;
#[path = "runtime/contract.rs"]
mod contract;
#[path = "runtime/harness.rs"]
mod harness;

#[path = "runtime/outside.rs"]
mod outside;

use std::{net::IpAddr, process::ExitCode, time::Duration};

use harness::{Node, eventually, main_of_tests};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wherry_runtime_api::{
    AttachRequest, ContainerState, ExecRequest, LinuxResources, LogRotation, PodSandboxState,
    Runtime, RuntimeError, SandboxNetwork,
};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|arg| arg.to_str()) {
        Some("wasm-worker") => return wherry_wasm_engine::worker::main(args.collect()),
        Some("wasm-compile") => return wherry_wasm_engine::compile::main(args.collect()),
        _ => {}
    }
    let mut trials = tests!(
        a_component_gets_its_arguments_and_environment_and_its_output_is_logged,
        a_core_module_keeps_its_exit_code,
        a_trap_is_exit_134_and_hurts_no_neighbour,
        a_guest_that_eats_memory_is_oom_killed_and_hurts_no_neighbour,
        spinning_guests_starve_no_neighbour,
        a_cpu_limit_holds,
        everything_survives_the_agent_and_no_line_is_lost,
        a_killed_worker_is_exit_137_and_a_new_one_starts,
        mounts_are_the_guests_tree_and_read_only_holds,
        an_http_component_is_served_and_a_trap_costs_one_request,
        an_http_component_of_wasi_0_3_is_served,
        a_guests_own_requests_come_from_the_pod,
        a_taken_port_is_an_error_at_start,
        a_confined_pod_has_its_own_loopback_and_address,
        a_component_of_wasi_0_3_runs_and_its_sockets_are_confined,
        a_pod_in_a_namespace_is_served_inside_it,
        stdin_is_attached_and_ends_with_the_client,
        an_exec_streams_both_ways_and_ends_when_dropped,
        a_terminal_has_line_ends_echo_and_keys,
        what_is_no_module_or_imports_too_much_is_refused_by_name,
        a_log_is_rotated_and_only_so_many_are_kept,
        calls_can_be_repeated,
        stop_ends_a_guest_that_cannot_listen_and_drains_one_that_can,
        limits_change_while_it_runs,
        a_worker_has_no_privileges_left,
        what_was_half_made_or_half_removed_is_finished,
        tenants_do_not_share_a_worker_and_a_full_one_gets_a_second,
        an_agent_killed_anywhere_leaks_nothing,
    );
    trials.extend(contract::trials());
    trials.extend(outside::trials());
    trials.extend(conformance::trials());
    main_of_tests(trials)
}

async fn a_component_gets_its_arguments_and_environment_and_its_output_is_logged() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("hello");
    config.args = vec!["one".into(), "two".into()];
    config.env = vec![("NAME".into(), "value".into())];
    let id = node.run(&pod, &config).await;
    let exit = node.exited(&id).await;
    assert_eq!(
        (exit.exit_code, exit.oom_killed, exit.signal),
        (0, false, None)
    );
    assert!(exit.started_at.is_some());
    let log = std::fs::read_to_string(&config.log_path).unwrap();
    let lines: Vec<&str> = log
        .lines()
        .map(|line| line.split_once('Z').unwrap().1)
        .collect();
    assert!(lines.contains(&" stdout F args: hello one two"), "{log}");
    assert!(lines.contains(&" stdout F env: NAME=value"), "{log}");
    assert!(lines.contains(&" stderr F this is stderr"), "{log}");
}

async fn a_core_module_keeps_its_exit_code() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.core_module("exit-code");
    config.args = vec!["7".into()];
    let id = node.run(&pod, &config).await;
    assert_eq!(node.exited(&id).await.exit_code, 7);
}

async fn a_trap_is_exit_134_and_hurts_no_neighbour() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let neighbour = node.run(&pod, &node.container("sleeper")).await;
    let config = node.container("trap");
    let id = node.run(&pod, &config).await;
    let exit = node.exited(&id).await;
    assert_eq!((exit.exit_code, exit.signal), (134, Some(6)));
    assert!(exit.message.unwrap().contains("unreachable"));
    assert!(
        std::fs::read_to_string(&config.log_path)
            .unwrap()
            .contains("wasm backtrace")
    );
    node.assert_runs(&neighbour).await;
    assert_eq!(node.workers(), 1);
}

async fn a_guest_that_eats_memory_is_oom_killed_and_hurts_no_neighbour() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let neighbour = node.run(&pod, &node.container("sleeper")).await;
    let mut config = node.container("eat-memory");
    config.resources.memory_bytes_max = Some(32 << 20);
    let id = node.run(&pod, &config).await;
    let exit = node.exited(&id).await;
    assert_eq!(
        (exit.exit_code, exit.oom_killed, exit.signal),
        (137, true, Some(9))
    );
    node.assert_runs(&neighbour).await;
    assert_eq!(node.workers(), 1);
}

async fn spinning_guests_starve_no_neighbour() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("ticker");
    config.args = vec!["5".into()];
    let neighbour = node.run(&pod, &config).await;
    let mut spinners = Vec::new();
    for n in 0..8 {
        let mut config = node.container("spin");
        config.name = format!("spin-{n}");
        spinners.push(node.run(&pod, &config).await);
    }
    let ticks = || {
        std::fs::read_to_string(&config.log_path)
            .unwrap()
            .lines()
            .count()
    };
    let before = ticks();
    eventually("the neighbour goes on ticking", async || {
        ticks() > before + 50
    })
    .await;
    let response = node
        .runtime
        .exec_sync(&neighbour, &["1".into()], Duration::from_millis(300))
        .await;
    assert!(
        matches!(response, Err(RuntimeError::DeadlineExceeded { .. })),
        "a ticker never ends: {response:?}"
    );
    for id in &spinners {
        let stats = node.runtime.container_stats(id).await.unwrap();
        assert!(stats.cpu_usage_core_nanoseconds > 0);
        node.runtime
            .stop_container(id, Duration::from_secs(30))
            .await
            .unwrap();
        assert_eq!(node.exited(id).await.exit_code, 143);
    }
    node.assert_runs(&neighbour).await;
}

async fn a_cpu_limit_holds() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("spin");
    config.resources.cpu_quota_us = Some(20_000);
    config.resources.cpu_period_us = Some(100_000);
    let started = std::time::Instant::now();
    let id = node.run(&pod, &config).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = node
        .runtime
        .container_stats(&id)
        .await
        .unwrap()
        .cpu_usage_core_nanoseconds;
    let wall = started.elapsed().as_nanos() as f64;
    let share = used as f64 / wall;
    // A fifth of a core, plus one period's savings at the start; it cannot be more however slow the machine is.
    assert!(share < 0.3, "used {share} of a core");
    assert!(used > 0);
}

async fn everything_survives_the_agent_and_no_line_is_lost() {
    let mut node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("ticker");
    config.args = vec!["1".into()];
    let id = node.run(&pod, &config).await;
    let gone = node.run(&pod, &node.container("hello")).await;
    let before = node.runtime.container_status(&id).await.unwrap();
    for _ in 0..3 {
        node.restart().await;
        assert_eq!(node.runtime.container_status(&id).await.unwrap(), before);
        assert_eq!(node.exited(&gone).await.exit_code, 0);
    }
    node.stop_agent();
    let log = || std::fs::read_to_string(&config.log_path).unwrap();
    let lines = log().lines().count();
    eventually("lines are written without an agent", async || {
        log().lines().count() > lines + 20
    })
    .await;
    node.start_agent().await;
    let sandboxes = node.runtime.list_pod_sandboxes().await.unwrap();
    assert_eq!(sandboxes.len(), 1);
    assert_eq!(sandboxes[0].state, PodSandboxState::Ready);
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    for (n, line) in log().lines().enumerate() {
        assert!(
            line.ends_with(&format!(" stdout F tick {n}")),
            "line {n} is {line}"
        );
    }
    assert_eq!(node.exited(&id).await.exit_code, 137);
}

async fn a_killed_worker_is_exit_137_and_a_new_one_starts() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let id = node.run(&pod, &node.container("sleeper")).await;
    node.kill_workers();
    let exit = node.exited(&id).await;
    assert_eq!((exit.exit_code, exit.signal), (137, Some(9)));
    let mut again = node.container("sleeper");
    again.attempt = 1;
    let id = node.run(&pod, &again).await;
    node.assert_runs(&id).await;
}

async fn mounts_are_the_guests_tree_and_read_only_holds() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let host = node.directory("volume");
    std::fs::write(host.join("given"), "from the host\n").unwrap();
    let mut config = node.container("files");
    config.args = vec!["wait".into()];
    config.mounts = vec![
        harness::mount("/data", &host, false),
        harness::mount("/fixed", &host, true),
        harness::mount("/etc/one-file", &host.join("given"), true),
    ];
    let id = node.run(&pod, &config).await;
    assert_eq!(
        node.runtime.container_status(&id).await.unwrap().warnings,
        Vec::<String>::new()
    );
    for (command, code, stdout) in [
        (&["read", "/data/given"][..], 0, "from the host\n"),
        (&["read", "/etc/one-file"], 0, "from the host\n"),
        (&["write", "/data/made", "by the guest"], 0, ""),
        (&["write", "/fixed/made", "nothing"], 1, ""),
        (&["write", "/etc/one-file", "nothing"], 1, ""),
        (&["write", "/new", "nothing"], 1, ""),
        (&["list", "/"], 0, "data\netc\nfixed\n"),
        (&["read", "/data/../../../../../etc/passwd"], 1, ""),
    ] {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let answer = node
            .runtime
            .exec_sync(&id, &command, Duration::from_secs(20))
            .await
            .unwrap();
        assert_eq!(
            (
                answer.exit_code,
                String::from_utf8_lossy(&answer.stdout).as_ref()
            ),
            (code, stdout),
            "{command:?}"
        );
    }
    assert_eq!(
        std::fs::read_to_string(host.join("made")).unwrap(),
        "by the guest"
    );
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(host.join("made")).unwrap());
    assert_eq!(owner, 0, "the guest stands for root on mapped file systems");
}

async fn an_http_component_is_served_and_a_trap_costs_one_request() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("http_hello");
    config.annotations = vec![("wherry.dev/http-port".into(), "8081".into())];
    let id = node.run(&pod, &config).await;
    for _ in 0..2 {
        assert!(
            node.http(&pod, 8081, "/a")
                .await
                .ends_with("hello from wasm: /a\n")
        );
        assert!(
            node.http(&pod, 8081, "/trap")
                .await
                .starts_with("HTTP/1.1 500 ")
        );
    }
    node.assert_runs(&id).await;
    let stream = node.runtime.port_forward(&pod, 8081).await.unwrap();
    assert!(
        harness::http_over(stream, "/forwarded")
            .await
            .ends_with("/forwarded\n")
    );
    let log = || std::fs::read_to_string(&config.log_path).unwrap();
    eventually("requests are logged", async || {
        log().contains(" stdout F request for /forwarded")
    })
    .await;
    let exec = node
        .runtime
        .exec_sync(&id, &["x".into()], Duration::from_secs(5))
        .await;
    assert!(
        matches!(exec, Err(RuntimeError::Unsupported(_))),
        "{exec:?}"
    );
    node.runtime
        .stop_container(&id, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(node.exited(&id).await.exit_code, 0);
}

async fn an_http_component_of_wasi_0_3_is_served() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("http_hello_p3");
    config.annotations = vec![("wherry.dev/http-port".into(), "80".into())];
    let id = node.run(&pod, &config).await;
    for _ in 0..2 {
        let answer = node.http(&pod, 80, "/a").await;
        assert!(answer.ends_with("hello from wasm: /a\n"), "{answer}");
        assert!(
            node.http(&pod, 80, "/trap")
                .await
                .starts_with("HTTP/1.1 500 ")
        );
    }
    eventually("instances end with their answers", async || {
        node.runtime
            .container_stats(&id)
            .await
            .unwrap()
            .memory_usage_bytes
            == 0
    })
    .await;
}

async fn a_guests_own_requests_come_from_the_pod() {
    let node = Node::new().await;
    let (pod, other) = (node.pod("default").await, node.pod("default").await);
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut config = node.container("http-get");
    config.args = vec![format!("{}:{port}", other.ips[0]), "/path".into()];
    let id = node.run(&pod, &config).await;
    let (mut stream, peer) = listener.accept().await.unwrap();
    assert_eq!(peer.ip(), pod.ips[0]);
    let mut request = vec![0; 4096];
    let read = stream.read(&mut request).await.unwrap();
    let request = String::from_utf8_lossy(&request[..read]).into_owned();
    assert!(request.starts_with("GET /path HTTP/1.1\r\n"), "{request}");
    stream
        .write_all(b"HTTP/1.1 203 Fine\r\nContent-Length: 3\r\n\r\nabc")
        .await
        .unwrap();
    assert_eq!(node.exited(&id).await.exit_code, 0);
    assert!(
        std::fs::read_to_string(&config.log_path)
            .unwrap()
            .ends_with(" stdout P 203 abc\n")
    );
    // The node's loopback is not the pod's.
    let local = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    config.args[0] = local.local_addr().unwrap().to_string();
    config.attempt = 1;
    let id = node.run(&pod, &config).await;
    assert_eq!(node.exited(&id).await.exit_code, 1);
}

async fn a_taken_port_is_an_error_at_start() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let _taken = std::net::TcpListener::bind((pod.ips[0], 8080)).unwrap();
    let id = node
        .runtime
        .create_container(&pod, &node.container("http_hello"))
        .await
        .unwrap();
    let error = node
        .runtime
        .start_container(&id)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("listen {}:8080", pod.ips[0])) && error.contains("in use"),
        "{error}"
    );
}

async fn a_confined_pod_has_its_own_loopback_and_address() {
    let node = Node::new().await;
    let (pod, other) = (node.pod("default").await, node.pod("default").await);
    let mut config = node.container("tcp");
    config.args = ["serve", "0.0.0.0:7000", "it is me"]
        .map(String::from)
        .to_vec();
    let server = node.run(&pod, &config).await;
    let log = || std::fs::read_to_string(&config.log_path).unwrap();
    let ip = pod.ips[0];
    eventually("it listens", async || {
        log().contains(&format!("listening on {ip}:7000"))
    })
    .await;
    // A port on the node's own loopback, which no confined pod may reach.
    let _node = std::net::TcpListener::bind("127.0.0.1:7001").unwrap();
    let mut elsewhere = node.container("tcp");
    elsewhere.args = ["serve", "127.0.0.1:7002", "other"]
        .map(String::from)
        .to_vec();
    let client = node.run(&other, &elsewhere).await;
    let get = async |id, address: String| {
        let answer = node
            .runtime
            .exec_sync(id, &["get".into(), address], Duration::from_secs(20))
            .await
            .unwrap();
        (answer.exit_code, String::from_utf8(answer.stdout).unwrap())
    };
    assert_eq!(
        get(&server, "127.0.0.1:7000".into()).await,
        (0, "it is me\n".into())
    );
    assert_eq!(
        get(&server, "localhost:7000".into()).await,
        (0, "it is me\n".into())
    );
    assert_eq!(
        get(&client, format!("{ip}:7000")).await,
        (0, "it is me\n".into())
    );
    assert_eq!(
        get(&client, "127.0.0.1:7000".into()).await.0,
        1,
        "another pod's loopback is not ours"
    );
    assert_eq!(
        get(&client, "127.0.0.1:7001".into()).await.0,
        1,
        "nor is the node's"
    );
    assert!(
        log().contains(&format!("connection from {}:", other.ips[0])),
        "{}",
        log()
    );
    // Addresses that are not the pod's.
    for address in [other.ips[0].to_string(), "[::]".into(), "[::1]".into()] {
        let mut config = node.container("tcp");
        config.name = address.clone();
        config.args = vec!["serve".into(), format!("{address}:7003"), "x".into()];
        let id = node.run(&pod, &config).await;
        assert_eq!(node.exited(&id).await.exit_code, 1, "{address}");
    }
}

async fn a_component_of_wasi_0_3_runs_and_its_sockets_are_confined() {
    let node = Node::new().await;
    let (pod, other) = (node.pod("default").await, node.pod("default").await);
    let mut config = node.container("tcp_p3");
    config.args = ["serve", "0.0.0.0:7100", "it is me"]
        .map(String::from)
        .to_vec();
    let server = node.run(&pod, &config).await;
    let log = || std::fs::read_to_string(&config.log_path).unwrap();
    let ip = pod.ips[0];
    eventually("it listens", async || {
        log().contains(&format!("listening on {ip}:7100"))
    })
    .await;
    config.args = ["serve", "127.0.0.1:7101", "other"]
        .map(String::from)
        .to_vec();
    let client = node.run(&other, &config).await;
    let get = async |id, address: String| {
        let answer = node
            .runtime
            .exec_sync(id, &["get".into(), address], Duration::from_secs(20))
            .await
            .unwrap();
        (answer.exit_code, String::from_utf8(answer.stdout).unwrap())
    };
    assert_eq!(
        get(&server, "127.0.0.1:7100".into()).await,
        (0, "it is me\n".into())
    );
    assert_eq!(
        get(&client, format!("{ip}:7100")).await,
        (0, "it is me\n".into())
    );
    assert_eq!(get(&client, "127.0.0.1:7100".into()).await.0, 1);
    assert!(
        log().contains(&format!("connection from {}:", other.ips[0])),
        "{}",
        log()
    );
    let foreign = ["serve".into(), format!("{ip}:7102"), "x".into()];
    let answer = node
        .runtime
        .exec_sync(&client, &foreign, Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(answer.exit_code, 1, "another pod's address");
}

async fn a_pod_in_a_namespace_is_served_inside_it() {
    let node = Node::new().await;
    let namespace = harness::NetworkNamespace::new();
    let mut pod = node.pod("default").await;
    pod.network = SandboxNetwork::Namespace {
        path: namespace.path(),
    };
    pod.handler = "oci".into();
    let id = node.run(&pod, &node.container("http_hello")).await;
    let outside: IpAddr = "127.0.0.1".parse().unwrap();
    assert!(
        tokio::net::TcpStream::connect((outside, 8080))
            .await
            .is_err()
    );
    let stream = node.runtime.port_forward(&pod, 8080).await.unwrap();
    assert!(
        harness::http_over(stream, "/inside")
            .await
            .ends_with("/inside\n")
    );
    node.runtime.remove_container(&id).await.unwrap();
    eventually("its worker ends with its last container", async || {
        node.workers() == 0
    })
    .await;
}

async fn stdin_is_attached_and_ends_with_the_client() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("cat");
    config.stdin = true;
    config.stdin_once = true;
    let id = node.run(&pod, &config).await;
    let request = AttachRequest {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut session = node.runtime.attach(&id, &request).await.unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"some text\n")
        .await
        .unwrap();
    let mut answer = [0; 10];
    session
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut answer)
        .await
        .unwrap();
    assert_eq!(&answer, b"some text\n");
    session.stdin = None;
    assert_eq!(session.exit.await.unwrap(), 0);
    assert!(
        std::fs::read_to_string(&config.log_path)
            .unwrap()
            .ends_with(" stdout F some text\n")
    );
}

async fn an_exec_streams_both_ways_and_ends_when_dropped() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("cat");
    config.stdin = true;
    let id = node.run(&pod, &config).await;
    let request = ExecRequest {
        command: vec!["cat".into()],
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut session = node.runtime.exec(&id, &request).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let write = tokio::spawn(async move {
        for n in 0..20_000 {
            stdin
                .write_all(format!("{n:09}\n").as_bytes())
                .await
                .unwrap();
        }
    });
    let mut answer = String::new();
    session
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut answer)
        .await
        .unwrap();
    write.await.unwrap();
    assert_eq!(answer.len(), 200_000);
    assert!(
        answer
            .lines()
            .enumerate()
            .all(|(n, line)| line == format!("{n:09}"))
    );
    assert_eq!(session.exit.await.unwrap(), 0);

    let session = node.runtime.exec(&id, &request).await.unwrap();
    let instances = async || {
        node.runtime
            .container_stats(&id)
            .await
            .unwrap()
            .process_count
    };
    eventually("the exec runs beside the app", async || {
        instances().await == 2
    })
    .await;
    drop(session);
    eventually("and is gone with its session", async || {
        instances().await == 1
    })
    .await;
}

async fn a_terminal_has_line_ends_echo_and_keys() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let id = node.run(&pod, &node.container("sleeper")).await;
    let mut config = node.container("cat");
    config.stdin = true;
    config.tty = true;
    let app = node.run(&pod, &config).await;
    let request = ExecRequest {
        command: vec!["cat".into()],
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let talk = async |id, keys: &[u8]| {
        let mut session = node.runtime.exec(id, &request).await.unwrap();
        assert!(session.resize.is_some() && session.stderr.is_none());
        session
            .stdin
            .as_mut()
            .unwrap()
            .write_all(keys)
            .await
            .unwrap();
        let mut screen = String::new();
        session
            .stdout
            .as_mut()
            .unwrap()
            .read_to_string(&mut screen)
            .await
            .unwrap();
        (session.exit.await.unwrap(), screen)
    };
    assert_eq!(talk(&app, b"hi\r\x04").await, (0, "hi\r\nhi\r\n".into()));
    assert_eq!(talk(&id, b"\x03").await.0, 130);
    let request = AttachRequest {
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let mut session = node.runtime.attach(&app, &request).await.unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"\x03")
        .await
        .unwrap();
    assert_eq!(session.exit.await.unwrap(), 130);
}

async fn what_is_no_module_or_imports_too_much_is_refused_by_name() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let core_import: &[u8] =
        b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x10\x01\x08no-where\x03fun\0\0";
    for (name, content, says) in [
        (
            "truncated",
            &b"\0asm\x01\0\0\0\x01\xff"[..],
            "cannot run as Wasm",
        ),
        ("importing", core_import, "no-where"),
        ("without-start", b"\0asm\x01\0\0\0", "_start"),
        ("empty-component", b"\0asm\x0d\0\x01\0", "wasi:cli/run"),
    ] {
        let config = node.container_of(name, content).await;
        match node.runtime.create_container(&pod, &config).await {
            Err(RuntimeError::InvalidArgument(message)) => {
                assert!(message.contains(says), "{name}: {message}")
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(node.runtime.list_containers().await.unwrap(), []);
}

async fn a_log_is_rotated_and_only_so_many_are_kept() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("ticker");
    config.args = vec!["0".into()];
    config.log_rotation = LogRotation {
        size_bytes_max: 20_000,
        files_max: 3,
    };
    let id = node.run(&pod, &config).await;
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(config.log_path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    };
    let first = std::cell::RefCell::new(None);
    eventually("an old file is dropped", async || {
        let files = files();
        let oldest = files.get(1).cloned();
        files.len() == 3
            && oldest.is_some()
            && first
                .replace(oldest.clone())
                .is_some_and(|seen| Some(seen) != oldest)
    })
    .await;
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    let mut ticks = Vec::new();
    let kept = files();
    for file in kept[1..].iter().chain(&kept[..1]) {
        for line in std::fs::read_to_string(file).unwrap().lines() {
            ticks.push(line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
        }
    }
    assert!(
        ticks.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "lines were lost between files"
    );
}

async fn calls_can_be_repeated() {
    let mut node = Node::new().await;
    let pod = node.pod("default").await;
    let again = node.runtime.run_pod_sandbox(&pod.config).await.unwrap();
    assert_eq!(again.id, pod.id);
    let config = node.container("sleeper");
    let (one, two) = tokio::join!(
        node.runtime.create_container(&pod, &config),
        node.runtime.create_container(&pod, &config)
    );
    let id = one.unwrap();
    assert_eq!(two.unwrap(), id);
    node.restart().await;
    assert_eq!(
        node.runtime.create_container(&pod, &config).await.unwrap(),
        id
    );
    for _ in 0..2 {
        node.runtime.start_container(&id).await.unwrap();
    }
    for _ in 0..2 {
        node.runtime
            .stop_container(&id, Duration::ZERO)
            .await
            .unwrap();
    }
    node.runtime.start_container(&id).await.unwrap();
    assert!(matches!(
        node.runtime.container_status(&id).await.unwrap().state,
        ContainerState::Exited(_)
    ));
    for _ in 0..2 {
        node.runtime.remove_container(&id).await.unwrap();
        node.runtime.stop_pod_sandbox(&pod.id).await.unwrap();
    }
    for _ in 0..2 {
        node.runtime.remove_pod_sandbox(&pod.id).await.unwrap();
    }
    assert!(
        node.runtime
            .container_status(&id)
            .await
            .unwrap_err()
            .is_not_found()
    );
    assert_eq!(node.runtime.list_pod_sandboxes().await.unwrap(), []);
}

async fn stop_ends_a_guest_that_cannot_listen_and_drains_one_that_can() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let deaf = node.run(&pod, &node.container("sleeper")).await;
    let started = std::time::Instant::now();
    node.runtime
        .stop_container(&deaf, Duration::from_secs(3600))
        .await
        .unwrap();
    assert!(started.elapsed() < Duration::from_secs(60));
    let exit = node.exited(&deaf).await;
    assert_eq!((exit.exit_code, exit.signal), (143, Some(15)));
    let mut config = node.container("cat");
    config.stdin = true;
    let listening = node.run(&pod, &config).await;
    node.runtime
        .stop_container(&listening, Duration::from_secs(30))
        .await
        .unwrap();
    assert_eq!(
        node.exited(&listening).await.exit_code,
        0,
        "its input ended and it returned"
    );
    let created = node
        .runtime
        .create_container(&pod, &node.container("spin"))
        .await
        .unwrap();
    node.runtime
        .stop_container(&created, Duration::from_secs(30))
        .await
        .unwrap();
    assert_eq!(node.exited(&created).await.started_at, None);
}

async fn limits_change_while_it_runs() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let mut config = node.container("ticker");
    config.resources.memory_bytes_max = Some(64 << 20);
    let id = node.run(&pod, &config).await;
    let tight = LinuxResources {
        memory_bytes_max: Some(1),
        ..LinuxResources::default()
    };
    node.runtime
        .update_container_resources(&id, &tight)
        .await
        .unwrap();
    // Runs on with what it has; a second instance would be too much.
    let _ = node
        .runtime
        .exec_sync(&id, &["1".into()], Duration::from_secs(20))
        .await;
    assert!(node.exited(&id).await.oom_killed);
}

async fn a_worker_has_no_privileges_left() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    node.run(&pod, &node.container("sleeper")).await;
    for pid in node.worker_processes() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.split_whitespace().next().unwrap().to_owned()
        };
        assert_eq!(field("Uid:"), "65532");
        assert_eq!(field("Gid:"), "65532");
        // CAP_NET_BIND_SERVICE and nothing else.
        assert_eq!(field("CapEff:"), "0000000000000400");
        assert_eq!(field("CapPrm:"), "0000000000000400");
        assert_eq!(field("CapInh:"), "0000000000000000");
        assert_eq!(field("CapAmb:"), "0000000000000000");
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2");
        let root = std::fs::read_link(format!("/proc/{pid}/root")).unwrap();
        assert!(root.ends_with("jail"), "{}", root.display());
        let descriptors: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
            .filter(|path| path.is_dir())
            .collect();
        assert_eq!(
            descriptors,
            Vec::<std::path::PathBuf>::new(),
            "no directory of the host"
        );
    }
}

async fn what_was_half_made_or_half_removed_is_finished() {
    let mut node = Node::new().await;
    let pod = node.pod("default").await;
    let kept = node.run(&pod, &node.container("sleeper")).await;
    let mut other = node.container("sleeper");
    other.name = "removed".into();
    let removed = node.run(&pod, &other).await;
    other.name = "made".into();
    let made = node.runtime.create_container(&pod, &other).await.unwrap();
    node.stop_agent();
    let containers = node.root().join("root/wasm/containers");
    // Its record went first: the worker still runs it.
    std::fs::remove_dir_all(containers.join(removed.as_str())).unwrap();
    // A directory made and nothing in it, a sandbox likewise, a worker no further than its directory.
    std::fs::create_dir(containers.join("half")).unwrap();
    std::fs::create_dir(node.root().join("root/wasm/sandboxes/half")).unwrap();
    std::fs::create_dir(node.root().join("run/wasm/workers/half")).unwrap();
    node.start_agent().await;
    let mut ids: Vec<_> = node
        .runtime
        .list_containers()
        .await
        .unwrap()
        .into_iter()
        .map(|status| status.id)
        .collect();
    ids.sort();
    let mut expected = [kept.clone(), made.clone()];
    expected.sort();
    assert_eq!(ids, expected);
    assert_eq!(node.runtime.list_pod_sandboxes().await.unwrap().len(), 1);
    node.assert_runs(&kept).await;
    node.runtime.start_container(&made).await.unwrap();
    node.assert_runs(&made).await;
    eventually("what was half made is gone", async || {
        !node.root().join("run/wasm/workers/half").exists() && !containers.join("half").exists()
    })
    .await;
    let stats = node.runtime.container_stats(&kept).await.unwrap();
    assert!(stats.memory_usage_bytes > 0);
    node.kill_workers();
    node.exited(&kept).await;
    assert!(node.exited(&made).await.started_at.is_some());
}

async fn tenants_do_not_share_a_worker_and_a_full_one_gets_a_second() {
    let node = Node::with(|config| config.instances_per_worker_max = 2).await;
    let (blue, red) = (node.pod("blue").await, node.pod("red").await);
    let mut alone = node.pod("blue").await;
    alone.config.isolated = true;
    let sleeper = |name: &str| {
        let mut config = node.container("sleeper");
        config.name = name.into();
        config
    };
    node.run(&blue, &sleeper("a")).await;
    node.run(&blue, &sleeper("b")).await;
    assert_eq!(node.workers(), 1);
    node.run(&blue, &sleeper("c")).await;
    assert_eq!(node.workers(), 2, "the first is full");
    node.run(&red, &sleeper("a")).await;
    assert_eq!(node.workers(), 3, "another tenant");
    let id = node.run(&alone, &sleeper("a")).await;
    assert_eq!(node.workers(), 4, "an isolated pod");
    node.runtime.remove_container(&id).await.unwrap();
    eventually("an isolated pod's worker ends with it", async || {
        node.workers() == 3
    })
    .await;
}

async fn an_agent_killed_anywhere_leaks_nothing() {
    let mut node = Node::with(|config| config.worker_idle_max = Duration::ZERO).await;
    let stays = node.pod("default").await;
    let survivor = node.run(&stays, &node.container("sleeper")).await;
    let before = node.runtime.container_status(&survivor).await.unwrap();
    let config = node.container("ticker");
    for kill in 0..60u64 {
        let mut pod = stays.clone();
        pod.config.uid = format!("kill-{kill}").into();
        // Every third pod has a worker of its own, so that workers come and go as well.
        pod.config.isolated = kill % 3 == 0;
        let config = config_of(&config, kill);
        node.spawn(move |runtime| async move {
            let made = runtime.run_pod_sandbox(&pod.config).await?;
            pod.id = made.id;
            let id = runtime.create_container(&pod, &config).await?;
            runtime.start_container(&id).await?;
            runtime.stop_container(&id, Duration::ZERO).await?;
            runtime.remove_container(&id).await?;
            runtime.remove_pod_sandbox(&pod.id).await
        });
        tokio::time::sleep(Duration::from_micros(kill * 700)).await;
        node.restart().await;
        assert_eq!(
            node.runtime.container_status(&survivor).await.unwrap(),
            before
        );
    }
    node.assert_runs(&survivor).await;
    for status in node.runtime.list_containers().await.unwrap() {
        node.runtime.remove_container(&status.id).await.unwrap();
    }
    for sandbox in node.runtime.list_pod_sandboxes().await.unwrap() {
        node.runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
    }
    let left = || {
        let places = [
            "run/wasm/workers",
            "root/wasm/exits",
            "root/wasm/containers",
            "root/wasm/sandboxes",
            "root/images/leases",
        ];
        let entries = |path: &str| std::fs::read_dir(node.root().join(path)).unwrap();
        let mut left: Vec<_> = places
            .iter()
            .flat_map(|path| entries(path))
            .map(|entry| entry.unwrap().path())
            .collect();
        left.extend(
            node.worker_processes()
                .iter()
                .map(|pid| format!("process {pid}").into()),
        );
        left
    };
    let start = std::time::Instant::now();
    while !left().is_empty() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "left: {:#?}",
            left()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn config_of(
    config: &wherry_runtime_api::ContainerConfig,
    n: u64,
) -> wherry_runtime_api::ContainerConfig {
    wherry_runtime_api::ContainerConfig {
        name: format!("ticker-{n}"),
        ..config.clone()
    }
}
