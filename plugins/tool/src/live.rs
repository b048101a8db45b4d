//! `wherry plugin record`: a check made for real, from this machine to a pod, and written down as a case of a script.
//!
//! It runs where the pod's address can be reached, on a node, as whoever starts it: what the plugin asks is done with
//! this machine's sockets and with `kubectl`, and not with a node's grants.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use reqwest::{Client, Method, redirect::Policy};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use crate::{script::Expected, value};

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
/// Headers that are other ones each time.
const HEADERS_LEFT_OUT: [&str; 1] = ["date"];

/// A container to be probed.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    /// What is known of it, as a script gives it.
    pub(crate) given: Map<String, Value>,
}

fn kubectl(args: &[&str]) -> Result<std::process::Output> {
    Command::new("kubectl")
        .args(args)
        .output()
        .context("kubectl")
}

impl Target {
    /// Asks `kubectl`.
    pub(crate) fn find(namespace: &str, pod: &str, container: Option<&str>) -> Result<Self> {
        let got = kubectl(&[
            "get",
            "pod",
            pod,
            "--namespace",
            namespace,
            "--output",
            "json",
        ])?;
        if !got.status.success() {
            bail!("{}", String::from_utf8_lossy(&got.stderr).trim());
        }
        let object = serde_json::from_slice(&got.stdout).context("kubectl get pod")?;
        Self::of(&object, container)
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
        Ok(Self {
            container: text(&found["name"]),
            namespace,
            pod,
            given,
        })
    }
}

/// Does what a plugin asks, and writes it down.
pub(crate) struct Live {
    target: Target,
    connections: HashMap<String, TcpStream>,
    runtime: Handle,
    /// What was asked and answered, in order.
    pub(crate) calls: Vec<Expected>,
}

impl Live {
    pub(crate) fn new(target: Target, runtime: Handle) -> Self {
        Self {
            target,
            connections: HashMap::new(),
            runtime,
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
        let Target {
            namespace,
            pod,
            container,
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
        let ran = kubectl(&all)?;
        let output = [ran.stdout, ran.stderr].concat();
        Ok(json!({"ok": {
            "exit-code": ran.status.code().unwrap_or_default(),
            "output": value::bytes_to_value(&output),
        }}))
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
        assert!(live.perform("secret.get", &[]).is_err());
    }
}
