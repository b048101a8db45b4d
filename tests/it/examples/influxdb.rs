//! The InfluxDB pod: Debian's own InfluxDB 1.6.

use wherry_tests::{Nodes, eventually};

use crate::asking::curl_on;

/// Runs a statement; gives what the database said.
fn query(nodes: &Nodes, host: &str, statement: &str) -> Result<String, String> {
    let url = format!("http://{host}:8086/query?db=mydb");
    let words = ["--data-urlencode", &format!("q={statement}"), &url];
    curl_on(nodes, 1, &words)
}

fn write_point(nodes: &Nodes, host: &str, line: &str) {
    let url = format!("http://{host}:8086/write?db=mydb");
    let said = curl_on(nodes, 1, &["--data-binary", line, &url]);
    assert_eq!(said, Ok(String::new()));
}

fn wait_ping(nodes: &Nodes, host: &str) {
    eventually("InfluxDB answers", || {
        let url = format!("http://{host}:8086/ping");
        curl_on(nodes, 1, &["-o", "/dev/null", "-w", "%{http_code}", &url])
            .and_then(|code| if code == "204" { Ok(()) } else { Err(code) })
    });
}

fn pod_ip(nodes: &Nodes, ns: &str) -> String {
    nodes.field(ns, "pod/influxdb", ".status.podIP")
}

fn put_data_in(nodes: &Nodes, host: &str) {
    let said = query(nodes, host, "CREATE DATABASE mydb");
    assert_eq!(
        said.as_deref(),
        Ok("{\"results\":[{\"statement_id\":0}]}\n")
    );
    for line in [
        "cpu,host=a value=0.64 1434055562000000000",
        "cpu,host=b value=0.5 1434055563000000000",
    ] {
        write_point(nodes, host, line);
    }
    assert_is_there(nodes, host);
}

fn assert_is_there(nodes: &Nodes, host: &str) {
    let said = query(nodes, host, "SELECT sum(value) FROM cpu");
    assert!(
        said.as_ref().is_ok_and(|said| said.contains("1.14")),
        "{said:?}"
    );
}

pub(super) fn influxdb_plain_then_with_probes_then_with_limits(nodes: &Nodes, ns: &str) {
    nodes.apply_in(ns, include_str!("influxdb.yaml"));
    nodes.wait_ready(ns, "influxdb");
    let ip = pod_ip(nodes, ns);
    wait_ping(nodes, &ip);
    put_data_in(nodes, &ip);
    let said = nodes.k(ns, &["logs", "influxdb", "--tail=20"]);
    assert!(
        said.contains("[httpd]") || said.contains("Listening"),
        "{said}"
    );
    nodes.k(ns, &["delete", "pod", "influxdb"]);

    nodes.apply_in(ns, include_str!("influxdb-probes.yaml"));
    nodes.wait_ready(ns, "influxdb");
    // It is Ready because it answers: nobody has to wait for it.
    let ip = pod_ip(nodes, ns);
    put_data_in(nodes, &ip);
    // A server that ends is started again, in the same pod.
    let count = ".status.containerStatuses[0].restartCount";
    nodes.k(ns, &["exec", "influxdb", "--", "kill", "1"]);
    nodes.wait_field(ns, "pod/influxdb", count, "1");
    nodes.wait_ready(ns, "influxdb");
    assert_eq!(pod_ip(nodes, ns), ip, "a restart keeps the pod's address");
    nodes.k(ns, &["delete", "pod", "influxdb"]);

    nodes.apply_in(ns, include_str!("influxdb-limits.yaml"));
    nodes.wait_ready(ns, "influxdb");
    assert_eq!(
        nodes.field(ns, "pod/influxdb", ".status.qosClass"),
        "Guaranteed"
    );
    let ip = pod_ip(nodes, ns);
    wait_ping(nodes, &ip);
    put_data_in(nodes, &ip);
    let shown = nodes.describe(ns, "pod/influxdb");
    assert!(
        shown.contains("cpu:     500m") && shown.contains("memory:  128Mi"),
        "{shown}"
    );
    eventually("its use is measured", || {
        let output = nodes
            .kubectl_command(&["top", "pod", "-n", ns, "influxdb"])
            .output();
        let said = output.expect("kubectl starts");
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        if text.contains("Mi") {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&said.stderr).into_owned())
        }
    });
}

pub(super) fn influxdb_on_a_persistent_volume_keeps_what_was_written(nodes: &Nodes, ns: &str) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let manifest = include_str!("influxdb-volume.yaml")
        .replace("NAMESPACE", ns)
        .replace("DIRECTORY", &directory.path().display().to_string());
    nodes.apply_in(ns, &manifest);
    nodes.wait_field(ns, "pvc/influxdb", ".status.phase", "Bound");
    nodes.wait_ready(ns, "influxdb");
    assert_eq!(nodes.field(ns, "pod/influxdb", ".spec.nodeName"), "n2");
    let ip = pod_ip(nodes, ns);
    wait_ping(nodes, &ip);
    put_data_in(nodes, &ip);

    // The pod is killed and made again.
    nodes.k(ns, &["delete", "pod", "influxdb", "--now"]);
    nodes.apply_in(ns, &manifest);
    nodes.wait_ready(ns, "influxdb");
    let ip = pod_ip(nodes, ns);
    wait_ping(nodes, &ip);
    assert_is_there(nodes, &ip);

    // The volume is kept after its claim, with what is in it.
    nodes.k(ns, &["delete", "pod", "influxdb", "--now"]);
    nodes.k(ns, &["delete", "pvc", "influxdb"]);
    let volume = format!("pv/influxdb-{ns}");
    nodes.wait_field("default", &volume, ".status.phase", "Released");
    assert!(directory.path().join("data/mydb").is_dir());
    nodes.kubectl(&["delete", &volume]);
}
