//! `wherry up`: control plane and agent in one process, the API reached in memory.

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    runtime::{conditions::Condition, wait::await_condition},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wherry_server::UserInfo;

use crate::{
    agent::{self, Serving, Tls},
    cli::UpArgs,
    cluster::ClusterInfo,
    control, lock, pod_range, shutdown,
};

/// Runs both until told to stop. Pods run on.
pub(crate) async fn run(args: UpArgs) -> Result<()> {
    let _lock = lock::take(&args.root.run()).await?;
    let shutdown = shutdown::on_signal()?;
    let (name, ip) = (agent::name(&args.node)?, agent::ip(&args.node));
    let advertise = args.server.advertise_address.unwrap_or(ip);
    let range = args.server.service_cluster_ip_range.as_str();
    let cluster = ClusterInfo::given(&args.node, Some(range));
    cluster
        .service_cidr()
        .context("--service-cluster-ip-range")?;
    let control = control::build(&args.root, &args.server, &[advertise], cluster.clone()).await?;
    let server = &control.server;
    let url = control::url(server);
    let identity = server.pki().node(
        &control::pki_dir(&args.root, &args.server),
        &name,
        &[ip],
        Timestamp::now(),
    )?;
    let tls = Tls {
        certificate: identity.serving.cert_pem.into(),
        key: identity.serving.key_pem.into(),
        ca: server.pki().ca_pem().into(),
    };
    let client = control::client(server, UserInfo::node(&name));
    let nodes: Api<Node> = Api::all(client.clone());
    let pod_cidr = pod_range::settled(&args.root, &args.node)?;
    let pod_cidr = pod_cidr.unwrap_or_else(|| pod_range::DEFAULT.to_owned());
    // Before the controllers run, which give the others theirs.
    pod_range::claim(&client, &name, &pod_cidr, &args.node).await?;
    let serving = Serving::Files(tls);
    let agent = agent::build(
        &args.root,
        &args.node,
        &pod_cidr,
        &cluster,
        Some(client),
        Some(serving),
    )
    .await?;

    let kubeconfig = args.root.root.join("control/admin.kubeconfig");
    let line = format!("ready: {url} kubeconfig {}", kubeconfig.display());
    let announced = tokio::spawn(announce(nodes, name, line, shutdown.clone()));
    let mut parts = JoinSet::new();
    let token = shutdown.clone();
    let server_args = args.server;
    parts.spawn(async move {
        control::serve(control, &server_args, token)
            .await
            .context("control plane")
    });
    let token = shutdown.clone();
    parts.spawn(async move { agent.run(token).await.context("agent") });
    // Whichever ends first takes the other with it.
    let mut result = Ok(());
    while let Some(ended) = parts.join_next().await {
        shutdown.cancel();
        result = result.and(ended?);
    }
    announced.await?;
    result
}

/// Prints one line for scripts once the node is Ready.
pub(crate) async fn announce(
    nodes: Api<Node>,
    name: String,
    line: String,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        ready = await_condition(nodes, &name, is_ready()) => if ready.is_ok() { println!("{line}") },
    }
}

fn is_ready() -> impl Condition<Node> {
    |node: Option<&Node>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    }
}
