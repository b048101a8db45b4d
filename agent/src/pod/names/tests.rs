use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "u1" },
        "spec": spec,
    }))
    .expect("a pod")
}

#[test]
fn hosts_and_resolv_conf_are_written_as_the_kubelet_does() {
    let spec = json!({
        "subdomain": "db",
        "hostAliases": [{ "ip": "1.2.3.4", "hostnames": ["x", "y"] }],
        "containers": [{ "name": "a" }],
    });
    let pod = pod(spec);
    let hosts = hosts_file(
        &pod,
        &["10.0.0.2".parse().expect("an address")],
        "cluster.local",
        None,
    );
    assert!(
        hosts.contains("10.0.0.2\tweb.db.ns.svc.cluster.local\tweb\n"),
        "{hosts}"
    );
    assert!(
        hosts.ends_with("# Entries added by HostAliases.\n1.2.3.4\tx\ty\n"),
        "{hosts}"
    );
    let dns = ClusterDns {
        servers: vec!["10.96.0.10".parse().expect("an address")],
        domain: "cluster.local".into(),
    };
    let node = "nameserver 8.8.8.8\nsearch corp\noptions edns0\n";
    assert_eq!(
        resolv_conf(&pod, &dns, node).text,
        "nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local corp\noptions ndots:5\n"
    );
    let none = ClusterDns::default();
    let made = resolv_conf(&pod, &none, node);
    assert_eq!(made.text, node);
    assert_eq!(made.warnings[0].0, "MissingClusterDNS");
}

#[test]
fn what_resolvers_do_not_read_is_left_out_and_said() {
    let many: Vec<_> = (0..40).map(|n| format!("s{n}.example")).collect();
    let spec = json!({
        "dnsPolicy": "None",
        "dnsConfig": {
            "nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"],
            "searches": many,
            "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }],
        },
        "containers": [{ "name": "a" }],
    });
    let made = resolv_conf(&pod(spec), &ClusterDns::default(), "nameserver 8.8.8.8\n");
    let lines: Vec<_> = made.text.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "nameserver 1.1.1.1",
            "nameserver 1.1.1.2",
            "nameserver 1.1.1.3"
        ]
    );
    assert_eq!(lines[3].split(' ').count(), 1 + 32);
    assert_eq!(lines[4], "options ndots:2 edns0");
    let messages: Vec<_> = made.warnings.iter().map(|(_, message)| message).collect();
    assert!(messages[0].ends_with("the applied nameserver line is: 1.1.1.1 1.1.1.2 1.1.1.3"));
    assert!(messages[1].starts_with("Search Line limits were exceeded"));
}

#[test]
fn the_host_name_follows_the_spec_and_fits_the_kernel() {
    let table = [
        (json!({}), Ok("web")),
        (json!({ "hostname": "h" }), Ok("h")),
        (json!({ "hostname": "h", "subdomain": "db" }), Ok("h")),
        (
            json!({ "subdomain": "db", "setHostnameAsFQDN": true }),
            Ok("web.db.ns.svc.cluster.local"),
        ),
        (json!({ "setHostnameAsFQDN": true }), Ok("web")),
        (
            json!({ "hostname": "h", "hostnameOverride": "else" }),
            Ok("else"),
        ),
        (
            json!({ "subdomain": "d".repeat(50), "setHostnameAsFQDN": true }),
            Err(()),
        ),
    ];
    for (more, expected) in table {
        let mut spec = more.clone();
        spec["containers"] = json!([{ "name": "a" }]);
        let name = kernel_hostname(&pod(spec), "cluster.local").map_err(drop);
        assert_eq!(name.as_deref(), expected.as_deref(), "{more}");
    }
}
