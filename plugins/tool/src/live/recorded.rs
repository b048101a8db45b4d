//! Checks of built-in probes, recorded against servers of this machine and played back. kubectl is a script that runs
//! commands "in the container" here.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    sync::LazyLock,
};

use serde_json::json;
use tempfile::TempDir;

use super::{Kubectl, Target, executable};
use crate::{
    run::{self, Plugin},
    script::Script,
};

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
});

/// A pod at 127.0.0.1 with a volume `data`, a volume `keys` of a Secret, and the Secret `db` beside it.
struct Node(TempDir);

impl Node {
    fn new() -> Self {
        // As the program itself does.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        for folder in ["data", "keys"] {
            fs::create_dir(at(folder)).expect("a folder");
        }
        let mount = |name: &str| json!({"name": name, "mountPath": at(name)});
        let pod = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "containers": [{"name": "main", "volumeMounts": [mount("data"), mount("keys")]}],
                "volumes": [{"name": "data", "configMap": {"name": "c"}}, {"name": "keys", "secret": {"secretName": "db"}}],
            },
            "status": {"podIP": "127.0.0.1"},
        });
        // `sesame`.
        let secret = json!({"data": {"password": "c2VzYW1l"}});
        for (name, object) in [("pod", pod), ("db", secret)] {
            fs::write(at(name), object.to_string()).expect("written");
        }
        let script = format!(
            "#!/bin/sh\ncase \"$1 $2 $3\" in\n\
             'get pod web') cat {dir}/pod;;\n'get secret db') cat {dir}/db;;\n'get '*) ;;\n\
             'exec web '*) while [ \"$1\" != -- ]; do shift; done; shift; \"$@\";;\n\
             *) echo \"$*\" >&2; exit 1;;\nesac\n",
            dir = directory.path().display()
        );
        executable(&at("kubectl"), &script);
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn target(&self) -> Target {
        let kubectl = Kubectl(self.path("kubectl").into());
        Target::find(kubectl, "default", "web", None).expect("the pod")
    }

    /// What a built-in probe's check becomes, after it was played back.
    fn record(&self, probe: &str, words: &[&str]) -> String {
        let wasm = wherry_plugin_embedded::find(probe)
            .expect("a built-in one")
            .wasm;
        let plugin = Plugin::load(wasm).expect("a plugin");
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let runtime = RUNTIME.handle().clone();
        let script = run::record(&plugin, self.target(), runtime, 16 << 20, &words);
        let script = script.unwrap_or_else(|error| panic!("{probe}: {error:#}"));
        let text = serde_saphyr::to_string(&script).expect("YAML");
        let file = self.path("recorded.yaml");
        fs::write(&file, &text).expect("written");
        let read = Script::read(&file).expect("a script");
        let tally = run::run(&plugin, &read, "").expect("it is played back");
        assert_eq!((tally.passed, tally.failed), (1, 0), "{text}");
        text
    }
}

/// Answers one connection; what is asked has to end in `ends`.
fn serve(talk: &'static [(&'static str, &'static str)]) -> (u16, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        for (ends, answer) in talk {
            let mut asked = Vec::new();
            while !asked.ends_with(ends.as_bytes()) {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("what is asked");
                asked.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).expect("it is read");
        }
    });
    (port, served)
}

#[test]
fn a_check_with_a_secret_is_played_back_and_does_not_show_it() {
    let node = Node::new();
    let (port, served) = serve(&[("$6\r\nsesame\r\n", "+OK\r\n"), ("PING\r\n", "+PONG\r\n")]);
    let port = format!("--port={port}");
    let text = node.record("redis-ping", &[&port, "--password-secret=db"]);
    served.join().expect("it was asked as expected");
    assert!(
        !text.contains("sesame") && !text.contains("c2VzYW1l"),
        "{text}"
    );
    assert!(text.contains("redact") && text.contains("PONG"), "{text}");
    let text = node.record("redis-ping", &[&port, "--password-secret=absent"]);
    assert!(text.contains("secret absent has no password"), "{text}");
}

#[test]
fn checks_by_http_are_played_back_without_cookies() {
    let node = Node::new();
    const ANSWER: &str =
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nset-cookie: sid=private\r\ndate: now\r\n\r\nwell";
    let (port, served) = serve(&[("\r\n\r\n", ANSWER)]);
    let port = format!("--port={port}");
    let words = [port.as_str(), "--path=/healthz", "--header=X-Key: 9"];
    let text = node.record("http-get", &words);
    served.join().expect("it was asked as expected");
    assert!(text.contains("/healthz") && text.contains("well"), "{text}");
    assert!(
        !text.contains("private") && !text.contains("date"),
        "{text}"
    );
    let text = node.record("http-get", &words);
    assert!(text.contains("connection-refused"), "{text}");
}

#[test]
fn commands_are_run_in_the_container_and_played_back() {
    let node = Node::new();
    let text = node.record("exec", &["echo", "all is well"]);
    assert!(
        text.contains("all is well") && text.contains("exit-code: 0"),
        "{text}"
    );
    let text = node.record("exec", &["sh", "-c", "echo no >&2; exit 3"]);
    assert!(
        text.contains("exit-code: 3") && text.contains("failure"),
        "{text}"
    );
}

#[test]
fn files_of_volumes_are_looked_at_and_those_of_secrets_kept_hidden() {
    let node = Node::new();
    fs::write(node.path("data/beat"), "x").expect("written");
    let words = |volume: &str, path: &str| {
        [
            format!("--volume={volume}"),
            format!("--path={path}"),
            "--max-age=600".to_owned(),
        ]
    };
    let look = |volume: &str, path: &str| {
        let words = words(volume, path);
        node.record("file-age", &words.each_ref().map(String::as_str))
    };
    let text = look("data", "beat");
    assert!(
        text.contains("files.stat") && text.contains("success"),
        "{text}"
    );
    for (volume, path) in [("data", "absent"), ("nothing", "beat")] {
        let text = look(volume, path);
        assert!(text.contains("not-found"), "{text}");
    }

    fs::write(node.path("keys/password"), "sesame\n").expect("written");
    fs::write(node.path("data/config"), "listen 80\n").expect("written");
    let mut live = super::Live::new(node.target(), RUNTIME.handle().clone());
    let mut read = |volume: &str, path: &str, offset: u64| {
        let arguments = [json!(volume), json!(path), json!(offset), json!(100)];
        live.perform("files.read", &arguments)
    };
    let config = read("data", "config", 7).expect("a file");
    assert_eq!(config, json!({"ok": "80\n"}));
    let password = read("keys", "password", 0).expect("a file");
    assert_eq!(password, json!({"ok": "sesame\n"}), "the plugin gets it");
    assert!(read("data", "../keys/password", 0).is_err());
    let recorded = serde_json::to_string(
        &live
            .recorded()
            .0
            .iter()
            .map(|call| &call.answer)
            .collect::<Vec<_>>(),
    );
    let recorded = recorded.expect("JSON");
    assert!(
        recorded.contains("80") && !recorded.contains("sesame"),
        "{recorded}"
    );
}
