//! The control plane: away, short of a member of its store, and out of disk.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal::SIGKILL,
};
use wherry_tests::{Nodes, eventually, outcome};

use super::{NS, Site, Writer, assert_are_there, of_webapp};
use crate::etcd::Etcd;

/// How long the control plane is away.
const AWAY: Duration = Duration::from_secs(120);

pub(super) fn pods_do_without_a_control_plane_for_two_minutes() {
    let mut site = Site::on(Nodes::start(3));
    let loads = ["webapp", "component"].map(|service| site.load(service));
    let containers = site.containers();
    let (ended, node, _) = site.nodes.wait_pods(NS, "app=webapp", 3).swap_remove(0);
    let index: usize = node[1..].parse().expect("nodes are n1, n2, n3");
    let supervised = site.nodes.at(index).processes("nginx:");
    let before = Instant::now();
    site.nodes.stop(0, SIGKILL);
    // A container that ends is started again by its node alone.
    super::kill(supervised[0], SIGKILL).expect("it can be killed");
    eventually("nginx runs again", || {
        let now = site.nodes.at(index).processes("nginx:");
        let is_again = now.len() >= supervised.len() && !now.contains(&supervised[0]);
        if is_again {
            Ok(())
        } else {
            Err(format!("{now:?}, not {supervised:?}"))
        }
    });
    let at_first = loads.each_ref().map(|load| load.answered());
    std::thread::sleep(AWAY.saturating_sub(before.elapsed()));
    let at_last = loads.each_ref().map(|load| load.answered());
    for (first, last) in at_first.into_iter().zip(at_last) {
        assert!(
            last > first + 500,
            "{first} answers at first, {last} at last"
        );
    }
    site.nodes.start_again(0);
    for index in 1..=3 {
        site.nodes.wait_node(index, "True");
    }
    site.wait_workloads();
    let [web, component] = loads.map(|load| load.stop());
    component.assert_no_failure("without the control plane");
    // The one whose container was killed may have been met in that moment.
    assert!(web.failures.len() < 20, "{:?}", web.failures);
    for (ok, failed) in site.asked() {
        assert!(failed < 20, "{failed} failed beside {ok}");
    }
    let but = |all: String| -> Vec<String> {
        let lines = all.lines().filter(|line| !line.starts_with(&ended));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(but(site.containers()), but(containers));
    site.nodes
        .k(NS, &["rollout", "restart", "deployment/webapp"]);
    site.nodes.k(
        NS,
        &["rollout", "status", "deployment/webapp", "--timeout=90s"],
    );
    site.wait_workloads();
    site.end();
}

pub(super) fn a_member_of_etcd_is_lost_and_no_write_is() {
    let mut nodes = Nodes::prepare(3);
    let mut etcd = Etcd::start(nodes.at(0).name(), "127.0.0.1", 3);
    nodes.start_control(&["--store", &etcd.store()]);
    nodes.join(&[]);
    let site = Site::on(nodes);
    let containers = site.containers();
    let load = site.load("webapp");
    // Twice: the member that leads goes, something new is done without it, and it comes back.
    for round in 1..=2 {
        let writer = Writer::start(&site.nodes);
        let leader = etcd.leader();
        etcd.kill(leader);
        let replicas = 3 + round;
        eventually("a write without the member", || {
            let flag = format!("--replicas={replicas}");
            let args = [
                "scale",
                "deployment/component",
                &flag,
                "--request-timeout=5s",
            ];
            outcome(&mut site.nodes.kubectl_command(&args))
        });
        site.nodes.wait_pods(NS, "app=component", replicas);
        etcd.start_member(leader);
        let written = writer.assert_nothing_is_lost(&site.nodes);
        assert!(written > 0, "nothing was written in round {round}");
        site.nodes.k(NS, &["delete", "configmap", "--all"]);
    }
    site.nodes
        .k(NS, &["scale", "deployment/component", "--replicas=3"]);
    site.wait_workloads();
    let loaded = load.stop();
    loaded.assert_no_failure("without the control plane");
    assert_eq!(of_webapp(&site.containers()), of_webapp(&containers));
    site.end();
}

/// A file system of limited size.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path) -> Self {
        fs::create_dir_all(path).expect("a directory can be made");
        let options = Some("size=48m");
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .expect("root may mount");
        Self(path)
    }

    /// Fills what is left.
    fn fill(&self) {
        let file = fs::File::create(self.0.join("filler")).expect("a file can be made");
        let mut end = 0;
        for size in [1 << 20, 1 << 12] {
            while nix::fcntl::posix_fallocate(&file, end, size).is_ok() {
                end += size;
            }
        }
    }

    fn clear(&self) {
        fs::remove_file(self.0.join("filler")).expect("it is there");
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

pub(super) fn a_full_disk_under_the_store_refuses_writes_and_loses_none() {
    let nodes = Nodes::prepare(3);
    let path = nodes.at(0).root().join("control");
    // Dropped after the hosts, which have it open.
    let disk = SmallDisk::mount(&path);
    let mut nodes = nodes;
    nodes.start_control(&[]);
    nodes.join(&[]);
    let mut site = Site::on(nodes);
    let containers = site.containers();
    let load = site.load("webapp");
    let value = format!("--from-literal=text={}", "x".repeat(64 << 10));
    let mut written = Vec::new();
    let mut number = 0;
    let mut write = |site: &Site, written: &mut Vec<String>| {
        let name = format!("big{number}");
        number += 1;
        let args = ["create", "configmap", &name, &value];
        outcome(&mut site.nodes.kubectl_command(&args)).map(|_| written.push(name))
    };
    for _ in 0..3 {
        write(&site, &mut written).expect("there is room");
    }
    disk.fill();
    let mut refused = None;
    for _ in 0..200 {
        if let Err(said) = write(&site, &mut written) {
            refused = Some(said);
            break;
        }
    }
    let refused = refused.expect("a full disk takes no more");
    assert!(refused.contains("no space left"), "{refused}");
    // What is there can be read, and what runs runs.
    assert_are_there(&site.nodes, &written);
    site.assert_names_resolve();
    disk.clear();
    eventually("writes after there is room", || write(&site, &mut written));
    assert_are_there(&site.nodes, &written);
    site.nodes.stop(0, SIGKILL);
    site.nodes.start_again(0);
    assert_are_there(&site.nodes, &written);
    for index in 1..=3 {
        site.nodes.wait_node(index, "True");
    }
    site.wait_workloads();
    let loaded = load.stop();
    loaded.assert_no_failure("without the control plane");
    assert_eq!(site.containers(), containers);
    site.end();
    drop(disk);
}
