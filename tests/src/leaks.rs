//! What a node has made on this machine, counted from the kernel's side.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{Engine, netns::within};

/// Things found, by kind. Two counts can be compared for what one has more than the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes that name the root on their command line, are in the node's cgroups, or are Wherry's and in its
    /// network.
    pub processes: BTreeSet<String>,
    /// Mount points below the root, or mounted from it.
    pub mounts: BTreeSet<String>,
    /// Cgroups below the node's.
    pub cgroups: BTreeSet<PathBuf>,
    /// Interfaces in the node's network besides `lo` and `eth0`.
    pub interfaces: BTreeSet<String>,
    /// Addresses of those interfaces, each with its interface, besides those that the kernel makes up.
    pub addresses: BTreeSet<String>,
    /// nftables tables in the node's network.
    pub tables: BTreeSet<String>,
    /// Elements of sets and maps in those tables, with the table's and the set's names; what times out by itself is
    /// left out.
    pub elements: BTreeSet<String>,
    /// Routes besides those that addresses and the default gateway bring.
    pub routes: BTreeSet<String>,
    /// Containers in the node's Docker engine, running or not.
    pub containers: BTreeSet<String>,
}

impl Leftovers {
    pub(crate) fn count(
        root: &Path,
        cgroup_root: &str,
        network: &str,
        engine: Option<&Engine>,
    ) -> Self {
        let root = root.to_string_lossy().into_owned();
        Self {
            processes: processes(&root, cgroup_root, network),
            mounts: mounts(&root, engine),
            cgroups: cgroups(cgroup_root),
            interfaces: interfaces(network),
            addresses: addresses(network),
            tables: lines(network, "nft", &["list", "tables"]),
            elements: elements(network),
            routes: routes(network),
            containers: engine.map(containers).unwrap_or_default(),
        }
    }

    /// Nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is here and was not before, besides the node's own processes, which change, and cgroups that are no
    /// pod's.
    pub fn since(&self, before: &Self) -> Self {
        fn more<T: Ord + Clone>(now: &BTreeSet<T>, before: &BTreeSet<T>) -> BTreeSet<T> {
            now.difference(before).cloned().collect()
        }
        let own = [
            " up --root",
            " agent ",
            " control ",
            "wasm-worker",
            "plugin-worker",
            "volume-server",
        ];
        let is_own = |line: &String| own.iter().any(|word| line.contains(word));
        let is_pods = |path: &PathBuf| path.to_string_lossy().contains("/pod");
        Self {
            processes: more(&self.processes, &before.processes)
                .into_iter()
                .filter(|line| !is_own(line))
                .collect(),
            mounts: more(&self.mounts, &before.mounts),
            cgroups: more(&self.cgroups, &before.cgroups)
                .into_iter()
                .filter(is_pods)
                .collect(),
            interfaces: more(&self.interfaces, &before.interfaces),
            addresses: more(&self.addresses, &before.addresses),
            tables: more(&self.tables, &before.tables),
            elements: more(&self.elements, &before.elements),
            routes: more(&self.routes, &before.routes),
            containers: more(&self.containers, &before.containers),
        }
    }
}

fn processes(root: &str, cgroup_root: &str, network: &str) -> BTreeSet<String> {
    let namespace = fs::metadata(format!("/run/netns/{network}")).map(|found| found.ino());
    let is_in_network = |process: &Path| {
        let found = fs::metadata(process.join("ns/net")).map(|found| found.ino());
        matches!((found, &namespace), (Ok(found), Ok(namespace)) if found == *namespace)
    };
    let Ok(proc) = fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    let me = std::process::id().to_string();
    proc.flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().into_string().ok()?;
            if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == me {
                return None;
            }
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let ours = command.contains(root)
                || cgroup.contains(&format!("/{cgroup_root}/"))
                // An engine of the test's own has the word in its arguments alone.
                || is_wherry(&command) && is_in_network(&entry.path());
            ours.then(|| format!("{pid} {}", command.trim()))
        })
        .collect()
}

fn is_wherry(command: &str) -> bool {
    let program = command.split(' ').next().unwrap_or_default();
    Path::new(program)
        .file_name()
        .is_some_and(|name| name == "wherry")
}

fn containers(engine: &Engine) -> BTreeSet<String> {
    let listed = engine.docker(&[
        "ps",
        "--all",
        "--no-trunc",
        "--format",
        "{{.ID}} {{.Names}}",
    ]);
    listed.lines().map(str::to_owned).collect()
}

/// Mounts of the node, and of its engine's containers.
fn mounts(root: &str, engine: Option<&Engine>) -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let layers = engine.map(|engine| engine.dir().join("data/overlay2").display().to_string());
    let is_layer = |line: &str| layers.as_ref().is_some_and(|layers| line.contains(layers));
    mounts
        .lines()
        .filter(|line| line.contains(root) || is_layer(line))
        .map(str::to_owned)
        .collect()
}

fn cgroups(cgroup_root: &str) -> BTreeSet<PathBuf> {
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
        return BTreeSet::new();
    };
    let mut found = BTreeSet::new();
    let mut look = vec![PathBuf::from("/sys/fs/cgroup").join(cgroup_root)];
    look.extend(
        hierarchies
            .flatten()
            .map(|entry| entry.path().join(cgroup_root)),
    );
    while let Some(dir) = look.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        look.extend(
            entries
                .flatten()
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path()),
        );
        found.insert(dir);
    }
    found
}

fn interfaces(network: &str) -> BTreeSet<String> {
    lines(network, "ip", &["-brief", "link"])
        .into_iter()
        .filter_map(|line| {
            let name = line.split([' ', '@']).next()?.to_owned();
            (name != "lo" && name != "eth0").then_some(name)
        })
        .collect()
}

fn addresses(network: &str) -> BTreeSet<String> {
    let listed = lines(network, "ip", &["-brief", "addr"]);
    let of_one = |line: String| {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let name = name.split('@').next().unwrap_or_default().to_owned();
        let is_there_anyway = name == "lo" || name == "eth0";
        let all: Vec<String> = words
            .skip(1)
            .filter(|word| !is_there_anyway && word.contains('/') && !word.starts_with("fe80:"))
            .map(|address| format!("{name} {address}"))
            .collect();
        all
    };
    listed.into_iter().flat_map(of_one).collect()
}

fn elements(network: &str) -> BTreeSet<String> {
    let listed = lines(network, "nft", &["-j", "list", "ruleset"]);
    let listed: String = listed.into_iter().collect();
    let parsed: Value = serde_json::from_str(&listed).unwrap_or_default();
    let objects = parsed["nftables"].as_array().into_iter().flatten();
    let sets = objects.filter_map(|object| {
        let set = object.get("set").or_else(|| object.get("map"))?;
        let flags = set["flags"].as_array();
        let times_out = flags.is_some_and(|flags| flags.iter().any(|flag| flag == "timeout"));
        (!times_out).then_some(set)
    });
    sets.flat_map(|set| {
        let place = format!("{} {}", set["table"], set["name"]).replace('"', "");
        let elements = set["elem"].as_array().into_iter().flatten();
        elements.map(move |element| format!("{place} {element}"))
    })
    .collect()
}

fn routes(network: &str) -> BTreeSet<String> {
    let listed = lines(network, "ip", &["route", "show", "table", "main"]);
    let is_made = |line: &String| !line.starts_with("default ") && !line.contains(" proto kernel ");
    listed.into_iter().filter(is_made).collect()
}

fn lines(network: &str, program: &str, args: &[&str]) -> BTreeSet<String> {
    let output = within(network, program)
        .args(args)
        .output()
        .expect("the program starts");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}
