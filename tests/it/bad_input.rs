//! Bad input: a clear error where the user looks, nothing lost, nobody else hurt.

use std::{process::Command, sync::Arc};

use libtest_mimic::Trial;
use wherry_tests::Cluster;

use crate::{
    Shared,
    kubectl::shell_pod,
    pods::{apply, pod},
    trials,
};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        a_manifest_with_unknown_or_wrong_fields_is_refused,
        a_wasm_file_that_does_not_validate_is_refused,
        a_component_with_foreign_imports_is_refused_by_name,
        an_image_that_escapes_its_root_touches_nothing,
    ]
}

fn refused(cluster: &Cluster, ns: &str, yaml: &str) -> String {
    let output = cluster.kubectl_with_input(&["apply", "-n", ns, "-f", "-"], yaml);
    assert!(!output.status.success(), "was accepted:\n{yaml}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn a_manifest_with_unknown_or_wrong_fields_is_refused(cluster: &Cluster, ns: &str) {
    let good = shell_pod("bad", "sleep 1");
    let said = refused(
        cluster,
        ns,
        &good.replace("    image:", "    imagee: x\n    image:"),
    );
    assert!(
        said.contains("strict decoding error: unknown field \"spec.containers[0].imagee\""),
        "{said}"
    );
    let said = refused(
        cluster,
        ns,
        &good.replace(
            "terminationGracePeriodSeconds: 1",
            "terminationGracePeriodSeconds: soon",
        ),
    );
    assert!(
        said.contains("cannot unmarshal string into Go struct field")
            || said.contains("unrecognized type"),
        "{said}"
    );
    let said = refused(cluster, ns, "kind: Pod\nmetadata: {name: x}\n");
    assert!(said.contains("apiVersion not set"), "{said}");
    let said = refused(
        cluster,
        ns,
        "apiVersion: v1\nkind: Boat\nmetadata: {name: x}\n",
    );
    assert!(
        said.contains("no matches for kind \"Boat\" in version \"v1\""),
        "{said}"
    );
    let said = refused(cluster, "absent", &good);
    assert!(said.contains("namespaces \"absent\" not found"), "{said}");
}

/// Imports bytes as a Wasm file; gives what `wherry image import` said if it failed.
fn import_bytes(cluster: &Cluster, bytes: &[u8], name: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("bad.wasm");
    std::fs::write(&file, bytes).expect("a file can be written");
    let output = Command::new(wherry_tests::wherry())
        .args(["image", "import"])
        .arg(&file)
        .args(["--name", name, "--root"])
        .arg(cluster.root())
        .output()
        .expect("wherry starts");
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The pod's container waits for this reason, and its message has this part.
fn waits_for(cluster: &Cluster, ns: &str, name: &str, reason: &str, part: &str) {
    let path = ".status.containerStatuses[0].state.waiting";
    cluster.wait_field(
        ns,
        &format!("pod/{name}"),
        &format!("{path}.reason"),
        reason,
    );
    let message = cluster.field(ns, &format!("pod/{name}"), &format!("{path}.message"));
    assert!(message.contains(part), "{message}");
}

fn a_wasm_file_that_does_not_validate_is_refused(cluster: &Cluster, ns: &str) {
    // The magic and version of a module, and then nonsense: found when it is imported or, at the latest, compiled.
    if let Err(said) = import_bytes(cluster, b"\0asm\x01\0\0\0nonsense", "test/broken:1") {
        assert!(
            said.contains("broken") || said.contains("bad.wasm"),
            "{said}"
        );
        return;
    }
    let line = "  containers:\n  - {name: main, image: 'test/broken:1', imagePullPolicy: Never}\n";
    apply(cluster, ns, &pod("broken", line));
    waits_for(cluster, ns, "broken", "CreateContainerError", "");
}

fn a_component_with_foreign_imports_is_refused_by_name(cluster: &Cluster, ns: &str) {
    // A core module that imports env.launch: header; one type () -> (); one function import; a memory-less body.
    let module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x0e\x01\x03env\x06launch\0\0";
    import_bytes(cluster, module, "test/foreign:1").expect("a well-formed module can be imported");
    let line = "  containers:\n  - {name: main, image: 'test/foreign:1', imagePullPolicy: Never}\n";
    apply(cluster, ns, &pod("foreign", line));
    waits_for(cluster, ns, "foreign", "CreateContainerError", "launch");
}

fn an_image_that_escapes_its_root_touches_nothing(cluster: &Cluster, _: &str) {
    // A docker archive whose layer climbs out by `..` and by an absolute link.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let script = r#"
set -e
mkdir -p evil && ln -s /tmp evil/link && echo owned > payload
tar -cf layer.tar evil/link
tar -rf layer.tar --transform 's,^payload,../../../../../../tmp/wherry-escaped,' -P payload
tar -rf layer.tar --transform 's,^payload,evil/link/wherry-escaped,' payload
d=$(sha256sum layer.tar | cut -d' ' -f1)
printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$d" > config.json
printf '[{"Config":"config.json","RepoTags":["test/evil:1"],"Layers":["layer.tar"]}]' > manifest.json
tar -cf evil.tar manifest.json config.json layer.tar
"#;
    let status = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir.path())
        .status()
        .expect("sh starts");
    assert!(status.success());
    let output = Command::new(wherry_tests::wherry())
        .args(["image", "import", "evil.tar", "--root"])
        .arg(cluster.root())
        .current_dir(dir.path())
        .output()
        .expect("wherry starts");
    assert!(
        !output.status.success(),
        "an image that escapes was accepted"
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("wherry-escaped") || said.contains(".."),
        "{said}"
    );
    assert!(!std::path::Path::new("/tmp/wherry-escaped").exists());
    assert!(!cluster.wherry(&["image", "ls"]).contains("evil"));
}
