use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::*;
use crate::object::{Service, Slice, SlicePort};

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        hostname: None,
        is_ready: true,
        is_serving: true,
        is_terminating: false,
        is_local: false,
    }
}

fn service() -> Service {
    Service {
        kind: Kind::Cluster(vec![
            "10.96.0.5".parse().unwrap(),
            "fd96::5".parse().unwrap(),
        ]),
        ports: vec![ServicePort {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
        external_ips: Vec::new(),
        allowed: None,
        affinity: None,
        is_internal_local: false,
        is_external_local: false,
        health_check_port: None,
        publishes_not_ready: false,
        is_foreign: false,
    }
}

fn view(service: Service, endpoints: Vec<Endpoint>) -> View {
    let port = SlicePort {
        name: "web".into(),
        protocol: Protocol::Tcp,
        port: Some(8080),
    };
    View {
        service: Arc::new(service),
        slices: vec![Arc::new(Slice {
            ports: vec![port],
            endpoints,
        })],
    }
}

/// The elements as text, for comparison.
fn planned(view: &View) -> BTreeSet<String> {
    plan(view, "10.88.0.0/16".parse().unwrap())
        .into_iter()
        .map(|(key, data)| {
            let at = |frontend: Frontend| match frontend.at {
                At::Ip(ip) => format!("{ip}:{}", frontend.port),
                At::Node => format!("node:{}", frontend.port),
            };
            match (key, data) {
                (Key::Serve(frontend), Data::Chain(chain)) => format!(
                    "{} to {}{}{}",
                    at(frontend),
                    chain.endpoints,
                    if chain.masquerades { " masquerade" } else { "" },
                    if chain.has_affinity { " affinity" } else { "" },
                ),
                (Key::Endpoint(frontend, number), Data::Target((ip, port))) => {
                    format!("{} {number} {ip}:{port}", at(frontend))
                }
                (Key::Refuse(frontend), data) => format!("{} {data:?}", at(frontend)),
                (Key::Remember(frontend), Data::Seconds(time)) => {
                    format!("{} remember {time}", at(frontend))
                }
                (Key::Hairpin(ip), _) => format!("hairpin {ip}"),
                (Key::Guard(frontend), _) => format!("{} guarded", at(frontend)),
                (Key::Allow(frontend, source), _) => format!("{} from {source}", at(frontend)),
                other => panic!("{other:?}"),
            }
        })
        .collect()
}

fn assert_planned(view: &View, want: &[&str]) {
    let want: BTreeSet<String> = want.iter().map(|line| (*line).to_owned()).collect();
    assert_eq!(planned(view), want);
}

#[test]
fn a_service_is_a_chain_by_the_count_of_its_endpoints_and_an_element_for_each() {
    let view = view(
        service(),
        vec![endpoint("10.88.0.3"), endpoint("10.89.0.2")],
    );
    assert_planned(
        &view,
        &[
            "10.96.0.5:80 to 2 masquerade",
            "10.96.0.5:80 0 10.88.0.3:8080",
            "10.96.0.5:80 1 10.89.0.2:8080",
            "hairpin 10.88.0.3",
        ],
    );
}

#[test]
fn endpoints_that_are_not_ready_get_nothing_unless_they_end_and_are_the_last() {
    let not_ready = Endpoint {
        is_ready: false,
        is_serving: false,
        ..endpoint("10.89.0.2")
    };
    let ending = Endpoint {
        is_ready: false,
        is_terminating: true,
        ..endpoint("10.89.0.3")
    };
    let both = vec![not_ready.clone(), ending.clone()];
    assert_planned(
        &view(service(), both.clone()),
        &[
            "10.96.0.5:80 to 1 masquerade",
            "10.96.0.5:80 0 10.89.0.3:8080",
        ],
    );
    let ready = [both, vec![endpoint("10.89.0.4")]].concat();
    assert_planned(
        &view(service(), ready),
        &[
            "10.96.0.5:80 to 1 masquerade",
            "10.96.0.5:80 0 10.89.0.4:8080",
        ],
    );
    assert_planned(&view(service(), vec![not_ready]), &["10.96.0.5:80 Reject"]);
    assert_planned(&view(service(), vec![]), &["10.96.0.5:80 Reject"]);
}

#[test]
fn policies_and_other_addresses_choose_their_own_endpoints() {
    let mut service = service();
    service.external_ips = vec![ip("192.0.2.1")];
    service.ports[0].node_port = 30080;
    service.is_external_local = true;
    let local = Endpoint {
        is_local: true,
        ..endpoint("10.88.0.3")
    };
    let both = vec![local, endpoint("10.89.0.2")];
    assert_planned(
        &view(service.clone(), both),
        &[
            "10.96.0.5:80 to 2 masquerade",
            "10.96.0.5:80 0 10.88.0.3:8080",
            "10.96.0.5:80 1 10.89.0.2:8080",
            "192.0.2.1:80 to 1",
            "192.0.2.1:80 0 10.88.0.3:8080",
            "node:30080 to 1",
            "node:30080 0 10.88.0.3:8080",
            "hairpin 10.88.0.3",
        ],
    );
    service.is_internal_local = true;
    let elsewhere = vec![endpoint("10.89.0.2")];
    assert_planned(
        &view(service, elsewhere),
        &["10.96.0.5:80 Drop", "192.0.2.1:80 Drop", "node:30080 Drop"],
    );
}

#[test]
fn a_balancers_addresses_are_for_the_sources_it_names() {
    let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(serde_json::json!({
        "metadata": { "namespace": "ns", "name": "web" },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.5",
            "ports": [{ "name": "web", "port": 80, "nodePort": 30080 }],
            "externalIPs": ["198.51.100.1"],
            "loadBalancerSourceRanges": ["10.1.0.0/16", " 10.0.0.0/8", "fd00::/8", "192.0.2.0/24"],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "10.52.0.2" }] } },
    }))
    .unwrap();
    let (_, service) = crate::object::service(&service).unwrap();
    let lines = planned(&view(service, vec![endpoint("10.89.0.2")]));
    let of = |what: &str| {
        let found = lines.iter().filter(|line| line.contains(what));
        found.map(String::as_str).collect::<Vec<_>>()
    };
    assert_eq!(of("guarded"), ["10.52.0.2:80 guarded"]);
    assert_eq!(
        of("from"),
        [
            "10.52.0.2:80 from 10.0.0.0/8",
            "10.52.0.2:80 from 192.0.2.0/24"
        ]
    );
}

#[test]
fn health_is_told_where_a_balancer_is_to_keep_to_nodes_with_endpoints() {
    for (type_, policy, port, expected) in [
        ("LoadBalancer", "Local", 30_999, Some(30_999)),
        ("LoadBalancer", "Local", 0, None),
        ("LoadBalancer", "Cluster", 30_999, None),
        ("NodePort", "Local", 30_999, None),
    ] {
        let service = serde_json::from_value(serde_json::json!({
            "metadata": { "namespace": "ns", "name": "web" },
            "spec": { "type": type_, "externalTrafficPolicy": policy, "healthCheckNodePort": port },
        }));
        let (_, service) = crate::object::service(&service.unwrap()).unwrap();
        assert_eq!(
            service.health_check_port, expected,
            "{type_} {policy} {port}"
        );
    }
}

#[test]
fn affinity_is_remembered_where_there_is_a_choice() {
    let service = Service {
        affinity: Some(Duration::from_secs(60)),
        ..service()
    };
    let one = vec![endpoint("10.89.0.2")];
    assert_planned(
        &view(service.clone(), one),
        &[
            "10.96.0.5:80 to 1 masquerade",
            "10.96.0.5:80 0 10.89.0.2:8080",
        ],
    );
    let two = vec![endpoint("10.89.0.2"), endpoint("10.89.0.3")];
    assert_planned(
        &view(service, two),
        &[
            "10.96.0.5:80 to 2 masquerade affinity",
            "10.96.0.5:80 0 10.89.0.2:8080",
            "10.96.0.5:80 1 10.89.0.3:8080",
            "10.96.0.5:80 remember 60",
        ],
    );
}

#[test]
fn headless_external_and_foreign_services_are_no_matter_of_packets() {
    for kind in [Kind::Headless, Kind::External("example.org".into())] {
        let service = Service { kind, ..service() };
        assert_planned(&view(service, vec![endpoint("10.88.0.3")]), &[]);
    }
    let foreign = Service {
        is_foreign: true,
        ..service()
    };
    assert_planned(&view(foreign, vec![endpoint("10.88.0.3")]), &[]);
}
