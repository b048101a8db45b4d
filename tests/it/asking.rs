//! Who asks Services while other things happen: curl, now and then, and pods that never stop.

use std::process::Command;

use wherry_tests::{Nodes, eventually, outcome};

/// Fetches a URL from outside, on a new connection.
pub(crate) fn curl_outside(nodes: &Nodes, url: &str) -> Result<String, String> {
    let mut command = nodes.hosts.outside_command("curl");
    curl(&mut command, &[url])
}

/// Fetches a URL from the host of a node.
pub(crate) fn curl_on(nodes: &Nodes, index: usize, args: &[&str]) -> Result<String, String> {
    curl(&mut nodes.at(index).command("curl"), args)
}

fn curl(command: &mut Command, args: &[&str]) -> Result<String, String> {
    outcome(command.args(["-fsS", "--max-time", "5"]).args(args))
}

/// Waits until a command prints a text, on either of its outputs.
#[track_caller]
pub(crate) fn until(what: &str, wanted: &str, mut command: impl FnMut() -> Command) {
    eventually(what, || {
        let output = command().output().expect("it starts");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if said.contains(wanted) {
            Ok(())
        } else {
            Err(format!("{said:?}, not {wanted:?}"))
        }
    });
}

/// Asks a Service by its name again and again, once that is known at all.
const ASKING: &str = "apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: asking}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {SELECTOR}
  containers:
  - name: main
    image: IMAGE
    args:
    - sh
    - -c
    - |
      while ! wget -q -O - http://webapp/ > /dev/null; do sleep 0.1; done
      while true; do
        if wget -q -O - http://webapp/ > /dev/null; then echo ok; else echo failed; fi
        sleep 0.02
      done
";

/// Starts a pod that asks the Service `webapp`, on a node that the selector `key: value` picks.
pub(crate) fn start_asking(nodes: &Nodes, ns: &str, name: &str, image: &str, selector: &str) {
    let pod = ASKING
        .replace("NAME", name)
        .replace("SELECTOR", selector)
        .replace("IMAGE", image);
    nodes.apply_in(ns, &pod);
}

/// How many requests of a pod were answered, and how many failed.
pub(crate) fn answers(nodes: &Nodes, ns: &str, pod: &str) -> (usize, usize) {
    let log = nodes.k(ns, &["logs", pod]);
    let count = |word: &str| log.lines().filter(|line| *line == word).count();
    (count("ok"), count("failed"))
}

/// Waits until a pod has had so many answers.
#[track_caller]
pub(crate) fn wait_answers(nodes: &Nodes, ns: &str, pod: &str, wanted: usize) -> (usize, usize) {
    nodes.wait_ready(ns, pod);
    eventually(&format!("{wanted} answers to {pod}"), || {
        match answers(nodes, ns, pod) {
            (ok, failed) if ok < wanted => Err(format!("{ok}, {failed} failed")),
            enough => Ok(enough),
        }
    })
}
