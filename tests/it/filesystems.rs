//! File systems and mounters that are plugins, in pods: shared by containers of every runtime, through the ends of
//! workers, agents and versions, and gone with the pod.

use std::{fs, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

use libtest_mimic::Trial;
use nix::{sys::signal::Signal, unistd::Pid};
use wherry_tests::{Cluster, eventually, guest, made_by_run_sh};

use crate::{Shared, own_trials, pods::apply, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    let mut all = trials![shared;
        a_volume_in_memory_is_one_for_containers_of_every_runtime,
        an_image_of_the_operators_keeps_what_pods_write,
        a_claim_that_asks_for_more_gets_it_where_the_driver_can,
        volumes_that_cannot_be_had_say_why,
    ];
    all.extend(own_trials![
        a_volume_in_memory_lives_through_the_ends_of_its_servers
    ]);
    all
}

/// A pod with a csi volume at `/data` of a container of busybox, and more containers.
fn pod(name: &str, volume: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: shell
    image: test/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, {script:?}]
    volumeMounts: [{{name: data, mountPath: /data}}]
{more}  volumes:
  - name: data
    csi: {volume}
"
    )
}

const SLEEP: &str = "sleep 1000000";
const COMPONENT: &str = "  - name: component
    image: test/files:1
    imagePullPolicy: Never
    args: [wait]
    volumeMounts: [{name: data, mountPath: /data}]
";

fn exec(cluster: &Cluster, ns: &str, pod: &str, container: &str, command: &[&str]) -> String {
    let head = ["exec", pod, "-c", container, "--"];
    cluster.k(ns, &[&head, command].concat())
}

fn a_volume_in_memory_is_one_for_containers_of_every_runtime(cluster: &Cluster, ns: &str) {
    let volume = "{driver: memfs.wherry.dev, volumeAttributes: {size: 16Mi}}";
    apply(cluster, ns, &pod("both", volume, SLEEP, COMPONENT));
    let docker =
        pod("docker", volume, SLEEP, "").replace("spec:\n", "spec:\n  runtimeClassName: docker\n");
    apply(cluster, ns, &docker);
    cluster.wait_ready(ns, "both");
    let shell = |command: &str| exec(cluster, ns, "both", "shell", &["sh", "-c", command]);
    let component = |words: &[&str]| exec(cluster, ns, "both", "component", words);
    shell("echo from the shell > /data/a && mkdir /data/dir");
    assert_eq!(component(&["read", "/data/a"]), "from the shell\n");
    component(&["write", "/data/dir/b", "from the component"]);
    assert_eq!(shell("cat /data/dir/b"), "from the component");
    assert_eq!(component(&["list", "/data"]), "a\ndir\n");
    // Its size is a limit, and no secret.
    let full = shell("dd if=/dev/zero of=/data/big bs=1M count=32 2>&1; rm /data/big; df -m /data");
    assert!(
        full.contains("No space left on device") && full.contains("16"),
        "{full}"
    );

    cluster.wait_ready(ns, "docker");
    let said = exec(
        cluster,
        ns,
        "docker",
        "shell",
        &["sh", "-c", "echo x > /data/x && cat /data/x"],
    );
    assert_eq!(said, "x\n");
}

fn an_image_of_the_operators_keeps_what_pods_write(cluster: &Cluster, ns: &str) {
    let images = Path::new("/srv/wherry-images");
    fs::create_dir_all(images).expect("the operator's directory");
    let image = tempfile::Builder::new()
        .prefix("it-")
        .tempfile_in(images)
        .expect("an image");
    image.as_file().set_len(32 << 20).expect("an empty image");
    let file = image.path().display();
    let volume = format!("{{driver: loop.wherry.dev, volumeAttributes: {{file: '{file}'}}}}");
    for (name, command, said) in [
        ("first", "echo kept > /data/file", ""),
        ("second", "cat /data/file", "kept\n"),
    ] {
        apply(cluster, ns, &pod(name, &volume, SLEEP, ""));
        cluster.wait_ready(ns, name);
        assert_eq!(
            exec(cluster, ns, name, "shell", &["sh", "-c", command]),
            said
        );
        cluster.k(ns, &["delete", "pod", name]);
        eventually("the image is let go", || {
            let devices = fs::read_dir("/sys/block").map_err(|error| error.to_string())?;
            let of_image = devices.flatten().find(|device| {
                let backing = fs::read(device.path().join("loop/backing_file"));
                backing.is_ok_and(|it| it.trim_ascii_end() == image.path().as_os_str().as_bytes())
            });
            of_image.map_or(Ok(()), |device| Err(format!("{device:?}")))
        });
    }
}

fn a_claim_that_asks_for_more_gets_it_where_the_driver_can(cluster: &Cluster, ns: &str) {
    const MIB: u64 = 1 << 20;
    let images = Path::new("/srv/wherry-images");
    fs::create_dir_all(images).expect("the operator's directory");
    let image = tempfile::Builder::new()
        .prefix("it-")
        .tempfile_in(images)
        .expect("an image");
    image.as_file().set_len(300 * MIB).expect("an empty image");
    let file = image.path().display();
    let class = |name: &str, provisioner: &str, parameters: &str| {
        cluster.apply(&format!(
            "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {ns}-{name}}}
provisioner: {provisioner}
allowVolumeExpansion: {}
parameters: {parameters}
",
            name != "fixed"
        ));
        cluster.apply_in(
            ns,
            &format!(
                "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: {ns}-{name}
  resources: {{requests: {{storage: 300Mi}}}}
"
            ),
        );
        cluster.wait_field(ns, &format!("pvc/{name}"), ".status.phase", "Bound");
    };
    let asks = |name: &str, size: &str| {
        let patch =
            format!(r#"{{"spec": {{"resources": {{"requests": {{"storage": "{size}"}}}}}}}}"#);
        [
            "patch".to_owned(),
            "pvc".into(),
            name.into(),
            "-p".into(),
            patch,
        ]
    };
    let ask = |name: &str, size: &str| {
        let args = asks(name, size);
        cluster.k(ns, &args.each_ref().map(String::as_str));
    };
    let refused = |name: &str, size: &str| {
        let args = asks(name, size);
        let args = args.each_ref().map(String::as_str);
        cluster.kubectl_fails(&[&["-n", ns], &args[..]].concat())
    };
    class(
        "grows",
        "loop.wherry.dev",
        &format!("{{file: '{file}', fsType: xfs}}"),
    );
    class("stays", "memfs.wherry.dev", "{}");
    class("fixed", "memfs.wherry.dev", "{}");
    let why = refused("fixed", "400Mi");
    assert!(why.contains("must support resize"), "{why}");

    // Nobody has it mounted yet: it waits for a pod.
    ask("grows", "400Mi");
    let condition = ".status.conditions[0].type";
    cluster.wait_field(ns, "pvc/grows", condition, "FileSystemResizePending");
    cluster.wait_event(ns, "grows", "FileSystemResizeRequired");
    let with_claims = pod("grower", "{}", SLEEP, "")
        .replace("csi: {}", "persistentVolumeClaim: {claimName: grows}")
        .replace(
            "  volumes:\n",
            "    - {name: memory, mountPath: /memory}\n  volumes:\n  - {name: memory, persistentVolumeClaim: {claimName: stays}}\n",
        )
        .replace("volumeMounts: [{name: data, mountPath: /data}]", "volumeMounts:\n    - {name: data, mountPath: /data}");
    apply(cluster, ns, &with_claims);
    cluster.wait_ready(ns, "grower");
    let holds = |size: &str, mib: u64| {
        cluster.wait_field(ns, "pvc/grows", ".status.capacity.storage", size);
        let volume = cluster.field(ns, "pvc/grows", ".spec.volumeName");
        let capacity = cluster.field(ns, &format!("pv/{volume}"), ".spec.capacity.storage");
        assert_eq!(capacity, size);
        cluster.wait_field(ns, "pvc/grows", condition, "");
        let found = exec(
            cluster,
            ns,
            "grower",
            "shell",
            &["stat", "-f", "-c", "%b %S", "/data"],
        );
        let mut numbers = found
            .split_whitespace()
            .map(|word| word.parse::<u64>().expect(&found));
        let bytes = numbers
            .next()
            .zip(numbers.next())
            .map_or(0, |(count, size)| count * size);
        assert!(bytes > (mib - 100) * MIB && bytes < mib * MIB, "{bytes}");
    };
    holds("400Mi", 400);
    let shell = |command: &str| exec(cluster, ns, "grower", "shell", &["sh", "-c", command]);
    shell("echo kept > /data/file");
    // And under its user, with the file open.
    ask("grows", "600Mi");
    holds("600Mi", 600);
    cluster.wait_event(ns, "grows", "VolumeResizeSuccessful");
    assert_eq!(shell("cat /data/file"), "kept\n");
    let why = refused("grows", "500Mi");
    assert!(
        why.contains("can not be less than status.capacity"),
        "{why}"
    );

    ask("stays", "400Mi");
    let event = cluster.wait_event(ns, "stays", "VolumeResizeFailed");
    assert!(
        event.contains("plugin memfs: its volumes cannot be made larger"),
        "{event}"
    );
    let failed = cluster.field(ns, "pvc/stays", condition);
    assert_eq!(failed, "NodeResizeError");
    assert_eq!(
        cluster.field(ns, "pvc/stays", ".status.capacity.storage"),
        "300Mi"
    );
    cluster.k(ns, &["delete", "pod,pvc", "--all"]);
    for name in ["grows", "stays", "fixed"] {
        cluster.kubectl(&["delete", "storageclass", &format!("{ns}-{name}")]);
    }
}

fn volumes_that_cannot_be_had_say_why(cluster: &Cluster, ns: &str) {
    for (name, volume, expected) in [
        (
            "misspelt",
            "{driver: memfs.wherry.dev, volumeAttributes: {siez: 1Mi}}",
            "siez is not known here",
        ),
        (
            "not-granted",
            "{driver: loop.wherry.dev, volumeAttributes: {file: /etc/shadow}}",
            "loop:/etc/shadow needs the grant devices",
        ),
        (
            "own-address",
            "{driver: httpfs.wherry.dev, volumeAttributes: {url: 'http://127.0.0.1:1/'}}",
            "127.0.0.1 is an address of the node itself",
        ),
        (
            "no-nfs",
            "{driver: nfs.wherry.dev, volumeAttributes: {server: 192.0.2.1, path: /x}}",
            "this node's kernel has no such file system",
        ),
    ] {
        apply(cluster, ns, &pod(name, volume, SLEEP, ""));
        let event = cluster.wait_event(ns, name, "FailedMount");
        assert!(event.contains(expected), "{name}: {event}");
    }
}

/// Processes of this root's volume server, and of its workers.
fn servers(root: &Path) -> (Vec<Pid>, Vec<Pid>) {
    let (mut servers, mut workers) = (Vec::new(), Vec::new());
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(" volume-server ") && line.contains(&*root.to_string_lossy()) {
            servers.push(Pid::from_raw(pid));
        } else if line.contains(" plugin-worker filesystem") {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            let parent: Option<i32> = parent.and_then(|parent| parent.trim().parse().ok());
            parents.extend(parent.map(|parent| (pid, parent)));
        }
    }
    for (pid, parent) in parents {
        if servers.contains(&Pid::from_raw(parent)) {
            workers.push(Pid::from_raw(pid));
        }
    }
    (servers, workers)
}

fn a_volume_in_memory_lives_through_the_ends_of_its_servers() {
    let mut cluster = Cluster::prepare(&[]);
    cluster.up();
    cluster.import(&made_by_run_sh("WHERRY_IMAGE_BUSYBOX"), "test/busybox:1");
    cluster.import(&guest("files"), "test/files:1");
    let wasm = cluster.root().join("memfs.wasm");
    let memfs = wherry_plugin_embedded::find("memfs").expect("memfs is built in");
    fs::write(&wasm, memfs.wasm).expect("a file");
    cluster.import(&wasm, "test/memfs:1");
    let before = cluster.leftovers();

    // Every line is written by one call and every name made once: what fails or is done twice is in the log.
    let script = "n=0; while :; do n=$((n+1)); echo $n >> /data/lines || echo lost $n; \
                  set -C; : > /data/made-$n || echo twice $n; set +C; rm /data/made-$n || echo gone $n; done";
    let volume = "{driver: memfs.wherry.dev}";
    cluster.apply(&pod("lives", volume, script, COMPONENT));
    cluster.wait_ready("default", "lives");
    let lines = |cluster: &Cluster| {
        let text = exec(
            cluster,
            "default",
            "lives",
            "component",
            &["read", "/data/lines"],
        );
        let numbers: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        let in_order = numbers
            .iter()
            .zip(1..)
            .all(|(number, expected)| *number == expected);
        assert!(in_order, "lines are lost or twice: {text}");
        numbers.len()
    };
    let goes_on = |cluster: &Cluster, what: &str| {
        let before = lines(cluster);
        eventually(what, || match lines(cluster) {
            now if now > before + 5 => Ok(()),
            now => Err(format!("{now} lines")),
        });
    };
    goes_on(&cluster, "lines are written");
    let root = cluster.root().to_owned();
    let (server, workers) = servers(&root);
    assert_eq!((server.len(), workers.len()), (1, 1));

    for _ in 0..2 {
        let (_, workers) = servers(&root);
        for worker in workers {
            let _ = nix::sys::signal::kill(worker, Signal::SIGKILL);
        }
        goes_on(&cluster, "lines are written after the worker's end");
    }
    let event = cluster.wait_event("default", "lives", "VolumeReopened");
    assert!(
        event.contains("volume data: the plugin's worker ended"),
        "{event}"
    );
    cluster.kill_and_restart();
    goes_on(&cluster, "lines are written after the agent's end");
    assert_eq!(servers(&root).0, server);

    let (_, old) = servers(&root);
    cluster.apply(
        "apiVersion: wherry.dev/v1alpha1\nkind: Plugin\nmetadata: {name: memfs}\n\
         spec:\n  image: 'test/memfs:1'\n  limits: {memory: 80Mi, cpuTimeMilliseconds: 3000}\n",
    );
    eventually("another worker serves the volume", || {
        let (_, now) = servers(&root);
        let is_new = !now.is_empty() && now.iter().all(|worker| !old.contains(worker));
        is_new.then_some(()).ok_or(format!("{now:?}"))
    });
    goes_on(&cluster, "lines are written by another version");

    for server in servers(&root).0 {
        let _ = nix::sys::signal::kill(server, Signal::SIGKILL);
    }
    goes_on(&cluster, "lines are written after the volume server's end");
    assert_ne!(servers(&root).0, server);

    assert_eq!(cluster.k("default", &["logs", "lives", "-c", "shell"]), "");
    cluster.k("default", &["delete", "pod", "lives"]);
    eventually("nothing is left over", || {
        let left = cluster.leftovers().since(&before);
        let (servers, workers) = servers(&root);
        match left.is_empty() && servers.is_empty() && workers.is_empty() {
            true => Ok(()),
            false => Err(format!("{left:?} {servers:?} {workers:?}")),
        }
    });
}
