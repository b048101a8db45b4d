//! The control plane: store, API server, controllers, scheduler.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};
use kube::Client;
use tokio_util::sync::CancellationToken;
use wherry_server::{FixedRules, Server, UserInfo};
use wherry_store::EmbeddedStore;

use crate::{
    cli::{ControlArgs, RootArgs, ServerArgs},
    lock, shutdown,
};

const KUBECONFIG: &str = "admin.kubeconfig";

/// Runs the control plane until told to stop.
pub(crate) async fn run(args: ControlArgs) -> Result<()> {
    let _lock = lock::take(&args.root.run()).await?;
    let shutdown = shutdown::on_signal()?;
    let server = build(&args.root, &args.server, &[]).await?;
    println!(
        "ready: {} kubeconfig {}",
        url(&server),
        args.root.root.join("control").join(KUBECONFIG).display()
    );
    serve(server, shutdown).await
}

/// Opens store and keys, listens, and writes the administrator's kubeconfig.
pub(crate) async fn build(
    root: &RootArgs,
    args: &ServerArgs,
    advertise: &[IpAddr],
) -> Result<Server> {
    let dir = root.root.join("control");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let store = EmbeddedStore::open(&dir.join("store"))?;
    let service_cidr = args
        .service_cluster_ip_range
        .parse()
        .map_err(anyhow::Error::msg)
        .context("--service-cluster-ip-range")?;
    let server = Server::build(wherry_server::Config {
        pki_dir: dir.join("pki"),
        listen: SocketAddr::new(args.bind_address, args.secure_port),
        advertise_addresses: advertise.to_vec(),
        names: Vec::new(),
        service_cidr,
        store: Arc::new(store),
        authorizer: Arc::new(FixedRules),
    })
    .await?;
    server.bootstrap().await?;
    let kubeconfig = server.admin_kubeconfig(&url(&server));
    for path in [Some(dir.join(KUBECONFIG)), args.write_kubeconfig.clone()]
        .into_iter()
        .flatten()
    {
        wherry_server::pki::write_file(&path, kubeconfig.as_bytes(), 0o600)?;
    }
    Ok(server)
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
pub(crate) async fn serve(server: Server, shutdown: CancellationToken) -> Result<()> {
    let client = client(&server, UserInfo::component("kube-controller-manager"));
    let config = wherry_controllers::Config {
        root_ca_pem: server.pki().ca_pem().to_owned(),
        ..Default::default()
    };
    let controllers = tokio::spawn(wherry_controllers::run(client, config, shutdown.clone()));
    server.run(shutdown.clone()).await?;
    shutdown.cancel();
    controllers.await.context("the controllers ended early")?;
    Ok(())
}

/// A client that reaches the server in memory.
pub(crate) fn client(server: &Server, user: UserInfo) -> Client {
    Client::new(server.client_service(user), "default")
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
