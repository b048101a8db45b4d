//! Arguments as typed. `--help` is the reference.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};

use crate::pulls::{self, PullArgs};

/// A node that runs pods of containers and Wasm components, and the control plane for it where there is no cluster.
#[derive(Parser)]
#[command(version, max_term_width = 120)]
pub(crate) struct Cli {
    /// What to log, as for RUST_LOG: a level, or `crate=level` pairs.
    #[arg(long, global = true, env = "WHERRY_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Log as JSON, one object a line.
    #[arg(long, global = true)]
    pub(crate) log_json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a node and its control plane in this process. Stopping it leaves the pods running.
    Up(Box<UpArgs>),
    /// End everything that `up`, `agent` or `control` made under a root: processes, mounts, namespaces, interfaces, nftables,
    /// cgroups.
    Down {
        #[command(flatten)]
        root: RootArgs,
        /// Delete the root's data as well: images, volumes, the store, keys.
        #[arg(long)]
        purge: bool,
    },
    /// Run the control plane alone, or look after what it keeps.
    Control(Box<ControlArgs>),
    /// Run the node agent alone, against any Kubernetes API server.
    Agent(Box<AgentArgs>),
    /// Images of this node.
    Image {
        #[command(flatten)]
        root: RootArgs,
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Tokens that let other hosts join the cluster.
    Token {
        #[command(flatten)]
        root: RootArgs,
        #[command(flatten)]
        token: TokenArgs,
    },
    /// Plugins: made, tested, measured, looked at, pushed, signed. Needs no node.
    Plugin {
        #[command(subcommand)]
        command: wherry_plugin_tool::PluginCommand,
    },
    /// Print the administrator's kubeconfig.
    Kubeconfig {
        #[command(flatten)]
        root: RootArgs,
    },
}

/// Where everything is kept.
#[derive(Args, Clone)]
pub(crate) struct RootArgs {
    /// Everything that has to outlive a reboot is kept here. Sockets and locks are in /run/wherry, or in `run` below
    /// any other root, so that several nodes run on one machine.
    #[arg(
        long,
        global = true,
        env = "WHERRY_ROOT",
        default_value = "/var/lib/wherry"
    )]
    pub(crate) root: PathBuf,
}

impl RootArgs {
    /// Sockets, locks and namespaces.
    pub(crate) fn run(&self) -> PathBuf {
        if self.root == Path::new("/var/lib/wherry") {
            "/run/wherry".into()
        } else {
            self.root.join("run")
        }
    }
}

#[derive(Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) root: RootArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Args)]
pub(crate) struct ControlArgs {
    #[command(flatten)]
    pub(crate) root: RootArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Name server that nodes give their pods; the tenth address for Services if not given.
    #[arg(long)]
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster's names; cluster.local if not given.
    #[arg(long)]
    pub(crate) cluster_domain: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Option<ControlCommand>,
}

#[derive(Subcommand)]
pub(crate) enum ControlCommand {
    /// Run controllers and scheduler alone, for any API server; of several the one that holds the Lease works.
    /// Node addresses and certificates are left to that server's own controllers.
    Controllers {
        /// How to reach the API server, and as whom.
        #[arg(long, value_name = "FILE")]
        kubeconfig: PathBuf,
    },
    #[command(flatten)]
    Store(StoreCommand),
}

/// What is done with the store while no control plane works on it.
#[derive(Subcommand)]
pub(crate) enum StoreCommand {
    /// The cluster's state as a file.
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Copy the cluster's state from one store into another, empty one. Stop the control planes first; pods run on.
    Migrate {
        /// `embedded`, or `etcd://host:port[,host:port…]`.
        #[arg(long)]
        from: String,
        /// The same.
        #[arg(long)]
        to: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Write the state of one moment to a file. The embedded store has to be at rest: stop its control plane first;
    /// pods run on.
    Save {
        /// The file.
        file: PathBuf,
    },
    /// Take a snapshot's state into an empty store.
    Restore {
        /// The file.
        file: PathBuf,
    },
}

/// Where the cluster's state is kept.
#[derive(Args, Clone)]
pub(crate) struct StoreArgs {
    /// `embedded`, a file below the root; or `etcd://host:port[,host:port…]`, which several control planes may share.
    #[arg(long, global = true, default_value = "embedded")]
    pub(crate) store: String,
    /// Authorities that etcd's certificates are signed by, PEM. With it, etcd is spoken to over TLS.
    #[arg(long, global = true)]
    pub(crate) etcd_cafile: Option<PathBuf>,
    /// Certificate to show to etcd, PEM.
    #[arg(long, global = true, requires = "etcd_keyfile")]
    pub(crate) etcd_certfile: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, global = true, requires = "etcd_certfile")]
    pub(crate) etcd_keyfile: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) root: RootArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) join: JoinArgs,
    /// Addresses that Services get; what the cluster says if not given.
    #[arg(long)]
    pub(crate) service_cluster_ip_range: Option<String>,
    /// How to reach the API server, and as whom. Without it, and where the node never joined, only static pods are run.
    #[arg(long, conflicts_with = "join")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Certificate the agent's own HTTPS server shows, PEM.
    #[arg(long, requires = "tls_private_key_file")]
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, requires = "tls_cert_file")]
    pub(crate) tls_private_key_file: Option<PathBuf>,
    /// Clients of the agent's HTTPS server must have a certificate signed by one of these, PEM.
    #[arg(long)]
    pub(crate) client_ca_file: Option<PathBuf>,
}

/// How a host becomes a node of a cluster.
#[derive(Args)]
pub(crate) struct JoinArgs {
    /// Join the cluster of this API server, `https://address:6443`. `wherry token create` on the control plane prints
    /// the whole command. Needed once: afterwards the node has certificates of its own.
    #[arg(long, value_name = "URL")]
    pub(crate) join: Option<String>,
    /// Token to join with.
    #[arg(long, requires = "join", env = "WHERRY_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Hash of the public key of the cluster's authority, `sha256:<hex>`; nobody else is told the token.
    #[arg(long, requires = "join", value_name = "HASH")]
    pub(crate) ca_cert_hash: Vec<String>,
    /// How long to go on trying when the API server cannot be reached.
    #[arg(long, default_value = "5m", value_parser = pulls::duration, value_name = "DURATION")]
    pub(crate) join_timeout: Duration,
}

#[derive(Args)]
pub(crate) struct TokenArgs {
    /// How to reach the API server; `control/admin.kubeconfig` below the root if not given.
    #[arg(long, global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print the command that joins a host with it.
    Create {
        /// How long it is good; 0 is for ever.
        #[arg(long, default_value = "24h", value_parser = pulls::duration, value_name = "DURATION")]
        ttl: Duration,
        /// What it is for, shown by `list`.
        #[arg(long)]
        description: Option<String>,
    },
    /// List tokens, without their secrets.
    #[command(alias = "ls")]
    List,
    /// Delete tokens. Nodes that joined with them stay.
    #[command(alias = "rm")]
    Delete {
        /// Tokens, or the parts before the dot.
        #[arg(required = true)]
        tokens: Vec<String>,
    },
}

#[derive(Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Directory of the cluster's authorities and keys, made if it is empty; `control/pki` below the root if not given.
    /// Control planes that share a store need the same authorities: give each a copy.
    #[arg(long)]
    pub(crate) cert_dir: Option<PathBuf>,
    /// Address the API server listens on.
    #[arg(long, default_value = "0.0.0.0")]
    pub(crate) bind_address: IpAddr,
    /// Port the API server listens on; 0 takes any free one.
    #[arg(long, default_value_t = 6443)]
    pub(crate) secure_port: u16,
    /// Addresses that Services get.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub(crate) service_cluster_ip_range: String,
    /// Address at which nodes and pods reach the API server; the node's own, or that of the default route's interface,
    /// if not given.
    #[arg(long)]
    pub(crate) advertise_address: Option<IpAddr>,
    /// Addresses that nodes' pods get, a part for each node that names none of its own.
    #[arg(long, default_value = "10.88.0.0/13")]
    pub(crate) cluster_cidr: String,
    /// Prefix length of each node's part.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u8).range(8..=30))]
    pub(crate) node_cidr_mask_size: u8,
    /// A node that has not been heard of for so long is not ready.
    #[arg(long, default_value = "40s", value_parser = pulls::duration, value_name = "DURATION")]
    pub(crate) node_monitor_grace_period: Duration,
    /// How long pods stay on a node that is not ready, unless they say otherwise themselves; it holds for pods that are
    /// created from now on.
    #[arg(long, default_value = "5m", value_parser = pulls::duration, value_name = "DURATION")]
    pub(crate) pod_eviction_timeout: Duration,
    /// How long certificates are valid that nodes are given; they are renewed at four fifths of it.
    #[arg(long, default_value = "8760h", value_parser = pulls::duration, value_name = "DURATION")]
    pub(crate) cluster_signing_duration: Duration,
    /// Run controllers and scheduler; `false` leaves them to others, such as `wherry control controllers`.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) run_controllers: bool,
    /// Take all requests without credentials for those of `system:anonymous`, whom roles let see health and version
    /// (`true`), or none (`false`) [default: those for health alone]
    #[arg(long)]
    pub(crate) anonymous_auth: Option<bool>,
    /// Levels of PodSecurity where a namespace has no labels, and who is exempt: an apiserver.config.k8s.io/v1
    /// AdmissionConfiguration.
    #[arg(long, value_name = "FILE")]
    pub(crate) admission_control_config_file: Option<PathBuf>,
    /// Log requests to this file, as lines of audit.k8s.io/v1 Events; `-` is standard output.
    #[arg(long, requires = "audit_policy_file", value_name = "FILE")]
    pub(crate) audit_log_path: Option<PathBuf>,
    /// What is logged of which requests: an audit.k8s.io/v1 Policy.
    #[arg(long, requires = "audit_log_path", value_name = "FILE")]
    pub(crate) audit_policy_file: Option<PathBuf>,
    /// Megabytes that a file of the audit log has at the most before it is put aside.
    #[arg(long, default_value_t = 100, value_name = "MEGABYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) audit_log_maxsize: u64,
    /// Files of the audit log that are kept besides the newest.
    #[arg(long, default_value_t = 10, value_name = "FILES")]
    pub(crate) audit_log_maxbackup: usize,
    /// Also write the administrator's kubeconfig here.
    #[arg(long)]
    pub(crate) write_kubeconfig: Option<PathBuf>,
}

#[derive(Args, Clone)]
pub(crate) struct NodeArgs {
    /// The node's name; the host name if not given.
    #[arg(long, alias = "node-name")]
    pub(crate) hostname_override: Option<String>,
    /// The node's address; that of the default route's interface if not given.
    #[arg(long)]
    pub(crate) node_ip: Option<IpAddr>,
    /// Public keys, PEM: plugins that none of them has signed (`wherry plugin sign`, cosign) are not installed. May be
    /// given several times.
    #[arg(long, value_name = "FILE")]
    pub(crate) plugin_signature_policy: Vec<PathBuf>,
    /// Labels for the Node object, `key=value,…`.
    #[arg(long, value_delimiter = ',')]
    pub(crate) node_labels: Vec<String>,
    /// Make the Node object if it is not there.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) register_node: bool,
    /// Port of the agent's HTTPS server; 0 takes any free one.
    #[arg(long, default_value_t = 10250)]
    pub(crate) kubelet_port: u16,
    /// Directory of static pod manifests.
    #[arg(long, alias = "config")]
    pub(crate) pod_manifest_path: Option<PathBuf>,
    /// Pods this node runs at the most.
    #[arg(long, default_value_t = 110)]
    pub(crate) max_pods: u32,
    /// What of the node is kept for the system's own processes, `cpu=100m,memory=200Mi,ephemeral-storage=1Gi`.
    #[arg(long, default_value = "", value_name = "RESERVED")]
    pub(crate) system_reserved: String,
    /// What of the node is kept for the agent and its helpers, in the same form.
    #[arg(long, default_value = "", value_name = "RESERVED")]
    pub(crate) kube_reserved: String,
    /// Evict pods below these, `memory.available<100Mi,nodefs.available<10%,…`. A signal that is not named keeps its
    /// default; 0 turns one off.
    #[arg(
        long,
        default_value = "",
        value_name = "THRESHOLDS",
        overrides_with = "eviction_hard"
    )]
    pub(crate) eviction_hard: String,
    /// How long a pressure condition stands after it was last seen, seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) eviction_pressure_transition_period: u64,
    /// Let pods ask for privileged containers.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) allow_privileged: bool,
    /// Kernel parameters that pods may set besides the safe ones; `net.core.*` stands for all that begin so.
    #[arg(long, value_delimiter = ',')]
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// Processes and threads that each pod may have; 0 or less leaves it to the node.
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    pub(crate) pod_max_pids: i64,
    /// Addresses that pods get. If not given: those they have had, else what the cluster gives the node, else
    /// 10.88.0.0/16.
    #[arg(long)]
    pub(crate) pod_cidr: Option<String>,
    /// Name of the bridge that pods are attached to.
    #[arg(long, default_value = "wherry0")]
    pub(crate) bridge: String,
    /// How packets for other nodes' pods get there; the same on all nodes, but for `auto`.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) network_backend: NetworkBackend,
    /// Directory of CNI configuration, of which the first by name is used.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub(crate) cni_conf_dir: PathBuf,
    /// Directories of CNI plugins.
    #[arg(long, value_delimiter = ',', default_values = ["/opt/cni/bin", "/usr/lib/cni"])]
    pub(crate) cni_bin_dir: Vec<PathBuf>,
    /// Network identifier of the tunnel, the same on all nodes.
    #[arg(long, default_value_t = 88, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub(crate) vxlan_vni: u32,
    /// UDP port of the tunnel, the same on all nodes.
    #[arg(long, default_value_t = 8472, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) vxlan_port: u16,
    /// Cgroup that pods' cgroups are made in, below each hierarchy's root.
    #[arg(long, default_value = "wherry")]
    pub(crate) cgroup_root: String,
    /// Name server for pods with dnsPolicy ClusterFirst; what the cluster says if not given, else the tenth address for
    /// Services.
    #[arg(long)]
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// Answer for the cluster's names on this node, at the addresses of --cluster-dns; `false` where the cluster has
    /// name servers of its own.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) node_dns: bool,
    /// Pass on packets for Services and for pods' host ports; `false` where kube-proxy runs on this node.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) node_proxy: bool,
    /// Docker engine to run pods with as well, `unix:///path/docker.sock`; it need not be there yet. RuntimeClass
    /// `docker` picks it.
    #[arg(long, env = "WHERRY_DOCKER_ENDPOINT")]
    pub(crate) docker_endpoint: Option<String>,
    /// Runtime of containers whose pod names no RuntimeClass and whose image is no Wasm.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) default_runtime: DefaultRuntime,
    /// Domain of the cluster's names; what the cluster says if not given, else cluster.local.
    #[arg(long)]
    pub(crate) cluster_domain: Option<String>,
    #[command(flatten)]
    pub(crate) images: ImageArgs,
    #[command(flatten)]
    pub(crate) pulls: PullArgs,
}

/// Runtimes that run images with a root file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DefaultRuntime {
    /// Without a daemon.
    #[default]
    Oci,
    /// With the engine of --docker-endpoint.
    Docker,
}

/// Ways to other nodes' pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NetworkBackend {
    /// For each node: `host-gw` where it is on a network of this one's, `vxlan` otherwise.
    #[default]
    Auto,
    /// Routes to the nodes, which have to be on a network of this one's.
    HostGw,
    /// A tunnel over UDP.
    Vxlan,
    /// What the plugins of --cni-bin-dir make as --cni-conf-dir says: for pods of this node and of others.
    Cni,
}

/// How registries are reached.
#[derive(Args, Clone)]
pub(crate) struct ImageArgs {
    /// Registries (`host[:port]`) to speak plain HTTP with.
    #[arg(long)]
    pub(crate) insecure_registry: Vec<String>,
    /// Certificates, PEM, to trust for registries besides the system's.
    #[arg(long)]
    pub(crate) registry_ca: Vec<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Import an OCI layout, an OCI or docker archive, or a Wasm file. A node with a docker engine gets images with a root
    /// file system there as well.
    Import {
        /// The directory or file.
        path: PathBuf,
        /// Names to give it (`registry/name:tag`); those it carries if none.
        #[arg(long)]
        name: Vec<String>,
    },
    /// Pull an image from its registry.
    Pull {
        /// The image.
        image: String,
        /// User, for a registry that wants one; the password is read from WHERRY_REGISTRY_PASSWORD.
        #[arg(long)]
        username: Option<String>,
        #[command(flatten)]
        images: ImageArgs,
    },
    /// List images.
    Ls,
    /// Remove images.
    Rm {
        /// Names or IDs.
        #[arg(required = true)]
        images: Vec<String>,
    },
}
