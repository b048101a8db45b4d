//! Images from a real registry: TLS, passwords, damage and full disks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually, made_by_run_sh};

use crate::{kubectl::shell_pod, own_trials, pods::apply};

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![images_are_pulled_with_secrets_over_tls_and_damage_is_found]
}

const PORT: u16 = 5443;

/// Debian's registry with TLS and one user, in the node's network.
struct Registry {
    dir: tempfile::TempDir,
    process: Child,
}

fn run(dir: &Path, script: &str) {
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(dir)
        .output()
        .expect("sh starts");
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Registry {
    /// Makes keys and configuration; the CA's certificate is `ca.pem` in the directory.
    fn prepare() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let script = "
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=registry-ca 2>/dev/null
openssl req -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj /CN=127.0.0.1 2>/dev/null
printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE' > ext
openssl x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out tls.pem -days 2 -extfile ext 2>/dev/null
htpasswd -Bbn user word > htpasswd
";
        run(dir.path(), script);
        let d = dir.path().display();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {d}/data}}, delete: {{enabled: true}}}}\nhttp:\n  addr: 127.0.0.1:{PORT}\n  tls: {{certificate: {d}/tls.pem, key: {d}/tls.key}}\nauth: {{htpasswd: {{realm: test, path: {d}/htpasswd}}}}\n"
        );
        fs::write(dir.path().join("config.yml"), config).expect("a file can be written");
        dir
    }

    fn start(cluster: &Cluster, dir: tempfile::TempDir) -> Self {
        let log = fs::File::create(dir.path().join("log")).expect("a file can be made");
        let process = cluster
            .network
            .command("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("docker-registry starts");
        let registry = Self { dir, process };
        eventually("the registry answers", || {
            registry.curl(cluster, "", &[]).map(drop)
        });
        registry
    }

    fn curl(&self, cluster: &Cluster, path: &str, args: &[&str]) -> Result<String, String> {
        let output = cluster
            .network
            .command("curl")
            .args(["-fsS", "-u", "user:word", "--cacert"])
            .arg(self.dir.path().join("ca.pem"))
            .args(args)
            .arg(format!("https://127.0.0.1:{PORT}/v2/{path}"))
            .output()
            .expect("curl starts");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Pushes an OCI layout, blob by blob.
    fn push(&self, cluster: &Cluster, layout: &Path, name: &str) {
        let index: serde_json::Value = serde_json::from_slice(
            &fs::read(layout.join("index.json")).expect("a layout has an index"),
        )
        .expect("it is JSON");
        let manifest = index["manifests"][0]["digest"]
            .as_str()
            .expect("it names a manifest")
            .replace("sha256:", "");
        for blob in fs::read_dir(layout.join("blobs/sha256"))
            .expect("a layout has blobs")
            .flatten()
        {
            let digest = blob.file_name().to_string_lossy().into_owned();
            if digest == manifest {
                continue;
            }
            let headers = self
                .curl(
                    cluster,
                    &format!("{name}/blobs/uploads/"),
                    &["-X", "POST", "-D", "-"],
                )
                .expect("an upload begins");
            let place = headers
                .lines()
                .find_map(|l| {
                    l.strip_prefix("location: ")
                        .or(l.strip_prefix("Location: "))
                })
                .expect("it has a place")
                .trim()
                .to_owned();
            let output = cluster
                .network
                .command("curl")
                .args(["-fsS", "-u", "user:word", "--cacert"])
                .arg(self.dir.path().join("ca.pem"))
                .args([
                    "-X",
                    "PUT",
                    "-H",
                    "Content-Type: application/octet-stream",
                    "--data-binary",
                ])
                .arg(format!("@{}", blob.path().display()))
                .arg(format!("{place}&digest=sha256:{digest}"))
                .output()
                .expect("curl starts");
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let file = format!("@{}", layout.join("blobs/sha256").join(&manifest).display());
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        self.curl(
            cluster,
            &format!("{name}/manifests/1"),
            &["-X", "PUT", "-H", kind, "--data-binary", &file],
        )
        .expect("the manifest is taken");
    }

    /// Every stored blob larger than a manifest, as files on the registry's disk.
    fn layers(&self) -> Vec<PathBuf> {
        let output = Command::new("find")
            .arg(self.dir.path().join("data"))
            .args(["-path", "*/blobs/sha256/*/data", "-size", "+100k"])
            .output()
            .expect("find starts");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(PathBuf::from)
            .collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn images_are_pulled_with_secrets_over_tls_and_damage_is_found() {
    let dir = Registry::prepare();
    let ca = dir.path().join("ca.pem");
    let cluster = Cluster::start_with(&["--registry-ca", &ca.to_string_lossy()]);
    let registry = Registry::start(&cluster, dir);
    let busybox = made_by_run_sh("WHERRY_IMAGE_BUSYBOX");
    for name in ["test/good", "test/damaged"] {
        registry.push(&cluster, &busybox, name);
    }
    let image = |name: &str| format!("127.0.0.1:{PORT}/test/{name}:1");
    let pod = |name: &str, image: &str, secret: &str| {
        let yaml = shell_pod(name, "sleep 1000")
            .replace("test/busybox:1", image)
            .replace("Never", "Always");
        if secret.is_empty() {
            yaml
        } else {
            yaml.replace(
                "spec:",
                &format!("spec:\n  imagePullSecrets: [{{name: {secret}}}]"),
            )
        }
    };
    let ns = "default";
    let reason = ".status.containerStatuses[0].state.waiting.reason";

    apply(&cluster, ns, &pod("anonymous", &image("good"), ""));
    let said = cluster.wait_event(ns, "anonymous", "Failed");
    assert!(said.contains("Failed to pull image"), "{said}");
    cluster.wait_field(ns, "pod/anonymous", reason, "ImagePullBackOff");

    let server = format!("127.0.0.1:{PORT}");
    cluster.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "new-form",
        "--docker-server",
        &server,
        "--docker-username=user",
        "--docker-password=word",
    ]);
    apply(
        &cluster,
        ns,
        &pod("with-secret", &image("good"), "new-form"),
    );
    cluster.wait_ready(ns, "with-secret");
    let said = cluster.wait_event(ns, "with-secret", "Pulled");
    assert!(said.contains("Successfully pulled image"), "{said}");
    assert!(
        cluster
            .field(
                ns,
                "pod/with-secret",
                ".status.containerStatuses[0].imageID"
            )
            .contains("@sha256:")
    );

    let auth = String::from_utf8_lossy(
        &Command::new("sh")
            .args(["-c", "printf user:word | base64"])
            .output()
            .expect("sh starts")
            .stdout,
    )
    .trim()
    .to_owned();
    let old = format!(r#"{{"https://{server}":{{"auth":"{auth}","email":"a@b"}}}}"#);
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "old-form",
        "--type=kubernetes.io/dockercfg",
        &format!("--from-literal=.dockercfg={old}"),
    ]);
    apply(
        &cluster,
        ns,
        &pod("with-old-secret", &image("good"), "old-form"),
    );
    cluster.wait_ready(ns, "with-old-secret");

    apply(&cluster, ns, &pod("absent", &image("absent"), "new-form"));
    let said = cluster.wait_event(ns, "absent", "Failed");
    assert!(said.contains("not found"), "{said}");

    // One byte of the layer is another than it was. A fresh node has nothing of it yet.
    cluster.kubectl(&["delete", "pods", "--all", "-n", ns]);
    for image in cluster
        .wherry(&["image", "ls"])
        .lines()
        .filter_map(|line| line.split_whitespace().find(|w| w.starts_with("sha256:")))
    {
        cluster.wherry(&["image", "rm", image]);
    }
    for layer in registry.layers() {
        let mut bytes = fs::read(&layer).expect("the layer can be read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&layer, bytes).expect("the layer can be written");
    }
    apply(&cluster, ns, &pod("damaged", &image("damaged"), "new-form"));
    let said = cluster.wait_event(ns, "damaged", "Failed");
    assert!(
        said.contains("digest") || said.contains("corrupt") || said.contains("sha256"),
        "{said}"
    );
    let waiting = cluster.field(ns, "pod/damaged", reason);
    assert!(
        waiting == "ErrImagePull" || waiting == "ImagePullBackOff",
        "{waiting}"
    );
}
