//! Volumes of claims and of plugins, over plugins that are scripted.

use std::sync::atomic::AtomicBool;

use wherry_plugin_host::{
    Populated, World,
    volume::{VolumeFailure, VolumePlugins, VolumeRequest},
};

use super::*;
use crate::{VolumeEvent, VolumeEvents};

/// A populator that writes its attribute `text`, and a mounter that mounts a tmpfs.
#[derive(Default)]
struct Plugins {
    is_absent: AtomicBool,
    is_broken: AtomicBool,
    calls: AtomicUsize,
    asked: Mutex<Vec<VolumeRequest>>,
    given_back: Mutex<Vec<PathBuf>>,
    text: Mutex<String>,
}

#[async_trait]
impl VolumePlugins for Plugins {
    fn world(&self, plugin: &str) -> Option<World> {
        if self.is_absent.load(Ordering::SeqCst) {
            return None;
        }
        match plugin {
            "git" => Some(World::Populator),
            "nfs" => Some(World::Mounter),
            _ => None,
        }
    }

    async fn populate(
        &self,
        request: &VolumeRequest,
        staging: &Path,
        current: Option<&str>,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Populated, VolumeFailure> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.asked.lock().unwrap().push(request.clone());
        progress(1, 2);
        let text = self.text.lock().unwrap().clone();
        fs::write(staging.join("half"), "").unwrap();
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(VolumeFailure::Refused {
                plugin: request.plugin.clone(),
                why: "the other end vanished".into(),
            });
        }
        fs::remove_file(staging.join("half")).unwrap();
        if current != Some(text.as_str()) {
            fs::create_dir(staging.join("d")).unwrap();
            fs::write(staging.join("d/text"), &text).unwrap();
        }
        Ok(Populated {
            version: text,
            refresh_seconds: 60,
        })
    }

    async fn publish(&self, request: &VolumeRequest, target: &Path) -> Result<(), VolumeFailure> {
        self.asked.lock().unwrap().push(request.clone());
        mounts::mount_tmpfs(target, 0o755, Some(1 << 20))
            .map_err(|error| VolumeFailure::io(target, error))
    }

    async fn expand(
        &self,
        request: &VolumeRequest,
        target: &Path,
        bytes: u64,
    ) -> Result<u64, VolumeFailure> {
        if self.world(&request.plugin) != Some(World::Mounter) {
            return Err(VolumeFailure::cannot_expand(&request.plugin));
        }
        match mounts::is_mount_point(target) {
            Ok(true) => Ok(bytes + 1),
            _ => Err(VolumeFailure::NotMounted {
                path: target.to_owned(),
            }),
        }
    }

    async fn unpublish(&self, target: &Path) -> Result<(), VolumeFailure> {
        self.given_back.lock().unwrap().push(target.to_owned());
        Ok(())
    }
}

#[derive(Default)]
struct Told(Mutex<Vec<VolumeEvent>>);

impl VolumeEvents for Told {
    fn tell(&self, _: &Pod, event: VolumeEvent) {
        self.0.lock().unwrap().push(event);
    }
}

struct PluginNode {
    node: Node,
    plugins: Arc<Plugins>,
    told: Arc<Told>,
}

impl PluginNode {
    fn new() -> Self {
        let mut node = node();
        let (plugins, told): (Arc<Plugins>, Arc<Told>) = Default::default();
        *plugins.text.lock().unwrap() = "one".into();
        let config = VolumeConfig {
            plugins: Some(plugins.clone()),
            events: Some(told.clone()),
            ..VolumeConfig::new(node.dir.path().join("pods"))
        };
        node.manager = VolumeManager::new(config, node.objects.clone());
        Self {
            node,
            plugins,
            told,
        }
    }

    async fn mount(&self, volume: Value) -> Result<PathBuf, String> {
        let pod = pod_of(volume);
        let mounted = self.node.manager.mount(&pod, &PodContext::default()).await;
        let mut paths = mounted.map_err(|error| error.to_string())?;
        Ok(paths.remove("v").unwrap())
    }

    async fn repopulate(&self, volume: Value, seconds: i64) -> Result<Option<i64>, String> {
        let now = Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        let next = self
            .node
            .manager
            .repopulate(&pod_of(volume), &PodContext::default(), now)
            .await;
        let next = next.map_err(|error| error.to_string())?;
        Ok(next.map(|next| next.duration_since(Timestamp::now()).as_secs()))
    }
}

fn pod_of(mut volume: Value) -> Pod {
    volume["name"] = "v".into();
    serde_json::from_value(json!({
        "metadata": { "name": "p", "namespace": "ns", "uid": "uid-1" },
        "spec": { "containers": [], "volumes": [volume], "securityContext": { "fsGroup": 7777 } },
    }))
    .unwrap()
}

fn git() -> Value {
    json!({ "csi": { "driver": "git.wherry.dev", "volumeAttributes": { "repository": "r" },
        "nodePublishSecretRef": { "name": "login" } } })
}

fn with_login(node: &PluginNode) {
    let login = json!({ "password": "aHVudGVyMg==" });
    node.node
        .objects
        .secrets
        .lock()
        .unwrap()
        .insert("login".into(), login);
}

#[tokio::test]
async fn a_populator_writes_once_and_a_new_agent_finds_it() {
    let node = PluginNode::new();
    let early = node.mount(git()).await.unwrap_err();
    assert!(early.ends_with("secret \"login\" not found"), "{early}");
    with_login(&node);
    let path = node.mount(git()).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("d/text")).unwrap(), "one");
    let found = fs::metadata(path.join("d/text")).unwrap();
    assert_eq!((found.gid(), found.mode() & 0o777), (7777, 0o664));
    let asked = node.plugins.asked.lock().unwrap()[0].clone();
    assert_eq!((asked.pod.as_str(), asked.pod_uid.as_str()), ("p", "uid-1"));
    assert_eq!(asked.credentials["password"], b"hunter2");
    let told = node.told.0.lock().unwrap().clone();
    assert_eq!(told[0].reason, "PopulatedVolume");
    // Whatever is the matter with plugin or API server, a container can be started again.
    node.plugins.is_absent.store(true, Ordering::SeqCst);
    *node.node.objects.is_down.lock().unwrap() = true;
    assert_eq!(node.mount(git()).await.unwrap(), path);
    assert_eq!(node.plugins.calls.load(Ordering::SeqCst), 1);
    // And the volume can be given back.
    node.node.manager.unmount("uid-1").await.unwrap();
    assert!(!path.exists());
    assert_eq!(*node.plugins.given_back.lock().unwrap(), [path]);
}

#[tokio::test]
async fn a_populator_that_fails_leaves_nothing_and_is_asked_again() {
    let node = PluginNode::new();
    with_login(&node);
    node.plugins.is_broken.store(true, Ordering::SeqCst);
    let said = node.mount(git()).await.unwrap_err();
    assert_eq!(
        said,
        "MountVolume.SetUp failed for volume \"v\" : plugin git: the other end vanished"
    );
    let volumes = node.node.dir.path().join("pods/uid-1/volumes");
    let left = fs::read_dir(volumes.join("kubernetes.io~csi/v")).unwrap();
    assert_eq!(left.count(), 0);
    node.plugins.is_broken.store(false, Ordering::SeqCst);
    node.mount(git()).await.unwrap();
    node.node.manager.unmount("uid-1").await.unwrap();
    let said = node.mount(json!({ "csi": { "driver": "nobody" } })).await;
    let said = said.unwrap_err();
    assert!(said.contains("driver name nobody not found"), "{said}");
}

#[tokio::test]
async fn content_is_renewed_when_it_is_due_and_kept_when_it_cannot_be() {
    let node = PluginNode::new();
    with_login(&node);
    assert_eq!(
        node.repopulate(git(), 1_000).await,
        Ok(None),
        "nothing is there"
    );
    let path = node.mount(git()).await.unwrap();
    let due = node.repopulate(git(), 0).await.unwrap().unwrap();
    assert!((50..=60).contains(&due), "{due}");
    assert_eq!(node.plugins.calls.load(Ordering::SeqCst), 1, "not due yet");
    // The same version leaves the volume as it is.
    let version = fs::read_link(path.join("..data")).unwrap();
    node.repopulate(git(), 61).await.unwrap();
    assert_eq!(fs::read_link(path.join("..data")).unwrap(), version);
    assert_eq!(node.plugins.calls.load(Ordering::SeqCst), 2);
    node.plugins.is_broken.store(true, Ordering::SeqCst);
    let said = node.repopulate(git(), 61).await.unwrap_err();
    assert!(said.contains("the other end vanished"), "{said}");
    assert_eq!(fs::read_to_string(path.join("d/text")).unwrap(), "one");
    node.plugins.is_broken.store(false, Ordering::SeqCst);
    *node.plugins.text.lock().unwrap() = "two".into();
    node.repopulate(git(), 61).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("d/text")).unwrap(), "two");
    assert_eq!(
        fs::read_dir(&path).unwrap().count(),
        3,
        "one version is kept"
    );
    assert_eq!(node.told.0.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_mounter_is_asked_each_time_and_its_mount_outlives_the_plugin() {
    let node = PluginNode::new();
    let nfs = || json!({ "nfs": { "server": "s", "path": "/", "readOnly": true } });
    let path = node.mount(nfs()).await.unwrap();
    assert!(
        path.ends_with("wherry.dev~read-only/v"),
        "{}",
        path.display()
    );
    let refused = fs::write(path.join("x"), "").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    node.plugins.is_absent.store(true, Ordering::SeqCst);
    assert_eq!(node.mount(nfs()).await.unwrap(), path);
    assert_eq!(node.repopulate(nfs(), 1_000).await, Ok(None));
    node.node.manager.unmount("uid-1").await.unwrap();
    assert!(!path.exists());
    assert_eq!(node.plugins.given_back.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_claim_is_waited_for_and_followed() {
    let node = PluginNode::new();
    let volume = || json!({ "persistentVolumeClaim": { "claimName": "data" } });
    let said = node.mount(volume()).await.unwrap_err();
    let prefix = "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], \
                  failed to process volumes=[v]: error processing PVC ns/data: ";
    let why = "failed to fetch PVC from API server: persistentvolumeclaims \"data\" not found";
    assert_eq!(said, format!("{prefix}{why}"));
    let claim = |phase: &str| {
        json!({ "metadata": { "name": "data", "uid": "c1" }, "spec": { "volumeName": "pv" },
            "status": { "phase": phase } })
    };
    let put = |objects: &Mutex<BTreeMap<String, Value>>, name: &str, object| {
        objects.lock().unwrap().insert(name.to_owned(), object);
    };
    put(&node.node.objects.claims, "data", claim("Pending"));
    let said = node.mount(volume()).await.unwrap_err();
    assert_eq!(said, format!("{prefix}PVC is not bound"));
    put(&node.node.objects.claims, "data", claim("Bound"));
    let directory = tempfile::tempdir().unwrap();
    let persistent = |source: Value| {
        let mut spec = source;
        spec["claimRef"] = json!({ "uid": "c1" });
        json!({ "metadata": { "name": "pv" }, "spec": spec })
    };
    let at = directory.path().join("data");
    put(
        &node.node.objects.volumes,
        "pv",
        persistent(json!({ "local": { "path": at } })),
    );
    let said = node.mount(volume()).await.unwrap_err();
    assert!(said.contains("does not exist"), "{said}");
    fs::create_dir(&at).unwrap();
    assert_eq!(node.mount(volume()).await.unwrap(), at);
    assert_eq!(fs::metadata(&at).unwrap().gid(), 7777);
    fs::write(at.join("kept"), "kept").unwrap();
    let read_only = json!({ "persistentVolumeClaim": { "claimName": "data", "readOnly": true } });
    let bound = node.mount(read_only).await.unwrap();
    assert_eq!(fs::read_to_string(bound.join("kept")).unwrap(), "kept");
    assert!(fs::write(bound.join("x"), "").is_err());
    node.node.manager.unmount("uid-1").await.unwrap();
    assert_eq!(fs::read_to_string(at.join("kept")).unwrap(), "kept");
    // A plugin's volume behind a claim is the plugin's all the same.
    let csi = json!({ "csi": { "driver": "git.wherry.dev", "volumeHandle": "h" } });
    put(&node.node.objects.volumes, "pv", persistent(csi));
    let path = node.mount(volume()).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("d/text")).unwrap(), "one");
}

#[tokio::test]
async fn a_claims_volume_is_made_larger_where_it_is_mounted_and_its_plugin_can() {
    let node = PluginNode::new();
    let objects = &node.node.objects;
    let put = |objects: &Mutex<BTreeMap<String, Value>>, name: &str, object| {
        objects.lock().unwrap().insert(name.to_owned(), object);
    };
    let claim = json!({ "metadata": { "name": "data", "uid": "c1" }, "spec": { "volumeName": "pv" },
        "status": { "phase": "Bound" } });
    put(&objects.claims, "data", claim);
    let source = |source: Value| {
        let mut spec = source;
        spec["claimRef"] = json!({ "uid": "c1" });
        let volume = json!({ "metadata": { "name": "pv" }, "spec": spec });
        put(&objects.volumes, "pv", volume);
    };
    let pod = pod_of(json!({ "persistentVolumeClaim": { "claimName": "data" } }));
    let expand = async |claim: &str| {
        let context = PodContext::default();
        node.node.manager.expand(&pod, claim, 5, &context).await
    };
    source(json!({ "csi": { "driver": "nfs", "volumeHandle": "h" } }));
    for not_yet in [expand("data").await, expand("other").await] {
        let error = not_yet.unwrap_err();
        assert!(matches!(error, VolumeError::NotMounted { .. }), "{error}");
    }
    let volume = json!({ "persistentVolumeClaim": { "claimName": "data" } });
    node.mount(volume).await.unwrap();
    assert_eq!(expand("data").await.unwrap(), 6);
    for (kind, why) in [
        (
            json!({ "csi": { "driver": "git", "volumeHandle": "h" } }),
            "plugin git: its volumes cannot be made larger",
        ),
        (
            json!({ "hostPath": { "path": "/x" } }),
            "PersistentVolumes of this kind cannot be made larger",
        ),
    ] {
        source(kind);
        let error = expand("data").await.unwrap_err();
        assert!(
            error.is_unsupported() && error.to_string().ends_with(why),
            "{error}"
        );
    }
    node.node.manager.unmount("uid-1").await.unwrap();
}
