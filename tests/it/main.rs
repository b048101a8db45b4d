//! The end-to-end tests: real kubectl against a real node, on the real kernel.
//!
//! Most tests share one node, each in a Kubernetes namespace of its own; tests that kill, fill or end a node start
//! their own. Started by tests/run.sh, which makes the images and guests.

mod administration;
mod asking;
mod bad_input;
mod behaviours;
mod cgroup_v2;
mod clients;
mod control_planes;
mod down;
mod etcd;
mod examples;
mod faults;
mod filesystems;
mod held;
mod images;
mod join;
mod kubectl;
mod lifecycle;
mod network;
mod plugin_tool;
mod plugins;
mod pods;
mod provision;
mod restarts;
mod scheduling;
mod security;
mod services;
mod storage;
mod tutorial;
mod volumes;
mod wasm;
mod workloads;

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use libtest_mimic::{Arguments, Failed, Trial};
use wherry_tests::{Client, Cluster, Nodes, guest, made_by_run_sh};

/// Which of the shared nodes a test is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// The one for nearly all.
    Usual,
    /// The same with docker as its default, and without privileged pods.
    Strict,
}

/// The nodes that tests share, each started by the first that needs it.
struct Shared {
    usual: OnceLock<Cluster>,
    strict: OnceLock<Cluster>,
    /// Three nodes and a control plane of their own host.
    three: OnceLock<Nodes>,
    namespaces: AtomicU32,
}

/// How long each test took, in seconds; what the slowest are is said at the end.
static TOOK: Mutex<Vec<(f32, String)>> = Mutex::new(Vec::new());

/// So many of the slowest are said.
const SLOWEST: usize = 25;

/// Takes the time of a test, also of one that fails.
struct Timed {
    name: String,
    start: Instant,
}

impl Drop for Timed {
    fn drop(&mut self) {
        let took = (
            self.start.elapsed().as_secs_f32(),
            std::mem::take(&mut self.name),
        );
        TOOK.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(took);
    }
}

/// A test whose time is taken.
fn timed(name: impl Into<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    let name = name.into();
    Trial::test(name.clone(), move || {
        let _timed = Timed {
            name,
            start: Instant::now(),
        };
        test();
        Ok::<(), Failed>(())
    })
}

fn say_slowest() {
    let mut took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
    took.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (seconds, name) in took.iter().take(SLOWEST) {
        println!("{seconds:6.1} s  {name}");
    }
}

/// A test on the shared node, given a namespace of its own.
type SharedTest = fn(&Cluster, &str);

/// The same on the three nodes.
type NodesTest = fn(&Nodes, &str);

impl Shared {
    fn cluster(&self, node: Node) -> &Cluster {
        let (slot, args): (_, &[&str]) = match node {
            Node::Usual => (&self.usual, &[]),
            Node::Strict => (
                &self.strict,
                &["--allow-privileged", "false", "--default-runtime", "docker"],
            ),
        };
        slot.get_or_init(|| {
            let mut cluster = Cluster::prepare(args);
            cluster.add_engine();
            let manifests = cluster.root().join("manifests");
            std::fs::create_dir(&manifests).expect("a directory can be made");
            cluster.add_args(&["--pod-manifest-path", &manifests.to_string_lossy()]);
            cluster.up();
            import_all(&cluster);
            cluster
        })
    }

    /// Runs a test in a new namespace, which is deleted even if the test fails.
    fn in_namespace(&self, client: &Client, test: impl FnOnce(&str)) {
        let namespace = format!("t{}", self.namespaces.fetch_add(1, Ordering::Relaxed));
        client.kubectl(&["create", "namespace", &namespace]);
        // A controller makes it; pods without it are refused.
        let account = "serviceaccount/default";
        client.wait_field(&namespace, account, ".metadata.name", "default");
        let test = std::panic::AssertUnwindSafe(|| test(&namespace));
        let outcome = std::panic::catch_unwind(test);
        client.kubectl(&["delete", "namespace", &namespace, "--wait=false"]);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }

    fn nodes(&self) -> &Nodes {
        self.three.get_or_init(|| {
            let nodes = Nodes::start(3);
            examples::import_all(&nodes);
            nodes
        })
    }

    fn run(&self, test: SharedTest) {
        let cluster = self.cluster(Node::Usual);
        self.in_namespace(cluster, |namespace| test(cluster, namespace));
    }
}

/// Imports the images and guests that tests name `test/<name>:1`.
pub(crate) fn import_all(cluster: &Cluster) {
    for image in ["nginx", "redis", "busybox"] {
        cluster.import(
            &made_by_run_sh(&format!("WHERRY_IMAGE_{}", image.to_uppercase())),
            &format!("test/{image}:1"),
        );
    }
    for name in [
        "hello",
        "exit-code",
        "sleeper",
        "ticker",
        "spin",
        "eat-memory",
        "toolbox",
        "trap",
        "cat",
        "files",
        "tcp",
        "http_hello",
        "probe_plugin",
        "log_probe",
    ] {
        cluster.import(&guest(name), &format!("test/{}:1", name.replace('_', "-")));
    }
    cluster.import(&made_by_run_sh("WHERRY_EXAMPLE_WRITER"), "example/writer:1");
    cluster.import(&made_by_run_sh("WHERRY_IMAGE_NGINX"), "example/nginx:1");
}

/// Makes a trial of each function, named after it.
#[macro_export]
macro_rules! trials {
    ($shared:expr; $($test:path),+ $(,)?) => {
        vec![$($crate::shared_trial($shared, stringify!($test), $test)),+]
    };
}

/// The same on the three nodes.
#[macro_export]
macro_rules! on_nodes {
    ($shared:expr; $($test:path),+ $(,)?) => {
        vec![$($crate::nodes_trial($shared, concat!("nodes::", stringify!($test)), $test)),+]
    };
}

/// The same for tests that start nodes of their own.
#[macro_export]
macro_rules! own_trials {
    ($($test:path),+ $(,)?) => {
        vec![$($crate::own_trial(stringify!($test), $test)),+]
    };
}

fn shared_trial(shared: &Arc<Shared>, name: &str, test: SharedTest) -> Trial {
    let shared = shared.clone();
    timed(name, move || shared.run(test))
}

fn nodes_trial(shared: &Arc<Shared>, name: &str, test: NodesTest) -> Trial {
    let shared = shared.clone();
    timed(name, move || {
        let nodes = shared.nodes();
        shared.in_namespace(nodes, |namespace| test(nodes, namespace));
    })
}

fn own_trial(name: &str, test: fn()) -> Trial {
    timed(name, test)
}

fn main() {
    let mut arguments = Arguments::from_args();
    // Most of a test is waiting; more at once would only make the waits longer on two cores.
    arguments.test_threads.get_or_insert(4);
    let shared = Arc::new(Shared {
        usual: OnceLock::new(),
        strict: OnceLock::new(),
        three: OnceLock::new(),
        namespaces: AtomicU32::new(0),
    });
    // They begin in this order: the longest ones first, so that none is left over at the end.
    let trials = [
        restarts::trials(),
        tutorial::trials(),
        behaviours::trials(&shared),
        kubectl::trials(&shared),
        pods::trials(&shared),
        filesystems::trials(&shared),
        plugins::trials(&shared),
        plugin_tool::trials(),
        wasm::trials(&shared),
        bad_input::trials(&shared),
        images::trials(),
        cgroup_v2::trials(),
        administration::trials(&shared),
        clients::trials(&shared),
        control_planes::trials(),
        down::trials(),
        examples::trials(&shared),
        faults::trials(),
        held::trials(&shared),
        join::trials(),
        lifecycle::trials(),
        network::trials(),
        scheduling::trials(&shared),
        security::trials(&shared),
        services::trials(&shared),
        storage::trials(&shared),
        provision::trials(&shared),
        volumes::trials(&shared),
        workloads::trials(&shared),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials.into_iter().flatten().collect());
    // The trials and their hold on the node are gone; this ends it.
    drop(shared);
    say_slowest();
    conclusion.exit();
}
