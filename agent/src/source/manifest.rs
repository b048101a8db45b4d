//! Static pods: a directory of manifests, watched by inotify and looked through now and then.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, Toleration};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sha2::{Digest, Sha256};
use tokio::{io::unix::AsyncFd, sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_runtime_api::PodUid;

use super::{PodUpdate, Source};
use crate::pod::{self, CONFIG_HASH_ANNOTATION, CONFIG_SOURCE_ANNOTATION};

/// Between looks that no event asked for (kubelet's `--file-check-frequency`).
const LOOK_PERIOD: Duration = Duration::from_secs(20);
/// Writers are given this long to finish a file.
const SETTLE: Duration = Duration::from_millis(100);
/// Manifests larger than this are mistakes.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// Follows a directory until shutdown.
pub(crate) async fn run(
    dir: PathBuf,
    node_name: String,
    updates: mpsc::Sender<PodUpdate>,
    shutdown: CancellationToken,
) {
    let mut known: HashMap<PodUid, Arc<Pod>> = HashMap::new();
    let mut complaints: BTreeMap<PathBuf, String> = BTreeMap::new();
    let watch = watch(&dir);
    if let Err(error) = &watch {
        warn!(path = %dir.display(), %error, "Manifests are not watched, only looked at now and then");
    }
    let watch = watch.ok();
    loop {
        match read_dir(&dir, &node_name, &mut complaints) {
            Ok(pods) => {
                let all: HashSet<_> = pods.keys().cloned().collect();
                let mut news: Vec<_> = Vec::new();
                for (uid, pod) in &pods {
                    if known.get(uid) != Some(pod) {
                        info!(pod = pod::name(pod), %uid, "Static pod read");
                        news.push(PodUpdate::Set(Arc::clone(pod)));
                    }
                }
                // The new ones first: one of them may take the place of one that goes.
                news.push(PodUpdate::All(Source::File, all));
                known = pods;
                for update in news {
                    if updates.send(update).await.is_err() {
                        return;
                    }
                }
            }
            // A directory that cannot be read says nothing about its pods: they stay.
            Err(error) => warn!(path = %dir.display(), %error, "Manifests not read"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(LOOK_PERIOD) => {}
            () = changed(watch.as_ref()) => sleep(SETTLE).await,
        }
    }
}

struct Watch(Inotify);

impl AsFd for Watch {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Watch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0.as_fd())
    }
}

fn watch(dir: &Path) -> io::Result<AsyncFd<Watch>> {
    fs::create_dir_all(dir)?;
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let events = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_CREATE;
    inotify.add_watch(dir, events)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; an Inotify owns its descriptor, which `Watch` never gives away"
    )]
    AsyncFd::new(Watch(inotify))
}

async fn changed(watch: Option<&AsyncFd<Watch>>) {
    let Some(watch) = watch else {
        return std::future::pending().await;
    };
    loop {
        let Ok(mut ready) = watch.readable().await else {
            return std::future::pending().await;
        };
        match watch.get_ref().0.read_events() {
            Ok(_) => return,
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(_) => return std::future::pending().await,
        }
    }
}

fn read_dir(
    dir: &Path,
    node_name: &str,
    complaints: &mut BTreeMap<PathBuf, String>,
) -> io::Result<HashMap<PodUid, Arc<Pod>>> {
    let mut paths: Vec<_> = fs::read_dir(dir)?
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .map(|e| e.path())
        .collect();
    paths.sort();
    let mut pods = HashMap::new();
    let mut said = BTreeMap::new();
    for path in paths {
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if is_hidden || !path.is_file() {
            continue;
        }
        match read(&path, node_name) {
            Ok(pod) => {
                pods.insert(pod::uid(&pod), Arc::new(pod));
            }
            Err(why) => {
                if complaints.get(&path) != Some(&why) {
                    warn!(path = %path.display(), error = why, "Manifest refused");
                }
                said.insert(path, why);
            }
        }
    }
    *complaints = said;
    Ok(pods)
}

fn read(path: &Path, node_name: &str) -> Result<Pod, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MANIFEST_BYTES_MAX {
        return Err(format!("larger than {MANIFEST_BYTES_MAX} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse(&text, node_name, &path.to_string_lossy())
}

/// A manifest, YAML or JSON, as a static pod of a node. Pure.
pub(crate) fn parse(text: &str, node_name: &str, origin: &str) -> Result<Pod, String> {
    let value: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if value["apiVersion"] != "v1" || value["kind"] != "Pod" {
        return Err(format!(
            "apiVersion {} kind {}: only v1 Pod is run from a manifest",
            value["apiVersion"], value["kind"]
        ));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let spec = pod.spec.as_mut().ok_or("spec: Required value")?;
    if spec.containers.is_empty() {
        return Err("spec.containers: Required value".into());
    }
    spec.node_name = Some(node_name.into());
    // A static pod is not driven off by taints.
    let all = Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&all) {
        tolerations.push(all);
    }
    spec.enable_service_links.get_or_insert(true);
    let names: HashSet<_> = spec
        .volumes
        .iter()
        .flatten()
        .map(|volume| volume.name.as_str())
        .collect();
    let mounts = spec
        .containers
        .iter()
        .flat_map(|c| c.volume_mounts.iter().flatten());
    for mount in mounts {
        if !names.contains(mount.name.as_str()) {
            return Err(format!(
                "spec.containers[].volumeMounts[].name: Not found: \"{}\"",
                mount.name
            ));
        }
    }
    let name = pod
        .metadata
        .name
        .clone()
        .filter(|name| !name.is_empty())
        .ok_or("metadata.name: Required value")?;
    pod.metadata.name = Some(format!("{name}-{node_name}").to_lowercase());
    pod.metadata
        .namespace
        .get_or_insert_with(|| "default".into());
    pod.status = None;
    let uid = pod
        .metadata
        .uid
        .take()
        .unwrap_or_else(|| hash(&pod, node_name, origin));
    pod.metadata.uid = Some(uid.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_SOURCE_ANNOTATION.into(), "file".into());
    annotations.insert(CONFIG_HASH_ANNOTATION.into(), uid);
    Ok(pod)
}

/// 32 hex digits that change with the manifest, so that a changed pod is another pod.
fn hash(pod: &Pod, node_name: &str, origin: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("host:{node_name}file:{origin}"));
    hash.update(serde_json::to_vec(pod).unwrap_or_default());
    hash.finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: a, image: nginx}]\n";

    #[test]
    fn a_manifest_becomes_a_pod_of_the_node_whose_uid_changes_with_it() {
        let pod = parse(MANIFEST, "Node1", "/m/web.yaml").expect("a good manifest");
        assert_eq!(
            (pod::name(&pod), pod::namespace(&pod)),
            ("web-node1", "default")
        );
        assert!(pod::is_static(&pod));
        assert_eq!(
            pod::annotation(&pod, CONFIG_HASH_ANNOTATION),
            Some(pod::uid(&pod).as_str())
        );
        let same = parse(MANIFEST, "Node1", "/m/web.yaml").expect("a good manifest");
        assert_eq!(pod, same);
        let changed = parse(&MANIFEST.replace("nginx", "redis"), "Node1", "/m/web.yaml")
            .expect("a good manifest");
        assert_ne!(pod::uid(&pod), pod::uid(&changed));
    }

    #[test]
    fn a_bad_manifest_is_refused_with_the_reason() {
        let table = [
            ("a: [", ""),
            ("apiVersion: v1\nkind: Service\n", "only v1 Pod"),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n",
                "spec: Required value",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n",
                "containers",
            ),
            (
                "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a}]}\n",
                "metadata.name",
            ),
        ];
        for (text, expected) in table {
            let error = parse(text, "n", "o").expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn files_that_come_change_and_go_are_noticed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (sender, mut updates) = mpsc::channel(16);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(dir.path().into(), "n".into(), sender, shutdown.clone()));
        let next = |updates: &mut mpsc::Receiver<PodUpdate>| {
            let mut all = None;
            while let Ok(update) = updates.try_recv() {
                if let PodUpdate::All(_, uids) = update {
                    all = Some(uids);
                }
            }
            all
        };
        let mut wait_for = async |count: usize| {
            for _ in 0..100 {
                if next(&mut updates).is_some_and(|all| all.len() == count) {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
            panic!("never {count} pods");
        };
        wait_for(0).await;
        fs::write(dir.path().join("web.yaml"), MANIFEST).expect("writable");
        wait_for(1).await;
        fs::remove_file(dir.path().join("web.yaml")).expect("there");
        wait_for(0).await;
        shutdown.cancel();
        task.await.expect("no panic");
    }
}
