//! Control planes without nodes: several on one etcd, and state that moves from store to store.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use libtest_mimic::Trial;
use wherry_tests::{Network, eventually, outcome, wherry};

use crate::{etcd::Etcd, own_trials};

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![
        control_planes_on_one_etcd_take_over_from_each_other,
        state_moves_by_snapshot_and_from_the_embedded_store_to_etcd
    ]
}

/// A network with room for an etcd and control planes, each with a root of its own.
struct Site {
    network: Network,
    directory: tempfile::TempDir,
    processes: Vec<Child>,
}

/// A control plane that is ready.
struct Control {
    kubeconfig: PathBuf,
    pid: u32,
}

impl Site {
    fn new() -> Self {
        Self {
            network: Network::new(),
            directory: tempfile::tempdir().expect("a temporary directory"),
            processes: Vec::new(),
        }
    }

    fn root(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start_etcd(&self) -> Etcd {
        Etcd::start(self.network.name(), "127.0.0.1", 1)
    }

    fn start_control(&mut self, name: &str, port: u16, args: &[&str]) -> Control {
        let root = self.root(name);
        std::fs::create_dir_all(&root).expect("a directory can be made");
        let log = std::fs::File::create(root.join("control.log")).expect("a log file");
        let mut process = self
            .network
            .command(wherry())
            .args(["control", "--root"])
            .arg(&root)
            .args([
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                &port.to_string(),
            ])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("wherry starts");
        let mut said = String::new();
        let stdout = process.stdout.take().expect("stdout is piped");
        let read = BufReader::new(stdout).read_line(&mut said);
        let pid = process.id();
        self.processes.push(process);
        let log = || std::fs::read_to_string(root.join("control.log")).unwrap_or_default();
        assert!(
            read.is_ok() && said.starts_with("ready"),
            "wherry control said {said:?}: {}",
            log()
        );
        Control {
            kubeconfig: root.join("control/admin.kubeconfig"),
            pid,
        }
    }

    fn end(&mut self, pid: u32, signal: nix::sys::signal::Signal) {
        let index = self
            .processes
            .iter()
            .position(|process| process.id() == pid);
        let mut process = self.processes.remove(index.expect("it runs"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal)
            .expect("it runs");
        process.wait().expect("it can be waited for");
    }

    fn kubectl(&self, control: &Control, args: &[&str]) -> Result<String, String> {
        let mut command = self.network.command("kubectl");
        command
            .env("KUBECONFIG", &control.kubeconfig)
            .env("HOME", self.directory.path())
            .args(args);
        outcome(&mut command)
    }

    fn wherry(&self, args: &[&str], root: &Path) -> Result<String, String> {
        let mut command = self.network.command(wherry());
        command.args(args).arg("--root").arg(root);
        outcome(&mut command)
    }

    fn config_map(&self, control: &Control, name: &str) {
        let args = [
            "create",
            "configmap",
            name,
            &format!("--from-literal=n={name}"),
        ];
        self.kubectl(control, &args)
            .expect("a ConfigMap is created");
    }

    fn config_maps(&self, control: &Control) -> String {
        let args = ["get", "configmaps", "-o", "name"];
        self.kubectl(control, &args).expect("ConfigMaps are listed")
    }

    fn holder(&self, control: &Control) -> String {
        let args = ["get", "lease", "-n", "kube-system", "wherry-control"];
        let args = [&args[..], &["-o", "jsonpath={.spec.holderIdentity}"]].concat();
        self.kubectl(control, &args).unwrap_or_default()
    }

    /// A new namespace gets its service account from a controller.
    fn wait_for_controllers(&self, control: &Control, namespace: &str) {
        self.kubectl(control, &["create", "namespace", namespace])
            .expect("a namespace is created");
        eventually("controllers that run", || {
            self.kubectl(
                control,
                &["get", "serviceaccount", "-n", namespace, "default"],
            )
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn control_planes_on_one_etcd_take_over_from_each_other() {
    let mut site = Site::new();
    let etcd = site.start_etcd();
    let store = etcd.store();
    let first = site.start_control("a", 6443, &["--store", &store]);
    let leader = eventually("a leader", || match site.holder(&first) {
        holder if holder.is_empty() => Err("nobody".to_owned()),
        holder => Ok(holder),
    });
    let keys = site.root("a").join("control/pki").display().to_string();
    let shared = ["--store", &store, "--cert-dir", &keys];
    let second = site.start_control("b", 6444, &shared);
    site.wait_for_controllers(&second, "before");
    assert_eq!(site.holder(&second), leader, "two leaders");

    for n in 0..5 {
        site.config_map(&first, &format!("n{n}"));
    }
    site.end(first.pid, nix::sys::signal::Signal::SIGKILL);
    for n in 5..10 {
        site.config_map(&second, &format!("n{n}"));
    }
    let again = site.start_control("a", 6443, &["--store", &store]);
    let all = site.config_maps(&again);
    for n in 0..10 {
        assert!(
            all.contains(&format!("configmap/n{n}\n")),
            "n{n} is lost: {all}"
        );
    }
    site.wait_for_controllers(&second, "after");
    assert_ne!(site.holder(&again), leader, "a dead leader leads");

    let mut get = etcd.etcdctl(&["get", "/registry", "--prefix", "--keys-only"]);
    let keys = outcome(&mut get).expect("etcdctl reads");
    for key in [
        "/registry/configmaps/default/n3",
        "/registry/namespaces/after",
        "/registry/leases/kube-system/wherry-control",
    ] {
        assert!(keys.lines().any(|line| line == key), "{key}: {keys}");
    }
}

fn state_moves_by_snapshot_and_from_the_embedded_store_to_etcd() {
    let mut site = Site::new();
    let control = site.start_control("a", 6443, &[]);
    site.wait_for_controllers(&control, "somewhere");
    site.config_map(&control, "kept");
    let (a, b) = (site.root("a"), site.root("b"));
    let file = site.root("snapshot").display().to_string();
    let refused = site.wherry(&["control", "snapshot", "save", &file], &a);
    assert!(
        refused
            .as_ref()
            .is_err_and(|said| said.contains("in use by another process")),
        "{refused:?}"
    );
    site.end(control.pid, nix::sys::signal::Signal::SIGTERM);
    let saved = site.wherry(&["control", "snapshot", "save", &file], &a);
    assert!(
        saved
            .as_ref()
            .is_ok_and(|said| said.contains(" keys as of revision ")),
        "{saved:?}"
    );

    let restored = site.wherry(&["control", "snapshot", "restore", &file], &b);
    assert!(
        restored
            .as_ref()
            .is_ok_and(|said| said.contains(" keys restored")),
        "{restored:?}"
    );
    let twice = site.wherry(&["control", "snapshot", "restore", &file], &b);
    assert!(
        twice
            .as_ref()
            .is_err_and(|said| said.contains("only an empty one")),
        "{twice:?}"
    );
    let keys = a.join("control/pki").display().to_string();
    let restored = site.start_control("b", 6443, &["--cert-dir", &keys]);
    assert!(site.config_maps(&restored).contains("configmap/kept\n"));
    site.end(restored.pid, nix::sys::signal::Signal::SIGTERM);

    let etcd = site.start_etcd();
    let store = etcd.store();
    let migrate = ["control", "migrate", "--from", "embedded", "--to", &store];
    let migrated = site.wherry(&migrate, &a).expect("etcd takes it in");
    assert!(
        migrated.contains(" keys copied from embedded to "),
        "{migrated}"
    );
    let migrated = site.start_control("a", 6443, &["--store", &store]);
    assert!(site.config_maps(&migrated).contains("configmap/kept\n"));
    site.wait_for_controllers(&migrated, "elsewhere");
}
