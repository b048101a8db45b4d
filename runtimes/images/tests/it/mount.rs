//! Images shown as directories.

use std::{fs, io::ErrorKind, path::Path, process::Command};

use serde_json::json;
use wherry_images::Store;
use wherry_runtime_api::{ImageError, ImageService};

use crate::support::{Made, assert_empty, gzip, open, tar};

/// Imports an image of one layer for each list of files.
async fn import(store: &Store, at: &Path, name: &str, layers: &[&[(&str, &[u8])]]) {
    let layers: Vec<_> = layers
        .iter()
        .map(|files| {
            let plain = tar(files);
            (gzip(&plain), plain)
        })
        .collect();
    Made::of(&layers, json!({})).write_layout(at, name);
    store.import(at, &[]).await.unwrap();
}

/// Unmounts what is left when a test fails.
struct Target(std::path::PathBuf);

impl Target {
    fn new(path: std::path::PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
}

fn is_refused(error: std::io::Error, kind: ErrorKind) {
    assert_eq!(error.kind(), kind, "{error}");
}

#[tokio::test]
async fn images_are_shown_read_only_and_not_executable_and_stay_while_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let store = open(&at("store"));
    let lower: &[(&str, &[u8])] = &[("a", b"lower"), ("d/b", b"b"), ("gone", b"")];
    let upper: &[(&str, &[u8])] = &[("a", b"upper"), (".wh.gone", b""), ("c", b"c")];
    import(&store, &at("1"), "localhost/one:1", &[lower]).await;
    import(&store, &at("2"), "localhost/two:1", &[lower, upper]).await;
    for (name, a, others) in [
        ("localhost/one:1", "lower", vec!["a", "d", "gone"]),
        ("localhost/two:1", "upper", vec!["a", "c", "d"]),
    ] {
        let target = Target::new(at("target"));
        let target = &target.0;
        let id = store.image_status(name).await.unwrap().unwrap().id;
        store.mount_image(&id, target).await.unwrap();
        // Again, by whoever comes after a restart.
        let again = open(&at("store"));
        again.mount_image(name, target).await.unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = format!(" {} ", target.display());
        assert_eq!(mounts.matches(&point).count(), 1, "{name}");

        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), a);
        assert_eq!(fs::read_to_string(target.join("d/b")).unwrap(), "b");
        let mut found: Vec<_> = fs::read_dir(target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, others, "{name}");
        is_refused(
            fs::write(target.join("x"), "").unwrap_err(),
            ErrorKind::ReadOnlyFilesystem,
        );
        is_refused(
            Command::new(target.join("a")).status().unwrap_err(),
            ErrorKind::PermissionDenied,
        );

        let in_use = again.remove_image(&id).await.unwrap_err();
        assert!(matches!(in_use, ImageError::InUse(_)), "{in_use}");
        again.unmount_image(target).await.unwrap();
        again.unmount_image(target).await.unwrap();
        assert_eq!(fs::read_dir(target).unwrap().count(), 0);
        fs::remove_dir(target).unwrap();
        again.unmount_image(target).await.unwrap();
    }
    // Taken down by somebody else, which is how volumes go.
    let target = Target::new(at("target"));
    store
        .mount_image("localhost/one:1", &target.0)
        .await
        .unwrap();
    rustix::mount::unmount(&target.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    store.remove_image("localhost/one:1").await.unwrap();
    store.remove_image("localhost/two:1").await.unwrap();
    assert_empty(&at("store"));
    assert_eq!(fs::read_dir(at("store/mounts")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_image_of_very_many_layers_can_be_mounted() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let store = open(&at("store"));
    let files: Vec<(String, Vec<u8>)> = (0..120)
        .map(|n: u32| (format!("f{n}"), n.to_string().into_bytes()))
        .collect();
    let layers: Vec<[(&str, &[u8]); 1]> = files
        .iter()
        .map(|(name, content)| [(name.as_str(), content.as_slice())])
        .collect();
    let layers: Vec<&[(&str, &[u8])]> = layers.iter().map(|layer| layer.as_slice()).collect();
    import(&store, &at("1"), "localhost/many:1", &layers).await;
    let target = Target::new(at("target"));
    store
        .mount_image("localhost/many:1", &target.0)
        .await
        .unwrap();
    assert_eq!(fs::read_dir(&target.0).unwrap().count(), 120);
    store.unmount_image(&target.0).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_mounted_is_told_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let store = open(&at("store"));
    let target = Target::new(at("target"));
    let none = store.mount_image("localhost/none:1", &target.0).await;
    assert!(matches!(none, Err(ImageError::NotFound { .. })), "{none:?}");
    let module = b"\0asm\x01\0\0\0";
    fs::write(at("m.wasm"), module).unwrap();
    let name = "localhost/module:1".to_owned();
    store.import(&at("m.wasm"), &[name]).await.unwrap();
    let error = store.mount_image("localhost/module:1", &target.0).await;
    assert!(
        error
            .unwrap_err()
            .to_string()
            .ends_with("without files, which no volume can show")
    );
    import(&store, &at("1"), "localhost/one:1", &[&[("a", b"")]]).await;
    let missing = at("missing");
    assert!(
        store
            .mount_image("localhost/one:1", &missing)
            .await
            .is_err()
    );
    assert_eq!(fs::read_dir(at("store/mounts")).unwrap().count(), 0);
}
