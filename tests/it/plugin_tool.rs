//! Plugins from a registry: pushed and signed by `wherry plugin`, read by other tools, installed by a node that
//! refuses what is not signed.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use libtest_mimic::Trial;
use serde_json::{Value, json};
use wherry_tests::{Cluster, eventually, in_network, made_by_run_sh, wherry};

use crate::{own_trials, pods::pod, tutorial::PlainRegistry};

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![plugins_in_any_language_are_pushed_signed_and_called_and_bad_ones_are_told_of]
}

const REGISTRY: &str = "127.0.0.1:5000";
const VANISHING: u16 = 5001;
const PRIVATE: u16 = 5002;

/// What a script of tests/tools prints last.
fn tool(name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tools")
        .join(name);
    let output = Command::new(script)
        .stderr(Stdio::inherit())
        .output()
        .expect("the script starts");
    assert!(output.status.success(), "{name}: {}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().into()
}

/// A cluster, a registry, and somebody's keys.
struct Author<'a> {
    cluster: &'a Cluster,
    home: &'a Path,
}

impl Author<'_> {
    fn plugin(&self, args: &[&str]) -> Result<String, String> {
        let output = self
            .cluster
            .client_command(wherry())
            .arg("plugin")
            .args(args)
            .env("WHERRY_REGISTRY_PASSWORD", "word")
            .current_dir(self.home)
            .output()
            .expect("wherry starts");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn push(&self, component: &Path, name: &str) -> String {
        let reference = format!("{REGISTRY}/{name}:1");
        let component = component.to_string_lossy();
        let pushed = self.plugin(&["push", &component, &reference]);
        pushed.expect("it is pushed");
        reference
    }

    fn sign(&self, key: &str, reference: &str) {
        let signed = self.plugin(&["sign", "--key", key, reference]);
        signed.expect("it is signed");
    }

    fn install(&self, name: &str, reference: &str, more: &str) {
        self.cluster.apply(&format!(
            "apiVersion: wherry.dev/v1alpha1\nkind: Plugin\nmetadata: {{name: {name}}}\n\
             spec:\n  image: '{reference}'\n{more}"
        ));
    }

    fn wait(&self, name: &str, field: &str, wanted: &str) {
        let object = format!("plugin/{name}");
        let field = format!(".status.nodes.node.{field}");
        self.cluster.wait_field("", &object, &field, wanted);
    }

    fn message(&self, name: &str) -> String {
        self.wait(name, "ready", "false");
        let object = format!("plugin/{name}");
        self.cluster
            .field("", &object, ".status.nodes.node.message")
    }

    /// A JSON document or blob of a repository.
    fn fetch(&self, path: &str) -> Vec<u8> {
        let output = self
            .cluster
            .network
            .command("curl")
            .args([
                "-fsSL",
                "-H",
                "Accept: application/vnd.oci.image.manifest.v1+json",
            ])
            .arg(format!("http://{REGISTRY}/v2/{path}"))
            .output()
            .expect("curl starts");
        assert!(output.status.success(), "{path}: {output:?}");
        output.stdout
    }

    fn document(&self, path: &str) -> Value {
        serde_json::from_slice(&self.fetch(path)).expect("JSON")
    }
}

fn plugins_in_any_language_are_pushed_signed_and_called_and_bad_ones_are_told_of() {
    let home = tempfile::tempdir().expect("a directory");
    let examples = tool("plugin-examples.sh");
    let keys = Command::new(wherry())
        .args(["plugin", "sign", "--generate-key", "--key", "ours.pem"])
        .current_dir(home.path())
        .output();
    assert!(keys.expect("wherry starts").status.success());
    let public = home.path().join("ours.pub");
    let cluster = Cluster::start_with(&["--plugin-signature-policy", &public.to_string_lossy()]);
    cluster.import(&made_by_run_sh("WHERRY_IMAGE_REDIS"), "test/redis:1");
    let _registry = PlainRegistry::start(&cluster, 5000);
    let author = Author {
        cluster: &cluster,
        home: home.path(),
    };

    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/frozen/probe-0.1.0.wasm");
    let c = author.push(&examples.join("probe-c.wasm"), "team/c");
    other_tools_can_read_it(&author, &examples.join("probe-c.wasm"));
    only_what_is_signed_by_the_policys_key_is_installed(&author, &c);

    let python = author.push(&examples.join("probe-python.wasm"), "team/python");
    author.sign("ours.pem", &python);
    author.install(
        "python",
        &python,
        "  limits: {memory: 64Mi, cpuTimeMilliseconds: 5000}\n",
    );
    // Built against the contract as it first was.
    let old = author.push(&frozen, "team/old");
    author.sign("ours.pem", &old);
    author.install("old", &old, "  grants: {exec: true}\n");
    for (name, arguments) in [
        ("c", &["--port=6379"][..]),
        ("python", &["--port=6379"]),
        ("old", &["tcp", "", "6379"]),
    ] {
        // Compiling a whole Python takes an unoptimised compiler half a minute of CPU time.
        author.cluster.kubectl(&[
            "wait",
            &format!("plugin/{name}"),
            "--for=jsonpath={.status.nodes.node.ready}=true",
            "--timeout=300s",
        ]);
        let plugin = format!("wasm:{name}");
        let command: Vec<_> = [plugin.as_str()].iter().chain(arguments).copied().collect();
        let yaml = format!(
            "  containers:\n  - name: main\n    image: 'test/redis:1'\n    imagePullPolicy: Never\n    \
             readinessProbe:\n      exec: {{command: {command:?}}}\n      timeoutSeconds: 10\n      periodSeconds: 1\n"
        );
        cluster.apply(&pod(name, &yaml));
        cluster.wait_ready("default", name);
    }
    what_is_no_plugin_is_told_of(&author);
    a_private_registry_shows_plugin_and_signature_to_whom_the_node_is(&author, &frozen);
    // Nobody else has noticed.
    cluster.wait_ready("default", "c");
    author.wait("c", "ready", "true");
}

fn a_private_registry_shows_plugin_and_signature_to_whom_the_node_is(
    author: &Author<'_>,
    component: &Path,
) {
    let users = Command::new("htpasswd")
        .args(["-Bbn", "node", "word"])
        .output();
    let htpasswd = author.home.join("htpasswd");
    fs::write(&htpasswd, users.expect("htpasswd starts").stdout).expect("a file");
    let auth = format!(
        "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
        htpasswd.display()
    );
    let _registry = PlainRegistry::start_with(author.cluster, PRIVATE, &auth, "node:word@");
    let reference = format!("127.0.0.1:{PRIVATE}/team/private:1");
    let component = component.to_string_lossy();
    let as_node = ["--username", "node"];
    let pushed = author.plugin(&[&["push", &component, &reference], &as_node[..]].concat());
    pushed.expect("it is pushed");
    author.install("private", &reference, "  grants: {exec: true}\n");
    let message = author.message("private");
    assert!(
        !message.ends_with("is not signed"),
        "nobody let it in: {message}"
    );

    let known = json!({"auths": {format!("127.0.0.1:{PRIVATE}"): {"username": "node", "password": "word"}}});
    fs::write(author.cluster.root().join("config.json"), known.to_string()).expect("a file");
    // That there is no signature is only seen from inside.
    let object = "plugin/private";
    let field = ".status.nodes.node.message";
    eventually("the image is pulled, and no signature found", || {
        let message = author.cluster.field("", object, field);
        let is_unsigned = message.ends_with("is not signed");
        is_unsigned.then_some(()).ok_or(message)
    });
    let signed = ["sign", "--key", "ours.pem", &reference];
    let signed = author.plugin(&[&signed[..], &as_node[..]].concat());
    signed.expect("it is signed");
    author.wait("private", "ready", "true");
}

/// The ORAS project's client pulls it.
fn other_tools_can_read_it(author: &Author<'_>, component: &Path) {
    let script = format!(
        "import oras.client\noras.client.OrasClient(hostname='{REGISTRY}', insecure=True)\
         .pull(target='{REGISTRY}/team/c:1', outdir='pulled')\n"
    );
    let pulled = author
        .cluster
        .client_command(tool("oras.sh"))
        .args(["-c", &script])
        .current_dir(author.home)
        .output()
        .expect("Python starts");
    let said = String::from_utf8_lossy(&pulled.stderr);
    assert!(pulled.status.success(), "oras: {said}");
    let pulled = fs::read(author.home.join("pulled/c.wasm")).expect("oras wrote it");
    assert!(pulled == fs::read(component).expect("it is there"));

    let manifest = author.document("team/c/manifests/1");
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.wasm.config.v0+json"
    );
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    let config = manifest["config"]["digest"].as_str().expect("a digest");
    let config = author.document(&format!("team/c/blobs/{config}"));
    assert_eq!(config["component"]["exports"], json!(["check"]));
    let imports = config["component"]["imports"].as_array().expect("a list");
    assert!(
        imports.contains(&json!("wherry:plugin/tcp@0.1.2")),
        "{imports:?}"
    );
    assert_eq!(config["layerDigests"][0], manifest["layers"][0]["digest"]);
}

fn only_what_is_signed_by_the_policys_key_is_installed(author: &Author<'_>, reference: &str) {
    author.install("c", reference, "");
    let message = author.message("c");
    assert!(message.ends_with("is not signed"), "{message}");
    let made = author.plugin(&["sign", "--generate-key", "--key", "theirs.pem", reference]);
    made.expect("somebody else signs it");
    author.wait("c", "ready", "false");
    let theirs = author.plugin(&["verify", "--key", "ours.pub", reference]);
    let said = theirs.expect_err("it is not ours");
    assert!(
        said.contains("none of them by a key of the policy"),
        "{said}"
    );
    // A signature is looked for again, without a change of the object.
    author.sign("ours.pem", reference);
    author.wait("c", "ready", "true");
    let verified = author.plugin(&["verify", "--key", "ours.pub", reference]);
    verified.expect("now it is ours as well");
    cosign_and_the_node_agree(author, reference);
}

/// cosign takes our signature for ours and no one else's, and its own is one for us.
fn cosign_and_the_node_agree(author: &Author<'_>, reference: &str) {
    let cosign = tool("cosign.sh");
    let cosign = |args: &[&str]| {
        let output = author
            .cluster
            .client_command(&cosign)
            .args(args)
            .env("COSIGN_PASSWORD", "word")
            .current_dir(author.home)
            .output()
            .expect("cosign starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(said),
        }
    };
    let verify = |key| cosign(&["verify", "--key", key, "--insecure-ignore-tlog", reference]);
    let verified = verify("ours.pub").expect("cosign takes our signature");
    let verified: Value = serde_json::from_slice(&verified).expect("JSON");
    let repository = reference.rsplit_once(':').expect("a tag").0;
    let identity = &verified[0]["critical"]["identity"]["docker-reference"];
    assert_eq!(identity, repository);

    cosign(&["generate-key-pair"]).expect("cosign makes keys");
    let said = verify("cosign.pub").expect_err("nobody has signed with it");
    assert!(said.contains("no matching signatures"), "{said}");
    cosign(&[
        "sign",
        "--key",
        "cosign.key",
        "--tlog-upload=false",
        "--yes",
        reference,
    ])
    .expect("cosign adds a signature");
    for key in ["ours.pub", "theirs.pub", "cosign.pub"] {
        verify(key).expect("cosign keeps those that were there");
        let verified = author.plugin(&["verify", "--key", key, reference]);
        verified.expect("we take what cosign has written");
    }
}

fn what_is_no_plugin_is_told_of(author: &Author<'_>) {
    // Somebody pushed other things under these names: none is signed, and signed ones are looked at.
    let module = author.home.join("module.wasm");
    fs::write(&module, b"\0asm\x01\0\0\0").expect("a file");
    let refused = author.plugin(&[
        "push",
        &module.to_string_lossy(),
        &format!("{REGISTRY}/team/module:1"),
    ]);
    let said = refused.expect_err("a module is no plugin");
    assert!(
        said.contains("a core module, and a plugin is a component"),
        "{said}"
    );
    let empty = author.home.join("empty.wasm");
    fs::write(&empty, b"\0asm\x0d\0\x01\0").expect("a file");
    let reference = author.push(&empty, "team/empty");
    author.sign("ours.pem", &reference);
    author.install("empty", &reference, "");
    let message = author.message("empty");
    assert!(message.contains("exports nothing, but"), "{message}");

    let server = in_network(author.cluster.network.name(), || {
        vanish(&TcpListener::bind(("127.0.0.1", VANISHING)).expect("the port is free"));
    });
    author.install("vanishing", &format!("127.0.0.1:{VANISHING}/team/x:1"), "");
    let message = author.message("vanishing");
    assert!(
        message.contains(&format!("127.0.0.1:{VANISHING}/team/x:1")),
        "{message}"
    );
    server.join().expect("the registry does not panic");
    let gone = &["delete", "plugin", "vanishing", "empty"];
    author.cluster.kubectl(gone);
}

/// A registry that has an artifact, and goes away in the middle of its layer.
fn vanish(listener: &TcpListener) {
    let layer = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let config = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": config, "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": layer, "size": 1 << 20}],
    })
    .to_string();
    while let Ok((stream, _)) = listener.accept() {
        let Some(path) = request(&stream) else {
            continue;
        };
        let mut stream = stream;
        let body = if path.contains("/manifests/") {
            manifest.as_bytes()
        } else if path.contains(layer) {
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                1 << 20
            );
            let _ = stream.write_all(&[0; 1000]);
            return;
        } else {
            b"{}"
        };
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(body);
    }
}

/// The path that is asked for; nothing for who does not speak HTTP, as TLS does not.
fn request(stream: &TcpStream) -> Option<String> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    for line in lines {
        if line.ok()?.is_empty() {
            break;
        }
    }
    Some(path)
}
