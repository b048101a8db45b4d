//! The connection to the engine: made when it answers, made again when it comes back, and what goes wrong in between.
//!
//! Requests with an answer go through bollard. Streams of exec and attach are taken over here: their bytes must arrive
//! as they are, terminals included, and the end of what is written has to travel without ending what is read.

use std::{fs, path::PathBuf, time::Duration};

use bollard::{ClientVersion, Docker, errors::Error, models::SystemInfo};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::watch};
use wherry_runtime_api::RuntimeError;

/// The newest version this crate was written for; a server's older one is negotiated.
const API_VERSION: ClientVersion = ClientVersion {
    major_version: 1,
    minor_version: 44,
};
/// How long the engine may take for the beginning of an answer. Starting a container on a busy machine takes seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// An error of a hijacked request is a sentence.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// `CAP_SYS_RESOURCE`, which lowers `oom_score_adj`.
const CAP_SYS_RESOURCE: u32 = 24;

/// What the engine can do, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) version: String,
    /// Why it cannot run pods.
    pub(crate) unfit: Option<String>,
    /// It maps its containers' users to others of the node (`--userns-remap`).
    pub(crate) remaps_users: bool,
    pub(crate) has_apparmor: bool,
    /// Capabilities its processes can have at all, by number; bit 0 is `CAP_CHOWN`.
    pub(crate) capabilities: u64,
    /// Where it keeps images and containers.
    pub(crate) root: PathBuf,
}

impl Facts {
    fn new(info: SystemInfo, capabilities: u64) -> Self {
        let options = info.security_options.unwrap_or_default();
        let has = |name: &str| {
            options
                .iter()
                .any(|option| option.split(',').any(|part| part == name))
        };
        let driver = info
            .cgroup_driver
            .map_or_else(String::new, |driver| driver.to_string());
        let os = info.os_type.unwrap_or_default();
        let unfit = if driver != "cgroupfs" {
            Some(format!(
                "the engine's cgroup driver is {driver}; start it with --exec-opt native.cgroupdriver=cgroupfs"
            ))
        } else if os != "linux" {
            Some(format!("the engine runs {os} containers"))
        } else {
            None
        };
        Self {
            version: info.server_version.unwrap_or_default(),
            unfit,
            remaps_users: has("name=userns"),
            has_apparmor: has("name=apparmor"),
            capabilities,
            root: info
                .docker_root_dir
                .unwrap_or_else(|| "/var/lib/docker".to_owned())
                .into(),
        }
    }

    /// How many of the kernel's capabilities it knows by name: before version 23 none after `AUDIT_READ`.
    pub(crate) fn capabilities_known(&self) -> usize {
        let major = self.version.split('.').next().unwrap_or_default();
        if major.parse().is_ok_and(|major: u32| major < 23) {
            38
        } else {
            41
        }
    }

    /// Whether it can make a process less likely to be killed for want of memory than it is itself.
    pub(crate) fn can_lower_oom_score(&self) -> bool {
        self.capabilities & (1 << CAP_SYS_RESOURCE) != 0
    }
}

/// Whether the engine can be spoken to.
#[derive(Clone, Debug)]
pub(crate) enum Connection {
    Up(Docker, Facts),
    Down(String),
}

/// The engine.
#[derive(Debug)]
pub(crate) struct Engine {
    socket: PathBuf,
    connection: watch::Sender<Connection>,
}

impl Engine {
    pub(crate) fn new(socket: PathBuf) -> Self {
        let down = format!("docker engine at {}: not asked yet", socket.display());
        Self {
            socket,
            connection: watch::Sender::new(Connection::Down(down)),
        }
    }

    /// Speaks to the engine for the first time, or again; says so to nobody yet.
    pub(crate) async fn connect(&self) -> Result<(Docker, Facts), String> {
        let failed = |error: Error| format!("docker engine at {}: {error}", self.socket.display());
        let path = self.socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, REQUEST_TIMEOUT.as_secs(), &API_VERSION)
            .map_err(failed)?
            .negotiate_version()
            .await
            .map_err(failed)?;
        let info = docker.info().await.map_err(failed)?;
        let facts = Facts::new(info, self.capabilities().await);
        Ok((docker, facts))
    }

    /// What the process behind the socket is allowed. Where it cannot be told, everything: then the engine says.
    async fn capabilities(&self) -> u64 {
        let known = async {
            let stream = UnixStream::connect(&self.socket).await.ok()?;
            let pid = stream.peer_cred().ok()?.pid()?;
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("CapBnd:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        known.await.unwrap_or(u64::MAX)
    }

    pub(crate) fn set(&self, connection: Connection) {
        self.connection.send_replace(connection);
    }

    /// The connection, or why there is none.
    pub(crate) fn up(&self) -> Result<(Docker, Facts), RuntimeError> {
        match &*self.connection.borrow() {
            Connection::Up(docker, facts) => Ok((docker.clone(), facts.clone())),
            Connection::Down(why) => Err(RuntimeError::Unavailable(why.clone())),
        }
    }

    pub(crate) fn docker(&self) -> Result<Docker, RuntimeError> {
        self.up().map(|(docker, _)| docker)
    }

    /// The connection as soon as there is one; `None` when the runtime has gone.
    pub(crate) async fn wait(&self) -> Option<Docker> {
        let mut connection = self.connection.subscribe();
        let found = connection
            .wait_for(|connection| matches!(connection, Connection::Up(..)))
            .await
            .ok()?;
        match &*found {
            Connection::Up(docker, _) => Some(docker.clone()),
            Connection::Down(_) => None,
        }
    }

    /// Makes a request whose connection then carries bytes both ways.
    pub(crate) async fn hijack(
        &self,
        what: &str,
        path: &str,
        body: String,
    ) -> Result<Hijacked, RuntimeError> {
        let docker = self.docker()?;
        let unreachable =
            |error: &dyn std::fmt::Display| RuntimeError::Unavailable(format!("{what}: {error}"));
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(&error))?;
        // Ends with the connection, which whoever gets the streams holds.
        tokio::spawn(connection.with_upgrades());
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v{}{path}", docker.client_version()))
            .header(header::HOST, "docker")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| RuntimeError::Internal(format!("{what}: {error}")))?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, sender.send_request(request))
            .await
            .map_err(|error| unreachable(&error))?
            .map_err(|error| unreachable(&error))?;
        let status = answer.status();
        if status != StatusCode::SWITCHING_PROTOCOLS && status != StatusCode::OK {
            let body = http_body_util::Limited::new(answer.into_body(), ERROR_BYTES_MAX);
            let text = body
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            let message = serde_json::from_slice::<serde_json::Value>(&text)
                .ok()
                .and_then(|value| Some(value["message"].as_str()?.to_owned()))
                .unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
            let error = Error::DockerResponseServerError {
                status_code: status.as_u16(),
                message,
            };
            return Err(to_error(what, error));
        }
        let upgraded = hyper::upgrade::on(answer)
            .await
            .map_err(|error| unreachable(&error))?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| RuntimeError::Internal(format!("{what}: not our own connection")))?;
        Ok(Hijacked {
            stream: parts.io.into_inner(),
            begun: parts.read_buf,
        })
    }
}

/// A connection that is ours now.
pub(crate) struct Hijacked {
    pub(crate) stream: UnixStream,
    /// What had arrived of the stream when it was taken over.
    pub(crate) begun: Bytes,
}

/// Whether the engine could not be reached, or not to the end.
pub(crate) fn is_unreachable(error: &Error) -> bool {
    !matches!(
        error,
        Error::DockerResponseServerError { .. }
            | Error::JsonDataError { .. }
            | Error::JsonSerdeError { .. }
            | Error::DockerStreamError { .. }
            | Error::DockerContainerWaitError { .. }
    )
}

/// The status code the engine answered.
pub(crate) fn status_code(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// An engine's error in the words of the seam.
pub(crate) fn to_error(what: &str, error: Error) -> RuntimeError {
    let (code, message) = match error {
        Error::DockerResponseServerError {
            status_code,
            message,
        } => (status_code, message),
        error if is_unreachable(&error) => {
            return RuntimeError::Unavailable(format!("{what}: docker engine: {error}"));
        }
        error => return RuntimeError::Internal(format!("{what}: docker engine: {error}")),
    };
    let message = message.trim();
    let said = format!("{what}: {message}");
    let has = |part: &str| message.contains(part);
    match code {
        404 if has("No such image") => RuntimeError::ImageNotFound(what.to_owned()),
        404 if has("No such container") || has("No such exec") => {
            RuntimeError::NotFound(what.to_owned())
        }
        _ if has("no space left on device") || has("disk quota exceeded") => {
            RuntimeError::ResourceExhausted(said)
        }
        // What runc could not do for the container as it was described: a command that is not there, a mount, a user.
        400 | 404 => RuntimeError::InvalidArgument(said),
        500 if has("OCI runtime")
            || has("unable to find user")
            || has("no matching entries")
            || has("path ") =>
        {
            RuntimeError::InvalidArgument(said)
        }
        409 => RuntimeError::FailedPrecondition(said),
        _ => RuntimeError::Internal(said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status_code: u16, message: &str) -> RuntimeError {
        let message = message.to_owned();
        to_error(
            "container main",
            Error::DockerResponseServerError {
                status_code,
                message,
            },
        )
    }

    #[test]
    fn errors_are_told_apart_by_what_the_caller_can_do() {
        use RuntimeError as E;
        assert!(matches!(
            answered(404, "No such container: x"),
            E::NotFound(_)
        ));
        assert!(matches!(
            answered(404, "No such image: x"),
            E::ImageNotFound(_)
        ));
        assert!(matches!(
            answered(400, "invalid mount config"),
            E::InvalidArgument(_)
        ));
        assert!(matches!(
            answered(500, "OCI runtime create failed: exec: \"x\": not found"),
            E::InvalidArgument(_)
        ));
        assert!(matches!(
            answered(500, "mkdir: no space left on device"),
            E::ResourceExhausted(_)
        ));
        assert!(matches!(
            answered(409, "is not running"),
            E::FailedPrecondition(_)
        ));
        assert!(matches!(answered(500, "anything"), E::Internal(_)));
        let gone = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(matches!(
            to_error("x", Error::IOError { err: gone }),
            E::Unavailable(_)
        ));
    }

    #[test]
    fn facts_come_from_what_the_engine_says_of_itself() {
        let info: SystemInfo = serde_json::from_value(serde_json::json!({
            "CgroupDriver": "systemd", "OSType": "linux", "ServerVersion": "20.10.24",
            "SecurityOptions": ["name=seccomp,profile=default", "name=userns"],
        }))
        .unwrap_or_default();
        let facts = Facts::new(info, 0);
        assert!(facts.unfit.is_some_and(|why| why.contains("systemd")));
        assert!(facts.remaps_users && !facts.has_apparmor);
    }
}
