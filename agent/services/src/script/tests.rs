use super::*;
use crate::object::Protocol;

fn form() -> Form {
    Form {
        table: "t".into(),
        bridge: "wherry0".into(),
        pod_cidr: "10.88.0.0/16".parse().unwrap(),
        service_cidr: Some("10.96.0.0/12".parse().unwrap()),
        masquerades_bridged: false,
    }
}

fn frontend(at: At) -> Frontend {
    Frontend {
        at,
        protocol: Protocol::Tcp,
        port: 80,
    }
}

#[test]
fn a_change_of_an_endpoint_is_two_lines() {
    let key = Key::Endpoint(frontend(At::Ip([10, 96, 0, 5].into())), 0);
    let data = |last| Data::Target(([10, 88, 0, last].into(), 8080));
    let changes = Changes {
        removed: vec![(key, data(2))],
        added: vec![(key, data(3))],
    };
    assert_eq!(
        update(&form(), &changes, &mut BTreeSet::new()),
        "delete element inet t endpoints { 10.96.0.5 . tcp . 80 . 0 }\n\
         add element inet t endpoints { 10.96.0.5 . tcp . 80 . 0 : 10.88.0.3 . 8080 }\n"
    );
}

#[test]
fn a_chain_is_made_once_for_all_services_that_are_alike() {
    let chain = Chain {
        is_node: true,
        endpoints: 3,
        has_affinity: true,
        masquerades: true,
    };
    let changes = Changes {
        removed: Vec::new(),
        added: vec![(Key::Serve(frontend(At::Node)), Data::Chain(chain))],
    };
    let mut chains = BTreeSet::new();
    assert_eq!(
        update(&form(), &changes, &mut chains),
        "add chain inet t node_to_3_masquerade_affinity\n\
         flush chain inet t node_to_3_masquerade_affinity\n\
         add rule inet t node_to_3_masquerade_affinity ip saddr != 10.88.0.0/16 ct mark set ct mark or 0x4000\n\
         add rule inet t node_to_3_masquerade_affinity meta l4proto tcp dnat ip to meta l4proto . tcp dport . ip saddr map @node_affinity\n\
         add rule inet t node_to_3_masquerade_affinity meta l4proto tcp dnat ip to meta l4proto . tcp dport . numgen random mod 3 map @node_endpoints\n\
         add rule inet t node_to_3_masquerade_affinity meta l4proto udp dnat ip to meta l4proto . udp dport . ip saddr map @node_affinity\n\
         add rule inet t node_to_3_masquerade_affinity meta l4proto udp dnat ip to meta l4proto . udp dport . numgen random mod 3 map @node_endpoints\n\
         add rule inet t node_to_3_masquerade_affinity meta l4proto sctp dnat ip to meta l4proto . sctp dport . ip saddr map @node_affinity\n\
         add rule inet t node_to_3_masquerade_affinity meta l4proto sctp dnat ip to meta l4proto . sctp dport . numgen random mod 3 map @node_endpoints\n\
         add element inet t node_services { tcp . 80 : goto node_to_3_masquerade_affinity }\n"
    );
    assert_eq!(
        update(&form(), &changes, &mut chains),
        "add element inet t node_services { tcp . 80 : goto node_to_3_masquerade_affinity }\n"
    );
}
