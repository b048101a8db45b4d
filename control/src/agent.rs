//! The node: runtimes, images and network put together, and the agent on top.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wherry_agent::{Agent, eviction::threshold, network::Network, server};
use wherry_docker::DockerRuntime;
use wherry_images::{RegistryConfig, Store, StoreConfig};
use wherry_oci::OciRuntime;
use wherry_runtime_api::Runtime;
use wherry_wasm::WasmRuntime;

use crate::{
    cli::{AgentArgs, DefaultRuntime, ImageArgs, NodeArgs, RootArgs},
    cluster::{self, ClusterInfo},
    connect,
    join::{self, Keeper, Names, ServingCertificate},
    kubeconfig, lock, network,
    plugin_signatures::SignaturePolicy,
    plugins, pod_range,
    record::Record,
    shutdown, up,
};

/// Runs the agent alone until told to stop.
pub(crate) async fn run(args: AgentArgs) -> Result<()> {
    let _lock = lock::take(&args.root.run()).await?;
    let shutdown = shutdown::on_signal()?;
    let name = name(&args.node)?;
    let mut keeper = None;
    let client = match &args.kubeconfig {
        None => None,
        Some(path) => Some(connect::client(kubeconfig::read(path).await?)?),
    };
    let tls = match (
        &args.tls_cert_file,
        &args.tls_private_key_file,
        &args.client_ca_file,
    ) {
        (Some(certificate), Some(key), Some(ca)) => Some(Tls {
            certificate: read(certificate)?,
            key: read(key)?,
            ca: read(ca)?,
        }),
        (None, None, None) => None,
        _ => bail!("--tls-cert-file, --tls-private-key-file and --client-ca-file go together"),
    };
    let mut serving = tls.map(Serving::Files);
    let mut client = client;
    if client.is_none()
        && let Some(credentials) =
            stoppable(&shutdown, join::credentials(&args.root, &args.join, &name))
                .await?
                .flatten()
    {
        let names = Names {
            node: name.clone(),
            ip: ip(&args.node),
        };
        let kept = Keeper::open(&args.root, credentials, names).await?;
        client = Some(kept.client());
        serving.get_or_insert(Serving::Kept {
            shown: kept.shown(),
            ca: kept.ca_pem().into(),
        });
        keeper = Some(kept);
    }
    let pod_cidr = match (pod_range::settled(&args.root, &args.node)?, &client) {
        (Some(settled), _) => Some(settled),
        (None, None) => Some(pod_range::DEFAULT.to_owned()),
        (None, Some(client)) => {
            stoppable(&shutdown, pod_range::given(client, &name, &args.node)).await?
        }
    };
    let Some(pod_cidr) = pod_cidr else {
        return Ok(());
    };
    let given = ClusterInfo::given(&args.node, args.service_cluster_ip_range.as_deref());
    let cluster = cluster::settle(&args.root, client.as_ref(), given);
    let Some(cluster) = stoppable(&shutdown, async { Ok(cluster.await) }).await? else {
        return Ok(());
    };
    let announced = client.clone().map(|client| {
        let line = format!("ready: node {name}");
        tokio::spawn(up::announce(Api::all(client), name, line, shutdown.clone()))
    });
    let agent = build(&args.root, &args.node, &pod_cidr, &cluster, client, serving).await?;
    let kept = keeper.map(|keeper| tokio::spawn(keeper.run(shutdown.clone())));
    agent.run(shutdown).await?;
    for task in kept.into_iter().chain(announced) {
        task.await?;
    }
    Ok(())
}

/// What is awaited before there is an agent; `None` when the process is told to stop meanwhile.
async fn stoppable<T>(
    shutdown: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<Option<T>> {
    tokio::select! {
        () = shutdown.cancelled() => Ok(None),
        done = work => done.map(Some),
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// What the agent's HTTPS server shows, and whom it trusts; PEM.
pub(crate) struct Tls {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) ca: Vec<u8>,
}

/// Where the agent's HTTPS server gets its certificate from.
pub(crate) enum Serving {
    /// Files that somebody else looks after.
    Files(Tls),
    /// What the node asks its cluster for.
    Kept {
        /// The certificate of the moment.
        shown: Arc<ServingCertificate>,
        /// Authority of its clients, PEM.
        ca: Vec<u8>,
    },
}

/// The parts of a node that hold pods.
struct Node {
    images: Store,
    runtimes: Vec<Arc<dyn Runtime>>,
    network: Arc<dyn Network>,
}

/// Opens the parts of a node; what a killed agent left half done is finished or undone by that.
async fn open(root: &RootArgs, args: &NodeArgs, pod_cidr: &str) -> Result<Node> {
    let images = open_images(root, &args.images)?;
    let exe = std::env::current_exe().context("this program's own path")?;
    let oci = OciRuntime::open(wherry_oci::Config::new(
        root.root.clone(),
        root.run(),
        exe.clone(),
        images.clone(),
    ))
    .await?;
    let mut wasm = wherry_wasm::Config::new(root.root.clone(), root.run(), exe, images.clone());
    wasm.cgroup_root.clone_from(&args.cgroup_root);
    let wasm = WasmRuntime::open(wasm).await?;
    // The first of them is the node's default for images with a root file system.
    let mut runtimes: Vec<Arc<dyn Runtime>> = vec![oci, wasm];
    match (&args.docker_endpoint, args.default_runtime) {
        (None, DefaultRuntime::Oci) => {}
        (None, DefaultRuntime::Docker) => {
            bail!("--default-runtime docker needs --docker-endpoint unix:///path/docker.sock")
        }
        (Some(endpoint), default) => {
            let docker = DockerRuntime::open(docker_config(endpoint, root)?).await;
            match default {
                DefaultRuntime::Docker => runtimes.insert(0, docker),
                DefaultRuntime::Oci => runtimes.push(docker),
            }
        }
    }
    Ok(Node {
        images,
        runtimes,
        network: network::open(root, args, pod_cidr).await?,
    })
}

/// Where the engine is; its containers of this root are the node's.
pub(crate) fn docker_config(endpoint: &str, root: &RootArgs) -> Result<wherry_docker::Config> {
    let node = std::path::absolute(&root.root).context("--root")?;
    wherry_docker::Config::new(endpoint, node.to_string_lossy())
        .map_err(anyhow::Error::msg)
        .context("--docker-endpoint")
}

/// Opens the content store.
pub(crate) fn open_images(root: &RootArgs, args: &ImageArgs) -> Result<Store> {
    let registries = RegistryConfig {
        insecure: args.insecure_registry.clone(),
        ca_files: args.registry_ca.clone(),
        ..Default::default()
    };
    Ok(Store::open(
        &root.root.join("images"),
        StoreConfig {
            registries,
            ..Default::default()
        },
    )?)
}

/// Puts an agent together, listening for the API server already.
pub(crate) async fn build(
    root: &RootArgs,
    args: &NodeArgs,
    pod_cidr: &str,
    cluster: &ClusterInfo,
    kube: Option<Client>,
    serving: Option<Serving>,
) -> Result<Agent> {
    Record::write(root, args, pod_cidr)?;
    let node = open(root, args, pod_cidr).await?;
    let plugins = {
        let signatures = SignaturePolicy::read(&args.plugin_signature_policy, &root.root)
            .context("--plugin-signature-policy")?;
        let images = node.images.clone();
        plugins::of_node(
            root,
            &args.cgroup_root,
            images,
            kube.clone(),
            &name(args)?,
            signatures,
        )?
    };
    let mut config = wherry_agent::Config::new(
        name(args)?,
        &root.root,
        node.runtimes,
        Arc::new(node.images),
        node.network,
    );
    config.run = root.run();
    config.kube = kube;
    config.prober = plugins.prober;
    config.volume_plugins = Some(plugins.volumes);
    config.pod_cidr = Some(pod_cidr.to_owned());
    config.server = serving.map(|serving| {
        let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), args.kubelet_port);
        match serving {
            Serving::Files(tls) => server::Config::new(listen, tls.certificate, tls.key, tls.ca),
            Serving::Kept { shown, ca } => server::Config::resolving(listen, shown, ca),
        }
    });
    config.allow_privileged = args.allow_privileged;
    config
        .allowed_unsafe_sysctls
        .clone_from(&args.allowed_unsafe_sysctls);
    config.pod_pids_max = u64::try_from(args.pod_max_pids).ok().filter(|max| *max > 0);
    config.pod_manifest_path.clone_from(&args.pod_manifest_path);
    config.cgroup_root.clone_from(&args.cgroup_root);
    config.cluster_dns.servers.clone_from(&cluster.dns);
    config.cluster_dns.domain = cluster.domain();
    serve_services(&mut config, args, pod_cidr, cluster)?;
    config.node_ips = vec![ip(args)];
    config.kubelet_port = args.kubelet_port;
    config.register_node = args.register_node;
    config.node_labels = labels(&args.node_labels)?;
    config.max_pods = args.max_pods;
    args.pulls.apply(&mut config)?;
    config.system_reserved =
        wherry_agent::parse_reserved(&args.system_reserved).context("--system-reserved")?;
    config.kube_reserved =
        wherry_agent::parse_reserved(&args.kube_reserved).context("--kube-reserved")?;
    config.eviction.hard = threshold::parse(&args.eviction_hard).context("--eviction-hard")?;
    config.eviction.pressure_transition_period =
        Duration::from_secs(args.eviction_pressure_transition_period);
    Ok(Agent::build(config).await?)
}

/// Services and names as far as this node is to see to them.
fn serve_services(
    config: &mut wherry_agent::Config,
    args: &NodeArgs,
    pod_cidr: &str,
    cluster: &ClusterInfo,
) -> Result<()> {
    if args.node_proxy {
        config.services = Some(wherry_services::Config {
            bridge: args.bridge.clone(),
            pod_cidr: pod_cidr.parse().context("--pod-cidr")?,
            service_cidr: cluster.service_cidr(),
        });
    }
    if args.node_dns && config.kube.is_some() {
        config.cluster_dns.servers = cluster.dns();
        config.dns = Some(wherry_dns::Config {
            bridge: args.bridge.clone(),
            listen: cluster.dns(),
            domain: cluster.domain(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        });
    }
    Ok(())
}

fn labels(words: &[String]) -> Result<BTreeMap<String, String>> {
    words
        .iter()
        .map(|word| {
            word.split_once('=')
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
        })
        .collect::<Option<_>>()
        .context("--node-labels: each is key=value")
}

/// The node's name: what was given, or the host name in the form the API takes.
pub(crate) fn name(args: &NodeArgs) -> Result<String> {
    if let Some(name) = &args.hostname_override {
        return Ok(name.clone());
    }
    let name = nix::unistd::gethostname()?.to_string_lossy().to_lowercase();
    if name.is_empty() {
        bail!("this machine has no host name; give the node one with --hostname-override");
    }
    Ok(name)
}

/// The node's address: what was given, or the one that packets to elsewhere leave with.
pub(crate) fn ip(args: &NodeArgs) -> IpAddr {
    args.node_ip.unwrap_or_else(routed_ip)
}

/// The address that packets to elsewhere leave with.
pub(crate) fn routed_ip() -> IpAddr {
    // Connecting a UDP socket sends nothing; it only asks the kernel for a route (RFC 5737's documentation range).
    let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    match routed {
        Ok(address) => address.ip(),
        Err(error) => {
            warn!(%error, "No default route, so the node's address is loopback; --node-ip gives another");
            Ipv4Addr::LOCALHOST.into()
        }
    }
}
