//! Volumes that plugins give: git repositories and archives from servers "outside", in containers and components.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, Network, eventually};

use crate::{
    Shared, import_all, own_trials,
    pods::{apply, pod},
    trials,
};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    let mut trials = trials![shared;
        a_repository_is_a_volume_of_containers_and_components_alike,
        what_changes_at_the_other_end_is_swapped_in,
        volumes_that_cannot_be_had_say_why_in_an_event,
        a_volume_that_nobody_may_write_is_read_only,
        a_class_of_a_plugin_gives_volumes_to_claims,
    ];
    trials.extend(own_trials![what_a_populator_wrote_outlives_the_agent]);
    trials
}

/// A web server "outside", with a repository by git's own CGI and whatever else is put beside it.
struct Outside {
    server: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("a program");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Outside {
    /// Serves `/cgi-bin/git/repo.git`, whose branch `main` has a file `text` that says `one`.
    fn start(network: &Network) -> Self {
        static PORT: AtomicU16 = AtomicU16::new(8100);
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().expect("a directory");
        let at = |path: &str| directory.path().join(path);
        fs::create_dir_all(at("www/cgi-bin")).expect("a directory");
        let script = format!(
            "#!/bin/sh\nexport GIT_PROJECT_ROOT={} GIT_HTTP_EXPORT_ALL=1 GIT_PROTOCOL=version=2 HOME=/nonexistent\n\
             export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'\n\
             PATH=/usr/local/bin:/usr/bin:/bin exec git http-backend\n",
            directory.path().display()
        );
        fs::write(at("www/cgi-bin/git"), script).expect("a script");
        let runnable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(at("www/cgi-bin/git"), runnable).expect("a script");
        let server = network
            .outside_command("busybox")
            .args(["httpd", "-f", "-p"])
            .arg(format!("{}:{port}", Network::OUTSIDE_IP))
            .arg("-h")
            .arg(at("www"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("busybox");
        let outside = Self {
            server,
            directory,
            port,
        };
        fs::create_dir(outside.work()).expect("a directory");
        outside.git(&["init", "-q", "-b", "main", "."]);
        outside.git(&["clone", "-q", "--bare", ".", "../repo.git"]);
        outside.git(&["remote", "add", "origin", "../repo.git"]);
        outside.commit("one");
        eventually("the server outside answers", || {
            let url = format!("{}/cgi-bin/git/repo.git/HEAD", outside.url());
            let asked = network
                .outside_command("curl")
                .args(["-sf", &url])
                .output()
                .expect("curl");
            match asked.status.success() {
                true => Ok(()),
                false => Err(format!("{asked:?}")),
            }
        });
        outside
    }

    fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    fn www(&self) -> PathBuf {
        self.directory.path().join("www")
    }

    fn url(&self) -> String {
        format!("http://{}:{}", Network::OUTSIDE_IP, self.port)
    }

    fn repository(&self) -> String {
        format!("{}/cgi-bin/git/repo.git", self.url())
    }

    fn git(&self, arguments: &[&str]) -> String {
        run(Command::new("git")
            .current_dir(self.work())
            .args(["-c", "user.name=t", "-c", "user.email=t@example"])
            .args(arguments)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", self.directory.path()))
    }

    fn commit(&self, text: &str) -> String {
        fs::create_dir_all(self.work().join("d")).expect("a directory");
        fs::write(self.work().join("text"), text).expect("a file");
        fs::write(self.work().join("d/deep"), text).expect("a file");
        self.git(&["add", "."]);
        self.git(&["commit", "-q", "-m", text]);
        self.git(&["push", "-q", "origin", "main"]);
        self.git(&["rev-parse", "main"])
    }

    /// A tar.gz with a file `a`; answers its digest.
    fn archive(&self, name: &str) -> String {
        let top = self.directory.path().join("archive/top");
        fs::create_dir_all(&top).expect("a directory");
        fs::write(top.join("a"), "from an archive").expect("a file");
        run(Command::new("tar")
            .args([
                "-C",
                &self.directory.path().join("archive").to_string_lossy(),
            ])
            .arg("-czf")
            .arg(self.www().join(name))
            .arg("top"));
        let sum = run(Command::new("sha256sum").arg(self.www().join(name)));
        format!("sha256:{}", &sum[..64])
    }
}

/// Containers of both kinds that show `/v`, and a volume.
fn container(name: &str, image: &str) -> String {
    format!(
        "  - name: {name}\n    image: 'test/{image}:1'\n    imagePullPolicy: Never\n    \
         args: [sleep, infinity]\n    volumeMounts: [{{name: v, mountPath: /v}}]\n"
    )
}

fn both(name: &str, volume: &str) -> String {
    let (oci, wasm) = (container("oci", "busybox"), container("wasm", "toolbox"));
    pod(
        name,
        &format!("  containers:\n{oci}{wasm}  volumes:\n  - name: v\n    {volume}\n"),
    )
}

fn cat(cluster: &Cluster, ns: &str, pod: &str, container: &str, path: &str) -> String {
    let args = ["exec", "-n", ns, pod, "-c", container, "--", "cat", path];
    let output = cluster.kubectl_command(&args).output().expect("kubectl");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn shows(cluster: &Cluster, ns: &str, pod: &str, path: &str, text: &str) {
    for container in ["oci", "wasm"] {
        assert_eq!(
            cat(cluster, ns, pod, container, path),
            text,
            "{container} {path}"
        );
    }
}

fn a_repository_is_a_volume_of_containers_and_components_alike(cluster: &Cluster, ns: &str) {
    let outside = Outside::start(&cluster.network);
    let commit = outside.git(&["rev-parse", "main"]);
    let repository = outside.repository();
    let csi = format!(
        "csi: {{driver: git.wherry.dev, volumeAttributes: {{repository: '{repository}', branch: main}}}}"
    );
    apply(cluster, ns, &both("csi", &csi));
    let in_tree = format!("gitRepo: {{repository: '{repository}', revision: {commit}}}");
    apply(cluster, ns, &both("in-tree", &in_tree));
    let flex = format!(
        "flexVolume: {{driver: wherry.dev/git, options: {{repository: '{repository}', subdirectory: d}}}}"
    );
    apply(cluster, ns, &both("flex", &flex));
    let archived = outside.archive("a.tar.gz");
    let archive = format!(
        "csi: {{driver: http-archive.wherry.dev, volumeAttributes: {{url: '{}/a.tar.gz', digest: '{archived}', \
         stripComponents: '1'}}}}",
        outside.url()
    );
    apply(cluster, ns, &both("archive", &archive));
    for (pod, path, text) in [
        ("csi", "/v/d/deep", "one"),
        ("in-tree", "/v/repo/text", "one"),
        ("flex", "/v/deep", "one"),
        ("archive", "/v/a", "from an archive"),
    ] {
        cluster.wait_ready(ns, pod);
        shows(cluster, ns, pod, path, text);
    }
    // By another engine, and in a pod with users of its own.
    for (name, more) in [
        ("docker", "runtimeClassName: docker"),
        ("users", "hostUsers: false"),
    ] {
        let oci = container("oci", "busybox");
        let spec = format!("  {more}\n  containers:\n{oci}  volumes:\n  - name: v\n    {csi}\n");
        apply(cluster, ns, &pod(name, &spec));
        cluster.wait_ready(ns, name);
        assert_eq!(cat(cluster, ns, name, "oci", "/v/d/deep"), "one", "{name}");
        let owner = ["exec", name, "--", "stat", "-L", "-c", "%u:%g", "/v/d/deep"];
        assert_eq!(cluster.k(ns, &owner), "0:0\n", "{name}");
        let write = [
            "exec",
            name,
            "--",
            "sh",
            "-c",
            "echo two > /v/d/more && cat /v/d/more",
        ];
        assert_eq!(cluster.k(ns, &write), "two\n", "{name}");
    }
    let event = cluster.wait_event(ns, "csi", "PopulatedVolume");
    assert!(event.contains(&commit), "{event}");
    let uid = cluster.field(ns, "pod/csi", ".metadata.uid");
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all", "--wait=true"]);
    let directory = cluster.root().join("pods").join(uid);
    eventually("the pod's directory is gone", || match directory.exists() {
        false => Ok(()),
        true => Err(directory.display().to_string()),
    });
}

fn what_changes_at_the_other_end_is_swapped_in(cluster: &Cluster, ns: &str) {
    let outside = Outside::start(&cluster.network);
    let volume = format!(
        "csi: {{driver: git.wherry.dev, volumeAttributes: {{repository: '{}', branch: main, refreshSeconds: '1'}}}}",
        outside.repository()
    );
    apply(cluster, ns, &both("fresh", &volume));
    cluster.wait_ready(ns, "fresh");
    shows(cluster, ns, "fresh", "/v/text", "one");
    let commit = outside.commit("two");
    eventually("both see the new commit", || {
        let seen = ["oci", "wasm"].map(|one| cat(cluster, ns, "fresh", one, "/v/text"));
        match seen.iter().all(|text| text == "two") {
            true => Ok(()),
            false => Err(format!("{seen:?}")),
        }
    });
    eventually("the owner is told", || {
        let events = cluster.describe(ns, "pod/fresh");
        match events.contains(&commit) {
            true => Ok(()),
            false => Err(events),
        }
    });
    // Without its server the volume keeps what it has, and says so.
    drop(outside);
    let event = cluster.wait_event(ns, "fresh", "FailedMount");
    assert!(event.contains("plugin git: unavailable"), "{event}");
    shows(cluster, ns, "fresh", "/v/text", "two");
}

fn volumes_that_cannot_be_had_say_why_in_an_event(cluster: &Cluster, ns: &str) {
    let outside = Outside::start(&cluster.network);
    outside.archive("a.tar.gz");
    let url = outside.url();
    let zeros = "0".repeat(64);
    let archive = |url: &str, more: &str| {
        format!(
            "csi: {{driver: http-archive.wherry.dev, volumeAttributes: {{url: '{url}'{more}}}}}"
        )
    };
    for (name, volume, why) in [
        (
            "digest",
            archive(
                &format!("{url}/a.tar.gz"),
                &format!(", digest: 'sha256:{zeros}'"),
            ),
            "its digest is sha256:",
        ),
        (
            "gone",
            archive(&format!("{url}/gone.tar"), ""),
            "plugin http-archive: not found:",
        ),
        (
            "inside",
            archive("http://127.0.0.1:10250/x", ""),
            "127.0.0.1 is an address of the node itself",
        ),
        (
            "misspelt",
            archive(&format!("{url}/a.tar.gz"), ", stripComponent: '1'"),
            "invalid attributes: stripComponent is not known here",
        ),
        (
            "nobody",
            "csi: {driver: nobody.example}".to_owned(),
            "driver name nobody.example not found",
        ),
        (
            "probe",
            "csi: {driver: http-get.wherry.dev}".to_owned(),
            "plugin http-get is a probe",
        ),
        (
            "cloud",
            "gcePersistentDisk: {pdName: disk}".to_owned(),
            "gcePersistentDisk \"disk\": no such disk here",
        ),
        (
            "secret",
            format!(
                "csi: {{driver: git.wherry.dev, nodePublishSecretRef: {{name: gone}}, volumeAttributes: \
                 {{repository: '{}'}}}}",
                outside.repository()
            ),
            "secret \"gone\" not found",
        ),
    ] {
        apply(cluster, ns, &both(name, &volume));
        let event = cluster.wait_event(ns, name, "FailedMount");
        assert!(event.contains(why), "{name}: {event}");
    }
}

fn a_volume_that_nobody_may_write_is_read_only(cluster: &Cluster, ns: &str) {
    let outside = Outside::start(&cluster.network);
    let volume = format!(
        "csi: {{driver: git.wherry.dev, readOnly: true, volumeAttributes: {{repository: '{}'}}}}",
        outside.repository()
    );
    apply(cluster, ns, &both("still", &volume));
    cluster.wait_ready(ns, "still");
    shows(cluster, ns, "still", "/v/text", "one");
    for container in ["oci", "wasm"] {
        let script = "echo x > /v/text";
        let args = [
            "exec", "-n", ns, "still", "-c", container, "--", "sh", "-c", script,
        ];
        cluster.kubectl_fails(&args);
    }
    shows(cluster, ns, "still", "/v/text", "one");
}

fn a_class_of_a_plugin_gives_volumes_to_claims(cluster: &Cluster, ns: &str) {
    let outside = Outside::start(&cluster.network);
    let repository = outside.repository();
    let class = format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {ns}-git}}\nprovisioner: git.wherry.dev\n\
         parameters: {{repository: '{repository}', subdirectory: d}}\n"
    );
    let claim = format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: code}}\nspec:\n  storageClassName: {ns}-git\n  \
         accessModes: [ReadOnlyMany]\n  resources: {{requests: {{storage: 1Gi}}}}\n"
    );
    cluster.apply(&class);
    cluster.apply_in(ns, &claim);
    let volume = "persistentVolumeClaim: {claimName: code}";
    apply(cluster, ns, &both("claims", volume));
    cluster.wait_ready(ns, "claims");
    shows(cluster, ns, "claims", "/v/deep", "one");
    let name = cluster.field(ns, "pvc/code", ".spec.volumeName");
    let driver = cluster.field("", &format!("pv/{name}"), ".spec.csi.driver");
    assert_eq!(driver, "git.wherry.dev");
    cluster.kubectl(&["delete", "pod", "-n", ns, "claims"]);
    cluster.kubectl(&["delete", "pvc", "-n", ns, "code"]);
    eventually("the volume is gone with its claim", || {
        let args = ["get", "pv", &name, "--ignore-not-found", "-o", "name"];
        let found = cluster.kubectl(&args);
        found.is_empty().then_some(()).ok_or(found)
    });
    cluster.kubectl(&["delete", "storageclass", &format!("{ns}-git")]);
}

fn what_a_populator_wrote_outlives_the_agent() {
    let mut cluster = Cluster::start();
    import_all(&cluster);
    let outside = Outside::start(&cluster.network);
    let before = cluster.leftovers();
    let volume = format!(
        "csi: {{driver: git.wherry.dev, volumeAttributes: {{repository: '{}', refreshSeconds: '1'}}}}",
        outside.repository()
    );
    cluster.wait_field(
        "default",
        "serviceaccount/default",
        ".metadata.name",
        "default",
    );
    apply(&cluster, "default", &both("kept", &volume));
    cluster.wait_ready("default", "kept");
    let restarts = ".status.containerStatuses[*].restartCount";
    for text in ["two", "three"] {
        cluster.kill_and_restart();
        outside.commit(text);
        eventually("a new agent renews what an old one has made", || match cat(
            &cluster, "default", "kept", "oci", "/v/text",
        ) {
            seen if seen == text => Ok(()),
            seen => Err(seen),
        });
        shows(&cluster, "default", "kept", "/v/text", text);
    }
    assert_eq!(cluster.field("default", "pod/kept", restarts), "0 0");
    let versions = version_directories(&cluster.root().join("pods"));
    assert_eq!(versions.len(), 1, "one version is kept: {versions:?}");
    cluster.kubectl(&["delete", "pod", "kept"]);
    let after = cluster.leftovers();
    assert_eq!(after.mounts, before.mounts);
    cluster.down();
}

/// Directories of populated versions below the pods' directory.
fn version_directories(pods: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let volumes = list(pods)
        .into_iter()
        .map(|pod| pod.join("volumes/kubernetes.io~csi/v"));
    let names = volumes.flat_map(|volume| list(&volume));
    names
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("..2")
        })
        .collect()
}
