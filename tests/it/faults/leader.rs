//! Several control planes on one etcd, met at one address: the one that leads is killed.

use std::net::SocketAddr;

use k8s_openapi::{
    api::{coordination::v1::LeaseSpec, core::v1::Pod},
    jiff::Timestamp,
};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;
use wherry_tests::{Front, Hosts, Nodes, eventually};

use super::{NS, Site, Writer};
use crate::etcd::Etcd;

/// Where the second control plane is: after those of the nodes.
const SECOND: usize = 4;

/// Pods count as there only some time after they are Ready, so that an update of three takes longer than a kill.
const UPDATE: &str =
    r#"{"spec": {"minReadySeconds": 4, "template": {"metadata": {"labels": {"round": "2"}}}}}"#;

/// Who leads, since when, and when that was last renewed.
fn lease(nodes: &Nodes) -> LeaseSpec {
    let said = nodes.k(
        "kube-system",
        &["get", "lease", "wherry-control", "-o", "json"],
    );
    let lease: Value = serde_json::from_str(&said).expect("kubectl prints JSON");
    serde_json::from_value(lease["spec"].clone()).expect("a lease")
}

fn wait_leader(nodes: &Nodes, but: Option<&LeaseSpec>) -> LeaseSpec {
    eventually("a leader", || {
        let lease = lease(nodes);
        let holder = lease.holder_identity.as_deref().unwrap_or_default();
        let is_old = but.is_some_and(|but| but.holder_identity.as_deref() == Some(holder));
        if holder.is_empty() || is_old {
            Err(format!("{lease:?}"))
        } else {
            Ok(lease)
        }
    })
}

/// When the youngest pod of the updated workload was made.
fn last_made(nodes: &Nodes) -> Timestamp {
    let said = nodes.k(NS, &["get", "pods", "-l", "round=2", "-o", "json"]);
    let pods: Value = serde_json::from_str(&said).expect("kubectl prints JSON");
    let pods: Vec<Pod> = serde_json::from_value(pods["items"].clone()).expect("pods");
    let made = pods
        .into_iter()
        .filter_map(|pod| pod.metadata.creation_timestamp);
    made.map(|time| time.0).max().expect("there are pods")
}

pub(super) fn control_planes_behind_one_address_take_over_in_the_middle_of_an_update() {
    let mut nodes = Nodes::prepare_with(3, 2);
    let outside = nodes.hosts.outside().to_owned();
    let address = |ip: &str| -> SocketAddr { format!("{ip}:6443").parse().expect("an address") };
    let front = address(Hosts::OUTSIDE_IP);
    let servers = [0, SECOND].map(|index| address(nodes.at(index).address()));
    let etcd = Etcd::start(&outside, Hosts::OUTSIDE_IP, 1);
    let store = etcd.store();
    let keys = nodes.at(0).root().join("control/pki").display().to_string();
    nodes.start_control_at(0, Hosts::OUTSIDE_IP, &["--store", &store]);
    // The second finds a leader, whose keys it shares.
    wait_leader(&nodes, None);
    let shared = ["--store", store.as_str(), "--cert-dir", &keys];
    nodes.start_control_at(SECOND, Hosts::OUTSIDE_IP, &shared);
    let _front = Front::start(&outside, front, servers.into());
    nodes.meet_control_at(front);
    nodes.join(&[]);
    let mut site = Site::on(nodes);
    let before = wait_leader(&site.nodes, None);

    let load = site.load("webapp");
    let writer = Writer::start(&site.nodes);
    site.nodes
        .k(NS, &["patch", "deployment", "webapp", "-p", UPDATE]);
    eventually("the update begins", || {
        let updated = site
            .nodes
            .field(NS, "deployment/webapp", ".status.updatedReplicas");
        if updated.is_empty() {
            Err("not yet".to_owned())
        } else {
            Ok(())
        }
    });
    site.nodes.stop(0, SIGKILL);
    let dead = lease(&site.nodes);
    let after = wait_leader(&site.nodes, Some(&before));
    let status = ["rollout", "status", "deployment/webapp", "--timeout=90s"];
    site.nodes.k(NS, &status);
    site.wait_workloads();
    let written = writer.assert_nothing_is_lost(&site.nodes);
    assert!(written > 0, "nothing was written");
    load.stop().assert_no_failure("while the leader is killed");

    // One change of leader, and within 15 s if a lease stands for 10: in the lease's own measure, so that a slow machine
    // does not count.
    let changes = |lease: &LeaseSpec| lease.lease_transitions.unwrap_or(0);
    assert_eq!(changes(&after), changes(&before) + 1, "{after:?}");
    let is_before = dead.holder_identity == before.holder_identity;
    let last = if is_before { &dead } else { &before };
    let renewed = last.renew_time.as_ref().expect("it was renewed").0;
    let acquired = after.acquire_time.as_ref().expect("it was acquired").0;
    let stands = after.lease_duration_seconds.expect("it has a duration");
    assert!(stands <= 10, "a lease stands for {stands} s");
    let taken_over = acquired.duration_since(renewed).as_secs_f64();
    assert!(
        taken_over < 2.0 * f64::from(stands),
        "{taken_over} s without a leader, a lease being {stands} s"
    );
    let made = last_made(&site.nodes);
    assert!(
        made.as_second() >= acquired.as_second(),
        "the update was over at {made}, before there was a new leader at {acquired}"
    );

    // Whoever comes back finds a leader.
    site.nodes.start_again(0);
    for index in 1..=3 {
        site.nodes.wait_node(index, "True");
    }
    assert_eq!(lease(&site.nodes).holder_identity, after.holder_identity);
    site.end();
}
