//! The API's side: pods created, and seen Running by a watch.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};

/// What a pod is made of: RuntimeClass, image and arguments.
#[derive(Clone, Copy)]
pub(crate) struct Program {
    class: &'static str,
    image: &'static str,
    args: &'static [&'static str],
}

pub(crate) const OCI: Program = Program {
    class: "oci",
    image: "bench/busybox:1",
    args: &["sleep", "100000"],
};
pub(crate) const DOCKER: Program = Program {
    class: "docker",
    ..OCI
};
pub(crate) const WASM: Program = Program {
    class: "wasm",
    image: "bench/sleeper:1",
    args: &[],
};

const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn pod(name: &str, program: Program) -> Result<Pod> {
    let Program { class, image, args } = program;
    Ok(serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "runtimeClassName": class,
            "containers": [{"name": "c", "image": image, "args": args, "imagePullPolicy": "Never"}],
        },
    }))?)
}

fn is_running(pod: &Pod) -> bool {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses.is_some_and(|statuses| {
        statuses.iter().all(|c| {
            c.state
                .as_ref()
                .is_some_and(|state| state.running.is_some())
        })
    })
}

/// Creates these pods and gives the time from each one's create to its Running on a watch that was there before.
async fn create(client: &Client, names: &[String], program: Program) -> Result<Vec<Duration>> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let revision = pods
        .list(&ListParams::default().limit(1))
        .await?
        .metadata
        .resource_version
        .unwrap_or_default();
    let mut watch = pods
        .watch(&WatchParams::default(), &revision)
        .await?
        .boxed();
    let mut started = HashMap::new();
    let mut creates = futures::stream::FuturesUnordered::new();
    for name in names {
        started.insert(name.clone(), Instant::now());
        let (pods, pod) = (pods.clone(), pod(name, program)?);
        creates.push(async move { pods.create(&PostParams::default(), &pod).await });
    }
    let mut times = Vec::with_capacity(names.len());
    let deadline = tokio::time::sleep(PATIENCE);
    tokio::pin!(deadline);
    while !started.is_empty() {
        tokio::select! {
            Some(created) = creates.next() => { created?; }
            event = watch.try_next() => match event?.context("the watch ended")? {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) if is_running(&pod) => {
                    if let Some(start) = started.remove(pod.metadata.name.as_deref().unwrap_or_default()) {
                        times.push(start.elapsed());
                    }
                }
                WatchEvent::Error(error) => bail!("watch: {error:?}"),
                _ => {}
            },
            () = &mut deadline => bail!("not Running after {PATIENCE:?}: {:?}", started.keys()),
        }
    }
    Ok(times)
}

/// One pod after the other, each gone before the next.
pub(crate) async fn one_at_a_time(
    client: &Client,
    program: Program,
    samples: usize,
) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(samples);
    // The first warms what is warmed once: a compiled module, a worker.
    for n in 0..=samples {
        let name = format!("one-{n}");
        times.extend(create(client, std::slice::from_ref(&name), program).await?);
        delete_all(client).await?;
    }
    times.remove(0);
    Ok(times)
}

/// All at once.
pub(crate) async fn at_once(
    client: &Client,
    program: Program,
    count: usize,
) -> Result<Vec<Duration>> {
    let names: Vec<String> = (0..count).map(|n| format!("burst-{n}")).collect();
    create(client, &names, program).await
}

/// Deletes every pod and waits until none is left.
pub(crate) async fn delete_all(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    pods.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    let deadline = Instant::now() + PATIENCE;
    while !pods.list(&ListParams::default()).await?.items.is_empty() {
        if Instant::now() > deadline {
            bail!("pods are still there {PATIENCE:?} after their deletion");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
