use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// Two networks: 10.52.0.0/24 on link 2, which the node's address is of, and 192.168.7.0/24 on link 3.
fn local() -> Local {
    let address = |text, prefix_len, link| Address {
        ip: ip(text),
        prefix_len,
        link,
    };
    Local {
        addresses: vec![
            address("10.52.0.1", 24, 2),
            address("fd52::1", 64, 2),
            address("192.168.7.1", 24, 3),
            address("172.31.0.9", 32, 4),
        ],
        node_ip: Some(ip("10.52.0.1")),
        pod_cidrs: vec![cidr("10.88.0.0/24"), cidr("fd88::/64")],
    }
}

fn peer(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Peer {
    Peer {
        name: name.into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        pod_cidrs: pod_cidrs.iter().map(|text| cidr(text)).collect(),
    }
}

/// Routes as text, one a line.
fn routes(plan: &Plan) -> Vec<String> {
    let via = |via| match via {
        Via::Link(index) => format!("link {index}"),
        Via::Tunnel => "tunnel".into(),
    };
    let mut lines: Vec<String> = plan
        .routes
        .iter()
        .map(|route| {
            let table = match route.table {
                Table::Main => "",
                Table::Pods => "from pods: ",
            };
            let (to, gateway) = (route.destination, route.gateway);
            format!("{table}{to} via {gateway} {}", via(route.via))
        })
        .collect();
    lines.sort();
    lines
}

fn whys(plan: &Plan) -> Vec<String> {
    let all = plan.unreachable.iter();
    all.map(|item| format!("{}: {}", item.node, item.why))
        .collect()
}

#[test]
fn each_backend_leads_to_neighbours_and_strangers_in_its_way() {
    let near = || peer("near", &["10.52.0.2"], &["10.88.1.0/24"]);
    let side = || peer("side", &["192.168.7.5"], &["10.88.2.0/24"]);
    let far = || peer("far", &["10.99.0.3"], &["10.88.3.0/24"]);
    let near_gw = "10.88.1.0/24 via 10.52.0.2 link 2";
    let side_gw = "10.88.2.0/24 via 192.168.7.5 link 3";
    let far_vx = [
        "10.88.3.0/24 via 10.88.3.1 tunnel",
        "from pods: 10.99.0.3/32 via 10.88.3.1 tunnel",
    ];
    for (backend, want, unreachable) in [
        (
            Backend::Auto,
            [&[near_gw, side_gw], &far_vx[..]].concat(),
            0,
        ),
        (Backend::HostGw, vec![near_gw, side_gw], 1),
        (
            Backend::Vxlan,
            vec![
                "10.88.1.0/24 via 10.88.1.1 tunnel",
                "10.88.2.0/24 via 10.88.2.1 tunnel",
                "10.88.3.0/24 via 10.88.3.1 tunnel",
                "from pods: 10.52.0.2/32 via 10.88.1.1 tunnel",
                "from pods: 10.99.0.3/32 via 10.88.3.1 tunnel",
                "from pods: 192.168.7.5/32 via 10.88.2.1 tunnel",
            ],
            0,
        ),
    ] {
        let plan = plan(&local(), backend, &[far(), near(), side()]);
        assert_eq!(routes(&plan), want, "{backend:?}");
        assert_eq!(plan.unreachable.len(), unreachable, "{:?}", whys(&plan));
        let has_tunnel = backend != Backend::HostGw;
        assert_eq!(plan.tunnel.is_some(), has_tunnel, "{backend:?}");
        assert_eq!(plan.rules.len(), if has_tunnel { 2 } else { 0 });
        for inside in ["10.88.1.0/24", "10.52.0.2/32", "192.168.7.5/32"] {
            assert!(plan.inside.contains(&cidr(inside)), "{backend:?} {inside}");
        }
        assert_eq!(
            plan.inside.contains(&cidr("10.99.0.3/32")),
            has_tunnel,
            "a node that cannot answer a pod sees the node"
        );
    }
}

#[test]
fn both_ends_of_a_tunnel_work_out_the_same_hardware_address() {
    let here = plan(
        &local(),
        Backend::Vxlan,
        &[peer("far", &["10.99.0.3"], &["10.88.3.0/24"])],
    );
    let far = Local {
        addresses: vec![Address {
            ip: ip("10.99.0.3"),
            prefix_len: 24,
            link: 2,
        }],
        node_ip: Some(ip("10.99.0.3")),
        pod_cidrs: vec![cidr("10.88.3.0/24")],
    };
    let there = plan(
        &far,
        Backend::Vxlan,
        &[peer("here", &["10.52.0.1"], &["10.88.0.0/24", "fd88::/64"])],
    );
    for (one, other) in [(&here, &there), (&there, &here)] {
        let (end, mac) = one.tunnel.clone().unwrap();
        assert_eq!(other.forwards.get(&mac), Some(&end));
    }
    assert_eq!(
        here.neighbours.get(&ip("10.88.3.1")),
        there.tunnel.as_ref().map(|(_, mac)| mac)
    );
}

#[test]
fn what_a_node_says_of_itself_takes_nothing_away_from_this_one() {
    for (addresses, range, want) in [
        (
            &["10.52.0.2"][..],
            "10.88.0.0/16",
            "overlaps with this node's",
        ),
        (&["10.52.0.2"], "0.0.0.0/0", "overlaps with this node's"),
        (
            &["10.52.0.2"],
            "10.52.0.0/16",
            "overlaps with a network of this node",
        ),
        (
            &["10.52.0.2"],
            "172.31.0.0/24",
            "overlaps with a network of this node",
        ),
        (&["fd99::3"], "10.88.1.0/24", "no InternalIP of the family"),
    ] {
        let plan = plan(&local(), Backend::Auto, &[peer("odd", addresses, &[range])]);
        assert_eq!(routes(&plan), [""; 0], "{range}");
        assert!(whys(&plan)[0].contains(want), "{range}: {:?}", whys(&plan));
    }
    // Of two that say the same, one is believed, whatever the order they are told in.
    let (a, b) = (
        peer("a", &["10.52.0.2"], &["10.88.1.0/24"]),
        peer("b", &["10.52.0.3"], &["10.88.1.128/25"]),
    );
    for peers in [[a.clone(), b.clone()], [b, a]] {
        let plan = plan(&local(), Backend::Auto, &peers);
        assert_eq!(routes(&plan), ["10.88.1.0/24 via 10.52.0.2 link 2"]);
        assert_eq!(
            whys(&plan),
            ["b: podCIDR 10.88.1.128/25 overlaps with that of node a, 10.88.1.0/24"]
        );
    }
}

#[test]
fn a_node_in_the_same_network_namespace_needs_no_route() {
    let plan = plan(
        &local(),
        Backend::Vxlan,
        &[peer("twin", &["10.52.0.1"], &["10.88.9.0/24"])],
    );
    assert!(plan.routes.is_empty() && plan.tunnel.is_none());
    assert!(plan.inside.contains(&cidr("10.88.9.0/24")));
}

#[test]
fn a_node_without_its_address_makes_no_tunnel_and_says_so_and_waits_for_others_to_have_one() {
    let local = Local {
        node_ip: None,
        ..local()
    };
    let far = peer("far", &["10.99.0.3"], &["10.88.3.0/24"]);
    let unborn = peer("unborn", &[], &["10.88.4.0/24"]);
    let plan = plan(&local, Backend::Auto, &[far, unborn]);
    assert_eq!(plan.unreachable.len(), 1);
    assert!(plan.tunnel.is_none() && plan.rules.is_empty());
    assert!(whys(&plan)[0].contains("no interface with its InternalIP"));
}

#[test]
fn both_families_go_the_same_way() {
    let near = peer(
        "near",
        &["10.52.0.2", "fd52::2"],
        &["10.88.1.0/24", "fd88:0:0:1::/64"],
    );
    let direct = plan(&local(), Backend::Auto, std::slice::from_ref(&near));
    assert_eq!(
        routes(&direct),
        [
            "10.88.1.0/24 via 10.52.0.2 link 2",
            "fd88:0:0:1::/64 via fd52::2 link 2"
        ]
    );
    let packed = plan(&local(), Backend::Vxlan, &[near]);
    assert_eq!(
        routes(&packed),
        [
            "10.88.1.0/24 via 10.88.1.1 tunnel",
            "fd88:0:0:1::/64 via fd88:0:0:1::1 tunnel",
            "from pods: 10.52.0.2/32 via 10.88.1.1 tunnel",
            "from pods: fd52::2/128 via fd88:0:0:1::1 tunnel",
        ]
    );
    assert_eq!(packed.forwards.len(), 1);
    assert_eq!(packed.neighbours.len(), 2);
}
