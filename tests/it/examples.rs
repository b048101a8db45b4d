//! The worked examples of the documents that Wherry follows, typed as a newcomer types them, on three nodes.

mod influxdb;
mod webapp;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
};

use libtest_mimic::Trial;
use wherry_tests::{Nodes, eventually, guest, made_by_run_sh};

use crate::{
    Shared,
    asking::{curl_on, curl_outside},
    on_nodes,
};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    on_nodes![shared;
        influxdb::influxdb_plain_then_with_probes_then_with_limits,
        influxdb::influxdb_on_a_persistent_volume_keeps_what_was_written,
        inspector_scales_and_its_pods_answer_in_turn,
        webapp::a_pod_is_run_and_exposed_and_answers_at_its_cluster_ip,
        webapp::an_image_changes_under_load_without_a_failed_request,
        a_mock_list_of_a_service_and_a_controller,
        static_manifests_run_on_their_nodes,
        workloads_go_to_nodes_by_label,
    ]
}

/// The images that the examples name, on every node.
pub(crate) fn import_all(nodes: &Nodes) {
    let images = [
        ("WHERRY_IMAGE_NGINX", "nginx:1.22"),
        ("WHERRY_IMAGE_NGINX", "nginx:1.23"),
        ("WHERRY_IMAGE_BUSYBOX", "busybox:1"),
        ("WHERRY_IMAGE_PAUSE", "pause:1"),
        ("WHERRY_IMAGE_INFLUXDB", "influxdb:1.6"),
    ];
    for (variable, name) in images {
        nodes.import(&made_by_run_sh(variable), name);
    }
    for (file, name) in [("toolbox", "toolbox:1"), ("sleeper", "sleeper:1")] {
        nodes.import(&guest(file), name);
    }
}

/// Images with the same small programs, as a container and as a component.
const BOTH: [&str; 2] = ["busybox:1", "toolbox:1"];

fn inspector_scales_and_its_pods_answer_in_turn(nodes: &Nodes, ns: &str) {
    let image = |image| include_str!("examples/inspector.yaml").replace("IMAGE", image);
    for name in BOTH {
        nodes.apply_in(ns, &image(name));
        nodes.wait_pods(ns, "app=inspector", 1);
        nodes.apply_in(ns, include_str!("examples/inspector-service.yaml"));
        let port = nodes.field(ns, "service/inspector", ".spec.ports[0].nodePort");
        for replicas in [5, 2] {
            let flag = format!("--replicas={replicas}");
            assert_eq!(
                nodes.k(ns, &["scale", "rc", "inspector", &flag]),
                "replicationcontroller/inspector scaled\n"
            );
            let pods = nodes.wait_pods(ns, "app=inspector", replicas);
            let names: BTreeSet<String> = pods.iter().map(|(name, ..)| name.clone()).collect();
            if replicas == 5 {
                let places: BTreeSet<_> = pods.iter().map(|(_, node, _)| node).collect();
                assert_eq!(places.len(), 3, "five pods are on all nodes: {pods:?}");
            }
            // Every node's port leads to every pod, wherever that is.
            for index in 1..=nodes.count() {
                let url = format!("http://{}:{port}/", nodes.at(index).address());
                let mut met = BTreeSet::new();
                eventually(&format!("{names:?} all answer at {url}"), || {
                    // Twice as many as there are pods: only luck decides who answers.
                    for _ in 0..2 * replicas {
                        met.insert(curl_outside(nodes, &url)?.trim().to_owned());
                    }
                    if met.is_superset(&names) {
                        Ok(())
                    } else {
                        Err(format!("{met:?}"))
                    }
                });
            }
        }
        // A pod whose label changes leaves its controller and is replaced.
        let pods = nodes.wait_pods(ns, "app=inspector", 2);
        let freed = &pods[0].0;
        nodes.k(ns, &["label", "pod", freed, "app=free", "--overwrite"]);
        let pods = nodes.wait_pods(ns, "app=inspector", 2);
        assert!(pods.iter().all(|(name, ..)| name != freed), "{pods:?}");
        nodes.k(ns, &["delete", "rc,svc", "inspector"]);
        nodes.k(ns, &["delete", "pod", freed]);
        nodes.wait_pods(ns, "app=inspector", 0);
    }
}

fn a_mock_list_of_a_service_and_a_controller(nodes: &Nodes, ns: &str) {
    for image in ["pause:1", "sleeper:1"] {
        let list = include_str!("examples/mock.yaml").replace("IMAGE", image);
        let output = nodes.kubectl_with_input(&["create", "-n", ns, "-f", "-"], &list);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "service/mock created\nreplicationcontroller/mock created\n"
        );
        let pods = nodes.wait_pods(ns, "app=mock", 1);
        let shown = nodes.k(ns, &["get", "no,rc,svc"]);
        for part in [
            "node/n1",
            "node/n3",
            "replicationcontroller/mock",
            "service/mock",
            "99/TCP",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let wanted = format!("{}:9949", pods[0].2);
        let path = ".subsets[0].addresses[0].ip}:{.subsets[0].ports[0].port";
        nodes.wait_field(ns, "endpoints/mock", path, &wanted);
        let output = nodes.kubectl_with_input(&["delete", "-n", ns, "-f", "-"], &list);
        assert!(output.status.success(), "{output:?}");
        nodes.wait_pods(ns, "app=mock", 0);
    }
}

fn static_manifests_run_on_their_nodes(nodes: &Nodes, _: &str) {
    let file = |index| nodes.at(index).root().join("manifests/static-web.yaml");
    for index in [1, 2] {
        fs::write(file(index), include_str!("examples/static.yaml")).expect("it can be written");
    }
    for index in [1, 2] {
        let name = format!("static-web-n{index}");
        nodes.wait_ready("default", &name);
        let ip = nodes.field("default", &format!("pod/{name}"), ".status.podIP");
        let page = curl_on(nodes, index, &[&format!("http://{ip}/")]);
        assert!(
            page.as_ref()
                .is_ok_and(|page| page.contains("Welcome to nginx")),
            "{page:?}"
        );
        assert_eq!(
            nodes.field("default", &format!("pod/{name}"), ".spec.nodeName"),
            format!("n{index}")
        );
    }
    // What the API shows is an image of the pod: deleting that leaves the pod alone.
    let started = ".status.containerStatuses[0].state.running.startedAt";
    let before = nodes.field("default", "pod/static-web-n1", started);
    nodes.kubectl(&["delete", "pod", "static-web-n1", "--wait=false"]);
    eventually("the pod is mirrored again", || {
        let deleted = nodes.field(
            "default",
            "pod/static-web-n1",
            ".metadata.deletionTimestamp",
        );
        let now = nodes.field("default", "pod/static-web-n1", started);
        if deleted.is_empty() && now == before {
            Ok(())
        } else {
            Err(format!("{now:?} deleted {deleted:?}"))
        }
    });
    for index in [1, 2] {
        fs::remove_file(file(index)).expect("it is there");
    }
    nodes.wait_pods("default", "role=myrole", 0);
}

fn workloads_go_to_nodes_by_label(nodes: &Nodes, ns: &str) {
    for (node, workload) in [
        ("n1", "high-available"),
        ("n2", "high-available"),
        ("n3", "processing-intensive"),
    ] {
        let said = nodes.kubectl(&["label", "node", node, &format!("workload={workload}")]);
        assert_eq!(said, format!("node/{node} labeled\n"));
    }
    let shown = nodes.kubectl(&[
        "get",
        "nodes",
        "-l",
        "workload in (high-available)",
        "-o",
        "name",
    ]);
    assert_eq!(shown, "node/n1\nnode/n2\n");
    let mut places: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for (workload, image) in [
        ("high-available", "pause:1"),
        ("processing-intensive", "sleeper:1"),
    ] {
        let manifest = include_str!("examples/placed.yaml");
        let manifest = manifest.replace("NAME", workload).replace("IMAGE", image);
        nodes.apply_in(ns, &manifest);
        for (_, node, _) in nodes.wait_pods(ns, &format!("app={workload}"), 4) {
            *places.entry(workload).or_default().entry(node).or_default() += 1;
        }
    }
    let nodes_of =
        |workload: &str| -> Vec<&str> { places[workload].keys().map(String::as_str).collect() };
    assert_eq!(nodes_of("high-available"), ["n1", "n2"], "{places:?}");
    assert_eq!(nodes_of("processing-intensive"), ["n3"], "{places:?}");

    // Nobody offers what a third workload asks for, until a node is labelled so.
    let manifest = include_str!("examples/placed.yaml");
    let manifest = manifest
        .replace("NAME", "archive")
        .replace("IMAGE", "pause:1");
    nodes.apply_in(ns, &manifest);
    eventually("the scheduler says why", || {
        let events = nodes.k(
            ns,
            &[
                "get",
                "events",
                "--field-selector",
                "reason=FailedScheduling",
            ],
        );
        let why = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector";
        if events.contains(why) {
            Ok(())
        } else {
            Err(events)
        }
    });
    nodes.kubectl(&["label", "node", "n3", "workload=archive", "--overwrite"]);
    nodes.wait_pods(ns, "app=archive", 4);
    // A label is looked at when a pod is placed and not again.
    nodes.wait_pods(ns, "app=processing-intensive", 4);
    for node in ["n1", "n2", "n3"] {
        nodes.kubectl(&["label", "node", node, "workload-"]);
    }
}

/// Where what is outside meets a Service: at the first node's port.
fn node_port(nodes: &Nodes, ns: &str, service: &str) -> std::net::SocketAddr {
    let port = nodes.field(ns, service, ".spec.ports[0].nodePort");
    let address = format!("{}:{port}", nodes.at(1).address());
    address.parse().expect("an address and a port")
}
