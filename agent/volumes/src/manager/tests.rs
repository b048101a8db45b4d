use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use k8s_openapi::api::{
    authentication::v1::TokenRequestStatus,
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret},
};
use serde_json::{Value, json};

use super::*;

mod plugins;

/// An API server of two maps.
#[derive(Default)]
struct Objects {
    config_maps: Mutex<BTreeMap<String, Value>>,
    secrets: Mutex<BTreeMap<String, Value>>,
    claims: Mutex<BTreeMap<String, Value>>,
    volumes: Mutex<BTreeMap<String, Value>>,
    tokens: AtomicUsize,
    token_seconds: Mutex<i64>,
    is_down: Mutex<bool>,
}

impl Objects {
    fn check(&self) -> Result<(), String> {
        if *self.is_down.lock().unwrap() {
            Err("connection refused".into())
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl ObjectSource for Objects {
    async fn config_map(&self, _: &str, name: &str) -> Result<Option<ConfigMap>, String> {
        self.check()?;
        let found = self.config_maps.lock().unwrap().get(name).cloned();
        Ok(found
            .map(|data| serde_json::from_value(json!({ "metadata": {}, "data": data })).unwrap()))
    }

    async fn secret(&self, _: &str, name: &str) -> Result<Option<Secret>, String> {
        self.check()?;
        let found = self.secrets.lock().unwrap().get(name).cloned();
        Ok(found
            .map(|data| serde_json::from_value(json!({ "metadata": {}, "data": data })).unwrap()))
    }

    async fn persistent_volume_claim(
        &self,
        _: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, String> {
        self.check()?;
        let found = self.claims.lock().unwrap().get(name).cloned();
        Ok(found.map(|object| serde_json::from_value(object).unwrap()))
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, String> {
        self.check()?;
        let found = self.volumes.lock().unwrap().get(name).cloned();
        Ok(found.map(|object| serde_json::from_value(object).unwrap()))
    }

    async fn service_account_token(
        &self,
        params: &TokenParams,
    ) -> Result<TokenRequestStatus, String> {
        self.check()?;
        assert_eq!(params.pod_uid, "uid-1");
        self.tokens.fetch_add(1, Ordering::SeqCst);
        let now = Timestamp::now().as_second();
        let token = token::tests::token(now, now + *self.token_seconds.lock().unwrap());
        Ok(TokenRequestStatus {
            token: Some(token),
            ..TokenRequestStatus::default()
        })
    }
}

struct Node {
    objects: Arc<Objects>,
    manager: VolumeManager,
    dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        mounts::remove_tree(self.dir.path()).unwrap();
    }
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let objects = Arc::new(Objects {
        token_seconds: Mutex::new(3600),
        ..Objects::default()
    });
    let config = VolumeConfig::new(dir.path().join("pods"));
    Node {
        manager: VolumeManager::new(config, objects.clone()),
        objects,
        dir,
    }
}

fn pod(volumes: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "shop", "uid": "uid-1", "labels": { "a": "b" } },
        "spec": { "containers": [{ "name": "c" }], "volumes": volumes },
    }))
    .unwrap()
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

fn is_tmpfs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).unwrap().filesystem_type() == nix::sys::statfs::TMPFS_MAGIC
}

#[tokio::test]
async fn every_kind_of_volume_is_set_up_where_the_kubelet_puts_it_and_taken_down() {
    let node = node();
    node.objects
        .config_maps
        .lock()
        .unwrap()
        .insert("conf".into(), json!({ "key": "value" }));
    node.objects
        .secrets
        .lock()
        .unwrap()
        .insert("pass".into(), json!({ "word": "c2VjcmV0" }));
    let host = node.dir.path().join("host");
    let pod = pod(json!([
        { "name": "scratch", "emptyDir": {} },
        { "name": "ram", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
        { "name": "host", "hostPath": { "path": host, "type": "DirectoryOrCreate" } },
        { "name": "conf", "configMap": { "name": "conf", "defaultMode": 0o440 } },
        { "name": "pass", "secret": { "secretName": "pass" } },
        { "name": "self", "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
        { "name": "all", "projected": { "sources": [
            { "serviceAccountToken": { "path": "token" } },
            { "configMap": { "name": "conf", "items": [{ "key": "key", "path": "in/here" }] } },
            { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } }] } },
        ] } },
    ]));
    let context = PodContext::default();
    let paths = node.manager.mount(&pod, &context).await.unwrap();

    let volumes = node.dir.path().join("pods/uid-1/volumes");
    assert_eq!(
        paths["scratch"],
        volumes.join("kubernetes.io~empty-dir/scratch")
    );
    assert_eq!(paths["host"], host);
    assert_eq!(
        fs::metadata(&paths["scratch"])
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o777
    );
    assert_eq!(
        fs::metadata(&paths["ram"]).unwrap().permissions().mode() & 0o777,
        0o777
    );
    assert!(is_tmpfs(&paths["ram"]) && is_tmpfs(&paths["pass"]) && is_tmpfs(&paths["all"]));
    assert_eq!(
        nix::sys::statvfs::statvfs(&paths["ram"]).unwrap().blocks(),
        256
    );
    assert_eq!(read(&paths["conf"], "key"), "value");
    assert_eq!(
        fs::metadata(paths["conf"].join("key")).unwrap().mode() & 0o777,
        0o440
    );
    assert_eq!(read(&paths["pass"], "word"), "secret");
    assert_eq!(read(&paths["self"], "labels"), "a=\"b\"");
    assert_eq!(read(&paths["all"], "in/here"), "value");
    assert_eq!(read(&paths["all"], "namespace"), "shop");
    let token = read(&paths["all"], "token");

    fs::write(paths["ram"].join("kept"), "kept").unwrap();
    let again = VolumeManager::new(
        VolumeConfig::new(node.dir.path().join("pods")),
        node.objects.clone(),
    );
    assert_eq!(again.mount(&pod, &context).await.unwrap(), paths);
    assert_eq!(read(&paths["ram"], "kept"), "kept");
    assert_eq!(
        read(&paths["all"], "token"),
        token,
        "a fresh token is not asked for again"
    );
    assert_eq!(again.known_pods().unwrap(), ["uid-1"]);

    again.unmount("uid-1").await.unwrap();
    again.unmount("uid-1").await.unwrap();
    assert!(!volumes.exists() && host.exists());
    assert!(again.known_pods().unwrap().is_empty());
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(node.dir.path().to_str().unwrap())
    );
}

#[tokio::test]
async fn what_is_missing_is_said_in_the_kubelets_words() {
    let node = node();
    node.objects
        .config_maps
        .lock()
        .unwrap()
        .insert("conf".into(), json!({ "key": "value" }));
    let file = node.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let check_failed = format!(
        "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: {} is not a directory",
        file.display()
    );
    for (source, want) in [
        (
            json!({ "configMap": { "name": "no" } }),
            "MountVolume.SetUp failed for volume \"v\" : configmap \"no\" not found",
        ),
        (
            json!({ "secret": { "secretName": "no" } }),
            "MountVolume.SetUp failed for volume \"v\" : secret \"no\" not found",
        ),
        (
            json!({ "configMap": { "name": "conf", "items": [{ "key": "k", "path": "k" }] } }),
            "MountVolume.SetUp failed for volume \"v\" : configmap references non-existent config key: k",
        ),
        (
            json!({ "fc": { "lun": 1 } }),
            "MountVolume.SetUp failed for volume \"v\" : no volume plugin matched: fc volumes are not supported on this node",
        ),
        (
            json!({ "hostPath": { "path": file, "type": "Directory" } }),
            check_failed.as_str(),
        ),
    ] {
        let mut volume = source;
        volume["name"] = "v".into();
        let error = node
            .manager
            .mount(&pod(json!([volume])), &PodContext::default())
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), want);
    }
    let optional = json!([{ "name": "v", "configMap": { "name": "no", "optional": true } }]);
    let paths = node
        .manager
        .mount(&pod(optional), &PodContext::default())
        .await
        .unwrap();
    assert_eq!(fs::read_dir(paths["v"].join("..data")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_changed_object_shows_after_a_refresh() {
    let node = node();
    node.objects
        .config_maps
        .lock()
        .unwrap()
        .insert("conf".into(), json!({ "key": "1" }));
    let pod = pod(json!([{ "name": "v", "configMap": { "name": "conf" } }]));
    let context = PodContext::default();
    assert!(
        !node.manager.refresh(&pod, &context).await.unwrap().changed,
        "nothing is set up yet"
    );
    assert!(node.manager.known_pods().unwrap().is_empty());

    let paths = node.manager.mount(&pod, &context).await.unwrap();
    assert!(!node.manager.refresh(&pod, &context).await.unwrap().changed);
    node.objects
        .config_maps
        .lock()
        .unwrap()
        .insert("conf".into(), json!({ "key": "2", "more": "3" }));
    assert!(node.manager.refresh(&pod, &context).await.unwrap().changed);
    assert_eq!(
        (read(&paths["v"], "key"), read(&paths["v"], "more")),
        ("2".into(), "3".into())
    );

    node.objects.config_maps.lock().unwrap().clear();
    assert!(node.manager.refresh(&pod, &context).await.is_err());
    assert_eq!(read(&paths["v"], "key"), "2", "what is there stays");
}

#[tokio::test]
async fn without_the_api_server_a_volume_keeps_what_it_has() {
    let node = node();
    node.objects
        .config_maps
        .lock()
        .unwrap()
        .insert("conf".into(), json!({ "key": "1" }));
    let known = pod(json!([{ "name": "v", "configMap": { "name": "conf" } }]));
    let context = PodContext::default();
    let paths = node.manager.mount(&known, &context).await.unwrap();
    *node.objects.is_down.lock().unwrap() = true;
    assert_eq!(node.manager.mount(&known, &context).await.unwrap(), paths);
    assert_eq!(read(&paths["v"], "key"), "1");
    let unknown = pod(json!([{ "name": "w", "configMap": { "name": "conf" } }]));
    let error = node.manager.mount(&unknown, &context).await.unwrap_err();
    assert!(
        matches!(
            error,
            VolumeError::SetUp {
                cause: SetUpError::Unavailable(_),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_token_is_renewed_when_it_is_due_and_kept_while_it_cannot_be() {
    let node = node();
    let pod = pod(
        json!([{ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } }]),
    );
    let context = PodContext::default();
    let paths = node.manager.mount(&pod, &context).await.unwrap();
    node.manager.refresh(&pod, &context).await.unwrap();
    assert_eq!(node.objects.tokens.load(Ordering::SeqCst), 1);

    let now = Timestamp::now().as_second();
    let due = token::tests::token(now - 900, now + 100);
    fs::write(paths["v"].join("token"), &due).unwrap();
    *node.objects.is_down.lock().unwrap() = true;
    node.manager.refresh(&pod, &context).await.unwrap();
    assert_eq!(read(&paths["v"], "token"), due);

    *node.objects.is_down.lock().unwrap() = false;
    assert!(node.manager.refresh(&pod, &context).await.unwrap().changed);
    assert_eq!(node.objects.tokens.load(Ordering::SeqCst), 2);
    assert_ne!(read(&paths["v"], "token"), due);
}

#[tokio::test]
async fn an_fs_group_owns_the_files() {
    let node = node();
    node.objects
        .config_maps
        .lock()
        .unwrap()
        .insert("conf".into(), json!({ "key": "1" }));
    let mut pod = pod(json!([
        { "name": "conf", "configMap": { "name": "conf" } },
        { "name": "scratch", "emptyDir": {} },
        { "name": "token", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } },
    ]));
    let context = serde_json::from_value(json!({ "fsGroup": 4321 })).unwrap();
    pod.spec.as_mut().unwrap().security_context = Some(context);
    let paths = node
        .manager
        .mount(&pod, &PodContext::default())
        .await
        .unwrap();
    let scratch = fs::metadata(&paths["scratch"]).unwrap();
    assert_eq!((scratch.gid(), scratch.mode() & 0o7777), (4321, 0o2777));
    for (file, mode) in [
        (paths["conf"].join("key"), 0o644),
        (paths["token"].join("token"), 0o640),
    ] {
        let found = fs::metadata(file).unwrap();
        assert_eq!((found.gid(), found.mode() & 0o7777), (4321, mode));
    }
    assert!(
        !node
            .manager
            .refresh(&pod, &PodContext::default())
            .await
            .unwrap()
            .changed
    );
}

#[tokio::test]
async fn a_uid_cannot_name_another_directory() {
    let node = node();
    for uid in ["", ".", "..", "a/b"] {
        assert!(node.manager.unmount(uid).await.is_err(), "{uid:?}");
    }
}
