//! Each test has a node of its own: a network namespace that ends with the test's thread.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a test on a thread that has left the machine's network for good.
pub(crate) fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        sh("ip link set lo up");
        runtime.block_on(test(Node { dir }));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
}

impl Node {
    fn config(&self) -> NetworkConfig {
        NetworkConfig {
            masquerade: false,
            ..NetworkConfig::new(
                self.dir.path().join("network"),
                "10.88.0.0/16".parse().unwrap(),
            )
        }
    }

    fn network(&self) -> PodNetwork {
        PodNetwork::new(self.config()).unwrap()
    }
}

/// A network namespace that lives as long as this.
pub(crate) struct Netns(pub(crate) File);

impl Netns {
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        });
        made.join().unwrap()
    }

    pub(crate) fn attach(&self) -> Attach {
        Attach::Namespace(format!("/proc/self/fd/{}", self.0.as_raw_fd()).into())
    }

    /// Runs something inside. A socket that it makes stays inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            entered.join().unwrap()
        })
    }
}

pub(crate) fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn listen(address: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Connects, and answers who the other side says we are.
pub(crate) fn connect(listener: &TcpListener, to: SocketAddr) -> IpAddr {
    let _stream = TcpStream::connect_timeout(&to, TIMEOUT).unwrap();
    listener.accept().unwrap().1.ip()
}

/// Connects as a confined pod does: from its address.
pub(crate) fn connect_from(source: IpAddr, to: SocketAddr) -> OwnedFd {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket,
    };
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(source, 0)),
    )
    .unwrap();
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    socket
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn pods_reach_each_other_themselves_and_the_node_in_both_families() {
    on_a_node(async |node| {
        let config = NetworkConfig {
            pod_cidr_v6: Some("fd88::/64".parse().unwrap()),
            ..node.config()
        };
        let network = PodNetwork::new(config).unwrap();
        let (a, b) = (Netns::new(), Netns::new());
        let a_ips = network.attach("a", a.attach()).await.unwrap();
        let b_ips = network.attach("b", b.attach()).await.unwrap();
        let c_ips = network.attach("c", Attach::Confined).await.unwrap();
        assert_eq!(a_ips, [ip("10.88.0.2"), ip("fd88::2")]);
        assert_eq!(c_ips, [ip("10.88.0.4"), ip("fd88::4")]);
        for family in [0, 1] {
            let (a_ip, b_ip, c_ip) = (a_ips[family], b_ips[family], c_ips[family]);
            let gateway = network.pod_cidrs()[family].gateway();
            let (in_b, at_b) = b.run(|| listen(b_ip));
            let (in_c, at_c) = listen(c_ip);
            let (on_node, at_node) = listen(gateway);
            assert_eq!(a.run(|| connect(&in_b, at_b)), a_ip, "pod to pod");
            assert_eq!(b.run(|| connect(&in_b, at_b)), b_ip, "pod to itself");
            assert_eq!(a.run(|| connect(&in_c, at_c)), a_ip, "pod to confined pod");
            assert_eq!(a.run(|| connect(&on_node, at_node)), a_ip, "pod to node");
            assert_eq!(connect(&in_b, at_b), gateway, "node to pod");
            assert_eq!(connect(&in_c, at_c), c_ip, "node to confined pod");
        }
        let (loopback, at) = a.run(|| listen(ip("127.0.0.1")));
        a.run(|| connect(&loopback, at));
        network.down().await.unwrap();
    });
}

#[test]
fn pods_reach_the_outside_under_the_nodes_address_though_others_drop() {
    on_a_node(async |node| {
        let outside = Netns::new();
        let fd = outside.0.as_raw_fd();
        let shell = std::process::id();
        sh(&format!(
            "ip link add uplink type veth peer name far netns /proc/{shell}/fd/{fd}"
        ));
        sh(
            "ip addr add 192.0.2.1/24 dev uplink; ip link set uplink mtu 1400 up; ip route add default via 192.0.2.2",
        );
        outside.run(|| sh("ip addr add 192.0.2.2/24 dev far; ip link set far up"));
        sh(
            "nft 'table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }'",
        );
        let before = sh("nft list ruleset");

        let network = PodNetwork::new(NetworkConfig {
            masquerade: true,
            ..node.config()
        })
        .unwrap();
        let pod = Netns::new();
        network.attach("a", pod.attach()).await.unwrap();
        let confined = network.attach("c", Attach::Confined).await.unwrap();
        let (listener, at) = outside.run(|| listen(ip("192.0.2.2")));
        assert_eq!(pod.run(|| connect(&listener, at)), ip("192.0.2.1"));
        assert!(
            pod.run(|| sh("ip link show eth0")).contains("mtu 1400"),
            "the mtu is that of the way outside"
        );

        let bound = connect_from(confined[0], at);
        assert_eq!(
            listener.accept().unwrap().1.ip(),
            ip("192.0.2.1"),
            "confined pod to outside"
        );
        drop(bound);

        // A second agent finds everything in place and adds nothing.
        let rules = sh("nft list ruleset");
        let again = PodNetwork::new(NetworkConfig {
            masquerade: true,
            ..node.config()
        })
        .unwrap();
        again.up().await.unwrap();
        assert_eq!(sh("nft list ruleset"), rules);
        assert_eq!(pod.run(|| connect(&listener, at)), ip("192.0.2.1"));
        again.down().await.unwrap();
        assert_eq!(sh("nft list ruleset"), before);
    });
}

#[test]
fn a_new_agent_finds_pods_attached_and_leaves_them_alone() {
    on_a_node(async |node| {
        let pod = Netns::new();
        let first = node.network();
        let ips = first.attach("a", pod.attach()).await.unwrap();
        first.attach("c", Attach::Confined).await.unwrap();
        drop(first);
        let index = pod.run(|| sh("cat /proc/net/igmp; ip -o link show eth0 | cut -d: -f1"));

        let network = node.network();
        assert_eq!(network.addresses("a"), ips);
        assert_eq!(network.attach("a", pod.attach()).await.unwrap(), ips);
        assert_eq!(
            network.attach("c", Attach::Confined).await.unwrap(),
            [ip("10.88.0.3")]
        );
        let live = ["a", "c"].map(String::from).into();
        network.retain(&live).await.unwrap();
        assert_eq!(
            pod.run(|| sh("cat /proc/net/igmp; ip -o link show eth0 | cut -d: -f1")),
            index
        );
        let (listener, at) = pod.run(|| listen(ips[0]));
        connect(&listener, at);
        listen(ip("10.88.0.3"));
    });
}

#[test]
fn what_a_killed_agent_left_half_done_is_finished() {
    on_a_node(async |node| {
        let network = node.network();
        let pod = Netns::new();
        let ips = network.attach("a", pod.attach()).await.unwrap();
        let port = veth::name("wherry0", "a");
        let half_done = [
            "ip addr flush dev eth0".to_owned(),
            "ip route del default".to_owned(),
            "ip addr add 10.88.9.9/16 dev eth0".to_owned(),
            "ip link set lo down".to_owned(),
            "ip link set eth0 down".to_owned(),
            "ip link del eth0; ip link add eth0 type veth peer name other".to_owned(),
        ];
        for script in &half_done {
            pod.run(|| sh(script));
            assert_eq!(
                network.attach("a", pod.attach()).await.unwrap(),
                ips,
                "{script}"
            );
            let (listener, at) = pod.run(|| listen(ips[0]));
            connect(&listener, at);
            assert!(
                pod.run(|| sh("ip route; ip addr"))
                    .contains("default via 10.88.0.1"),
                "{script}"
            );
            assert!(!pod.run(|| sh("ip addr")).contains("10.88.9.9"), "{script}");
        }
        for script in [
            format!("ip link set {port} nomaster"),
            format!("ip link del {port}"),
            "ip link del wherry0".into(),
        ] {
            sh(&script);
            network.attach("a", pod.attach()).await.unwrap();
            let (listener, at) = pod.run(|| listen(ips[0]));
            connect(&listener, at);
        }
        // The sandbox was made again: the pair moves to the new namespace.
        let again = Netns::new();
        assert_eq!(network.attach("a", again.attach()).await.unwrap(), ips);
        let (listener, at) = again.run(|| listen(ips[0]));
        connect(&listener, at);
        assert!(!pod.run(|| sh("ip link")).contains("eth0"));
    });
}

#[test]
fn detaching_leaves_nothing_and_retain_finds_what_was_forgotten() {
    on_a_node(async |node| {
        let network = node.network();
        let pods: Vec<_> = (0..3).map(|_| Netns::new()).collect();
        for (uid, pod) in ["a", "b", "stray"].iter().zip(&pods) {
            network.attach(uid, pod.attach()).await.unwrap();
        }
        network.attach("c", Attach::Confined).await.unwrap();
        network.attach("d", Attach::Confined).await.unwrap();

        network.detach("a").await.unwrap();
        network.detach("a").await.unwrap();
        network.detach("c").await.unwrap();
        network.detach("never").await.unwrap();
        assert!(network.addresses("a").is_empty());
        assert!(!pods[0].run(|| sh("ip link")).contains("eth0"));
        assert!(!sh("ip addr").contains("10.88.0.5/32"));

        // An interface and an address whose reservation a power cut took back.
        std::fs::remove_file(node.dir.path().join("network/addresses/10.88.0.4@stray")).unwrap();
        sh("ip addr add 10.88.7.7/32 dev wherry0");
        let network = node.network();
        network.retain(&["d".to_owned()].into()).await.unwrap();
        assert!(!sh("ip link").contains("veth"));
        let addresses = sh("ip -4 -o addr show wherry0");
        let found: Vec<_> = addresses
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3))
            .collect();
        assert_eq!(found, ["10.88.0.1/16", "10.88.0.6/32"]);

        network.down().await.unwrap();
        assert!(!sh("ip link").contains("wherry0"));
        assert!(!node.dir.path().join("network/addresses").exists());
        node.network().down().await.unwrap();
    });
}

#[test]
fn what_is_in_the_way_is_named() {
    on_a_node(async |node| {
        sh("ip link add wherry0 type veth peer name other");
        assert_eq!(
            node.network().up().await.unwrap_err().to_string(),
            "interface wherry0 is there and is not a bridge"
        );
        sh(
            "ip link del wherry0; ip link add docker0 type bridge; ip addr add 10.88.0.1/24 dev docker0; ip link set docker0 up",
        );
        assert_eq!(
            node.network().up().await.unwrap_err().to_string(),
            "pod CIDR 10.88.0.0/16 overlaps with the route 10.88.0.0/24 to docker0; choose another pod CIDR"
        );
        sh("ip link del docker0");
        let network = node.network();
        let own = Attach::Namespace("/proc/thread-self/ns/net".into());
        assert!(matches!(
            network.attach("a", own).await,
            Err(NetworkError::Namespace { .. })
        ));
        let gone = Attach::Namespace("/proc/1/ns/nothing".into());
        assert!(matches!(
            network.attach("a", gone).await,
            Err(NetworkError::Namespace { .. })
        ));
    });
}

#[test]
fn a_small_range_is_exhausted_with_a_clear_error() {
    on_a_node(async |node| {
        let config = NetworkConfig {
            pod_cidr: "10.88.0.0/29".parse().unwrap(),
            ..node.config()
        };
        let network = PodNetwork::new(config).unwrap();
        for uid in 0..5 {
            network
                .attach(&uid.to_string(), Attach::Confined)
                .await
                .unwrap();
        }
        let error = network.attach("more", Attach::Confined).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "no address is free in pod CIDR 10.88.0.0/29"
        );
        network.detach("3").await.unwrap();
        assert_eq!(
            network.attach("more", Attach::Confined).await.unwrap(),
            [ip("10.88.0.5")]
        );
    });
}

#[test]
fn many_pods_attach_at_once() {
    on_a_node(async |node| {
        let network = node.network();
        let pods: Vec<_> = (0..40).map(|_| Netns::new()).collect();
        let attached = pods.iter().enumerate().map(|(n, pod)| {
            let (network, attach) = (&network, pod.attach());
            async move { network.attach(&n.to_string(), attach).await.unwrap() }
        });
        let ips: HashSet<IpAddr> = futures::future::join_all(attached)
            .await
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(ips.len(), pods.len());
        let (listener, at) = pods[39].run(|| listen(network.addresses("39")[0]));
        pods[0].run(|| connect(&listener, at));
    });
}

#[test]
fn sweeping_while_pods_are_attached_takes_nothing_from_them() {
    on_a_node(async |node| {
        let network = node.network();
        let pods: Vec<_> = (0..20).map(|_| Netns::new()).collect();
        let live: HashSet<String> = (0..40).map(|n| n.to_string()).collect();
        let attaching = async {
            for (n, pod) in pods.iter().enumerate() {
                network.attach(&n.to_string(), pod.attach()).await.unwrap();
                network
                    .attach(&(n + 20).to_string(), Attach::Confined)
                    .await
                    .unwrap();
            }
        };
        let mut attaching = std::pin::pin!(attaching);
        let mut sweeps = 0;
        while tokio::select! {
            () = &mut attaching => false,
            swept = network.retain(&live) => { swept.unwrap(); true }
        } {
            sweeps += 1;
        }
        assert!(sweeps > 0);
        let links = sh("ip link");
        assert_eq!(links.matches("veth").count(), 20, "{links}");
        let addresses = sh("ip -4 addr show wherry0");
        assert_eq!(addresses.matches("/32").count(), 20, "{addresses}");
    });
}

#[test]
fn a_config_that_cannot_work_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = || NetworkConfig::new(dir.path().to_owned(), "10.88.0.0/16".parse().unwrap());
    for config in [
        NetworkConfig {
            bridge: "a-name-that-is-too-long".into(),
            ..config()
        },
        NetworkConfig {
            bridge: "a\" accept".into(),
            ..config()
        },
        NetworkConfig {
            pod_cidr: "fd00::/64".parse().unwrap(),
            ..config()
        },
        NetworkConfig {
            pod_cidr: "10.0.0.0/31".parse().unwrap(),
            ..config()
        },
        NetworkConfig {
            pod_cidr_v6: Some("10.0.0.0/16".parse().unwrap()),
            ..config()
        },
    ] {
        assert!(matches!(
            PodNetwork::new(config),
            Err(NetworkError::InvalidConfig(_))
        ));
    }
}
