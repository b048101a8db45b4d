//! What a container finds where its volumes are mounted.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::{Value, json};
use wherry_tests::eventually;

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    manifest::with,
    program::{append, exists, list, missing, read, sh, stay, write},
};

pub(super) const GROUP: Group = Group {
    name: "volumes",
    title: "Volumes",
    rows: &[
        Behaviour::new(
            "an emptyDir is shared by the containers and goes with the pod",
            empty_dir,
        ),
        Behaviour::new("an emptyDir in memory has a size", memory_dir),
        Behaviour::new(
            "an emptyDir that outgrows its sizeLimit ends the pod",
            outgrown,
        ),
        Behaviour::new("a hostPath shows the node's directory", host_path),
        Behaviour::new("a hostPath that is not of its type is said", host_path_type),
        Behaviour::new("a ConfigMap is files, with items and modes", config_map),
        Behaviour::new(
            "a ConfigMap that is not there is waited for, unless optional",
            config_map_missing,
        ),
        Behaviour::new("a ConfigMap's files follow its changes", config_map_follows),
        Behaviour::new(
            "an immutable ConfigMap or Secret cannot be changed",
            immutable,
        ),
        Behaviour::new("a Secret is files in memory", secret),
        Behaviour::new(
            "the downward API's labels and annotations follow changes",
            downward,
        ),
        Behaviour::new("a projected volume puts sources together", projected),
        Behaviour::new("every pod has its service account's token", token),
        Behaviour::new("subPath mounts a file or directory of a volume", sub_path),
        Behaviour::new(
            "subPathExpr takes names from the environment",
            sub_path_expr,
        ),
        Behaviour::new("a subPath does not leave its volume", sub_path_escape),
        Behaviour::new("a read-only mount cannot be written to", read_only),
        Behaviour::new(
            "a recursive read-only mount holds below as well",
            recursive_read_only,
        )
        .docker_cannot(
            "the Debian engine's API (1.41) has no recursive read-only mounts",
            "ecursive",
        ),
        Behaviour::new(
            "mountPropagation HostToContainer shows later mounts",
            propagation,
        )
        .wasm_cannot(
            "a guest's directories are detached mounts, which nothing propagates to",
            "none can travel to it or from it",
        ),
        Behaviour::new("an OCI image is a volume", image_volume),
        Behaviour::new("a volume of a kind that is not there is said", unknown_kind),
    ],
};

/// A directory of the node that is the case's own.
fn host(case: &Case<'_>) -> PathBuf {
    let host = case.cluster.root().join(format!("volumes-{}", case.ns));
    fs::create_dir_all(&host).expect("a directory can be made");
    host
}

fn empty_dir(case: &Case<'_>) -> Outcome {
    case.ready(
        &case
            .pod("shared", &[append("/data/file", "one"), stay()])
            .container(case.container("other", &[stay()]))
            .volume("data", json!({"emptyDir": {}})),
    )?;
    let other = |steps| case.exec_in("shared", "other", case.runtime, steps);
    other(&[append("/data/file", "two")])?;
    assert_eq!(case.exec("shared", &[read("/data/file")])?, "one\ntwo\n");
    let uid = case.field("shared", ".metadata.uid");
    case.delete("shared")?;
    let dir = case.cluster.root().join("pods").join(uid);
    eventually("the volume is gone", || {
        if dir.exists() {
            Err(format!("{} is there", dir.display()))
        } else {
            Ok(())
        }
    });
    Ok(())
}

fn memory_dir(case: &Case<'_>) -> Outcome {
    let source = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
    case.ready(&case.pod("memory", &[stay()]).volume("data", source))?;
    case.exec("memory", &[write("/data/small", "fits")])?;
    case.exec_fails(
        "memory",
        &[sh(
            "dd if=/dev/zero of=/data/big bs=1000000 count=2 || exit 1",
        )],
    );
    assert_eq!(case.exec("memory", &[read("/data/small")])?, "fits");
    Ok(())
}

fn outgrown(case: &Case<'_>) -> Outcome {
    let fill = sh("dd if=/dev/zero of=/data/big bs=1000000 count=3 2>/dev/null");
    let pod = case.pod("greedy", &[fill, stay()]);
    case.ends(
        &pod.volume("data", json!({"emptyDir": {"sizeLimit": "1Mi"}})),
        "Failed",
    )?;
    assert_eq!(case.field("greedy", ".status.reason"), "Evicted");
    let message = case.field("greedy", ".status.message");
    assert!(
        message.contains("Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\"."),
        "{message}"
    );
    Ok(())
}

fn host_path(case: &Case<'_>) -> Outcome {
    let host = host(case);
    fs::write(host.join("file"), "from the host").expect("a file can be written");
    let source = json!({"hostPath": {"path": host, "type": "Directory"}});
    case.ready(&case.pod("host", &[stay()]).volume("host", source))?;
    assert_eq!(case.exec("host", &[read("/host/file")])?, "from the host");
    case.exec("host", &[write("/host/back", "from the pod")])?;
    assert_eq!(
        fs::read_to_string(host.join("back")).ok().as_deref(),
        Some("from the pod")
    );
    Ok(())
}

fn host_path_type(case: &Case<'_>) -> Outcome {
    let path = host(case).join("absent");
    let source = json!({"hostPath": {"path": path, "type": "Directory"}});
    case.create(&case.pod("host", &[stay()]).volume("host", source))?;
    let event = case.event("host", "FailedMount");
    assert!(
        event.contains("hostPath type check failed") && event.contains("is not a directory"),
        "{event}"
    );
    assert_eq!(case.field("host", ".status.phase"), "Pending");
    case.delete("host")
}

fn config_map(case: &Case<'_>) -> Outcome {
    case.config_map(
        "settings",
        json!({"colour": "red", "size": "big", "shape": "round"}),
    )?;
    let source = json!({"configMap": {"name": "settings", "defaultMode": 0o440, "items": [
        {"key": "colour", "path": "colour"},
        {"key": "size", "path": "deep/size", "mode": 0o400},
    ]}});
    case.ready(&case.pod("settings", &[stay()]).volume("settings", source))?;
    let seen = case.exec(
        "settings",
        &[read("/settings/colour"), read("/settings/deep/size")],
    )?;
    assert_eq!(seen, "redbig");
    case.exec("settings", &[missing("/settings/shape")])?;
    // Modes, from the node's side: the same for all.
    let uid = case.field("settings", ".metadata.uid");
    let volume = case.cluster.root().join(format!("pods/{uid}/volumes"));
    let find = std::process::Command::new("find")
        .args([
            "-L".as_ref(),
            volume.as_os_str(),
            "-name".as_ref(),
            "colour".as_ref(),
            "-o".as_ref(),
            "-name".as_ref(),
            "size".as_ref(),
        ])
        .output()
        .expect("find starts");
    let found = String::from_utf8_lossy(&find.stdout).into_owned();
    for (name, mode) in [("colour", 0o440), ("size", 0o400)] {
        let file = found
            .lines()
            .find(|line| line.ends_with(name))
            .expect("the file is there");
        let found = fs::metadata(file)
            .expect("the file can be looked at")
            .permissions()
            .mode();
        assert_eq!(found & 0o777, mode, "{file}");
    }
    Ok(())
}

fn config_map_missing(case: &Case<'_>) -> Outcome {
    let optional = json!({"configMap": {"name": "later", "optional": true}});
    case.ready(&case.pod("optional", &[stay()]).volume("settings", optional))?;
    assert_eq!(case.exec("optional", &[list("/settings")])?, "");
    let pod = case.pod("waits", &[stay()]);
    case.create(&pod.volume("settings", json!({"configMap": {"name": "later"}})))?;
    let event = case.event("waits", "FailedMount");
    assert!(event.contains("configmap \"later\" not found"), "{event}");
    case.config_map("later", json!({"colour": "red"}))?;
    case.wait_ready("waits");
    eventually("the optional one appears", || {
        match case.exec("optional", &[list("/settings")]) {
            Ok(seen) if seen == "colour\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    Ok(())
}

fn config_map_follows(case: &Case<'_>) -> Outcome {
    case.config_map("settings", json!({"a": "1", "b": "1"}))?;
    let source = json!({"configMap": {"name": "settings"}});
    case.ready(&case.pod("follows", &[stay()]).volume("settings", source))?;
    for n in ["2", "3"] {
        case.config_map("settings", json!({"a": n, "b": n}))?;
        eventually("the file follows", || {
            let seen = case.exec("follows", &[read("/settings/a"), read("/settings/b")]);
            match seen {
                Ok(seen) if seen == n.repeat(2) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    assert_eq!(case.first("follows", ".restartCount"), "0");
    Ok(())
}

fn immutable(case: &Case<'_>) -> Outcome {
    for kind in ["ConfigMap", "Secret"] {
        let object = |value: &str| {
            let data = if kind == "Secret" {
                "stringData"
            } else {
                "data"
            };
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "fixed"}, "immutable": true, data: {"key": value}})
        };
        case.apply(&object("one"))?;
        let output = case.apply_output(&object("two"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("field is immutable when `immutable` is set"),
            "{said}"
        );
    }
    let pod = case.pod("reads", &[read("/fixed/key"), sh("echo"), stay()]);
    case.ready(&pod.volume("fixed", json!({"configMap": {"name": "fixed"}})))?;
    assert_eq!(case.until_log("reads", "main", "one"), "one\n");
    Ok(())
}

fn secret(case: &Case<'_>) -> Outcome {
    case.secret("hidden", json!({"word": "sesame"}))?;
    let pod = case.pod("hides", &[stay()]);
    case.ready(&pod.volume(
        "hidden",
        json!({"secret": {"secretName": "hidden", "defaultMode": 0o400}}),
    ))?;
    assert_eq!(case.exec("hides", &[read("/hidden/word")])?, "sesame");
    let uid = case.field("hides", ".metadata.uid");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts can be read");
    let is_memory = mounts
        .lines()
        .any(|line| line.contains(&uid) && line.contains("hidden") && line.contains(" tmpfs "));
    assert!(is_memory, "the secret is not in a tmpfs");
    Ok(())
}

fn downward(case: &Case<'_>) -> Outcome {
    let source = json!({"downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "notes", "fieldRef": {"fieldPath": "metadata.annotations"}},
        {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}},
    ]}});
    let limits = json!({"resources": {"limits": {"cpu": "300m"}}});
    let pod = case
        .pod_with("down", &[stay()], limits)
        .metadata(json!({"labels": {"app": "boat"}}));
    case.ready(&pod.volume("down", source))?;
    assert_eq!(
        case.exec("down", &[read("/down/labels"), read("/down/cpu")])?,
        "app=\"boat\"300"
    );
    case.kubectl(&["label", "pod", "down", "app=ship", "--overwrite"])?;
    case.kubectl(&["annotate", "pod", "down", "note=hello"])?;
    eventually("the files follow", || {
        let seen = case.exec("down", &[read("/down/labels"), read("/down/notes")]);
        match seen {
            Ok(seen) if seen.starts_with("app=\"ship\"") && seen.contains("note=\"hello\"") => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    });
    Ok(())
}

fn projected(case: &Case<'_>) -> Outcome {
    case.config_map("settings", json!({"size": "big"}))?;
    case.secret("hidden", json!({"word": "sesame"}))?;
    let source = json!({"projected": {"sources": [
        {"configMap": {"name": "settings", "items": [{"key": "size", "path": "deep/size"}]}},
        {"secret": {"name": "hidden"}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600, "audience": "harbour"}},
    ]}});
    case.ready(&case.pod("all", &[stay()]).volume("all", source))?;
    let seen = case.exec(
        "all",
        &[read("/all/deep/size"), read("/all/word"), read("/all/name")],
    )?;
    assert_eq!(seen, "bigsesameall");
    let token = case.exec("all", &[read("/all/token")])?;
    assert_eq!(token.split('.').count(), 3, "{token}");
    Ok(())
}

fn token(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("known", &[stay()]))?;
    let dir = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(
        case.exec("known", &[read(&format!("{dir}/namespace"))])?,
        case.ns
    );
    assert!(
        case.exec("known", &[read(&format!("{dir}/ca.crt"))])?
            .contains("BEGIN CERTIFICATE")
    );
    let token = case.exec("known", &[read(&format!("{dir}/token"))])?;
    assert_eq!(token.split('.').count(), 3, "{token}");
    case.ready(
        &case
            .pod("unknown", &[stay()])
            .spec(json!({"automountServiceAccountToken": false})),
    )?;
    case.exec("unknown", &[missing(&format!("{dir}/token"))])?;
    Ok(())
}

fn mounts(mounts: Value) -> Value {
    json!({"volumeMounts": mounts})
}

fn sub_path(case: &Case<'_>) -> Outcome {
    case.config_map("settings", json!({"colour": "red", "size": "big"}))?;
    let more = mounts(json!([
        {"name": "settings", "mountPath": "/one/colour", "subPath": "colour"},
        {"name": "data", "mountPath": "/part", "subPath": "deep/part"},
        {"name": "data", "mountPath": "/whole"},
    ]));
    case.ready(
        &case
            .pod_with("parts", &[stay()], more)
            .source("settings", json!({"configMap": {"name": "settings"}}))
            .source("data", json!({"emptyDir": {}})),
    )?;
    assert_eq!(case.exec("parts", &[read("/one/colour")])?, "red");
    case.exec(
        "parts",
        &[write("/part/file", "x"), exists("/whole/deep/part/file")],
    )?;
    assert_eq!(case.exec("parts", &[list("/one")])?, "colour\n");
    Ok(())
}

fn sub_path_expr(case: &Case<'_>) -> Outcome {
    let more = with(
        mounts(json!([
            {"name": "data", "mountPath": "/mine", "subPathExpr": "$(NAME)/logs"},
            {"name": "data", "mountPath": "/whole"},
        ])),
        json!({"env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
    );
    let pod = case.pod_with("parts", &[stay()], more);
    case.ready(&pod.source("data", json!({"emptyDir": {}})))?;
    case.exec(
        "parts",
        &[write("/mine/file", "x"), exists("/whole/parts/logs/file")],
    )?;
    Ok(())
}

fn sub_path_escape(case: &Case<'_>) -> Outcome {
    let host = host(case);
    std::os::unix::fs::symlink("/etc", host.join("out")).expect("a link can be made");
    let source = json!({"hostPath": {"path": host}});
    let mount = |sub: &str| mounts(json!([{"name": "data", "mountPath": "/data", "subPath": sub}]));
    let pod = case
        .pod_with("escapes", &[stay()], mount("../x"))
        .source("data", source.clone());
    case.invalid(&pod, "must not contain '..'");
    case.create(
        &case
            .pod_with("escapes", &[stay()], mount("out"))
            .source("data", source),
    )?;
    case.until_first(
        "escapes",
        ".state.waiting.reason",
        "CreateContainerConfigError",
    );
    case.until_told("escapes", "subPath");
    Ok(())
}

fn read_only(case: &Case<'_>) -> Outcome {
    let more = mounts(json!([
        {"name": "data", "mountPath": "/fixed", "readOnly": true},
        {"name": "data", "mountPath": "/data"},
    ]));
    let pod = case.pod_with("reads", &[stay()], more);
    case.ready(&pod.source("data", json!({"emptyDir": {}})))?;
    case.exec("reads", &[write("/data/file", "x")])?;
    assert_eq!(case.exec("reads", &[read("/fixed/file")])?, "x");
    case.exec_fails("reads", &[write("/fixed/file", "y")]);
    case.exec_fails("reads", &[sh("rm /fixed/file || exit 1")]);
    Ok(())
}

/// A mount below a directory of the node, unmounted when dropped.
struct Below(PathBuf);

impl Below {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir_all(&at).expect("a directory can be made");
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "tmpfs"])
            .arg(&at)
            .status();
        assert!(status.expect("mount starts").success());
        Self(at)
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

fn recursive_read_only(case: &Case<'_>) -> Outcome {
    let host = host(case);
    let _below = Below::mount(host.join("below"));
    let more = mounts(
        json!([{"name": "data", "mountPath": "/data", "readOnly": true, "recursiveReadOnly": "Enabled"}]),
    );
    let pod = case.pod_with("reads", &[stay()], more);
    case.ready(&pod.source("data", json!({"hostPath": {"path": host}})))?;
    case.exec_fails("reads", &[write("/data/file", "x")]);
    case.exec_fails("reads", &[write("/data/below/file", "x")]);
    assert_eq!(
        case.first("reads", ".volumeMounts[0].recursiveReadOnly"),
        "Enabled"
    );
    case.delete("reads")
}

fn propagation(case: &Case<'_>) -> Outcome {
    let host = host(case);
    // What is to propagate has to be shared on the node's side.
    let run = |args: &[&std::ffi::OsStr]| {
        let status = std::process::Command::new("mount").args(args).status();
        assert!(status.expect("mount starts").success());
    };
    run(&["--bind".as_ref(), host.as_os_str(), host.as_os_str()]);
    let _host = Below(host.clone());
    run(&["--make-shared".as_ref(), host.as_os_str()]);
    let more = mounts(
        json!([{"name": "data", "mountPath": "/data", "mountPropagation": "HostToContainer"}]),
    );
    let pod = case.pod_with("sees", &[stay()], more);
    case.ready(&pod.source("data", json!({"hostPath": {"path": host}})))?;
    let below = Below::mount(host.join("below"));
    fs::write(host.join("below/late"), "late").expect("a file can be written");
    assert_eq!(case.exec("sees", &[read("/data/below/late")])?, "late");
    drop(below);
    case.delete("sees")
}

fn image_volume(case: &Case<'_>) -> Outcome {
    let source = json!({"image": {"reference": "test/busybox:1", "pullPolicy": "Never"}});
    let pod = case.pod("reads", &[stay()]);
    case.ready(&pod.volume("image", source))?;
    let passwd = case.exec("reads", &[read("/image/etc/passwd")])?;
    assert!(passwd.starts_with("root:"), "{passwd}");
    case.exec_fails("reads", &[write("/image/etc/passwd", "x")]);
    let source = json!({"image": {"reference": "test/absent:1", "pullPolicy": "Never"}});
    case.create(&case.pod("absent", &[stay()]).volume("image", source))?;
    case.until_told("absent", "test/absent:1");
    assert_eq!(case.field("absent", ".status.phase"), "Pending");
    Ok(())
}

fn unknown_kind(case: &Case<'_>) -> Outcome {
    let pod = case.pod("waits", &[stay()]);
    case.create(&pod.volume("data", json!({"nfs": {"server": "10.51.0.2", "path": "/"}})))?;
    let event = case.event("waits", "FailedMount");
    assert!(event.contains("data") && event.contains("nfs"), "{event}");
    assert_eq!(case.field("waits", ".status.phase"), "Pending");
    case.delete("waits")
}
