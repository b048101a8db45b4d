//! What a probe sees of its container from outside (tests/guests/log-probe).

use super::*;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("a_probe_reads_the_end_of_a_log_where_granted", || {
            block_on(a_probe_reads_the_end_of_a_log_where_granted());
            Ok(())
        }),
        Trial::test("a_probe_knows_what_its_container_uses", || {
            block_on(a_probe_knows_what_its_container_uses());
            Ok(())
        }),
    ]
}

/// A container with a log, and how many lines of it were asked for.
#[derive(Default)]
struct Logged {
    lines: Option<Vec<String>>,
    usage: Option<ContainerUsage>,
    asked: Mutex<Vec<u32>>,
}

#[async_trait]
impl Exec for Logged {
    async fn exec(&self, _: &[String], _: Duration) -> Result<(i32, Vec<u8>), Option<String>> {
        Err(Some("no commands here".into()))
    }

    async fn usage(&self) -> Option<ContainerUsage> {
        self.usage
    }

    async fn log_tail(&self, lines: u32) -> Result<Vec<String>, String> {
        self.asked.lock().unwrap().push(lines);
        self.lines.clone().ok_or_else(|| "no such container".into())
    }
}

fn log_probe(logs: bool) -> PluginSpec {
    PluginSpec {
        digest: "sha256:log-probe".into(),
        grants: Grants {
            logs,
            ..Grants::default()
        },
        ..spec("log-probe")
    }
}

async fn check(node: &Node, container: &Logged, argument: &str) -> ProbeOutcome {
    let time = Duration::from_secs(10);
    let arguments = [argument.to_owned()];
    node.host
        .check("log-probe", &arguments, &target(), time, container)
        .await
}

async fn a_probe_reads_the_end_of_a_log_where_granted() {
    let node = Node::open();
    let wasm = guest_named("log_probe");
    let refused = node.host.install(log_probe(false), &wasm).await;
    let why = refused.unwrap_err();
    assert_eq!(why.reason(), "GrantsMissing");
    assert!(why.to_string().ends_with("needs the grant logs"), "{why}");
    node.host.install(log_probe(true), &wasm).await.unwrap();
    let logged = |lines: &[&str]| Logged {
        lines: Some(lines.iter().map(|line| (*line).to_owned()).collect()),
        ..Logged::default()
    };
    for (lines, result, told) in [
        (&[][..], ProbeResult::Success, ""),
        (&["started", "ready"], ProbeResult::Success, "started|ready"),
        (
            &["ready", "ERROR: gone"],
            ProbeResult::Failure,
            "ready|ERROR: gone",
        ),
    ] {
        let container = logged(lines);
        let said = check(&node, &container, "--lines=7").await;
        assert_eq!(said, outcome(result, told));
        assert_eq!(*container.asked.lock().unwrap(), [7]);
    }
    // More than there is room for is not even asked for.
    let container = logged(&["x"]);
    check(&node, &container, "--lines=4000000000").await;
    assert_eq!(*container.asked.lock().unwrap(), [100]);
    let said = check(&node, &Logged::default(), "--lines=1").await;
    assert_eq!(
        said,
        outcome(ProbeResult::Unknown, "plugin log-probe: no such container")
    );
}

async fn a_probe_knows_what_its_container_uses() {
    let node = Node::open();
    let wasm = guest_named("log_probe");
    node.host.install(log_probe(true), &wasm).await.unwrap();
    let container = Logged {
        usage: Some(ContainerUsage {
            cpu_nanoseconds: 1_500,
            memory_working_set_bytes: 4096,
        }),
        ..Logged::default()
    };
    let said = check(&node, &container, "--usage").await;
    assert_eq!(said, outcome(ProbeResult::Success, "1500 ns, 4096 bytes"));
    let said = check(&node, &Logged::default(), "--usage").await;
    assert_eq!(said, outcome(ProbeResult::Failure, "nothing is known"));
    assert!(container.asked.lock().unwrap().is_empty());
}
