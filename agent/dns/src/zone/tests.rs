use wherry_services::{Protocol, ServicePort, SlicePort};

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(kind: Kind) -> Service {
    Service {
        kind,
        ports: vec![ServicePort {
            name: "http".into(),
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

fn endpoint(address: &str, hostname: Option<&str>, is_ready: bool) -> Endpoint {
    Endpoint {
        address: ip(address),
        hostname: hostname.map(Into::into),
        is_ready,
        is_serving: is_ready,
        is_terminating: false,
        is_local: false,
    }
}

/// A cluster of the specification's examples.
pub(crate) fn index() -> Arc<Index> {
    let index = Index::of_nothing();
    let put = |name: &str, kind| index.put_service(ServiceKey::new("ns", name), service(kind));
    put("web", Kind::Cluster(vec![ip("10.96.0.5"), ip("fd96::5")]));
    put("db", Kind::Headless);
    put("far", Kind::External("example.org".into()));
    put("near", Kind::External("web.ns.svc.cluster.local".into()));
    put("round", Kind::External("round.ns.svc.cluster.local".into()));
    let slice = Slice {
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints: vec![
            endpoint("10.88.0.3", Some("db-0"), true),
            endpoint("10.88.0.4", None, true),
            endpoint("10.88.0.5", Some("db-2"), false),
        ],
    };
    index.put_slice(ServiceKey::new("ns", "db"), "db-1".into(), slice);
    Arc::new(index)
}

fn zone(index: Arc<Index>) -> Zone {
    Zone::new("cluster.local", ip("10.96.0.10"), index).unwrap()
}

/// The data of the answers as text; `None` if there is no such name.
fn ask(question: &str, kind: RecordType) -> Option<Vec<String>> {
    match zone(index()).answer(&name(question), kind) {
        Answer::Records { answers, .. } => Some(
            answers
                .iter()
                .map(|record| record.data.to_string())
                .collect(),
        ),
        Answer::NotFound => None,
        other => panic!("{question}: {other:?}"),
    }
}

#[test]
fn names_answer_as_the_specification_says() {
    use RecordType as T;
    let cases: &[(&str, T, Option<&[&str]>)] = &[
        ("web.ns.svc.cluster.local.", T::A, Some(&["10.96.0.5"])),
        ("WEB.ns.SVC.cluster.local.", T::A, Some(&["10.96.0.5"])),
        ("web.ns.svc.cluster.local.", T::AAAA, Some(&["fd96::5"])),
        ("web.ns.svc.cluster.local.", T::TXT, Some(&[])),
        ("web.other.svc.cluster.local.", T::A, None),
        ("none.ns.svc.cluster.local.", T::A, None),
        ("ns.svc.cluster.local.", T::A, Some(&[])),
        ("other.svc.cluster.local.", T::A, None),
        ("svc.cluster.local.", T::A, Some(&[])),
        (
            "_http._tcp.web.ns.svc.cluster.local.",
            T::SRV,
            Some(&["0 100 80 web.ns.svc.cluster.local."]),
        ),
        ("_http._udp.web.ns.svc.cluster.local.", T::SRV, None),
        ("_tcp.web.ns.svc.cluster.local.", T::SRV, Some(&[])),
        (
            "db.ns.svc.cluster.local.",
            T::A,
            Some(&["10.88.0.3", "10.88.0.4"]),
        ),
        ("db-0.db.ns.svc.cluster.local.", T::A, Some(&["10.88.0.3"])),
        (
            "10-88-0-4.db.ns.svc.cluster.local.",
            T::A,
            Some(&["10.88.0.4"]),
        ),
        ("db-2.db.ns.svc.cluster.local.", T::A, None),
        ("db-0.web.ns.svc.cluster.local.", T::A, None),
        (
            "_http._tcp.db.ns.svc.cluster.local.",
            T::SRV,
            Some(&[
                "0 100 8080 db-0.db.ns.svc.cluster.local.",
                "0 100 8080 10-88-0-4.db.ns.svc.cluster.local.",
            ]),
        ),
        (
            "10-88-0-9.ns.pod.cluster.local.",
            T::A,
            Some(&["10.88.0.9"]),
        ),
        ("nobody.ns.pod.cluster.local.", T::A, None),
        ("dns-version.cluster.local.", T::TXT, Some(&["1.1.0"])),
        ("ns.dns.cluster.local.", T::A, Some(&["10.96.0.10"])),
        (
            "near.ns.svc.cluster.local.",
            T::A,
            Some(&["web.ns.svc.cluster.local.", "10.96.0.5"]),
        ),
        (
            "far.ns.svc.cluster.local.",
            T::CNAME,
            Some(&["example.org."]),
        ),
        (
            "5.0.96.10.in-addr.arpa.",
            T::PTR,
            Some(&["web.ns.svc.cluster.local."]),
        ),
        (
            "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.d.f.ip6.arpa.",
            T::PTR,
            Some(&["web.ns.svc.cluster.local."]),
        ),
        (
            "3.0.88.10.in-addr.arpa.",
            T::PTR,
            Some(&["db-0.db.ns.svc.cluster.local."]),
        ),
        ("a.b.c.d.e.f.cluster.local.", T::A, None),
    ];
    for (question, kind, want) in cases {
        let want = want.map(|want| {
            want.iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        });
        assert_eq!(ask(question, *kind), want, "{question} {kind}");
    }
}

#[test]
fn what_is_not_the_clusters_is_left_to_others() {
    let zone = zone(index());
    for question in [
        "example.org.",
        "local.",
        "5.5.5.5.in-addr.arpa.",
        "xcluster.local.",
    ] {
        let answer = zone.answer(&name(question), RecordType::A);
        assert_eq!(answer, Answer::Elsewhere, "{question}");
    }
    let far = zone.answer(&name("far.ns.svc.cluster.local."), RecordType::A);
    assert!(
        matches!(far, Answer::Alias { answers, target } if answers.len() == 1 && target == name("example.org."))
    );
    let round = zone.answer(&name("round.ns.svc.cluster.local."), RecordType::A);
    assert_eq!(round, Answer::Failed);
}

#[test]
fn before_services_are_known_nothing_is_said_not_to_be() {
    let zone = zone(Arc::default());
    for question in ["web.ns.svc.cluster.local.", "5.0.96.10.in-addr.arpa."] {
        let answer = zone.answer(&name(question), RecordType::A);
        assert_eq!(answer, Answer::Failed, "{question}");
    }
}

#[test]
fn the_records_of_a_target_go_with_its_port() {
    let answer = zone(index()).answer(
        &name("_http._tcp.db.ns.svc.cluster.local."),
        RecordType::SRV,
    );
    let Answer::Records { additionals, .. } = answer else {
        panic!("{answer:?}");
    };
    let text: Vec<_> = additionals
        .iter()
        .map(|record| format!("{} {}", record.name, record.data))
        .collect();
    assert_eq!(
        text,
        [
            "db-0.db.ns.svc.cluster.local. 10.88.0.3",
            "10-88-0-4.db.ns.svc.cluster.local. 10.88.0.4"
        ]
    );
}
