//! The control plane: store, API server, controllers, scheduler.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use kube::Client;
use tokio_util::sync::CancellationToken;
use wherry_controllers::{Candidate, Clients, ClusterSigning, NodeRanges};
use wherry_server::{AnonymousAuth, Server, UserInfo};

use crate::{
    agent,
    cli::{ControlArgs, ControlCommand, RootArgs, ServerArgs},
    cluster::{self, ClusterInfo},
    connect, kubeconfig, lock, shutdown,
    store::{self, Opened},
};

const KUBECONFIG: &str = "admin.kubeconfig";

/// The Lease that decides which of several control planes runs the controllers.
const LEASE: &str = "wherry-control";

/// Runs the control plane until told to stop, or looks after its store.
pub(crate) async fn run(args: ControlArgs) -> Result<()> {
    match &args.command {
        Some(ControlCommand::Controllers { kubeconfig }) => {
            return controllers(kubeconfig, &args.server).await;
        }
        Some(ControlCommand::Store(command)) => {
            return store::look_after(&args.root, &args.server.store, command).await;
        }
        None => {}
    }
    let _lock = lock::take(&args.root.run()).await?;
    let shutdown = shutdown::on_signal()?;
    // One that listens at one address says no other.
    let advertise = match (args.server.advertise_address, args.server.bind_address) {
        (Some(given), _) => vec![given],
        (None, bind) if bind.is_unspecified() => vec![agent::routed_ip()],
        (None, _) => Vec::new(),
    };
    let names = ClusterInfo {
        service_range: None,
        dns: args.cluster_dns,
        domain: args.cluster_domain,
    };
    let control = build(&args.root, &args.server, &advertise, names).await?;
    println!(
        "ready: {} kubeconfig {}",
        url(&control.server),
        args.root.root.join("control").join(KUBECONFIG).display()
    );
    serve(control, &args.server, shutdown).await
}

/// Runs the controllers for an API server elsewhere until told to stop.
async fn controllers(path: &Path, args: &ServerArgs) -> Result<()> {
    let shutdown = shutdown::on_signal()?;
    let connection = kubeconfig::read(path).await?;
    let authorities = connection.root_cert.iter().flatten();
    let root_ca_pem: String = authorities
        .map(|der| wherry_server::pki::certificate_pem(der))
        .collect();
    let client = connect::client(connection)?;
    let config = wherry_controllers::Config {
        root_ca_pem,
        node_monitor_grace_period: args.node_monitor_grace_period,
        ..Default::default()
    };
    let candidate = Candidate {
        client: client.clone(),
        lease: LEASE.to_owned(),
        identity: identity(),
    };
    println!("ready: {}", path.display());
    let work = |stop| wherry_controllers::run(client.clone(), config.clone(), stop);
    candidate.run(shutdown, work).await;
    Ok(())
}

/// A control plane that listens and does not serve yet.
pub(crate) struct Control {
    pub(crate) server: Server,
    /// Others may work on the same store.
    is_shared: bool,
}

/// Opens store and keys, listens, writes the administrator's kubeconfig, and tells nodes what they have to know;
/// `names` says name servers and domain.
pub(crate) async fn build(
    root: &RootArgs,
    args: &ServerArgs,
    advertise: &[IpAddr],
    names: ClusterInfo,
) -> Result<Control> {
    let dir = root.root.join("control");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let Opened { store, is_shared } = store::open(root, &args.store).await?;
    let service_cidr = args
        .service_cluster_ip_range
        .parse()
        .map_err(anyhow::Error::msg)
        .context("--service-cluster-ip-range")?;
    let server = Server::build(wherry_server::Config {
        pki_dir: pki_dir(root, args),
        listen: SocketAddr::new(args.bind_address, args.secure_port),
        advertise_addresses: advertise.to_vec(),
        names: Vec::new(),
        service_cidr,
        store,
        anonymous_auth: match args.anonymous_auth {
            None => AnonymousAuth::Health,
            Some(true) => AnonymousAuth::All,
            Some(false) => AnonymousAuth::None,
        },
        pod_security: pod_security(args)?,
        audit: audit(args)?,
    })
    .await?;
    server.set_pod_eviction_timeout(args.pod_eviction_timeout);
    server.bootstrap().await?;
    let info = ClusterInfo {
        service_range: Some(args.service_cluster_ip_range.clone()),
        ..names
    };
    cluster::publish(&client(&server, UserInfo::admin()), &info).await?;
    let kubeconfig = server.admin_kubeconfig(&url(&server));
    for path in [Some(dir.join(KUBECONFIG)), args.write_kubeconfig.clone()]
        .into_iter()
        .flatten()
    {
        wherry_server::pki::write_file(&path, kubeconfig.as_bytes(), 0o600)?;
    }
    Ok(Control { server, is_shared })
}

/// What pods may do where their namespace does not say.
fn pod_security(args: &ServerArgs) -> Result<wherry_server::PodSecurityConfig> {
    let Some(path) = &args.admission_control_config_file else {
        return Ok(wherry_server::PodSecurityConfig::default());
    };
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(wherry_server::PodSecurityConfig::parse(&text)?)
}

/// What is logged of requests.
fn audit(args: &ServerArgs) -> Result<Option<wherry_server::AuditConfig>> {
    let Some(log_path) = args.audit_log_path.clone() else {
        return Ok(None);
    };
    // clap wants both or neither.
    let policy = args.audit_policy_file.clone().unwrap_or_default();
    let policy = std::fs::read_to_string(&policy).with_context(|| policy.display().to_string())?;
    Ok(Some(wherry_server::AuditConfig {
        log_path,
        policy,
        bytes_max: args.audit_log_maxsize.saturating_mul(1024 * 1024),
        backups_max: args.audit_log_maxbackup,
    }))
}

/// Where the cluster's authorities and keys are.
pub(crate) fn pki_dir(root: &RootArgs, args: &ServerArgs) -> PathBuf {
    let default = || root.root.join("control/pki");
    args.cert_dir.clone().unwrap_or_else(default)
}

/// How clients on this machine reach the server.
pub(crate) fn url(server: &Server) -> String {
    let mut address = server.address();
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    format!("https://{address}")
}

/// Serves, with controllers and scheduler as clients in memory.
pub(crate) async fn serve(
    control: Control,
    args: &ServerArgs,
    shutdown: CancellationToken,
) -> Result<()> {
    let Control { server, is_shared } = control;
    if !args.run_controllers {
        return Ok(server.run(shutdown).await?);
    }
    let as_user = server.clients();
    let clients = clients(move |user| Client::new(as_user(user), "default"));
    let client = client(&server, UserInfo::component(MANAGER));
    let config = wherry_controllers::Config {
        root_ca_pem: server.pki().ca_pem().to_owned(),
        node_ranges: Some(NodeRanges {
            cluster: args.cluster_cidr.parse().context("--cluster-cidr")?,
            prefix_len: args.node_cidr_mask_size,
        }),
        cluster_signing: Some(ClusterSigning {
            cert_pem: server.pki().ca_pem().to_owned(),
            key_pem: server.pki().ca_key_pem(),
            duration: args.cluster_signing_duration,
        }),
        node_monitor_grace_period: args.node_monitor_grace_period,
        ..Default::default()
    };
    let stop = shutdown.clone();
    let controllers = tokio::spawn(async move {
        if !is_shared {
            return wherry_controllers::run(clients, config, stop).await;
        }
        let candidate = Candidate {
            client,
            lease: LEASE.to_owned(),
            identity: identity(),
        };
        let work = |stop| wherry_controllers::run(clients.clone(), config.clone(), stop);
        candidate.run(stop, work).await;
    });
    server.run(shutdown.clone()).await?;
    shutdown.cancel();
    controllers.await.context("the controllers ended early")?;
    Ok(())
}

/// Who this process is in an election.
fn identity() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("{}_{}", host.to_string_lossy(), uuid::Uuid::new_v4())
}

/// Who decides which of several control planes runs the controllers, and watches for them.
const MANAGER: &str = "kube-controller-manager";

/// Clients of controllers and scheduler, in memory; each may do what its role says.
fn clients(service: impl Fn(UserInfo) -> Client + Send + Sync + 'static) -> Clients {
    Clients::new(move |name| {
        service(match name {
            MANAGER | "kube-scheduler" => UserInfo::component(name),
            controller => UserInfo::controller(controller),
        })
    })
}

/// A client that reaches the server in memory.
pub(crate) fn client(server: &Server, user: UserInfo) -> Client {
    Client::new(server.client_service(user), "default")
}

/// Whether a control plane was ever started under a root.
pub(crate) fn was_started(root: &RootArgs) -> bool {
    root.root.join("control").join(KUBECONFIG).exists()
}

/// Prints the administrator's kubeconfig.
pub(crate) fn print_kubeconfig(root: &RootArgs) -> Result<()> {
    let path = root.root.join("control").join(KUBECONFIG);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "{}: `wherry up --root {}` writes it",
            path.display(),
            root.root.display()
        )
    })?;
    print!("{text}");
    Ok(())
}
