//! The network: a Service's map among many, connections through it, and packets between pods beside a bare veth pair.
//!
//! Everything runs in network namespaces of this program's own, with the node's own code and no agent.

use std::{
    collections::HashSet,
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use wherry_network::{Attach, Backend, NetworkConfig, Peer, PodNetwork};
use wherry_services::{
    Config, Endpoint, Index, Kind, Protocol, Service, ServiceKey, ServicePort, Slice, SlicePort,
};

use crate::host;

/// Services that are there besides the one that is measured.
const OTHERS: [usize; 2] = [0, 9_999];
/// Changes of endpoints, connections, round trips of each kind.
const CHANGES: usize = 50;
const CONNECTIONS: usize = 1_000;
const ROUND_TRIPS: usize = 5_000;
/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 8080;

/// A network namespace that lives as long as this.
struct Netns(File);

impl Netns {
    fn new() -> Result<Self> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?))
        })
    }

    /// Runs something inside. A socket that it makes stays inside.
    fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    fn sh(&self, script: &str) -> Result<()> {
        self.run(|| {
            let done = Command::new("sh").args(["-ec", script]).status()?;
            ensure!(done.success(), "{script}");
            Ok(())
        })
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(_) => bail!("a thread panicked"),
    })
}

/// A cable between two namespaces.
fn cable(a: &Netns, a_ip: &str, b: &Netns, b_ip: &str) -> Result<()> {
    let far = b.path().display().to_string();
    a.sh(&format!(
        "ip link set lo up; ip link add eth0 type veth peer name eth0 netns {far}; \
         ip addr add {a_ip}/24 dev eth0; ip link set eth0 up"
    ))?;
    b.sh(&format!(
        "ip link set lo up; ip addr add {b_ip}/24 dev eth0; ip link set eth0 up"
    ))
}

/// A server inside that tells who it is, and then says everything again that it is told.
fn serve(netns: &Netns, ip: IpAddr) -> Result<()> {
    let listener = netns.run(|| Ok(TcpListener::bind((ip, PORT))?))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream, ip));
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream, ip: IpAddr) -> Option<()> {
    let IpAddr::V4(ip) = ip else { return None };
    stream.set_nodelay(true).ok()?;
    stream.write_all(&ip.octets()).ok()?;
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() {
        stream.write_all(&byte).ok()?;
    }
    None
}

/// Connects, and answers how long that took and who answered.
fn connect(at: SocketAddr) -> Result<(Duration, TcpStream, Ipv4Addr)> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    let took = start.elapsed();
    let mut who = [0; 4];
    stream.read_exact(&mut who)?;
    Ok((took, stream, who.into()))
}

fn connections(from: &Netns, at: SocketAddr) -> Result<Vec<Duration>> {
    from.run(|| {
        (0..CONNECTIONS)
            .map(|_| Ok(connect(at)?.0))
            .collect::<Result<_>>()
    })
}

/// One byte there and back on an open connection.
fn round_trips(from: &Netns, at: SocketAddr) -> Result<Vec<Duration>> {
    from.run(|| {
        let (_, mut stream, _) = connect(at)?;
        stream.set_nodelay(true)?;
        let mut byte = [7];
        let mut samples = Vec::with_capacity(ROUND_TRIPS);
        for _ in 0..ROUND_TRIPS {
            let start = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            samples.push(start.elapsed());
        }
        Ok(samples)
    })
}

/// Measures all of it.
pub(crate) fn run() -> Result<()> {
    println!("| What | Median | Spread (p10–p90) | p99 | n |\n|---|---|---|---|---|");
    for others in OTHERS {
        services(others)?;
    }
    let (a, b) = (Netns::new()?, Netns::new()?);
    cable(&a, "10.60.0.1", &b, "10.60.0.2")?;
    let far: IpAddr = [10, 60, 0, 2].into();
    serve(&b, far)?;
    host::fine_row(
        "round trip of a byte, bare veth pair",
        &round_trips(&a, (far, PORT).into())?,
    );
    let node = Node::start(Netns::new()?, "10.52.0.1", "10.88.0.0/24", Backend::Auto)?;
    let (client, server) = (&node.pods[0], &node.pods[1]);
    let samples = round_trips(&client.0, (server.1, PORT).into())?;
    host::fine_row("round trip of a byte, pods of one node", &samples);
    drop(node);
    for (backend, name) in [(Backend::HostGw, "host-gw"), (Backend::Vxlan, "vxlan")] {
        let hosts = (Netns::new()?, Netns::new()?);
        cable(&hosts.0, "10.52.0.1", &hosts.1, "10.52.0.2")?;
        let a = Node::start(hosts.0, "10.52.0.1", "10.88.0.0/24", backend)?;
        let b = Node::start(hosts.1, "10.52.0.2", "10.88.1.0/24", backend)?;
        a.tell("10.52.0.2", "10.88.1.0/24")?;
        b.tell("10.52.0.1", "10.88.0.0/24")?;
        let at = (b.pods[0].1, PORT).into();
        let start = Instant::now();
        while a.pods[0]
            .0
            .run(|| Ok(TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_err()))?
        {
            ensure!(start.elapsed() < PATIENCE, "no way by {name}");
        }
        let samples = round_trips(&a.pods[0].0, at)?;
        host::fine_row(
            &format!("round trip of a byte, pods of two nodes, {name}"),
            &samples,
        );
    }
    Ok(())
}

/// A node with two pods that serve.
struct Node {
    pods: Vec<(Netns, IpAddr)>,
    index: Arc<Index>,
    peers: watch::Sender<Option<Arc<[Peer]>>>,
    _stop: oneshot::Sender<()>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Node {
    fn start(netns: Netns, address: &str, pod_cidr: &str, backend: Backend) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = NetworkConfig {
            backend,
            node_ips: vec![address.parse()?],
            ..NetworkConfig::new(dir.path().join("network"), pod_cidr.parse()?)
        };
        let services = Config {
            bridge: config.bridge.clone(),
            pod_cidr: config.pod_cidr,
            service_cidr: Some("10.96.0.0/16".parse()?),
        };
        let pods = [Netns::new()?, Netns::new()?];
        let paths = [pods[0].path(), pods[1].path()];
        let (peers, told) = watch::channel(None);
        let (stop, stopped) = oneshot::channel::<()>();
        let (sender, receiver) = std::sync::mpsc::channel();
        let index = Arc::new(Index::of_nothing());
        let shown = Arc::clone(&index);
        let thread = thread::spawn(move || {
            let _dir = dir;
            setns(netns.0.as_fd(), CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let network = PodNetwork::new(config)?;
                let mut ips = Vec::new();
                for (number, path) in paths.into_iter().enumerate() {
                    let ip = network
                        .attach(&number.to_string(), Attach::Namespace(path))
                        .await?;
                    ips.extend(ip);
                }
                sender.send(ips)?;
                let (_ports, ports) = watch::channel(Vec::new());
                let (unreachable, _told) = watch::channel(Vec::new());
                let shutdown = CancellationToken::new();
                tokio::select! {
                    () = network.keep_peers(told, unreachable) => {}
                    () = wherry_services::run(services, shown, ports, shutdown) => {}
                    _ = stopped => {}
                }
                network.down().await?;
                Ok(())
            })
        });
        let ips = receiver.recv().context("the node did not start")?;
        let pods: Vec<_> = pods.into_iter().zip(ips).collect();
        for (netns, ip) in &pods {
            serve(netns, *ip)?;
        }
        Ok(Self {
            pods,
            index,
            peers,
            _stop: stop,
            thread: Some(thread),
        })
    }

    fn tell(&self, address: &str, pod_cidr: &str) -> Result<()> {
        let peer = Peer {
            name: address.into(),
            addresses: vec![address.parse()?],
            pod_cidrs: vec![pod_cidr.parse()?],
        };
        self.peers.send_replace(Some([peer].into()));
        Ok(())
    }

    /// A Service, and the one pod behind it.
    fn put(&self, number: u16, pod: IpAddr) {
        let [high, low] = number.to_be_bytes();
        let key = ServiceKey::new("bench", &number.to_string());
        let service = Service {
            kind: Kind::Cluster(vec![[10, 96, high, low].into()]),
            ports: vec![ServicePort {
                name: String::new(),
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
        };
        let slice = Slice {
            ports: vec![SlicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: Some(PORT),
            }],
            endpoints: vec![Endpoint {
                address: pod,
                hostname: None,
                is_ready: true,
                is_serving: true,
                is_terminating: false,
                is_local: true,
            }],
        };
        self.index.put_service(key.clone(), service);
        self.index.put_slice(key, number.to_string(), slice);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let (stop, _) = oneshot::channel();
        drop(std::mem::replace(&mut self._stop, stop));
        if let Some(Ok(Err(error))) = self.thread.take().map(thread::JoinHandle::join) {
            eprintln!("network: {error:#}");
        }
    }
}

/// How fast a Service changes and is connected to among `others`.
fn services(others: usize) -> Result<()> {
    let count = others + 1;
    let node = Node::start(Netns::new()?, "10.52.0.1", "10.88.0.0/24", Backend::Auto)?;
    let client = &node.pods[0].0;
    let (one, two) = (node.pods[0].1, node.pods[1].1);
    let last = u16::try_from(count)?;
    let start = Instant::now();
    for number in 1..=last {
        node.put(number, two);
    }
    let at = SocketAddr::new(
        [10, 96, last.to_be_bytes()[0], last.to_be_bytes()[1]].into(),
        80,
    );
    let answers = |wanted: IpAddr| {
        client.run(|| {
            let until = Instant::now() + PATIENCE;
            loop {
                if connect(at).is_ok_and(|(_, _, who)| IpAddr::V4(who) == wanted) {
                    return Ok(());
                }
                ensure!(Instant::now() < until, "{wanted} does not answer");
            }
        })
    };
    answers(two)?;
    eprintln!(
        "network: {count} Services in the kernel after {:?}",
        start.elapsed()
    );
    let mut changes = Vec::new();
    let mut seen = HashSet::new();
    for number in 0..CHANGES {
        let pod = if number % 2 == 0 { one } else { two };
        seen.insert(pod);
        let start = Instant::now();
        node.put(last, pod);
        answers(pod)?;
        changes.push(start.elapsed());
        // The pause after which changes are taken together is over.
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(seen.len() == 2, "one pod answered alone");
    host::fine_row(
        &format!("endpoint changed → another pod answers, {count} Services"),
        &changes,
    );
    let direct = connections(client, (two, PORT).into())?;
    host::fine_row("connection to a pod", &direct);
    let through = connections(client, at)?;
    host::fine_row(
        &format!("connection through a Service, {count} Services"),
        &through,
    );
    Ok(())
}
