//! Agents that are killed and started again while there is no control plane to tell them anything.

use std::fs;

use nix::{
    sys::signal::{Signal::SIGKILL, kill},
    unistd::Pid,
};
use wherry_tests::{Nodes, eventually, outcome};

use super::{ASKING, NS, Site};

/// Which node's containers end meanwhile.
const HIT: usize = 2;

/// Kills every nginx on the node [`HIT`] once there are so many besides those that were killed before.
fn kill_servers(site: &Site, count: usize, before: &[Pid]) -> Vec<Pid> {
    let servers = eventually("the servers run", || {
        let found = servers(site, before);
        if found.len() == count {
            Ok(found)
        } else {
            Err(format!("{found:?}"))
        }
    });
    for pid in &servers {
        kill(*pid, SIGKILL).expect("it can be killed");
    }
    servers
}

/// The processes there that are an nginx: "nginx: master process nginx …".
fn servers(site: &Site, but: &[Pid]) -> Vec<Pid> {
    let found = site.nodes.at(HIT).processes("master").into_iter();
    found.filter(|pid| !but.contains(pid)).collect()
}

/// Takes the table of Services from a node's kernel, as if it had started anew.
fn forget_services(site: &Site, index: usize) {
    let mut nft = site.nodes.at(index).command("nft");
    let done = nft.args(["delete", "table", "inet", "wherry_wherry0_services"]);
    outcome(done).expect("there is a table");
}

/// Answers that a pod on node n1 has had, by its log there.
fn answered(site: &Site, pod: &str) -> usize {
    let logs = site.nodes.at(1).root().join("log/pods");
    let dirs = fs::read_dir(logs).expect("there are logs").flatten();
    let own = format!("{NS}_{pod}_");
    let own = dirs.filter(|dir| dir.file_name().to_string_lossy().starts_with(&own));
    let text = own.map(|dir| fs::read_to_string(dir.path().join("main/0.log")).unwrap_or_default());
    text.map(|text| text.lines().filter(|line| line.ends_with(" ok")).count())
        .sum()
}

pub(super) fn agents_that_are_restarted_alone_keep_their_pods_and_tell_the_truth_later() {
    let mut site = Site::on(Nodes::start(3));
    let loads = ["webapp", "component"].map(|service| site.load(service));
    let containers = site.containers();
    let webapp = site.address("webapp");
    let node = format!("n{HIT}");
    let pods = site.nodes.wait_pods(NS, "app=webapp", 3);
    let hit: Vec<String> = pods
        .into_iter()
        .filter(|(_, on, _)| *on == node)
        .map(|(name, ..)| name)
        .collect();
    assert!(!hit.is_empty(), "no webapp on {node}");

    site.nodes.stop(0, SIGKILL);
    for index in 1..=3 {
        site.nodes.stop(index, SIGKILL);
    }
    // Nobody is there who could see this one end.
    let first = kill_servers(&site, hit.len(), &[]);
    forget_services(&site, 3);
    for index in 1..=3 {
        site.nodes.start_again_alone(index);
    }
    // It runs again without a word from a control plane, and so does the one that its agent sees end.
    let second = kill_servers(&site, hit.len(), &first);
    eventually("the servers run again", || {
        let found = servers(&site, &[&first[..], &second].concat());
        if found.len() == hit.len() {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
    for load in &loads {
        load.wait_answers(100);
    }
    // The agents know the cluster's names and Services from before, also where the kernel has forgotten them.
    site.assert_webapp_is_met_at(webapp);
    for (pod, _) in ASKING {
        let before = answered(&site, pod);
        eventually(&format!("{pod} meets webapp by its name"), || {
            let now = answered(&site, pod);
            if now > before + 5 {
                Ok(())
            } else {
                Err(format!("{now} answers after {before}"))
            }
        });
    }
    let [_, component] = loads.map(|load| load.stop());
    component.assert_no_failure("without a control plane, beside agents that start again");

    site.nodes.start_again(0);
    for index in 1..=3 {
        site.nodes.wait_node(index, "True");
    }
    for pod in &hit {
        let pod = format!("pod/{pod}");
        let container = ".status.containerStatuses[0]";
        let field = |name: &str| site.nodes.field(NS, &pod, &format!("{container}.{name}"));
        site.nodes
            .wait_field(NS, &pod, &format!("{container}.restartCount"), "2");
        site.nodes
            .wait_field(NS, &pod, &format!("{container}.ready"), "true");
        assert_eq!(field("lastState.terminated.exitCode"), "137");
        assert_eq!(field("lastState.terminated.reason"), "Error");
        let [id, last] = ["containerID", "lastState.terminated.containerID"].map(field);
        assert!(
            !id.is_empty() && !last.is_empty() && id != last,
            "{id} after {last}"
        );
        assert!(
            !containers.contains(&id) && !containers.contains(&last),
            "{containers}"
        );
    }
    site.wait_workloads();
    // Nobody else's container noticed.
    let others = |all: &str| -> Vec<String> {
        let is_hit = |line: &&str| hit.iter().any(|pod| line.starts_with(pod.as_str()));
        let lines = all.lines().filter(|line| !is_hit(line));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(others(&site.containers()), others(&containers));
    site.assert_names_resolve();
    site.end();
}
