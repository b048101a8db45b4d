//! One behaviour on one runtime: pods made, looked at and, where a runtime cannot, seen to be refused.

use std::process::Output;

use serde_json::{Value, json};
use wherry_tests::{Cluster, PATIENCE, eventually};

use super::{
    Runtime,
    manifest::{Pod, with},
    program::{Step, script},
};

/// A test's way out once a refusal has been seen.
#[derive(Debug)]
pub(crate) struct Refused;

/// What a row's test answers; everything else that goes wrong panics.
pub(crate) type Outcome<T = ()> = Result<T, Refused>;

/// What a test works with.
pub(crate) struct Case<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) ns: &'a str,
    pub(crate) runtime: Runtime,
    /// The words of a refusal, where the runtime cannot.
    refusal: Option<&'static str>,
}

/// Runs a row's test and holds its outcome against what was expected.
pub(crate) fn judge(test: fn(&Case<'_>) -> Outcome, case: &Case<'_>) {
    match (test(case), case.refusal) {
        (Ok(()), None) | (Err(Refused), Some(_)) => {}
        (Ok(()), Some(words)) => panic!("works, and the table says that it is refused: {words:?}"),
        (Err(Refused), None) => panic!("was refused, and the table says that it works"),
    }
}

/// The first container's status.
const FIRST: &str = ".status.containerStatuses[0]";

impl<'a> Case<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        ns: &'a str,
        runtime: Runtime,
        refusal: Option<&'static str>,
    ) -> Self {
        Self {
            cluster,
            ns,
            runtime,
            refusal,
        }
    }

    pub(crate) fn is_wasm(&self) -> bool {
        self.runtime == Runtime::Wasm
    }

    /// An empty pod for this runtime.
    pub(crate) fn empty(&self, name: &str) -> Pod {
        Pod::new(name).spec(json!({"runtimeClassName": self.runtime.class()}))
    }

    /// A container of this runtime that does these things.
    pub(crate) fn container(&self, name: &str, steps: &[Step]) -> Value {
        container_of(self.runtime, name, steps)
    }

    /// A pod of one container, `main`.
    pub(crate) fn pod(&self, name: &str, steps: &[Step]) -> Pod {
        self.pod_with(name, steps, json!({}))
    }

    /// The same with more fields in the container.
    pub(crate) fn pod_with(&self, name: &str, steps: &[Step], more: Value) -> Pod {
        self.empty(name)
            .container(with(self.container("main", steps), more))
    }

    /// A container that answers HTTP on 8080 at `/ready`.
    pub(crate) fn web(&self, name: &str) -> Value {
        let container = if self.is_wasm() {
            json!({"name": name, "image": "test/http-hello:1", "imagePullPolicy": "Never"})
        } else {
            let script =
                "mkdir -p /www; echo hello > /www/ready; exec httpd -f -p 8080 -h /www".to_owned();
            json!({"name": name, "image": "test/busybox:1", "imagePullPolicy": "Never", "command": ["sh", "-c", script]})
        };
        with(container, json!({"ports": [{"containerPort": 8080}]}))
    }

    /// The words of a command in a container: for hooks, probes and exec.
    pub(crate) fn command(&self, steps: &[Step]) -> Vec<String> {
        command_of(self.runtime, steps)
    }

    /// Applies any object in the case's namespace.
    pub(crate) fn apply(&self, object: &Value) -> Outcome {
        self.said(&self.apply_output(object), &object.to_string())
            .map(drop)
    }

    /// What `kubectl apply` says of it.
    pub(crate) fn apply_output(&self, object: &Value) -> Output {
        self.cluster
            .kubectl_with_input(&["apply", "-n", self.ns, "-f", "-"], &object.to_string())
    }

    /// What a command printed. That it failed is a refusal if it was to be refused in these words.
    fn said(&self, output: &Output, what: &str) -> Outcome<String> {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            return Ok(stdout.into_owned());
        }
        match self.refusal {
            Some(words) if stderr.contains(words) || stdout.contains(words) => Err(Refused),
            _ => panic!("{what}: {}\n{stdout}{stderr}", output.status),
        }
    }

    /// Runs kubectl in the case's namespace; it has to succeed.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Outcome<String> {
        let args = [&["-n", self.ns], args].concat();
        let output = self.cluster.kubectl_command(&args).output();
        self.said(&output.expect("kubectl starts"), &args.join(" "))
    }

    /// Runs kubectl in the case's namespace; it has to fail.
    pub(crate) fn kubectl_fails(&self, args: &[&str]) -> String {
        self.cluster
            .kubectl_fails(&[&["-n", self.ns], args].concat())
    }

    /// Creates the pod. Where it is to be refused, the refusal is waited for.
    pub(crate) fn create(&self, pod: &Pod) -> Outcome {
        self.apply(&pod.object)?;
        self.refusal_told(pod.name())
    }

    /// Waits for the refusal of something asked of a pod that runs already.
    pub(crate) fn refusal_told(&self, pod: &str) -> Outcome {
        let Some(words) = self.refusal else {
            return Ok(());
        };
        self.until_told(pod, words);
        Err(Refused)
    }

    /// Everything that status and events tell about a pod.
    pub(crate) fn told(&self, pod: &str) -> String {
        let path = "jsonpath={.status}";
        let selector = format!("involvedObject.name={pod}");
        let events = [
            "get",
            "events",
            "-n",
            self.ns,
            "--field-selector",
            &selector,
            "-o",
            "jsonpath={range .items[*]}{.reason}: {.message}\n{end}",
        ];
        let status = ["get", "pod", pod, "-n", self.ns, "-o", path];
        let print = |args: &[&str]| {
            let output = self.cluster.kubectl_command(args).output();
            String::from_utf8_lossy(&output.expect("kubectl starts").stdout).into_owned()
        };
        format!("{}\n{}", print(&status), print(&events))
    }

    /// Creates the pod and waits until it is Ready.
    pub(crate) fn ready(&self, pod: &Pod) -> Outcome {
        self.create(pod)?;
        self.wait_ready(pod.name());
        Ok(())
    }

    /// The same for a row whose refusal comes later, from kubectl.
    pub(crate) fn ready_whatever(&self, pod: &Pod) {
        let output = self.apply_output(&pod.object);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.wait_ready(pod.name());
    }

    pub(crate) fn wait_ready(&self, pod: &str) {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let args = [
            "wait",
            "-n",
            self.ns,
            &format!("pod/{pod}"),
            "--for=condition=Ready",
            &timeout,
        ];
        let output = self.cluster.kubectl_command(&args).output();
        let output = output.expect("kubectl starts");
        assert!(
            output.status.success(),
            "{pod} is not Ready: {}",
            self.cluster.describe(self.ns, &format!("pod/{pod}"))
        );
    }

    /// Creates a pod and waits for its last phase.
    pub(crate) fn ends(&self, pod: &Pod, phase: &str) -> Outcome {
        self.create(pod)?;
        self.until(pod.name(), ".status.phase", phase);
        Ok(())
    }

    /// A field of a pod.
    pub(crate) fn field(&self, pod: &str, path: &str) -> String {
        self.cluster.field(self.ns, &format!("pod/{pod}"), path)
    }

    /// A field of the status of a pod's first container.
    pub(crate) fn first(&self, pod: &str, path: &str) -> String {
        self.field(pod, &format!("{FIRST}{path}"))
    }

    /// Waits until a field has a value.
    #[track_caller]
    pub(crate) fn until(&self, pod: &str, path: &str, wanted: &str) {
        self.cluster
            .wait_field(self.ns, &format!("pod/{pod}"), path, wanted);
    }

    /// The same of a pod's first container.
    #[track_caller]
    pub(crate) fn until_first(&self, pod: &str, path: &str, wanted: &str) {
        self.until(pod, &format!("{FIRST}{path}"), wanted);
    }

    /// Waits until a field has something in it, and gives that.
    #[track_caller]
    pub(crate) fn some(&self, pod: &str, path: &str) -> String {
        eventually(&format!("{pod} has a {path}"), || {
            let value = self.field(pod, path);
            if value.is_empty() {
                Err(self.told(pod))
            } else {
                Ok(value)
            }
        })
    }

    /// Waits until a field contains words, and gives it.
    #[track_caller]
    pub(crate) fn until_contains(&self, pod: &str, path: &str, words: &str) -> String {
        eventually(&format!("{words:?} in {path} of {pod}"), || {
            let value = self.field(pod, path);
            if value.contains(words) {
                Ok(value)
            } else {
                Err(format!("{value:?}\n{}", self.told(pod)))
            }
        })
    }

    /// Waits until status or events tell these words about the pod.
    #[track_caller]
    pub(crate) fn until_told(&self, pod: &str, words: &str) {
        eventually(&format!("{words:?} about {pod}"), || {
            let told = self.told(pod);
            if told.contains(words) {
                Ok(())
            } else {
                Err(told)
            }
        });
    }

    /// The log of a container; empty while there is none.
    pub(crate) fn log(&self, pod: &str, container: &str) -> String {
        let output = self
            .cluster
            .kubectl_command(&["logs", "-n", self.ns, pod, "-c", container])
            .output()
            .expect("kubectl starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until a container's log has this part.
    #[track_caller]
    pub(crate) fn until_log(&self, pod: &str, container: &str, part: &str) -> String {
        eventually(&format!("{part:?} in the log of {pod}/{container}"), || {
            let log = self.log(pod, container);
            if log.contains(part) {
                Ok(log)
            } else {
                Err(format!("log: {log:?}\n{}", self.told(pod)))
            }
        })
    }

    /// Does things in the container `main`, and gives what they print.
    pub(crate) fn exec(&self, pod: &str, steps: &[Step]) -> Outcome<String> {
        self.exec_in(pod, "main", self.runtime, steps)
    }

    /// The same, expected to fail; gives stderr.
    pub(crate) fn exec_fails(&self, pod: &str, steps: &[Step]) -> String {
        let command = self.command(steps);
        let mut args = vec!["exec", pod, "-c", "main", "--"];
        args.extend(command.iter().map(String::as_str));
        self.kubectl_fails(&args)
    }

    /// Does things in a container of any runtime.
    pub(crate) fn exec_in(
        &self,
        pod: &str,
        container: &str,
        runtime: Runtime,
        steps: &[Step],
    ) -> Outcome<String> {
        let command = command_of(runtime, steps);
        let mut args = vec!["exec", pod, "-c", container, "--"];
        args.extend(command.iter().map(String::as_str));
        self.kubectl(&args)
    }

    /// Deletes a pod and waits until it is gone.
    pub(crate) fn delete(&self, pod: &str) -> Outcome {
        self.kubectl(&["delete", "pod", pod]).map(drop)
    }

    /// The event with this reason about the pod, once there is one.
    #[track_caller]
    pub(crate) fn event(&self, pod: &str, reason: &str) -> String {
        self.cluster.wait_event(self.ns, pod, reason)
    }

    /// Expects the API server to refuse the pod in these words.
    #[track_caller]
    pub(crate) fn invalid(&self, pod: &Pod, words: &str) {
        let output = self.apply_output(&pod.object);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(words),
            "no {words:?} in {said}\n{}",
            pod.object
        );
    }

    /// Makes a ConfigMap.
    pub(crate) fn config_map(&self, name: &str, data: Value) -> Outcome {
        self.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}))
    }

    /// Makes a Secret.
    pub(crate) fn secret(&self, name: &str, data: Value) -> Outcome {
        self.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}))
    }
}

/// A container of a runtime that does these things.
pub(crate) fn container_of(runtime: Runtime, name: &str, steps: &[Step]) -> Value {
    let image = match runtime {
        Runtime::Wasm => "test/toolbox:1",
        Runtime::Oci | Runtime::Docker => "test/busybox:1",
    };
    let command = command_of(runtime, steps);
    json!({"name": name, "image": image, "imagePullPolicy": "Never", "command": command})
}

/// The words of a command in a container of a runtime.
pub(crate) fn command_of(runtime: Runtime, steps: &[Step]) -> Vec<String> {
    vec!["sh".into(), "-c".into(), script(runtime, steps)]
}
