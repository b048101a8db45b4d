//! `wherry down`: ends everything that a root's node has made, or its control plane, and says what that was.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use k8s_openapi::api::{
    authentication::v1::TokenRequestStatus,
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret},
};
use nix::{errno::Errno, sys::signal};
use tracing::warn;
use wherry_docker::DockerRuntime;
use wherry_images::StoreConfig;
use wherry_oci::OciRuntime;
use wherry_runtime_api::Runtime;
use wherry_volumes::{ObjectSource, TokenParams, VolumeConfig, VolumeManager};
use wherry_wasm::WasmRuntime;

use crate::{
    agent::docker_config,
    cli::RootArgs,
    control, lock, network,
    plugins::{self, VOLUME_SERVER_SOCKET},
    record::Record,
};

/// How long a running node has to stop when asked, and how long things may take to vanish.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often something that nothing announces is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Ends everything; with `purge` the root's data goes too.
///
/// # Errors
/// Among others where nothing was ever started: somebody who ends it means another root.
pub(crate) async fn run(root: &RootArgs, purge: bool) -> Result<()> {
    match Record::read(root)? {
        Some(record) => end_node(root, &record).await?,
        None => end_control(root).await?,
    }
    remove(&root.run())?;
    if purge {
        remove(&root.root)?;
        println!("deleted {}", root.root.display());
    } else {
        println!(
            "images, keys and the store are kept under {}; `wherry down --purge` deletes them",
            root.root.display()
        );
    }
    Ok(())
}

/// Ends a control plane that has no node beside it, or an agent that came to nothing yet. Neither makes anything outside
/// of its root.
async fn end_control(root: &RootArgs) -> Result<()> {
    let has_control = control::was_started(root);
    let what = if has_control {
        "control plane"
    } else {
        "agent, which had made nothing yet"
    };
    if stop_process(&root.run()).await? {
        println!("stopped the {what}");
    } else if has_control {
        println!("no control plane runs under {}", root.root.display());
    } else {
        bail!(
            "{}: nothing was ever started here; name the --root that `wherry up`, `wherry control` or `wherry agent` \
             was given",
            root.root.display()
        );
    }
    Ok(())
}

/// Ends a node, its control plane if it has one, and all that it has made.
async fn end_node(root: &RootArgs, record: &Record) -> Result<()> {
    let was_running = stop_process(&root.run()).await?;
    let lock = lock::take(&root.run()).await?;

    let ended = end_pods(root, record).await?;
    end_mounts(root).await?;
    let volumes = remove_volumes(root).await?;
    end_volume_server(&root.run()).await?;
    end_plugins(&record.cgroup_root);
    network::down(root, record).await.context("pod network")?;
    let cgroups = remove_cgroups(&record.cgroup_root).await?;

    if was_running {
        let with = if control::was_started(root) {
            " and its control plane"
        } else {
            ""
        };
        println!("stopped the node{with}");
    }
    println!(
        "ended {} containers, {} sandboxes and their processes, mounts and namespaces; removed the volumes of {volumes} pods, \
         interface {} and its nftables table, {cgroups} cgroups",
        ended.containers, ended.sandboxes, record.bridge
    );
    drop(lock);
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Asks the process that runs the root to stop, and kills it if it does not.
async fn stop_process(run: &Path) -> Result<bool> {
    let Some(pid) = lock::holder(run)? else {
        return Ok(false);
    };
    for (signal, patience) in [(signal::SIGTERM, PATIENCE), (signal::SIGKILL, PATIENCE)] {
        match signal::kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("signal process {pid}")),
        }
        let start = Instant::now();
        while start.elapsed() < patience {
            if lock::holder(run)?.is_none() {
                return Ok(true);
            }
            tokio::time::sleep(POLL).await;
        }
        warn!(%pid, %signal, "It does not stop");
    }
    bail!("process {pid} runs {} and cannot be ended", run.display())
}

struct Ended {
    containers: usize,
    sandboxes: usize,
}

/// Containers first, whichever runtime's; then the sandboxes that they may have shared.
async fn end_pods(root: &RootArgs, record: &Record) -> Result<Ended> {
    let images = wherry_images::Store::open(&root.root.join("images"), StoreConfig::default())?;
    let exe = std::env::current_exe().context("this program's own path")?;
    let oci = wherry_oci::Config::new(root.root.clone(), root.run(), exe.clone(), images.clone());
    let mut wasm = wherry_wasm::Config::new(root.root.clone(), root.run(), exe, images);
    wasm.cgroup_root.clone_from(&record.cgroup_root);
    // Workers end with their last container.
    wasm.worker_idle_max = Duration::ZERO;
    let mut runtimes: Vec<Arc<dyn Runtime>> =
        vec![OciRuntime::open(oci).await?, WasmRuntime::open(wasm).await?];
    if let Some(endpoint) = &record.docker_endpoint {
        let docker = DockerRuntime::open(docker_config(endpoint, root)?).await;
        match docker.status().await.not_ready {
            None => runtimes.push(docker),
            Some(why) => warn!(
                error = why,
                "The node's containers of the docker engine stay"
            ),
        }
    }
    let mut ended = Ended {
        containers: 0,
        sandboxes: 0,
    };
    for runtime in &runtimes {
        for container in runtime.list_containers().await? {
            runtime
                .stop_container(&container.id, Duration::ZERO)
                .await?;
            runtime.remove_container(&container.id).await?;
            ended.containers += 1;
        }
    }
    for runtime in &runtimes {
        for sandbox in runtime.list_pod_sandboxes().await? {
            runtime.remove_pod_sandbox(&sandbox.id).await?;
            ended.sandboxes += 1;
        }
    }
    let workers = root.run().join("wasm/workers");
    until("Wasm workers end", || is_empty(&workers)).await?;
    Ok(ended)
}

fn is_empty(dir: &Path) -> Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| dir.display().to_string()),
    }
}

async fn until(what: &str, mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_done()? {
        if start.elapsed() > PATIENCE {
            bail!("{what}: not after {PATIENCE:?}");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Volumes are only taken down here, so nobody is asked for what they show.
struct NoObjects;

#[async_trait]
impl ObjectSource for NoObjects {
    async fn config_map(&self, _: &str, _: &str) -> Result<Option<ConfigMap>, String> {
        Ok(None)
    }

    async fn secret(&self, _: &str, _: &str) -> Result<Option<Secret>, String> {
        Ok(None)
    }

    async fn persistent_volume_claim(
        &self,
        _: &str,
        _: &str,
    ) -> Result<Option<PersistentVolumeClaim>, String> {
        Ok(None)
    }

    async fn persistent_volume(&self, _: &str) -> Result<Option<PersistentVolume>, String> {
        Ok(None)
    }

    async fn service_account_token(&self, _: &TokenParams) -> Result<TokenRequestStatus, String> {
        Err("the node is going down".to_owned())
    }
}

/// Undoes what mounters have done; the volumes' directories stay.
async fn end_mounts(root: &RootArgs) -> Result<()> {
    let records = root.root.join("plugins/mounts");
    if !records.is_dir() {
        return Ok(());
    }
    let undone = wherry_plugin_host::mounter::undo_all(&records).await;
    undone.context("mounts of plugins")
}

/// Ends the server of volumes that plugins serve. It would end by itself, a little later.
async fn end_volume_server(run: &Path) -> Result<()> {
    let Ok(stream) = std::os::unix::net::UnixStream::connect(run.join(VOLUME_SERVER_SOCKET)) else {
        return Ok(());
    };
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)
        .context("the volume server")?;
    let pid = nix::unistd::Pid::from_raw(peer.pid());
    drop(stream);
    until("the volume server", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Ended, and not yet reaped by whoever that is up to.
        if stat.contains(") Z") {
            return Ok(true);
        }
        match signal::kill(pid, signal::SIGKILL) {
            Err(Errno::ESRCH) => Ok(true),
            Ok(()) => Ok(false),
            Err(error) => Err(error).context("the volume server"),
        }
    })
    .await
}

/// Ends what is left of plugins' processes. They end with whoever started them, unless they hang.
fn end_plugins(cgroup_root: &str) {
    for group in plugins::cgroups(cgroup_root) {
        wherry_plugin_host::end_processes(&group);
    }
}

async fn remove_volumes(root: &RootArgs) -> Result<usize> {
    let volumes = VolumeManager::new(
        VolumeConfig::new(root.root.join("pods")),
        Arc::new(NoObjects),
    );
    let pods = volumes.known_pods()?;
    for uid in &pods {
        volumes.unmount(uid).await?;
    }
    Ok(pods.len())
}

/// Removes what is left of the node's cgroups, deepest first; their processes may still be on their way out.
async fn remove_cgroups(cgroup_root: &str) -> Result<usize> {
    let mounts = fs::read_dir("/sys/fs/cgroup").context("/sys/fs/cgroup")?;
    let mut tops = vec![PathBuf::from("/sys/fs/cgroup").join(cgroup_root)];
    tops.extend(mounts.flatten().map(|entry| entry.path().join(cgroup_root)));
    let mut removed = 0;
    for top in tops.iter().filter(|top| top.is_dir()) {
        for dir in deepest_first(top) {
            until(
                &format!("cgroup {}", dir.display()),
                || match fs::remove_dir(&dir) {
                    Ok(()) => {
                        removed += 1;
                        Ok(true)
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
                    Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Ok(false),
                    Err(error) => Err(error).with_context(|| dir.display().to_string()),
                },
            )
            .await?;
        }
    }
    Ok(removed)
}

fn deepest_first(top: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            dirs.extend(deepest_first(&entry.path()));
        }
    }
    dirs.push(top.to_owned());
    dirs
}
