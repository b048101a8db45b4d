//! PersistentVolumes by kubectl: directories that the default class makes, and volumes made by hand.

use std::sync::Arc;

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{Shared, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        a_claim_of_the_default_class_keeps_its_data_while_pods_come_and_go,
        a_volume_made_by_hand_outlives_its_claim,
        a_pod_with_a_scratch_volume_takes_it_along,
    ]
}

const CLAIM: &str = "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
";

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: test/busybox:1
    imagePullPolicy: Never
    args: [sleep, '100000']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
";

fn is_gone(cluster: &Cluster, what: &[&str]) {
    eventually(&format!("{what:?} is gone"), || {
        let mut args = vec!["get", "--ignore-not-found", "-o", "name"];
        args.extend(what);
        let found = cluster.kubectl(&args);
        found.is_empty().then_some(()).ok_or(found)
    });
}

fn a_claim_of_the_default_class_keeps_its_data_while_pods_come_and_go(cluster: &Cluster, ns: &str) {
    cluster.apply_in(ns, CLAIM);
    cluster.wait_event(ns, "data", "WaitForFirstConsumer");
    assert_eq!(
        cluster.field(ns, "pvc/data", ".spec.storageClassName"),
        "local-path"
    );
    cluster.apply_in(ns, POD);
    cluster.wait_ready(ns, "keeper");
    cluster.wait_field(ns, "pvc/data", ".status.phase", "Bound");
    let volume = cluster.field(ns, "pvc/data", ".spec.volumeName");
    let path = cluster.field(ns, &format!("pv/{volume}"), ".spec.local.path");
    cluster.k(
        ns,
        &["exec", "keeper", "--", "sh", "-c", "echo kept > /data/file"],
    );
    let kept = std::fs::read_to_string(format!("{path}/file"));
    assert_eq!(kept.ok().as_deref(), Some("kept\n"), "{path}");

    cluster.k(ns, &["delete", "pod", "keeper"]);
    cluster.apply_in(ns, POD);
    cluster.wait_ready(ns, "keeper");
    let read = cluster.k(ns, &["exec", "keeper", "--", "cat", "/data/file"]);
    assert_eq!(read, "kept\n");

    let larger = r#"{"spec": {"resources": {"requests": {"storage": "2Gi"}}}}"#;
    cluster.k(ns, &["patch", "pvc", "data", "-p", larger]);
    cluster.wait_field(ns, "pvc/data", ".status.capacity.storage", "2Gi");

    // The pod keeps the claim, and the claim the directory.
    cluster.k(ns, &["delete", "pvc", "data", "--wait=false"]);
    assert_eq!(cluster.field(ns, "pvc/data", ".status.phase"), "Bound");
    cluster.k(ns, &["delete", "pod", "keeper"]);
    is_gone(cluster, &["-n", ns, "pvc", "data"]);
    is_gone(cluster, &["pv", &volume]);
    assert!(!std::path::Path::new(&path).exists(), "{path}");
}

fn a_volume_made_by_hand_outlives_its_claim(cluster: &Cluster, ns: &str) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().display();
    cluster.apply(&format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {ns}}}
spec:
  capacity: {{storage: 5Gi}}
  accessModes: [ReadWriteOnce]
  storageClassName: {ns}
  hostPath: {{path: '{path}'}}
"
    ));
    cluster.wait_field(ns, &format!("pv/{ns}"), ".status.phase", "Available");
    let claim = CLAIM.replace("spec:", &format!("spec:\n  storageClassName: {ns}"));
    cluster.apply_in(ns, &claim);
    cluster.wait_field(ns, "pvc/data", ".status.phase", "Bound");
    cluster.apply_in(ns, POD);
    cluster.wait_ready(ns, "keeper");
    cluster.k(ns, &["exec", "keeper", "--", "touch", "/data/file"]);
    cluster.k(ns, &["delete", "pod,pvc", "--all"]);
    cluster.wait_field(ns, &format!("pv/{ns}"), ".status.phase", "Released");
    assert!(directory.path().join("file").exists());
    cluster.k(ns, &["delete", "pv", ns]);
}

fn a_pod_with_a_scratch_volume_takes_it_along(cluster: &Cluster, ns: &str) {
    let scratch = POD.replace(
        "persistentVolumeClaim: {claimName: data}",
        "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}",
    );
    cluster.apply_in(ns, &scratch);
    cluster.wait_ready(ns, "keeper");
    let volume = cluster.field(ns, "pvc/keeper-data", ".spec.volumeName");
    cluster.k(ns, &["delete", "pod", "keeper"]);
    is_gone(cluster, &["-n", ns, "pvc", "keeper-data"]);
    is_gone(cluster, &["pv", &volume]);
}
