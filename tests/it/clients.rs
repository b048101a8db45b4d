//! Clients other than kubectl: the Python client and kube-rs, each through a scenario of its own.

use std::{path::PathBuf, sync::Arc};

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, Config, Error,
    api::{
        AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams,
        WatchEvent, WatchParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        conditions::is_pod_running,
        wait::{await_condition, conditions},
        watcher,
    },
};
use libtest_mimic::Trial;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wherry_tests::{Nodes, in_network, made_by_run_sh};

use crate::{Shared, on_nodes};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    on_nodes![shared;
        the_python_client_runs_its_scenario,
        kube_rs_runs_its_scenario,
    ]
}

/// Images with the same small programs, as a container and as a component.
const IMAGES: [&str; 2] = ["busybox:1", "toolbox:1"];

fn the_python_client_runs_its_scenario(nodes: &Nodes, ns: &str) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients/scenario.py");
    for image in IMAGES {
        let output = nodes
            .client_command(made_by_run_sh("WHERRY_PYTHON"))
            .arg(&script)
            .args([ns, image])
            .output()
            .expect("Python starts");
        let (said, complaint) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{image}: {said}{complaint}");
        assert!(said.ends_with("delete\ndeployment\n"), "{said}");
        let delete = ["delete", "pod,configmap,deployment", "--all", "--wait"];
        nodes.k(ns, &delete);
    }
}

fn kube_rs_runs_its_scenario(nodes: &Nodes, ns: &str) {
    for image in IMAGES {
        let (kubeconfig, ns) = (nodes.kubeconfig().to_owned(), ns.to_owned());
        let run = in_network(nodes.at(0).name(), move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made");
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("it is a kubeconfig");
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .expect("it is complete");
                let client = Client::try_from(config).expect("it has keys");
                objects(Api::namespaced(client.clone(), &ns)).await;
                pod(Api::namespaced(client, &ns), image).await;
            });
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

fn config_map(number: u32) -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": {"name": format!("m{number}"), "labels": {"app": "kube-rs"}},
        "data": {"number": number.to_string()},
    }))
    .expect("it is a ConfigMap")
}

async fn objects(api: Api<ConfigMap>) {
    for number in 0..7 {
        let made = api
            .create(&PostParams::default(), &config_map(number))
            .await;
        assert!(made.expect("it is created").metadata.uid.is_some());
    }
    let refused = api.create(&PostParams::default(), &config_map(0)).await;
    assert!(
        matches!(&refused, Err(Error::Api(status)) if status.code == 409),
        "{refused:?}"
    );

    let merge = Patch::Merge(json!({"data": {"number": null, "colour": "red"}}));
    let patched = api
        .patch("m1", &PatchParams::default(), &merge)
        .await
        .expect("it is patched");
    assert_eq!(
        patched
            .data
            .map(|data| data.into_iter().collect::<Vec<_>>()),
        Some(vec![("colour".into(), "red".into())])
    );
    // Applied by two managers who want different things.
    let own = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m2"}, "data": {"owner": value}});
    let apply = |manager: &str| PatchParams::apply(manager);
    api.patch("m2", &apply("first"), &Patch::Apply(own("first")))
        .await
        .expect("it is applied");
    let conflict = api
        .patch("m2", &apply("second"), &Patch::Apply(own("second")))
        .await;
    assert!(
        matches!(&conflict, Err(Error::Api(status)) if status.code == 409 && status.message.contains("\"first\"")),
        "{conflict:?}"
    );
    api.patch("m2", &apply("second").force(), &Patch::Apply(own("second")))
        .await
        .expect("force takes it over");

    let (mut names, mut pages, mut token) = (Vec::new(), 0, None::<String>);
    loop {
        let mut page = ListParams::default().labels("app=kube-rs").limit(3);
        page.continue_token = token.take();
        let page = api.list(&page).await.expect("a page is listed");
        pages += 1;
        names.extend(
            page.items
                .iter()
                .filter_map(|item| item.metadata.name.clone()),
        );
        match page.metadata.continue_ {
            Some(next) if !next.is_empty() => token = Some(next),
            _ => break,
        }
    }
    assert_eq!((pages, names.len()), (3, 7), "{names:?}");

    let watch = WatchParams::default().labels("app=kube-rs");
    let listed = api
        .list(&ListParams::default())
        .await
        .expect("they are listed");
    let version = listed
        .metadata
        .resource_version
        .expect("a list has a version");
    api.delete("m3", &DeleteParams::default())
        .await
        .expect("it is deleted");
    let (seen, version) = next_event(&api, &watch, &version).await;
    assert_eq!(seen, ("deleted", "m3".to_owned()));
    // Nobody watches while these happen.
    api.delete("m4", &DeleteParams::default())
        .await
        .expect("it is deleted");
    api.create(&PostParams::default(), &config_map(9))
        .await
        .expect("it is created");
    let (seen, version) = next_event(&api, &watch, &version).await;
    assert_eq!(seen, ("deleted", "m4".to_owned()));
    let (seen, _) = next_event(&api, &watch, &version).await;
    assert_eq!(seen, ("added", "m9".to_owned()));

    api.delete_collection(
        &DeleteParams::default(),
        &ListParams::default().labels("app=kube-rs"),
    )
    .await
    .expect("all are deleted");
    let left = api
        .list(&ListParams::default().labels("app=kube-rs"))
        .await
        .expect("they are listed");
    assert_eq!(left.items.len(), 0);
}

/// The first event after a version, on a watch of its own.
async fn next_event(
    api: &Api<ConfigMap>,
    watch: &WatchParams,
    version: &str,
) -> ((&'static str, String), String) {
    let mut events = api
        .watch(watch, version)
        .await
        .expect("a watch begins")
        .boxed();
    loop {
        let (kind, object) = match events
            .try_next()
            .await
            .expect("events are read")
            .expect("the watch goes on")
        {
            WatchEvent::Added(object) => ("added", object),
            WatchEvent::Modified(object) => ("modified", object),
            WatchEvent::Deleted(object) => ("deleted", object),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => panic!("{status:?}"),
        };
        let meta = object.metadata;
        return (
            (kind, meta.name.expect("it has a name")),
            meta.resource_version.expect("it has a version"),
        );
    }
}

async fn pod(api: Api<Pod>, image: &str) {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "kube-rs"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": "Never",
                "args": ["sh", "-c", "echo hello; while true; do sleep 1; done"],
            }],
        },
    }))
    .expect("it is a Pod");
    api.create(&PostParams::default(), &pod)
        .await
        .expect("it is created");
    let running = await_condition(api.clone(), "kube-rs", is_pod_running());
    let running = tokio::time::timeout(wherry_tests::PATIENCE, running).await;
    running
        .expect("it runs in time")
        .expect("it can be watched");

    let follow = LogParams {
        follow: true,
        ..LogParams::default()
    };
    let mut lines = api
        .log_stream("kube-rs", &follow)
        .await
        .expect("it has a log")
        .lines();
    assert_eq!(
        lines.try_next().await.expect("it is read").as_deref(),
        Some("hello")
    );

    let attach = AttachParams::default().stdin(true).stderr(false);
    let mut session = api
        .exec("kube-rs", ["cat"], &attach)
        .await
        .expect("exec begins");
    let mut stdin = session.stdin().expect("stdin was asked for");
    stdin
        .write_all(b"through exec\n")
        .await
        .expect("it is written");
    let mut stdout = session.stdout().expect("stdout was asked for");
    let mut said = [0; 13];
    stdout.read_exact(&mut said).await.expect("it is read");
    assert_eq!(&said, b"through exec\n");
    drop(stdin);
    session.abort();

    let failing = AttachParams::default().stderr(false);
    let mut session = api
        .exec("kube-rs", ["sh", "-c", "exit 3"], &failing)
        .await
        .expect("exec begins");
    let status = session
        .take_status()
        .expect("it was not taken")
        .await
        .expect("it ends");
    let causes = status
        .details
        .and_then(|details| details.causes)
        .unwrap_or_default();
    assert!(
        causes
            .iter()
            .any(|cause| cause.reason.as_deref() == Some("ExitCode")
                && cause.message.as_deref() == Some("3")),
        "{causes:?}"
    );

    // The cache that controllers are made of sees the pod, and then its end.
    let uid = api
        .get("kube-rs")
        .await
        .expect("it is there")
        .metadata
        .uid
        .expect("it has one");
    let gone = await_condition(api.clone(), "kube-rs", conditions::is_deleted(&uid));
    let mut events = watcher(api.clone(), watcher::Config::default()).boxed();
    let first = events.try_next().await.expect("a watcher lists");
    assert!(matches!(first, Some(watcher::Event::Init)), "{first:?}");
    api.delete("kube-rs", &DeleteParams::default())
        .await
        .expect("it is deleted");
    let gone = tokio::time::timeout(wherry_tests::PATIENCE, gone).await;
    gone.expect("it is gone in time")
        .expect("it can be watched");
}
