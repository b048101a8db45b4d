//! `kubectl` as the administrator of a cluster, and what is asked with it again and again.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{eventually, netns::within, success};

/// Real `kubectl` in a network, with a kubeconfig.
pub struct Client {
    network: String,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Client {
    /// One that runs in the network namespace; `home` is where kubectl keeps what it caches.
    pub(crate) fn new(network: &str, kubeconfig: PathBuf, home: &Path) -> Self {
        Self {
            network: network.to_owned(),
            kubeconfig,
            home: home.to_owned(),
        }
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A command in the network that kubectl runs in, with what kubectl finds in its environment.
    pub fn client_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = within(&self.network, program);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home);
        command
    }

    /// A `kubectl` command.
    pub fn kubectl_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.client_command("kubectl");
        command.args(args);
        command
    }

    /// Runs kubectl, which has to succeed, and gives what it printed.
    #[track_caller]
    pub fn kubectl<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let output = self.kubectl_command(args).output().expect("kubectl starts");
        success(&describe(args), output)
    }

    /// Runs kubectl, which has to fail, and gives what it said on stderr.
    #[track_caller]
    pub fn kubectl_fails<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let output = self.kubectl_command(args).output().expect("kubectl starts");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success(),
            "{} succeeded: {stdout}",
            describe(args)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs kubectl with something on its stdin; gives exit status, stdout and stderr.
    pub fn kubectl_with_input<S: AsRef<OsStr>>(&self, args: &[S], input: &str) -> Output {
        let mut child = self
            .kubectl_command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = input.to_owned();
        // A kubectl that stops reading early says why on stderr.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().expect("kubectl can be waited for");
        feeder.join().expect("the feeder does not panic");
        output
    }

    /// `kubectl apply -f -`.
    #[track_caller]
    pub fn apply(&self, yaml: &str) -> String {
        success(
            "kubectl apply",
            self.kubectl_with_input(&["apply", "-f", "-"], yaml),
        )
    }

    /// The same in a namespace.
    #[track_caller]
    pub fn apply_in(&self, namespace: &str, yaml: &str) -> String {
        success(
            &format!("kubectl apply: {yaml}"),
            self.kubectl_with_input(&["apply", "-n", namespace, "-f", "-"], yaml),
        )
    }

    /// Runs kubectl in a namespace; it has to succeed.
    #[track_caller]
    pub fn k(&self, namespace: &str, args: &[&str]) -> String {
        self.kubectl(&[&["-n", namespace], args].concat())
    }

    /// One field of an object by JSONPath; empty if the object or the field is not there.
    pub fn field(&self, namespace: &str, object: &str, path: &str) -> String {
        let output = self
            .kubectl_command(&[
                "get",
                "-n",
                namespace,
                object,
                "-o",
                &format!("jsonpath={{{path}}}"),
                "--ignore-not-found",
            ])
            .output()
            .expect("kubectl starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until a field has a value.
    #[track_caller]
    pub fn wait_field(&self, namespace: &str, object: &str, path: &str, wanted: &str) {
        eventually(&format!("{object} {path} = {wanted}"), || {
            let value = self.field(namespace, object, path);
            if value == wanted {
                Ok(())
            } else {
                Err(format!("{value:?}\n{}", self.describe(namespace, object)))
            }
        });
    }

    /// `kubectl describe`, for messages.
    pub fn describe(&self, namespace: &str, object: &str) -> String {
        let output = self
            .kubectl_command(&["describe", "-n", namespace, object])
            .output()
            .expect("kubectl starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until a pod is Ready.
    #[track_caller]
    pub fn wait_ready(&self, namespace: &str, pod: &str) {
        self.wait_field(
            namespace,
            &format!("pod/{pod}"),
            ".status.conditions[?(@.type==\"Ready\")].status",
            "True",
        );
    }

    /// Waits until an event with this reason speaks of the pod, and gives its message.
    #[track_caller]
    pub fn wait_event(&self, namespace: &str, pod: &str, reason: &str) -> String {
        eventually(&format!("an event {reason} about {pod}"), || {
            let selector = format!("involvedObject.name={pod},reason={reason}");
            let output = self
                .kubectl_command(&[
                    "get",
                    "events",
                    "-n",
                    namespace,
                    "--field-selector",
                    &selector,
                    "-o",
                    "jsonpath={.items[*].message}",
                ])
                .output()
                .expect("kubectl starts");
            let message = String::from_utf8_lossy(&output.stdout).into_owned();
            if message.is_empty() {
                Err(self.describe(namespace, &format!("pod/{pod}")))
            } else {
                Ok(message)
            }
        })
    }
}

fn describe<S: AsRef<OsStr>>(args: &[S]) -> String {
    args.iter().fold("kubectl".to_owned(), |mut line, arg| {
        let _ = write!(line, " {}", arg.as_ref().to_string_lossy());
        line
    })
}
