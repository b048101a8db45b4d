//! StorageClasses whose provisioner is a plugin, by kubectl.

use std::{fs, path::Path, sync::Arc};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{Shared, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        an_image_is_made_for_a_claim_shared_grown_and_removed,
        what_no_plugin_makes_waits_and_says_why,
    ]
}

fn class(cluster: &Cluster, name: &str, provisioner: &str, mode: &str, more: &str) {
    cluster.apply(&format!(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {name}}}
provisioner: {provisioner}
volumeBindingMode: {mode}
allowVolumeExpansion: true
{more}"
    ));
}

fn claim(cluster: &Cluster, ns: &str, class: &str, mode: &str) {
    cluster.apply_in(
        ns,
        &format!(
            "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data}}
spec:
  accessModes: [{mode}]
  storageClassName: {class}
  resources: {{requests: {{storage: 300Mi}}}}
"
        ),
    );
}

fn pod(cluster: &Cluster, ns: &str, name: &str) {
    cluster.apply_in(
        ns,
        &format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: test/busybox:1
    imagePullPolicy: Never
    args: [sleep, '100000']
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]
"
        ),
    );
    cluster.wait_ready(ns, name);
}

/// The loop devices of a file.
fn devices_of(path: &str) -> usize {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let backing = devices.map(|device| device.path().join("loop/backing_file"));
    let files = backing.filter_map(|file| fs::read_to_string(file).ok());
    files.filter(|file| file.trim() == path).count()
}

fn an_image_is_made_for_a_claim_shared_grown_and_removed(cluster: &Cluster, ns: &str) {
    let images = format!("{ns}-images");
    let mode = "WaitForFirstConsumer";
    class(
        cluster,
        &images,
        "loop.wherry.dev",
        mode,
        "mountOptions: [noatime]\nparameters: {csi.storage.k8s.io/fstype: xfs}\n",
    );
    claim(cluster, ns, &images, "ReadWriteOnce");
    cluster.wait_event(ns, "data", mode);
    pod(cluster, ns, "one");
    cluster.wait_event(ns, "data", "Provisioning");
    cluster.wait_event(ns, "data", "ProvisioningSucceeded");
    let volume = cluster.field(ns, "pvc/data", ".spec.volumeName");
    let pv = format!("pv/{volume}");
    let of = |path: &str| cluster.field(ns, &pv, path);
    let file = format!("/srv/wherry-images/{volume}.img");
    assert_eq!(of(".spec.csi.volumeHandle"), file);
    assert_eq!(of(".spec.csi.driver"), "loop.wherry.dev");
    assert_eq!(of(".spec.csi.fsType"), "xfs");
    assert_eq!(of(".spec.capacity.storage"), "300Mi");
    assert_eq!(of(".spec.storageClassName"), images);
    let affinity = ".spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].key";
    assert_eq!(of(affinity), "kubernetes.io/hostname");
    assert_eq!(devices_of(&file), 1);

    // A second pod of the node has the same disk, and the same file system on it.
    pod(cluster, ns, "two");
    let shell = |pod: &str, script: &str| cluster.k(ns, &["exec", pod, "--", "sh", "-c", script]);
    shell("one", "echo kept > /data/file && sync");
    assert_eq!(shell("two", "cat /data/file"), "kept\n");
    assert_eq!(devices_of(&file), 1);
    cluster.k(ns, &["delete", "pod", "one"]);
    shell("two", "echo too >> /data/file");

    // It holds what was asked for, and not more.
    let fill = "fallocate -l 400M /data/large";
    let full = cluster.kubectl_fails(&["-n", ns, "exec", "two", "--", "sh", "-c", fill]);
    assert!(full.contains("No space left on device"), "{full}");
    let more = r#"{"spec": {"resources": {"requests": {"storage": "600Mi"}}}}"#;
    cluster.k(ns, &["patch", "pvc", "data", "-p", more]);
    cluster.wait_field(ns, "pvc/data", ".status.capacity.storage", "600Mi");
    shell("two", &format!("{fill} && rm /data/large"));

    // Killed and made again.
    cluster.k(ns, &["delete", "pod", "two", "--force"]);
    pod(cluster, ns, "three");
    assert_eq!(shell("three", "cat /data/file"), "kept\ntoo\n");

    cluster.k(ns, &["delete", "pod,pvc", "--all"]);
    eventually("the volume is gone", || {
        let found = cluster.kubectl(&["get", &pv, "--ignore-not-found", "-o", "name"]);
        found.is_empty().then_some(()).ok_or(found)
    });
    assert!(!Path::new(&file).exists(), "{file}");
    assert_eq!(devices_of(&file), 0);
    cluster.kubectl(&["delete", "storageclass", &images]);
}

fn what_no_plugin_makes_waits_and_says_why(cluster: &Cluster, ns: &str) {
    let [nobody, shared] = ["nobody", "shared"].map(|name| format!("{ns}-{name}"));
    class(cluster, &nobody, "nobody.wherry.dev", "Immediate", "");
    claim(cluster, ns, &nobody, "ReadWriteOnce");
    let event = cluster.wait_event(ns, "data", "ExternalProvisioning");
    assert!(
        event.contains("external provisioner 'nobody.wherry.dev'"),
        "{event}"
    );
    assert_eq!(cluster.field(ns, "pvc/data", ".status.phase"), "Pending");
    cluster.k(ns, &["delete", "pvc", "data"]);

    class(cluster, &shared, "loop.wherry.dev", "Immediate", "");
    claim(cluster, ns, &shared, "ReadWriteMany");
    let event = cluster.wait_event(ns, "data", "ProvisioningFailed");
    let why = "access mode ReadWriteMany: only one node can reach the volume";
    assert!(event.contains(why), "{event}");
    cluster.k(ns, &["delete", "pvc", "data"]);
    for name in [nobody, shared] {
        cluster.kubectl(&["delete", "storageclass", &name]);
    }
}
