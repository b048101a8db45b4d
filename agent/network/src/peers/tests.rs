//! Two nodes, each on a thread in a network namespace of its own, on one network or with a router between.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    process::Command,
    sync::mpsc,
    thread::JoinHandle,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::*;
use crate::{
    Attach,
    pod_network::tests::{Netns, connect, connect_from, ip, listen, sh},
};

/// A node with a pod in a namespace and a confined one.
struct Node {
    netns: Netns,
    address: IpAddr,
    pod: Netns,
    pod_ip: IpAddr,
    confined_ip: IpAddr,
    unreachable: watch::Receiver<Vec<Unreachable>>,
    peers: watch::Sender<Option<Arc<[Peer]>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Node {
    /// Starts one in `netns`, which has `address` already.
    fn start(netns: Netns, address: &str, pod_cidr: &str, backend: Backend) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = ip(address);
        let config = NetworkConfig {
            backend,
            node_ips: vec![address],
            ..NetworkConfig::new(dir.path().join("network"), pod_cidr.parse().unwrap())
        };
        let inside = netns.0.try_clone().unwrap();
        let pod = Netns::new();
        let attach = pod.attach();
        let (peers, told) = watch::channel(None);
        let (troubles, unreachable) = watch::channel(Vec::new());
        let (stop, stopped) = oneshot::channel();
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            setns(&inside, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let network = PodNetwork::new(config).unwrap();
                let pod = network.attach("pod", attach).await.unwrap();
                let confined = network.attach("c", Attach::Confined).await.unwrap();
                sender.send((pod[0], confined[0])).unwrap();
                tokio::select! {
                    () = network.keep_peers(told, troubles) => {}
                    _ = stopped => {}
                }
                network.down().await.unwrap();
            });
        });
        let (pod_ip, confined_ip) = receiver.recv().unwrap();
        Self {
            netns,
            address,
            pod,
            pod_ip,
            confined_ip,
            unreachable,
            peers,
            stop: Some(stop),
            thread: Some(thread),
            _dir: dir,
        }
    }

    fn tell(&self, peers: &[Peer]) {
        self.peers.send(Some(peers.into())).unwrap();
    }

    fn peer(&self, name: &str, pod_cidr: &str) -> Peer {
        Peer {
            name: name.into(),
            addresses: vec![self.address],
            pod_cidrs: vec![pod_cidr.parse().unwrap()],
        }
    }

    fn routes(&self) -> String {
        self.netns.run(|| sh("ip route show proto 87"))
    }

    fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
        self.netns.run(|| {
            assert_eq!(sh("ip route show table all proto 87"), "");
            assert_eq!(sh("ip rule").lines().count(), 3);
            assert_eq!(sh("nft list tables"), "");
            let links = sh("ip -o link");
            assert!(
                !links.contains("vx-") && !links.contains("wherry0"),
                "{links}"
            );
        });
    }
}

/// Waits until `done` says nothing more; what it says last is the failure.
#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> Result<(), String>) {
    let start = std::time::Instant::now();
    loop {
        let Err(why) = done() else { return };
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: {why}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn path(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.0.as_raw_fd())
}

/// A cable between two namespaces, with an address at each end.
fn cable(a: (&Netns, &str, &str), b: (&Netns, &str, &str)) {
    let ((a, a_name, a_ip), (b, b_name, b_ip)) = (a, b);
    let far = path(b);
    a.run(|| {
        sh(&format!(
            "ip link set lo up; ip link add {a_name} type veth peer name {b_name} netns {far}; \
             ip addr add {a_ip} dev {a_name}; ip link set {a_name} up"
        ))
    });
    b.run(|| {
        sh(&format!(
            "ip link set lo up; ip addr add {b_ip} dev {b_name}; ip link set {b_name} up"
        ))
    });
}

/// Two hosts on one network.
fn neighbours() -> (Netns, Netns, Option<Netns>) {
    let (a, b) = (Netns::new(), Netns::new());
    cable((&a, "eth0", "10.52.0.1/24"), (&b, "eth0", "10.52.0.2/24"));
    (a, b, None)
}

/// Two hosts with a router between that knows of no pods.
fn strangers() -> (Netns, Netns, Option<Netns>) {
    let (a, b, router) = (Netns::new(), Netns::new(), Netns::new());
    cable(
        (&a, "eth0", "10.52.0.1/24"),
        (&router, "to-a", "10.52.0.254/24"),
    );
    cable(
        (&b, "eth0", "10.53.0.2/24"),
        (&router, "to-b", "10.53.0.254/24"),
    );
    router.run(|| sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/conf/to-a/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/to-b/rp_filter"));
    a.run(|| sh("ip route add default via 10.52.0.254"));
    b.run(|| sh("ip route add default via 10.53.0.254"));
    (a, b, Some(router))
}

const A: &str = "10.88.0.0/24";
const B: &str = "10.88.1.0/24";

fn pair(hosts: (Netns, Netns, Option<Netns>), backend: Backend) -> (Node, Node, Option<Netns>) {
    let (a, b, router) = hosts;
    let far = if router.is_some() {
        "10.53.0.2"
    } else {
        "10.52.0.2"
    };
    let a = Node::start(a, "10.52.0.1", A, backend);
    let b = Node::start(b, far, B, backend);
    a.tell(&[b.peer("b", B)]);
    b.tell(&[a.peer("a", A)]);
    for (node, other) in [(&a, B), (&b, A)] {
        eventually("routes are made", || {
            let routes = node.routes();
            routes.contains(other).then_some(()).ok_or(routes)
        });
    }
    (a, b, router)
}

/// Who `listener` says connects from a confined pod.
fn seen_from_confined(node: &Node, listener: &std::net::TcpListener, at: SocketAddr) -> IpAddr {
    let _socket = node.netns.run(|| connect_from(node.confined_ip, at));
    listener.accept().unwrap().1.ip()
}

/// Everybody reaches everybody and is seen under an address of their own.
fn all_meet(a: &Node, b: &Node) {
    let (in_pod, at_pod) = b.pod.run(|| listen(b.pod_ip));
    let (in_confined, at_confined) = b.netns.run(|| listen(b.confined_ip));
    let (on_node, at_node) = b.netns.run(|| listen(b.address));
    for (listener, at) in [
        (&in_pod, at_pod),
        (&in_confined, at_confined),
        (&on_node, at_node),
    ] {
        assert_eq!(a.pod.run(|| connect(listener, at)), a.pod_ip, "pod to {at}");
        assert_eq!(
            seen_from_confined(a, listener, at),
            a.confined_ip,
            "confined to {at}"
        );
        assert_eq!(
            a.netns.run(|| connect(listener, at)),
            a.address,
            "node to {at}"
        );
    }
    let (own, at_own) = a.netns.run(|| listen(a.address));
    assert_eq!(
        a.pod.run(|| connect(&own, at_own)),
        a.pod_ip,
        "pod to its node"
    );
    assert_eq!(
        seen_from_confined(a, &own, at_own),
        a.confined_ip,
        "confined to its node"
    );
    // More than fits into a packet, whoever has to find out how much does.
    for from_confined in [false, true] {
        let mut stream: TcpStream = if from_confined {
            a.netns.run(|| connect_from(a.confined_ip, at_pod)).into()
        } else {
            a.pod.run(|| TcpStream::connect(at_pod).unwrap())
        };
        let sent = std::thread::spawn(move || stream.write_all(&[7; 300_000]).unwrap());
        let mut received = Vec::new();
        let (mut far, _) = in_pod.accept().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        far.read_to_end(&mut received).unwrap();
        sent.join().unwrap();
        assert_eq!(received.len(), 300_000);
    }
}

#[test]
fn pods_and_nodes_meet_by_routes_on_one_network() {
    let (a, b, _) = pair(neighbours(), Backend::Auto);
    assert!(
        a.routes().contains("via 10.52.0.2 dev eth0"),
        "{}",
        a.routes()
    );
    all_meet(&a, &b);
    all_meet(&b, &a);
    b.stop();
    a.tell(&[]);
    eventually("the route goes with the node", || {
        let routes = a.routes();
        if routes.is_empty() {
            Ok(())
        } else {
            Err(routes)
        }
    });
    a.stop();
}

#[test]
fn pods_and_nodes_meet_through_a_tunnel_on_one_network() {
    let (a, b, _) = pair(neighbours(), Backend::Vxlan);
    assert!(a.routes().contains("dev vx-wherry0"), "{}", a.routes());
    let mtu = a.pod.run(|| sh("ip link show eth0"));
    assert!(mtu.contains("1450"), "{mtu}");
    all_meet(&a, &b);
    all_meet(&b, &a);
    a.stop();
    b.stop();
}

#[test]
fn pods_and_nodes_meet_through_a_tunnel_over_a_router_that_knows_no_pods() {
    let (a, b, _router) = pair(strangers(), Backend::Auto);
    assert!(a.routes().contains("dev vx-wherry0"), "{}", a.routes());
    all_meet(&a, &b);
    all_meet(&b, &a);
    a.stop();
    b.stop();
}

#[test]
fn what_somebody_takes_away_comes_back() {
    let (a, b, _router) = pair(strangers(), Backend::Auto);
    let meet = |what: &str| {
        eventually(what, || {
            let (listener, at) = b.pod.run(|| listen(b.pod_ip));
            let short = Duration::from_millis(500);
            let reached = a.pod.run(|| TcpStream::connect_timeout(&at, short));
            let confined = b
                .netns
                .run(|| std::net::TcpListener::bind((b.confined_ip, 0)));
            let confined = confined.map_err(|error| format!("confined: {error}"))?;
            let at = confined.local_addr().unwrap();
            let to_confined = a.pod.run(|| TcpStream::connect_timeout(&at, short));
            drop(listener);
            match (reached, to_confined) {
                (Ok(one), Ok(_)) if one.local_addr().unwrap().ip() == a.pod_ip => Ok(()),
                (one, other) => Err(format!("{:?} {:?}", one.err(), other.err())),
            }
        });
    };
    meet("before");
    for (harm, back) in [
        (
            "ip route del 10.88.1.0/24",
            "ip route show proto 87 | grep -q 10.88.1.0/24",
        ),
        (
            "ip link del vx-wherry0",
            "ip -d link show vx-wherry0 | grep -q vxlan",
        ),
        (
            "ip link set vx-wherry0 down",
            "ip link show vx-wherry0 up | grep -q vx",
        ),
        ("ip rule del prio 20087", "ip rule | grep -q 10.88.0.0/24"),
        (
            "ip neigh del 10.88.1.1 dev vx-wherry0",
            "ip neigh show dev vx-wherry0 | grep -q PERMANENT",
        ),
        (
            "bridge fdb del $(bridge fdb show dev vx-wherry0 | cut -d' ' -f1) dev vx-wherry0 dst 10.53.0.2",
            "bridge fdb show dev vx-wherry0 | grep -q 'dst 10.53.0.2'",
        ),
        (
            "ip link del wherry0",
            "ip addr show wherry0 | grep -q 10.88.0.3/32",
        ),
        (
            "nft flush ruleset",
            "nft list set inet wherry_wherry0 inside | grep -q 10.53.0.2",
        ),
    ] {
        a.netns.run(|| sh(harm));
        eventually(harm, || {
            let look = || Command::new("sh").args(["-c", back]).status().unwrap();
            if a.netns.run(look).success() {
                Ok(())
            } else {
                Err("it stays gone".to_owned())
            }
        });
        meet(harm);
    }
    a.stop();
    b.stop();
}

#[test]
fn a_node_that_cannot_be_reached_is_told_and_the_others_are() {
    let (a, _b, _) = neighbours();
    let a = Node::start(a, "10.52.0.1", A, Backend::HostGw);
    let near = Peer {
        name: "near".into(),
        addresses: vec![ip("10.52.0.2")],
        pod_cidrs: vec![B.parse().unwrap()],
    };
    let far = Peer {
        name: "far".into(),
        addresses: vec![ip("10.99.0.2")],
        pod_cidrs: vec!["10.88.2.0/24".parse().unwrap()],
    };
    a.tell(&[far, near]);
    eventually("the trouble is told", || {
        let told = a.unreachable.borrow().clone();
        let text = format!("{told:?}");
        if told.len() == 1 && text.contains("far") && text.contains("host-gw") {
            Ok(())
        } else {
            Err(text)
        }
    });
    assert!(a.routes().contains(B));
    a.stop();
}
