//! The plugin host with a real worker, compiler and guest (tests/guests/probe-plugin, compiled by
//! tests/run.sh). The program starts itself as worker and compiler.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "plugins/builtins.rs"]
mod builtins;
#[path = "plugins/contract.rs"]
mod contract;
#[path = "plugins/filesystems.rs"]
mod filesystems;
#[path = "plugins/mounters.rs"]
mod mounters;
#[path = "plugins/observations.rs"]
mod observations;
#[path = "plugins/populators.rs"]
mod populators;
#[path = "plugins/provisioners.rs"]
mod provisioners;

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use libtest_mimic::{Arguments, Trial};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use wherry_plugin_host::{
    ContainerUsage, Exec, FailurePolicy, Grants, HostConfig, Limits, PluginHost, PluginSpec,
    ProbeOutcome, ProbeResult, ProbeTarget,
};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|arg| arg.to_str()) {
        Some("plugin-worker") => return wherry_plugin_worker::main(args.collect()),
        Some("volume-server") => return wherry_plugin_fuse::main(args.collect()),
        Some("wasm-compile") => return wherry_wasm_engine::compile::main(args.collect()),
        _ => {}
    }
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($name), || { block_on($name()); Ok(()) })),*]
        };
    }
    let shared = builtins::Shared::open();
    let mut trials = trials![
        a_guest_says_what_it_saw,
        a_guest_may_ask_about_its_target,
        a_guest_connects_to_the_pod_and_nowhere_else,
        a_guest_speaks_http_to_the_pod,
        a_command_is_run_by_the_agent_and_only_where_granted,
        a_silent_pod_is_a_failure_in_time,
        bad_plugins_are_refused_by_reason,
        bad_calls_cost_the_call_and_say_what_happened,
        a_bad_plugin_slows_no_other,
        what_keeps_killing_is_set_apart_and_others_are_not,
        failure_policies_decide_what_no_outcome_means,
        a_killed_worker_is_started_again,
        a_dropped_check_ends_in_the_worker,
        a_worker_is_in_a_cgroup_of_its_own,
        a_worker_has_no_privileges_left,
    ];
    trials.extend(builtins::trials(&shared));
    trials.extend(contract::trials());
    trials.extend(filesystems::trials());
    trials.extend(mounters::trials());
    trials.extend(provisioners::trials());
    trials.extend(observations::trials());
    trials.extend(populators::trials());
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    // Not by `exit`, which would leave its directory behind.
    drop(shared);
    conclusion.exit_code()
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

/// Commands succeed with their last word as output, those of one word fail.
#[derive(Default)]
struct FakeExec(Mutex<Vec<Vec<String>>>);

#[async_trait]
impl Exec for FakeExec {
    async fn exec(
        &self,
        command: &[String],
        _: Duration,
    ) -> Result<(i32, Vec<u8>), Option<String>> {
        self.0.lock().unwrap().push(command.to_vec());
        match command {
            [_] => Ok((7, Vec::new())),
            [.., last] => Ok((0, last.clone().into_bytes())),
            [] => Err(Some("no command".into())),
        }
    }
}

/// The first command succeeds, and no other one ends.
#[derive(Default)]
struct ExecOnce(AtomicBool);

#[async_trait]
impl Exec for ExecOnce {
    async fn exec(&self, _: &[String], _: Duration) -> Result<(i32, Vec<u8>), Option<String>> {
        if self.0.swap(true, Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok((0, Vec::new()))
    }
}

struct Node {
    host: Arc<PluginHost>,
    config: HostConfig,
    _directory: tempfile::TempDir,
}

fn guest() -> PathBuf {
    guest_named("probe_plugin")
}

fn guest_named(name: &str) -> PathBuf {
    let guests = std::env::var_os("WHERRY_GUESTS").expect("WHERRY_GUESTS: tests/run.sh sets it");
    let release = Path::new(&guests).join("wasm32-wasip2/release");
    release.join(name).with_extension("wasm")
}

fn spec(name: &str) -> PluginSpec {
    PluginSpec {
        name: name.into(),
        digest: "sha256:probe-plugin".into(),
        grants: Grants {
            exec: true,
            ..Grants::default()
        },
        limits: Limits::default(),
        failure_policy: FailurePolicy::default(),
        config: Default::default(),
    }
}

fn target() -> ProbeTarget {
    ProbeTarget {
        ip: Some(LOOPBACK),
        ports: [("web".to_owned(), 8080)].into(),
        pod: "p".into(),
        namespace: "ns".into(),
        container: "c".into(),
        labels: [("app".to_owned(), "shop".to_owned())].into(),
        restart_count: 3,
        ..ProbeTarget::default()
    }
}

impl Node {
    fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // The worker's user has to get to its jail.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), readable).unwrap();
        let exe = std::env::current_exe().unwrap();
        let config = HostConfig::new(directory.path(), &directory.path().join("run"), exe);
        Self {
            host: PluginHost::open(config.clone()).unwrap(),
            config,
            _directory: directory,
        }
    }

    async fn with(spec: PluginSpec) -> Self {
        let node = Self::open();
        node.host.install(spec, &guest()).await.unwrap();
        node
    }

    async fn check_with(&self, name: &str, arguments: &[&str], timeout: Duration) -> ProbeOutcome {
        let arguments: Vec<_> = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.host
            .check(name, &arguments, &target(), timeout, &FakeExec::default())
            .await
    }

    async fn check(&self, arguments: &[&str]) -> ProbeOutcome {
        self.check_with("p", arguments, Duration::from_secs(10))
            .await
    }
}

fn outcome(result: ProbeResult, message: &str) -> ProbeOutcome {
    ProbeOutcome::new(result, message)
}

async fn a_guest_says_what_it_saw() {
    let node = Node::with(spec("p")).await;
    for (word, result) in [
        ("succeed", ProbeResult::Success),
        ("fail", ProbeResult::Failure),
        ("unknown", ProbeResult::Unknown),
    ] {
        assert_eq!(node.check(&[word, "why"]).await, outcome(result, "why"));
    }
    let said = node.check(&["nonsense"]).await;
    assert_eq!(said.result, ProbeResult::Unknown);
    assert_eq!(
        said.message,
        "plugin p: invalid arguments: no word of mine: nonsense"
    );
    let stats = node.host.stats("p").unwrap();
    assert_eq!((stats.calls, stats.errors, stats.traps), (4, 1, 0));
    assert!(stats.memory_bytes_peak > 0);
    let absent = node.check_with("absent", &[], Duration::from_secs(1)).await;
    assert_eq!(
        absent,
        outcome(
            ProbeResult::Unknown,
            "plugin absent is not installed on this node"
        )
    );
}

async fn a_guest_may_ask_about_its_target() {
    let node = Node::with(spec("p")).await;
    let said = node.check(&["target"]).await;
    assert_eq!(
        said.message,
        "127.0.0.1 ns/p/c web=Some(8080) 81=Some(81) absent=None app=Some(\"shop\") note=None restarts=3"
    );
    assert_eq!(node.check(&["log"]).await.result, ProbeResult::Success);
}

/// Answers what comes with `answer`; gives the port.
async fn server(ip: &str, answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut bytes = [0; 1024];
                let _ = stream.read(&mut bytes).await;
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    port
}

async fn a_guest_connects_to_the_pod_and_nowhere_else() {
    let node = Node::with(spec("p")).await;
    let port = server("127.0.0.1", b"+PONG\r\n").await.to_string();
    assert_eq!(
        node.check(&["tcp", "", &port]).await,
        outcome(ProbeResult::Success, "PONG")
    );
    let elsewhere = server("127.0.0.2", b"+PONG\r\n").await;
    let said = node
        .check(&["tcp", "127.0.0.2", &elsewhere.to_string()])
        .await;
    assert_eq!(
        said.message,
        format!("plugin p: not granted: 127.0.0.2:{elsewhere} needs the grant hosts")
    );
    assert_eq!(node.host.stats("p").unwrap().denied, 1);
    let mut granted = spec("p");
    granted.grants.hosts = vec![format!("127.0.0.2:{elsewhere}"), "localhost".into()];
    node.host.install(granted, &guest()).await.unwrap();
    let said = node
        .check(&["tcp", "127.0.0.2", &elsewhere.to_string()])
        .await;
    assert_eq!(said, outcome(ProbeResult::Success, "PONG"));
    let said = node.check(&["tcp", "localhost", &port]).await;
    assert_eq!(said, outcome(ProbeResult::Success, "PONG"));
    let closed = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let said = node.check(&["tcp", "", &port.to_string()]).await;
    assert_eq!(said.result, ProbeResult::Failure);
    assert!(said.message.contains("connection refused"), "{said:?}");
}

async fn a_guest_speaks_http_to_the_pod() {
    let node = Node::with(spec("p")).await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n01234567890123456789";
    let port = server("127.0.0.1", answer).await.to_string();
    assert_eq!(
        node.check(&["http", "", &port]).await,
        outcome(ProbeResult::Success, "200 0123456789012345…")
    );
    let port = server("127.0.0.1", b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await;
    let said = node.check(&["http", "", &port.to_string()]).await;
    assert_eq!(said, outcome(ProbeResult::Failure, "503 "));
    let port = server("127.0.0.1", b"nonsense\r\n\r\n").await;
    let said = node.check(&["http", "", &port.to_string()]).await;
    assert!(said.message.contains("MalformedResponse"), "{said:?}");
}

async fn a_command_is_run_by_the_agent_and_only_where_granted() {
    let node = Node::with(spec("p")).await;
    assert_eq!(
        node.check(&["exec", "echo", "hi"]).await,
        outcome(ProbeResult::Success, "hi")
    );
    let said = node.check(&["exec", "false"]).await;
    assert_eq!(said, outcome(ProbeResult::Failure, "exit 7"));
    let mut without = spec("q");
    without.grants.exec = false;
    let refused = node.host.install(without, &guest()).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "plugin q imports wherry:plugin/exec@0.1.2: needs the grant exec"
    );
    assert_eq!(refused.reason(), "GrantsMissing");
    // Who calls it is told why it is not there.
    node.host.refuse("q", refused.to_string());
    let said = node.check_with("q", &[], Duration::from_secs(1)).await;
    assert_eq!(
        said,
        outcome(
            ProbeResult::Unknown,
            &format!("plugin q cannot be called on this node: {refused}")
        )
    );
    node.host.remove("q").await;
    let said = node.check_with("q", &[], Duration::from_secs(1)).await;
    assert_eq!(said.message, "plugin q is not installed on this node");
}

async fn a_silent_pod_is_a_failure_in_time() {
    let node = Node::with(spec("p")).await;
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let said = node
        .check_with("p", &["tcp", "", &port], Duration::from_secs(1))
        .await;
    assert_eq!(said.result, ProbeResult::Failure);
    assert!(said.message.contains("time is up"), "{said:?}");
}

async fn bad_plugins_are_refused_by_reason() {
    let node = Node::open();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let guests = guest().parent().unwrap().to_owned();
    let core_module = [b"\0asm".as_slice(), &[1, 0, 0, 0]].concat();
    for (name, path, expected, reason) in [
        (
            "text",
            file("text", b"#!/bin/sh"),
            "not a Wasm binary",
            "NotAComponent",
        ),
        (
            "core",
            file("core", &core_module),
            "a core module",
            "NotAComponent",
        ),
        (
            "cut",
            file("cut", &std::fs::read(guest()).unwrap()[..4000]),
            "cannot run as Wasm",
            "NotAComponent",
        ),
        (
            "world",
            guests.join("hello.wasm"),
            "but not the function `check`",
            "UnknownWorld",
        ),
    ] {
        let mut spec = spec(name);
        spec.digest = format!("sha256:{name}");
        let error = node.host.install(spec, &path).await.unwrap_err();
        let why = error.to_string();
        assert!(why.contains(expected), "{name}: {why}");
        assert!(why.contains(name), "{name}: {why}");
        assert_eq!(error.reason(), reason, "{name}");
    }
}

async fn bad_calls_cost_the_call_and_say_what_happened() {
    let node = Node::with(spec("p")).await;
    let pid = node.host.worker_pid().await;
    for (word, expected) in [
        ("trap", "plugin p: trap: "),
        ("recurse", "plugin p: trap: "),
        ("allocate", "plugin p: more than 16384 KiB of memory"),
        ("not-utf8", "plugin p: trap: "),
        ("spin", "plugin p: more than 500 ms of CPU time"),
        ("spin-alone", "plugin p: more than 500 ms of CPU time"),
    ] {
        let said = node.check(&[word]).await;
        assert_eq!(said.result, ProbeResult::Unknown, "{word}: {said:?}");
        assert!(said.message.starts_with(expected), "{word}: {said:?}");
        assert_eq!(node.check(&["succeed"]).await.result, ProbeResult::Success);
    }
    let said = node.check(&["long"]).await;
    assert_eq!(
        (said.result, said.message.len()),
        (ProbeResult::Failure, 4096)
    );
    let said = node
        .check_with("p", &["wait"], Duration::from_secs(1))
        .await;
    assert_eq!(said.result, ProbeResult::Success, "{said:?}");
    assert_eq!(node.host.worker_pid().await, pid);
    let stats = node.host.stats("p").unwrap();
    assert_eq!((stats.traps, stats.limits_exceeded), (3, 3));
    assert!(stats.last_error.unwrap().1.contains("CPU time"));
}

async fn a_bad_plugin_slows_no_other() {
    let node = Node::with(spec("p")).await;
    let mut greedy = spec("greedy");
    greedy.limits.cpu_time_max = Duration::from_secs(60);
    node.host.install(greedy, &guest()).await.unwrap();
    let host = Arc::clone(&node.host);
    let spinning = tokio::spawn(async move {
        let calls = (0..4).map(|n| {
            let host = Arc::clone(&host);
            tokio::spawn(async move {
                let arguments = ["spin-alone".to_owned(), n.to_string()];
                let time = Duration::from_secs(3);
                host.check("greedy", &arguments, &target(), time, &FakeExec::default())
                    .await
            })
        });
        for call in calls.collect::<Vec<_>>() {
            let said = call.await.unwrap();
            let expected = "plugin greedy: no result after ";
            assert!(said.message.starts_with(expected), "{said:?}");
        }
    });
    while !spinning.is_finished() {
        let said = node
            .check_with("p", &["succeed"], Duration::from_secs(2))
            .await;
        assert_eq!(said.result, ProbeResult::Success, "{said:?}");
    }
    spinning.await.unwrap();
}

async fn what_keeps_killing_is_set_apart_and_others_are_not() {
    let node = Node::with(spec("p")).await;
    for _ in 0..4 {
        let said = node.check(&["trap"]).await;
        assert!(!said.message.contains("not tried"), "{said:?}");
    }
    let said = node.check(&["trap"]).await;
    assert!(
        said.message.ends_with("not tried again for 10 s"),
        "{said:?}"
    );
    let said = node.check(&["trap"]).await;
    assert!(
        said.message.contains("it kept killing the plugin"),
        "{said:?}"
    );
    let stats = node.host.stats("p").unwrap();
    assert_eq!((stats.calls, stats.not_made, stats.set_apart), (5, 1, 1));
    assert_eq!(node.check(&["succeed"]).await.result, ProbeResult::Success);
}

async fn failure_policies_decide_what_no_outcome_means() {
    for (policy, first, after) in [
        (
            FailurePolicy::Fail,
            ProbeResult::Failure,
            ProbeResult::Failure,
        ),
        (
            FailurePolicy::Ignore,
            ProbeResult::Unknown,
            ProbeResult::Unknown,
        ),
        (
            FailurePolicy::LastResult,
            ProbeResult::Unknown,
            ProbeResult::Success,
        ),
    ] {
        let mut spec = spec("p");
        spec.failure_policy = policy;
        let node = Node::with(spec).await;
        assert_eq!(node.check(&["trap"]).await.result, first, "{policy:?}");
        let exec = ExecOnce::default();
        for expected in [ProbeResult::Success, after] {
            let arguments = ["exec".to_owned(), "true".to_owned()];
            let time = Duration::from_secs(1);
            let said = node
                .host
                .check("p", &arguments, &target(), time, &exec)
                .await;
            assert_eq!(said.result, expected, "{policy:?} {said:?}");
        }
    }
}

async fn a_killed_worker_is_started_again() {
    let node = Node::with(spec("p")).await;
    assert_eq!(node.check(&["succeed"]).await.result, ProbeResult::Success);
    let first = node.host.worker_pid().await.unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first).unwrap());
    let host = Arc::clone(&node.host);
    let under_way = tokio::spawn(async move {
        let time = Duration::from_secs(20);
        host.check("p", &["wait".into()], &target(), time, &FakeExec::default())
            .await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let said = under_way.await.unwrap();
    assert!(said.message.contains("plugin worker: ended"), "{said:?}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.check(&["succeed"]).await.result != ProbeResult::Success {
        assert!(Instant::now() < deadline, "no new worker");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(node.host.worker_pid().await, Some(first));
    assert_eq!(node.host.worker_restarts(), 1);
}

async fn a_dropped_check_ends_in_the_worker() {
    let mut spec = spec("p");
    spec.limits.instances_max = 1;
    spec.limits.cpu_time_max = Duration::from_secs(60);
    let node = Node::with(spec).await;
    let spin = node.check_with("p", &["spin"], Duration::from_secs(30));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), spin)
            .await
            .is_err()
    );
    // The plugin's only instance is free again.
    assert_eq!(node.check(&["succeed"]).await.result, ProbeResult::Success);
    let cpu_ticks = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap()
    };
    let pid = node.host.worker_pid().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = cpu_ticks(pid);
        tokio::time::sleep(Duration::from_millis(300)).await;
        if cpu_ticks(pid) - before <= 3 {
            break;
        }
        assert!(Instant::now() < deadline, "the guest still spins");
    }
}

async fn a_worker_is_in_a_cgroup_of_its_own() {
    let mut node = Node::open();
    let name = format!("wherry-test-plugins-{}", std::process::id());
    let mut config = node.config.clone();
    config.cgroup = Some(name.clone());
    node.host = PluginHost::open(config).unwrap();
    node.host.install(spec("p"), &guest()).await.unwrap();
    let pid = node.host.worker_pid().await.unwrap();
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let is_there = |line: &&str| line.ends_with(&format!("/{name}"));
    let memory = cgroups
        .lines()
        .find(|line| line.contains("memory") || line.starts_with("0::"));
    assert!(memory.is_some_and(|line| is_there(&line)), "{cgroups}");
    assert_eq!(node.check(&["succeed"]).await.result, ProbeResult::Success);
    let all = wherry_cgroup::Cgroups::detect().unwrap();
    assert!(
        all.group(&name)
            .processes()
            .contains(&i32::try_from(pid).unwrap())
    );
    all.group(&name).remove().unwrap();
}

async fn a_worker_has_no_privileges_left() {
    let node = Node::with(spec("p")).await;
    let pid = node.host.worker_pid().await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("Uid:"), "65532");
    assert_eq!(field("Gid:"), "65532");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    for set in ["CapEff:", "CapPrm:", "CapInh:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    let root = std::fs::read_dir(format!("/proc/{pid}/root")).unwrap();
    assert_eq!(root.count(), 0);
}
