//! Each test has a node of its own: a network namespace that ends with the test's thread.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wherry_network::{Attach, NetworkConfig, PodNetwork};

use super::*;
use crate::object::{Allowed, Endpoint, Kind, Service, ServiceKey, ServicePort, Slice, SlicePort};

const TIMEOUT: Duration = Duration::from_secs(5);
const CLUSTER_IP: &str = "10.96.0.5";

/// A network namespace that lives as long as this.
struct Netns(File);

impl Netns {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        });
        made.join().unwrap()
    }

    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Runs something inside. A socket that it makes stays inside.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            entered.join().unwrap()
        })
    }
}

/// A pod that answers who asked, and who it is.
struct Pod {
    netns: Netns,
    ip: Ipv4Addr,
}

impl Pod {
    async fn new(network: &PodNetwork, uid: &str) -> Self {
        let netns = Netns::new();
        let attach = Attach::Namespace(netns.path().into());
        let ips = network.attach(uid, attach).await.unwrap();
        let IpAddr::V4(ip) = ips[0] else {
            panic!("{ips:?}")
        };
        let pod = Self { netns, ip };
        pod.netns.run(move || serve(ip));
        pod
    }
}

/// Answers `<own address> <asker's address>` on TCP 8080 and UDP 8053, until the test's process ends.
fn serve(ip: Ipv4Addr) {
    let listener = TcpListener::bind((ip, 8080)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip();
            let _ = write!(stream, "{ip} {peer}");
        }
    });
    let socket = UdpSocket::bind((ip, 8053)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(ip.to_string().as_bytes(), from);
        }
    });
}

/// Connects and answers who answered, and who that saw.
fn ask(to: &str, port: u16) -> Result<(String, String), std::io::ErrorKind> {
    let to: IpAddr = to.parse().unwrap();
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, port), TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask().map_err(|error: std::io::Error| error.kind())?;
    let (who, whom) = text.split_once(' ').unwrap();
    Ok((who.into(), whom.into()))
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

struct Node {
    network: PodNetwork,
    index: Arc<Index>,
    host_ports: watch::Sender<Vec<HostPort>>,
    shutdown: CancellationToken,
    config: Config,
    _dir: tempfile::TempDir,
}

impl Node {
    /// A proxy; awaiting its table is the test's business.
    fn spawn(&self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(run(
            self.config.clone(),
            Arc::clone(&self.index),
            self.host_ports.subscribe(),
            self.shutdown.clone(),
        ))
    }

    fn service(&self, change: impl FnOnce(&mut Service)) {
        let port = |name: &str, protocol, port, node_port| ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port,
        };
        let mut service = Service {
            kind: Kind::Cluster(vec![CLUSTER_IP.parse().unwrap()]),
            ports: vec![
                port("web", Protocol::Tcp, 80, 30080),
                port("dns", Protocol::Udp, 53, 0),
            ],
            external_ips: Vec::new(),
            allowed: None,
            affinity: None,
            is_internal_local: false,
            is_external_local: false,
            health_check_port: None,
            publishes_not_ready: false,
            is_foreign: false,
        };
        change(&mut service);
        self.index.put_service(ServiceKey::new("ns", "a"), service);
    }

    fn endpoints(&self, ips: &[Ipv4Addr]) {
        self.endpoints_like(ips, |_| {});
    }

    fn endpoints_like(&self, ips: &[Ipv4Addr], change: fn(&mut Endpoint)) {
        let port = |name: &str, protocol, port| SlicePort {
            name: name.into(),
            protocol,
            port: Some(port),
        };
        let endpoints = ips.iter().map(|ip| {
            let mut endpoint = Endpoint {
                address: (*ip).into(),
                hostname: None,
                is_ready: true,
                is_serving: true,
                is_terminating: false,
                is_local: true,
            };
            change(&mut endpoint);
            endpoint
        });
        let slice = Slice {
            ports: vec![
                port("web", Protocol::Tcp, 8080),
                port("dns", Protocol::Udp, 8053),
            ],
            endpoints: endpoints.collect(),
        };
        self.index
            .put_slice(ServiceKey::new("ns", "a"), "a-1".into(), slice);
    }

    /// Waits until the kernel's table says something, or not any more.
    async fn until(&self, text: &str, is_there: bool) {
        let table = services_table(&self.config.bridge);
        let wait = async {
            loop {
                let listed = Command::new("nft")
                    .args(["list", "table", "inet", &table])
                    .output();
                let listed = String::from_utf8_lossy(&listed.unwrap().stdout).into_owned();
                // Elements are broken over lines.
                let listed: Vec<&str> = listed.split_whitespace().collect();
                if listed.join(" ").contains(text) == is_there {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(TIMEOUT * 4, wait).await;
        assert!(waited.is_ok(), "{text:?} there: {is_there}, not in time");
    }

    async fn until_endpoints(&self, count: usize) {
        self.until(&format!("tcp . 80 : goto to_{count}"), true)
            .await;
    }
}

/// Runs a test on a thread that has left the machine's network for good.
fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        sh("ip link set lo up");
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            let config =
                NetworkConfig::new(dir.path().join("network"), "10.88.0.0/16".parse().unwrap());
            let network = PodNetwork::new(config).unwrap();
            network.up().await.unwrap();
            let node = Node {
                network,
                index: Arc::new(Index::of_nothing()),
                host_ports: watch::Sender::new(Vec::new()),
                shutdown: CancellationToken::new(),
                config: Config {
                    bridge: "wherry0".into(),
                    pod_cidr: "10.88.0.0/16".parse().unwrap(),
                    service_cidr: Some("10.96.0.0/12".parse().unwrap()),
                },
                _dir: dir,
            };
            node.spawn();
            test(node).await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_service_is_reached_from_the_node_from_pods_and_by_its_own_endpoint() {
    on_a_node(async |node| {
        let (a, b) = (
            Pod::new(&node.network, "a").await,
            Pod::new(&node.network, "b").await,
        );
        let IpAddr::V4(c) = node.network.attach("c", Attach::Confined).await.unwrap()[0] else {
            panic!("IPv4");
        };
        serve(c);
        node.service(|_| {});
        for (endpoint, asker) in [(a.ip, &b), (a.ip, &a), (c, &a)] {
            node.endpoints(&[endpoint]);
            node.until(&format!("80 . 0 : {endpoint} . 8080"), true)
                .await;
            let (who, whom) = asker.netns.run(|| ask(CLUSTER_IP, 80)).unwrap();
            assert_eq!(who, endpoint.to_string());
            // A pod that meets itself sees the node; all others see who asks.
            let seen = if endpoint == asker.ip {
                Ipv4Addr::new(10, 88, 0, 1)
            } else {
                asker.ip
            };
            assert_eq!(whom, seen.to_string(), "{endpoint} asked by {}", asker.ip);
            let (who, _) = ask(CLUSTER_IP, 80).unwrap();
            assert_eq!(who, endpoint.to_string(), "from the node");
        }
        // All of several endpoints get their share.
        node.endpoints(&[a.ip, b.ip, c]);
        node.until_endpoints(3).await;
        let mut seen = BTreeSet::new();
        for _ in 0..60 {
            seen.insert(ask(CLUSTER_IP, 80).unwrap().0);
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
    });
}

#[test]
fn what_has_no_endpoint_is_refused_at_once() {
    on_a_node(async |node| {
        let a = Pod::new(&node.network, "a").await;
        node.service(|_| {});
        node.until("tcp . 80 : goto turn_away", true).await;
        let refused = Err(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(ask(CLUSTER_IP, 80), refused);
        assert_eq!(a.netns.run(|| ask(CLUSTER_IP, 80)), refused);
        // An address that no Service has.
        assert_eq!(ask("10.96.9.9", 80), refused);
        assert_eq!(a.netns.run(|| ask("10.96.9.9", 80)), refused);
        node.endpoints(&[a.ip]);
        node.until_endpoints(1).await;
        ask(CLUSTER_IP, 80).unwrap();
    });
}

#[test]
fn a_name_server_that_is_away_is_silent_and_anything_else_refuses() {
    on_a_node(async |node| {
        let a = Pod::new(&node.network, "a").await;
        sh("ip addr add 10.96.0.10/32 dev wherry0");
        node.until("icmp code port-unreachable drop", true).await;
        let ask = |at: &str| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let patience = Some(Duration::from_millis(200));
            socket.set_read_timeout(patience).unwrap();
            socket.connect((at, 53)).unwrap();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0]).map_err(|error| error.kind())
        };
        for (at, heard) in [
            ("10.96.0.10", std::io::ErrorKind::WouldBlock),
            ("10.88.0.1", std::io::ErrorKind::ConnectionRefused),
        ] {
            assert_eq!(a.netns.run(|| ask(at)), Err(heard), "{at}");
        }
        node.network.down().await.unwrap();
        node.shutdown.cancel();
    });
}

#[test]
fn ports_of_the_node_lead_to_services_and_pods_from_outside() {
    on_a_node(async |node| {
        let outside = Netns::new();
        let path = outside.path();
        sh(&format!(
            "ip link add out type veth peer name in
             ip link set in netns /proc/{}/fd/{}
             ip addr add 10.51.0.1/24 dev out; ip link set out up",
            std::process::id(),
            path.rsplit('/').next().unwrap(),
        ));
        outside.run(|| sh("ip addr add 10.51.0.2/24 dev in; ip link set in up; ip link set lo up"));
        let a = Pod::new(&node.network, "a").await;
        node.service(|service| service.external_ips = vec![[192, 0, 2, 1].into()]);
        node.endpoints(&[a.ip]);
        node.until_endpoints(1).await;
        let (who, whom) = outside.run(|| ask("10.51.0.1", 30080)).unwrap();
        assert_eq!((who, whom), (a.ip.to_string(), "10.88.0.1".into()));
        outside.run(|| {
            sh("ip route add 192.0.2.1 via 10.51.0.1; ip route add 10.96.0.0/12 via 10.51.0.1")
        });
        assert_eq!(
            outside.run(|| ask("192.0.2.1", 80)).unwrap().0,
            a.ip.to_string()
        );
        assert_eq!(
            outside.run(|| ask(CLUSTER_IP, 80)).unwrap().0,
            a.ip.to_string()
        );
        assert_eq!(
            a.netns.run(|| ask("10.51.0.1", 30080)).unwrap().0,
            a.ip.to_string()
        );
        // The policy keeps who asks; so does a host port.
        node.service(|service| service.is_external_local = true);
        node.host_ports.send_replace(vec![HostPort {
            host_ip: None,
            protocol: Protocol::Tcp,
            host_port: 8081,
            pod_ip: a.ip,
            container_port: 8080,
        }]);
        node.until("tcp . 8081 : goto node_to_1", true).await;
        for port in [30080, 8081] {
            let seen = outside.run(|| ask("10.51.0.1", port)).unwrap();
            // The pod's way back leads by the node, which it has its default route to.
            assert_eq!(seen, (a.ip.to_string(), "10.51.0.2".into()));
        }
        // A balancer's address is for those it names; what is within a wider range is said once.
        let guarded = |sources: &[&str]| {
            let allowed = Allowed {
                addresses: vec![[192, 0, 2, 1].into()],
                sources: sources.iter().map(|range| range.parse().unwrap()).collect(),
            };
            node.service(|service| {
                service.external_ips = vec![[192, 0, 2, 1].into()];
                service.allowed = Some(allowed);
            });
        };
        guarded(&["10.88.0.0/16", "192.0.2.128/25"]);
        node.until("192.0.2.1 . tcp . 80 . 10.88.0.0/16", true)
            .await;
        assert!(outside.run(|| ask("192.0.2.1", 80)).is_err());
        assert!(a.netns.run(|| ask("192.0.2.1", 80)).is_ok());
        assert!(
            outside.run(|| ask("10.51.0.1", 30080)).is_ok(),
            "ports of nodes are everybody's"
        );
        guarded(&["10.51.0.2/32"]);
        node.until("192.0.2.1 . tcp . 80 . 10.88.0.0/16", false)
            .await;
        assert!(outside.run(|| ask("192.0.2.1", 80)).is_ok());
    });
}

/// What a balancer is told at a port of the node: code and body, nothing if it is not listened to (a connection that
/// waits for an answer when listening ends is reset).
async fn health(port: u16) -> Option<(u16, serde_json::Value)> {
    let address = (Ipv4Addr::new(10, 88, 0, 1), port);
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some((code, serde_json::from_str(body).unwrap()))
}

/// Asks until the answer is this one.
async fn until_health(port: u16, want: Option<(u16, usize)>) {
    let told = async {
        loop {
            let answered = health(port).await;
            let got = answered.as_ref().map(|(code, body)| {
                let service = serde_json::json!({ "namespace": "ns", "name": "a" });
                assert_eq!(body["service"], service);
                (*code, body["localEndpoints"].as_u64().unwrap() as usize)
            });
            if got == want {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let told = tokio::time::timeout(TIMEOUT, told).await;
    assert!(told.is_ok(), "{want:?} is not told in time");
}

#[test]
fn a_balancer_is_told_whether_the_node_has_endpoints_that_are_ready() {
    on_a_node(async |node| {
        let ips = [Ipv4Addr::new(10, 88, 0, 2), Ipv4Addr::new(10, 88, 0, 3)];
        let checked = |port: Option<u16>| {
            node.service(|service| {
                service.is_external_local = true;
                service.health_check_port = port;
            });
        };
        checked(Some(30_999));
        until_health(30_999, Some((503, 0))).await;
        node.endpoints(&ips[..1]);
        until_health(30_999, Some((200, 1))).await;
        node.endpoints(&ips);
        until_health(30_999, Some((200, 2))).await;
        node.endpoints_like(&ips, |endpoint| endpoint.is_local = false);
        until_health(30_999, Some((503, 0))).await;
        node.endpoints_like(&ips, |endpoint| {
            // Still answers, and is to get nothing new.
            endpoint.is_ready = false;
            endpoint.is_terminating = true;
        });
        until_health(30_999, Some((503, 0))).await;
        node.endpoints(&ips);
        until_health(30_999, Some((200, 2))).await;
        checked(Some(31_000));
        until_health(31_000, Some((200, 2))).await;
        assert_eq!(health(30_999).await, None, "nobody listens any more");
        checked(None);
        until_health(31_000, None).await;
    });
}

#[test]
fn a_client_keeps_its_endpoint_until_that_goes() {
    on_a_node(async |node| {
        let pods = [
            Pod::new(&node.network, "a").await,
            Pod::new(&node.network, "b").await,
        ];
        node.service(|service| service.affinity = Some(Duration::from_secs(60)));
        node.endpoints(&[pods[0].ip, pods[1].ip]);
        node.until_endpoints(2).await;
        let first = ask(CLUSTER_IP, 80).unwrap().0;
        for _ in 0..20 {
            assert_eq!(ask(CLUSTER_IP, 80).unwrap().0, first);
        }
        // Over a restart as well.
        node.shutdown.cancel();
        let node = Node {
            shutdown: CancellationToken::new(),
            index: Arc::new(Index::of_nothing()),
            ..node
        };
        node.service(|service| service.affinity = Some(Duration::from_secs(60)));
        node.endpoints(&[pods[0].ip, pods[1].ip, Ipv4Addr::new(10, 88, 0, 99)]);
        node.spawn();
        node.until_endpoints(3).await;
        for _ in 0..20 {
            assert_eq!(ask(CLUSTER_IP, 80).unwrap().0, first);
        }
        let other = pods
            .iter()
            .map(|pod| pod.ip)
            .find(|ip| ip.to_string() != first)
            .unwrap();
        node.endpoints(&[other, Ipv4Addr::new(10, 88, 0, 99)]);
        node.until(&format!(": {first} . 8080"), false).await;
        node.endpoints(&[other]);
        node.until_endpoints(1).await;
        assert_eq!(ask(CLUSTER_IP, 80).unwrap().0, other.to_string());
    });
}

#[test]
fn a_udp_client_that_goes_on_sending_is_led_to_the_endpoint_that_is_left() {
    on_a_node(async |node| {
        let (a, b) = (
            Pod::new(&node.network, "a").await,
            Pod::new(&node.network, "b").await,
        );
        node.service(|_| {});
        node.endpoints(&[a.ip]);
        node.until("udp . 53 : goto to_1", true).await;
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        socket.connect((CLUSTER_IP, 53)).unwrap();
        let ask = || {
            let mut buffer = [0; 64];
            socket.send(b"?").ok()?;
            let len = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
        };
        for endpoint in [a.ip, b.ip] {
            node.endpoints(&[endpoint]);
            let wait = async {
                while ask() != Some(endpoint.to_string()) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let waited = tokio::time::timeout(TIMEOUT, wait).await;
            assert!(waited.is_ok(), "{endpoint} does not answer");
        }
    });
}

#[test]
fn who_meets_himself_is_masqueraded_a_moment_longer_and_for_good_when_he_is_back() {
    on_a_node(async |node| {
        let (stays, goes) = (Ipv4Addr::new(10, 88, 0, 2), Ipv4Addr::new(10, 88, 0, 3));
        node.service(|_| {});
        node.endpoints(&[stays, goes]);
        node.until_endpoints(2).await;
        node.endpoints(&[stays]);
        node.until(&format!("{goes} . {goes} timeout 10s"), true)
            .await;
        node.endpoints(&[stays, goes]);
        node.until_endpoints(2).await;
        node.until(&format!("{goes} . {goes} timeout"), false).await;
        node.until(&format!("{goes} . {goes}"), true).await;
        node.network.down().await.unwrap();
        node.shutdown.cancel();
    });
}

#[test]
fn what_somebody_deletes_is_put_in_place_again() {
    on_a_node(async |node| {
        node.service(|_| {});
        node.endpoints(&[[10, 88, 0, 2].into()]);
        node.until_endpoints(1).await;
        let table = services_table("wherry0");
        for vandal in [
            format!("delete element inet {table} services {{ {CLUSTER_IP} . tcp . 80 }}"),
            format!("flush chain inet {table} prerouting"),
            format!("delete table inet {table}"),
            "flush ruleset".to_owned(),
        ] {
            sh(&format!("nft '{vandal}'"));
            node.until("tcp . 80 : goto to_1", true).await;
            node.until(
                "hook prerouting priority dstnat; policy accept; jump services",
                true,
            )
            .await;
        }
        node.network.down().await.unwrap();
        node.shutdown.cancel();
    });
}
