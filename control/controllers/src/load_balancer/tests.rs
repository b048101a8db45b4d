use serde_json::Value;

use super::*;
use crate::fake::Fake;

fn node(name: &str, address: &str, ready: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "status": {
            "conditions": [{ "type": "Ready", "status": ready }],
            "addresses": [{ "type": "InternalIP", "address": address }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
        },
    })
}

fn service(name: &str, created: &str, spec: Value) -> Value {
    let mut service = json!({
        "metadata": { "name": name, "namespace": "ns", "uid": name, "creationTimestamp": created },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80 }] },
    });
    patch(&mut service["spec"], &spec);
    service
}

fn patch(to: &mut Value, with: &Value) {
    for (key, value) in with.as_object().unwrap() {
        to[key] = value.clone();
    }
}

/// Ingress and trouble by name.
fn planned(
    services: &[Value],
    local: &[(&str, &[&str])],
) -> BTreeMap<String, (String, Option<String>)> {
    let nodes = [
        node("a", "10.52.0.1", "True"),
        node("b", "10.52.0.2", "True"),
        node("down", "10.52.0.3", "Unknown"),
    ];
    let nodes = nodes.map(|node| {
        let node: Node = serde_json::from_value(node).unwrap();
        (node.name_any(), NodeView::from(&node))
    });
    let services: Vec<ServiceView> = services
        .iter()
        .map(|service| {
            ServiceView::from(&serde_json::from_value::<Service>(service.clone()).unwrap())
        })
        .collect();
    let api = BTreeSet::from([("10.52.0.1".parse().unwrap(), 6443)]);
    let local = local.iter().map(|(name, nodes)| {
        let nodes = nodes.iter().map(ToString::to_string).collect();
        (Key::new("ns", *name), nodes)
    });
    let all: Vec<&ServiceView> = services.iter().collect();
    plan(&all, &nodes.into(), &api, &local.collect())
        .into_iter()
        .map(|wanted| {
            let ingress: Vec<_> = wanted.ingress.into_iter().collect();
            (wanted.key.name, (ingress.join(" "), wanted.trouble))
        })
        .collect()
}

#[test]
fn services_get_the_addresses_of_nodes_that_can_answer_for_them() {
    let old = "2026-01-01T00:00:00Z";
    let young = "2026-01-02T00:00:00Z";
    let planned = planned(
        &[
            service("web", old, json!({})),
            service("late", young, json!({})),
            service(
                "udp",
                young,
                json!({ "ports": [{ "port": 80, "protocol": "UDP" }] }),
            ),
            service("kubelet", old, json!({ "ports": [{ "port": 10250 }] })),
            service("api", old, json!({ "ports": [{ "port": 6443 }] })),
            service(
                "local",
                old,
                json!({ "ports": [{ "port": 81 }], "externalTrafficPolicy": "Local" }),
            ),
            service(
                "other",
                old,
                json!({ "ports": [{ "port": 82 }], "loadBalancerClass": "example.com/lb" }),
            ),
            service(
                "plain",
                old,
                json!({ "ports": [{ "port": 83 }], "type": "ClusterIP" }),
            ),
        ],
        &[("local", &["b", "down"])],
    );
    let both = "10.52.0.1 10.52.0.2";
    for (name, ingress, trouble) in [
        ("web", both, None),
        (
            "late",
            "",
            Some("port 80/TCP of the nodes is Service ns/web's"),
        ),
        ("udp", both, None),
        ("kubelet", "", Some("node b needs port 10250/TCP itself")),
        ("api", "10.52.0.2", None),
        ("local", "10.52.0.2", None),
        ("other", "", None),
        ("plain", "", None),
    ] {
        let want = (ingress.to_owned(), trouble.map(String::from));
        assert_eq!(planned[name], want, "{name}");
    }
}

#[tokio::test]
async fn the_status_follows_nodes_and_the_type() {
    let fake = Fake::new();
    fake.put("v1/nodes", node("a", "10.52.0.1", "True"));
    fake.put(
        "v1/services",
        service("web", "2026-01-01T00:00:00Z", json!({})),
    );
    let shutdown = CancellationToken::new();
    let (recorder, mut notes) = Recorder::new();
    let task = tokio::spawn(run(fake.client(), recorder, shutdown.clone()));
    let says = |name: &'static str, ips: &'static [&'static str]| {
        move |service: &Value| {
            let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
            let found = ingress.into_iter().flatten().map(|item| &item["ip"]);
            service["metadata"]["name"] == name && found.eq(ips.iter())
        }
    };
    fake.wait_for("v1/services", says("web", &["10.52.0.1"]))
        .await;
    assert_eq!(notes.recv().await.unwrap().reason, "EnsuredLoadBalancer");
    fake.put("v1/nodes", node("b", "10.52.0.2", "True"));
    fake.wait_for("v1/services", says("web", &["10.52.0.1", "10.52.0.2"]))
        .await;
    fake.put("v1/nodes", node("a", "10.52.0.1", "False"));
    fake.wait_for("v1/services", says("web", &["10.52.0.2"]))
        .await;
    fake.put(
        "v1/services",
        service("late", "2026-01-02T00:00:00Z", json!({})),
    );
    let note = notes.recv().await.unwrap();
    assert_eq!(
        (note.reason, note.type_),
        ("LoadBalancerPortTaken", "Warning")
    );
    // The port is free again when its owner is no load balancer any more.
    let mut plain = service(
        "web",
        "2026-01-01T00:00:00Z",
        json!({ "type": "ClusterIP" }),
    );
    plain["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "10.52.0.2" }] } });
    fake.put("v1/services", plain);
    fake.wait_for("v1/services", says("web", &[])).await;
    fake.wait_for("v1/services", says("late", &["10.52.0.2"]))
        .await;
    shutdown.cancel();
    task.await.unwrap();
}
