//! `wherry plugin record`: a check made for real, from this machine to a pod, and written down as a case of a script.
//!
//! It runs where the pod's address can be reached, on a node, as whoever starts it: what the plugin asks is done with
//! this machine's sockets and with `kubectl`, and not with a node's grants. Secrets that it asks for, and files of volumes
//! that are Secrets, are given to it and kept out of what is written down.

use std::{
    collections::HashMap,
    ffi::OsString,
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    process::{Command, Output},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Client, Method, redirect::Policy};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use crate::{redact::Redactor, script::Expected, value};

/// Of one thing that is done.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one read, as on a node.
const READ_BYTES_MAX: usize = 64 << 10;
/// Fields of a request that a script should compare; the rest is how the answer is wanted.
const REQUEST_FIELDS: [&str; 6] = [
    "method",
    "scheme",
    "host",
    "port",
    "path-with-query",
    "body",
];
/// Headers that are other ones each time, or nobody else's business.
const HEADERS_LEFT_OUT: [&str; 2] = ["date", "set-cookie"];
/// Bytes of one read of a file, as on a node.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A container to be probed.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    /// Where it runs.
    node: String,
    /// What is known of it, as a script gives it.
    pub(crate) given: Map<String, Value>,
    /// Volumes that are mounted there.
    volumes: HashMap<String, Mount>,
    kubectl: Kubectl,
}

/// A volume of a container.
#[derive(Clone, Debug)]
struct Mount {
    path: String,
    is_secret: bool,
}

/// The program that asks the API server.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl(OsString);

impl Default for Kubectl {
    fn default() -> Self {
        Self("kubectl".into())
    }
}

impl Kubectl {
    fn run(&self, args: &[&str]) -> Result<Output> {
        let ran = Command::new(&self.0).args(args).output();
        ran.with_context(|| self.0.display().to_string())
    }

    /// An object; `None` where there is none of that name.
    fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let args = ["get", kind, name, "--namespace", namespace];
        let got = self.run(&[&args[..], &["--ignore-not-found", "--output", "json"]].concat())?;
        if !got.status.success() {
            bail!("{}", String::from_utf8_lossy(&got.stderr).trim());
        }
        match got.stdout.trim_ascii() {
            [] => Ok(None),
            text => Ok(Some(
                serde_json::from_slice(text).context("kubectl's answer")?,
            )),
        }
    }
}

impl Target {
    /// Asks `kubectl`.
    pub(crate) fn find(
        kubectl: Kubectl,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
    ) -> Result<Self> {
        let found = kubectl.get("pod", namespace, pod)?;
        let object = found.with_context(|| format!("pod {namespace}/{pod} not found"))?;
        Ok(Self {
            kubectl,
            ..Self::of(&object, container)?
        })
    }

    fn of(object: &Value, container: Option<&str>) -> Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, pod) = (
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"]),
        );
        let containers = object["spec"]["containers"].as_array();
        let found = containers
            .into_iter()
            .flatten()
            .find(|found| container.is_none_or(|name| found["name"] == name));
        let found =
            found.with_context(|| format!("pod {namespace}/{pod} has no such container"))?;
        let ip = text(&object["status"]["podIP"]);
        if ip.is_empty() {
            bail!("pod {namespace}/{pod} has no address yet");
        }
        let ports = found["ports"].as_array().into_iter().flatten();
        let ports = ports.filter(|port| port["name"].is_string());
        let ports: Map<_, _> = ports
            .map(|port| (text(&port["name"]), port["containerPort"].clone()))
            .collect();
        let mut given = Map::new();
        given.insert("target.ip".into(), json!(ip));
        for (field, value) in [
            ("pod", &pod),
            ("namespace", &namespace),
            ("container", &text(&found["name"])),
        ] {
            given.insert(format!("target.{field}"), json!(value));
        }
        if !ports.is_empty() {
            given.insert("target.port".into(), Value::Object(ports));
        }
        for (field, key) in [
            ("labels", "target.label"),
            ("annotations", "target.annotation"),
        ] {
            if let Value::Object(all) = &object["metadata"][field] {
                given.insert(key.into(), Value::Object(all.clone()));
            }
        }
        // What a check says of an age is said again when it is played back.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let now = json!({"seconds": now.as_secs(), "nanoseconds": now.subsec_nanos()});
        given.insert("clock.now".into(), now);
        let is_secret = |name: &Value| {
            let volumes = object["spec"]["volumes"].as_array();
            let volume = volumes
                .into_iter()
                .flatten()
                .find(|volume| volume["name"] == *name);
            volume.is_some_and(|volume| {
                let sources = volume["projected"]["sources"].as_array();
                let mut sources = sources.into_iter().flatten();
                let is_hidden = |source: &Value| {
                    source["secret"].is_object() || source["serviceAccountToken"].is_object()
                };
                is_hidden(volume) || sources.any(is_hidden)
            })
        };
        let mounts = found["volumeMounts"].as_array().into_iter().flatten();
        let mounts = mounts.filter(|mount| mount["subPath"].is_null());
        let volumes = mounts.map(|mount| {
            let at = Mount {
                path: text(&mount["mountPath"]),
                is_secret: is_secret(&mount["name"]),
            };
            (text(&mount["name"]), at)
        });
        Ok(Self {
            container: text(&found["name"]),
            node: text(&object["spec"]["nodeName"]),
            namespace,
            pod,
            given,
            volumes: volumes.collect(),
            kubectl: Kubectl::default(),
        })
    }
}

/// Does what a plugin asks, and writes it down.
pub(crate) struct Live {
    target: Target,
    connections: HashMap<String, TcpStream>,
    runtime: Handle,
    /// What must not be written down.
    pub(crate) redactor: Redactor,
    /// What was asked and answered, in order.
    pub(crate) calls: Vec<Expected>,
}

impl Live {
    pub(crate) fn new(target: Target, runtime: Handle) -> Self {
        Self {
            target,
            connections: HashMap::new(),
            runtime,
            redactor: Redactor::default(),
            calls: Vec::new(),
        }
    }

    /// Does one thing for real.
    ///
    /// # Errors
    /// It cannot be done from here; what goes wrong while it is done is an answer.
    pub(crate) fn perform(&mut self, function: &str, arguments: &[Value]) -> Result<Value> {
        let answer = match function {
            "tcp.connection.open" => self.connect(arguments),
            "tcp.connection.write" => self.write(arguments)?,
            "tcp.connection.read" => self.read(arguments)?,
            "http.send" => {
                let request = arguments.first().unwrap_or(&Value::Null);
                self.runtime.block_on(send(request))?
            }
            "exec.run" => self.exec(arguments)?,
            "secret.get" => self.secret(arguments)?,
            "files.stat" => self.stat(arguments)?,
            "files.read" => self.read_file(arguments)?,
            "observations.usage" => self.usage()?,
            "container-log.tail" => self.log_tail(arguments)?,
            _ => bail!("{function} cannot be recorded from here: write its answer by hand"),
        };
        let mut arguments = arguments.to_vec();
        if let (Some(Value::Object(request)), "http.send") = (arguments.first_mut(), function) {
            request.retain(|key, value| {
                REQUEST_FIELDS.contains(&key.as_str()) && *value != json!([]) && *value != json!("")
            });
        }
        self.calls.push(Expected {
            function: function.into(),
            arguments,
            answer: answer.clone(),
        });
        Ok(answer)
    }

    /// What was done, without what must not be seen; also of what was only found out later that it must not.
    pub(crate) fn recorded(self) -> (Vec<Expected>, Redactor) {
        let redactor = self.redactor;
        let calls = self.calls.into_iter().map(|call| Expected {
            function: call.function,
            arguments: call
                .arguments
                .iter()
                .map(|argument| redactor.value(argument))
                .collect(),
            answer: redactor.value(&call.answer),
        });
        (calls.collect(), redactor)
    }

    fn secret(&mut self, arguments: &[Value]) -> Result<Value> {
        let text = |index: usize| arguments.get(index).and_then(Value::as_str);
        let (name, key) = (text(0).unwrap_or_default(), text(1).unwrap_or_default());
        let found = self
            .target
            .kubectl
            .get("secret", &self.target.namespace, name)?;
        let value = found.and_then(|secret| STANDARD.decode(secret["data"][key].as_str()?).ok());
        Ok(match value {
            Some(value) => {
                self.redactor.hide(&value);
                json!({"ok": value::bytes_to_value(&value)})
            }
            None => json!({"err": "not-found"}),
        })
    }

    /// The path of a file in the container, and whether its content is to be hidden.
    fn file(&self, arguments: &[Value]) -> Result<Option<(String, bool)>> {
        let text = |index: usize| arguments.get(index).and_then(Value::as_str);
        let (volume, path) = (text(0).unwrap_or_default(), text(1).unwrap_or_default());
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            bail!("{volume}/{path}: the node refuses it: write the answer by hand");
        }
        let mount = self.target.volumes.get(volume);
        Ok(mount.map(|mount| (format!("{}/{path}", mount.path), mount.is_secret)))
    }

    /// Runs a command in the container; `None` where it fails.
    fn look(&self, command: &[&str]) -> Result<Option<Vec<u8>>> {
        let ran = self.in_container(command)?;
        let printed = String::from_utf8_lossy(&ran.stderr);
        match (ran.status.success(), printed.contains("No such file")) {
            (true, _) => Ok(Some(ran.stdout)),
            (false, true) => Ok(None),
            (false, false) => bail!("{}: {}", command.join(" "), printed.trim()),
        }
    }

    fn stat(&self, arguments: &[Value]) -> Result<Value> {
        let not_found = json!({"err": "not-found"});
        let Some((path, _)) = self.file(arguments)? else {
            return Ok(not_found);
        };
        let Some(printed) = self.look(&["stat", "-L", "-c", "%s %Y %F", &path])? else {
            return Ok(not_found);
        };
        let printed = String::from_utf8_lossy(&printed);
        let mut words = printed.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(size), Some(seconds)) = (number(), number()) else {
            bail!("stat {path}: {printed}");
        };
        Ok(json!({"ok": {
            "size": size,
            "modified": {"seconds": seconds, "nanoseconds": 0},
            "is-directory": words.next() == Some("directory"),
        }}))
    }

    fn read_file(&mut self, arguments: &[Value]) -> Result<Value> {
        let not_found = json!({"err": "not-found"});
        let Some((path, is_secret)) = self.file(arguments)? else {
            return Ok(not_found);
        };
        let Some(content) = self.look(&["cat", &path])? else {
            return Ok(not_found);
        };
        if is_secret {
            self.redactor.hide(&content);
        }
        let number = |index: usize| arguments.get(index).and_then(Value::as_u64);
        let offset = usize::try_from(number(2).unwrap_or_default())?.min(content.len());
        let length = number(3).unwrap_or_default().min(FILE_BYTES_MAX);
        let piece = &content[offset..];
        let piece = &piece[..usize::try_from(length)?.min(piece.len())];
        if is_secret {
            self.redactor.hide(piece);
        }
        Ok(json!({"ok": value::bytes_to_value(piece)}))
    }

    fn connect(&mut self, arguments: &[Value]) -> Value {
        let host = arguments
            .first()
            .and_then(Value::as_str)
            .unwrap_or_default();
        let port = arguments.get(1).and_then(Value::as_u64).unwrap_or_default();
        let name = format!("{host}:{port}");
        let addresses = u16::try_from(port)
            .ok()
            .and_then(|port| (host, port).to_socket_addrs().ok());
        let Some(address) = addresses.and_then(|mut addresses| addresses.next()) else {
            return json!({"err": {"name-not-found": format!("{name}: no addresses")}});
        };
        let connected = TcpStream::connect_timeout(&address, TIMEOUT);
        let connected = connected.and_then(|stream| {
            stream.set_read_timeout(Some(TIMEOUT))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => {
                let handle = format!("connection {}", self.connections.len() + 1);
                self.connections.insert(handle.clone(), stream);
                json!({"ok": handle})
            }
            Err(error) => failure(&format!("connect {name}"), &error),
        }
    }

    fn connection(&mut self, arguments: &[Value]) -> Result<&mut TcpStream> {
        let handle = arguments
            .first()
            .and_then(Value::as_str)
            .unwrap_or_default();
        let connection = self.connections.get_mut(handle);
        connection.with_context(|| format!("{handle} was not opened"))
    }

    fn write(&mut self, arguments: &[Value]) -> Result<Value> {
        let bytes = arguments
            .get(1)
            .and_then(value::value_to_bytes)
            .unwrap_or_default();
        Ok(match self.connection(arguments)?.write_all(&bytes) {
            Ok(()) => json!("ok"),
            Err(error) => failure("write", &error),
        })
    }

    fn read(&mut self, arguments: &[Value]) -> Result<Value> {
        let max = arguments.get(1).and_then(Value::as_u64).unwrap_or_default();
        let max = usize::try_from(max).unwrap_or(READ_BYTES_MAX);
        let mut bytes = vec![0; max.clamp(1, READ_BYTES_MAX)];
        Ok(match self.connection(arguments)?.read(&mut bytes) {
            Ok(length) => json!({"ok": value::bytes_to_value(&bytes[..length])}),
            Err(error) => failure("read", &error),
        })
    }

    fn exec(&self, arguments: &[Value]) -> Result<Value> {
        let words = arguments
            .first()
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let words: Vec<&str> = words.filter_map(Value::as_str).collect();
        let ran = self.in_container(&words)?;
        let output = [ran.stdout, ran.stderr].concat();
        Ok(json!({"ok": {
            "exit-code": ran.status.code().unwrap_or_default(),
            "output": value::bytes_to_value(&output),
        }}))
    }

    fn in_container(&self, words: &[&str]) -> Result<Output> {
        let Target {
            namespace,
            pod,
            container,
            kubectl,
            ..
        } = &self.target;
        let mut all = vec![
            "exec",
            pod,
            "--namespace",
            namespace,
            "--container",
            container,
            "--",
        ];
        all.extend(words);
        kubectl.run(&all)
    }
}

/// An error of a connection, as the contract has it.
fn failure(what: &str, error: &std::io::Error) -> Value {
    use std::io::ErrorKind as K;
    let case = match error.kind() {
        K::TimedOut | K::WouldBlock => "timeout",
        K::ConnectionRefused => "connection-refused",
        K::ConnectionReset | K::BrokenPipe | K::ConnectionAborted => "connection-closed",
        _ => "other",
    };
    json!({"err": {case: format!("{what}: {error}")}})
}

async fn send(request: &Value) -> Result<Value> {
    let text = |key: &str| request[key].as_str().unwrap_or_default();
    if text("version") == "http2" || !request["identity"].is_null() {
        bail!(
            "HTTP/2 and client certificates cannot be recorded from here: write the answer by hand"
        );
    }
    let host = text("host");
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    let url = format!(
        "{}://{host}:{}{}",
        text("scheme"),
        request["port"],
        text("path-with-query")
    );
    let client = Client::builder()
        .redirect(Policy::none())
        .timeout(TIMEOUT)
        .no_proxy()
        .tls_danger_accept_invalid_certs(request["trust"] == "anybody")
        .build()?;
    let mut sending = client.request(text("method").parse::<Method>()?, &url);
    for header in request["headers"].as_array().into_iter().flatten() {
        let value = value::value_to_bytes(&header[1]).unwrap_or_default();
        sending = sending.header(header[0].as_str().unwrap_or_default(), value);
    }
    if let Some(body) = value::value_to_bytes(&request["body"]) {
        sending = sending.body(body);
    }
    let answer = match sending.send().await {
        Ok(answer) => answer,
        Err(error) => {
            let case = match (error.is_timeout(), error.is_connect()) {
                (true, _) => "timeout",
                (_, true) => "connection-refused",
                _ => "other",
            };
            return Ok(json!({"err": {case: format!("{url}: {error}")}}));
        }
    };
    let status = answer.status().as_u16();
    let headers = answer.headers().iter();
    let headers = headers.filter(|(name, _)| !HEADERS_LEFT_OUT.contains(&name.as_str()));
    let headers: Vec<_> = headers
        .map(|(name, value)| json!([name.as_str(), value::bytes_to_value(value.as_bytes())]))
        .collect();
    let body = answer.bytes().await.unwrap_or_default();
    let max = request["body-bytes-max"].as_u64().unwrap_or_default();
    let max = usize::try_from(max).unwrap_or(body.len()).min(body.len());
    Ok(json!({"ok": {
        "status": status, "headers": headers, "body": value::bytes_to_value(&body[..max]),
        "body-is-cut": max < body.len(),
    }}))
}

mod observed;
#[cfg(test)]
mod recorded;
/// Makes a script that can be run. Another process writes it: a descriptor of this one, still open in a child that another
/// test has just forked, would keep it from being run ("Text file busy").
#[cfg(test)]
fn executable(path: &std::path::Path, script: &str) {
    let mut install = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("install starts");
    let mut stdin = install.stdin.take().expect("a pipe");
    stdin.write_all(script.as_bytes()).expect("written");
    drop(stdin);
    assert!(install.wait().expect("it ends").success());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [
                {"name": "main", "ports": [{"name": "http", "containerPort": 8080}]},
                {"name": "side"},
            ]},
            "status": {"podIP": "10.88.0.2"},
        })
    }

    #[test]
    fn a_target_is_what_kubectl_says_of_a_pod() {
        let target = Target::of(&pod(), None).expect("a target");
        assert_eq!(target.container, "main");
        assert_eq!(target.given["target.ip"], "10.88.0.2");
        assert_eq!(target.given["target.port"], json!({"http": 8080}));
        assert_eq!(target.given["target.label"], json!({"app": "web"}));
        let side = Target::of(&pod(), Some("side")).expect("a target");
        assert!(!side.given.contains_key("target.port"));
        assert!(Target::of(&pod(), Some("absent")).is_err());
    }

    #[test]
    fn what_the_node_knows_is_asked_of_kubectl() {
        let home = tempfile::tempdir().expect("a directory");
        let summary = json!({"pods": [
            {"podRef": {"name": "web", "namespace": "other"}, "containers": [{"name": "main"}]},
            {"podRef": {"name": "web", "namespace": "default"}, "containers": [
                {"name": "main", "cpu": {"usageCoreNanoSeconds": 5}, "memory": {"workingSetBytes": 7}},
            ]},
        ]});
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n\
             'get --raw /api/v1/nodes/n1/proxy/stats/summary') echo '{summary}';;\n\
             'logs web --namespace default --container main --tail 100') printf 'one\\ntwo\\n';;\n\
             'logs web --namespace default --container side --tail 2') echo gone >&2; exit 1;;\n\
             *) echo \"$*\" >&2; exit 2;;\nesac\n"
        );
        let kubectl = home.path().join("kubectl");
        executable(&kubectl, &script);
        let mut object = pod();
        object["spec"]["nodeName"] = json!("n1");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let live = |container: &str| {
            let found = Target::of(&object, Some(container)).expect("a target");
            let target = Target {
                kubectl: Kubectl(kubectl.clone().into()),
                ..found
            };
            Live::new(target, runtime.handle().clone())
        };
        let usage = live("main").perform("observations.usage", &[]);
        let expected = json!({"cpu-nanoseconds": 5, "memory-working-set-bytes": 7});
        assert_eq!(usage.ok(), Some(expected));
        let usage = live("side").perform("observations.usage", &[]);
        assert_eq!(usage.ok(), Some(Value::Null));
        let tail = live("main").perform("container-log.tail", &[json!(1000)]);
        assert_eq!(tail.ok(), Some(json!({"ok": ["one", "two"]})));
        let tail = live("side").perform("container-log.tail", &[json!(2)]);
        assert_eq!(tail.ok(), Some(json!({"err": {"unavailable": "gone"}})));
    }

    #[test]
    fn what_is_done_is_written_down() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut asked = [0; 6];
            stream.read_exact(&mut asked).expect("PING");
            stream.write_all(b"+PONG\r\n").expect("an answer");
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let target = Target::of(&pod(), None).expect("a target");
        let mut live = Live::new(target, runtime.handle().clone());
        let opened = live.perform("tcp.connection.open", &[json!("127.0.0.1"), json!(port)]);
        assert_eq!(opened.ok(), Some(json!({"ok": "connection 1"})));
        let write = [json!("connection 1"), json!("PING\r\n")];
        live.perform("tcp.connection.write", &write)
            .expect("written");
        let read = live.perform("tcp.connection.read", &[json!("connection 1"), json!(7)]);
        assert_eq!(read.ok(), Some(json!({"ok": "+PONG\r\n"})));
        assert_eq!(live.calls.len(), 3);
        server.join().expect("no panic");
        let refused = live.perform("tcp.connection.open", &[json!("127.0.0.1"), json!(port)]);
        let refused = refused.expect("an answer");
        assert!(
            refused["err"].get("connection-refused").is_some(),
            "{refused}"
        );
        assert!(live.perform("staging.progress", &[]).is_err());
    }
}
