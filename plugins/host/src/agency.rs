//! What a call asks of the agent on its way, and whether that is granted.
//!
//! A probe that another one runs may do what its own plugin is granted and what every plugin above it is: running a
//! probe is no way around a grant.

use std::{
    iter,
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::{net::lookup_host, time::timeout};

use crate::{
    Exec, Grants, PluginHost, ProbeResult, ProbeTarget, files,
    named::{self, NamedHosts},
    prober,
    protocol::{
        self, Answer, Ask, CheckError, ExecError, FileError, LogError, Outcome, ResolveError,
        SecretError, Verdict,
    },
};

/// How far probes that run probes may go.
const DEPTH_MAX: usize = 4;
/// Lines of a log that a call is given at once.
const LOG_LINES_MAX: u32 = 100;
/// Checks that one call may ask for.
const CHECKS_MAX: u32 = 16;

/// What a call may have done for it.
pub(crate) struct Agency<'a> {
    pub(crate) grants: &'a Grants,
    /// Hosts that the call itself names, where the grants say that those are good.
    pub(crate) named: NamedHosts,
    pub(crate) exec: &'a dyn Exec,
    pub(crate) progress: &'a (dyn Fn(u64, u64) + Send + Sync),
    /// Of a check: what others need to be run for it.
    pub(crate) checks: Option<Checks<'a>>,
}

/// What running other probes takes.
pub(crate) struct Checks<'a> {
    pub(crate) host: &'a PluginHost,
    pub(crate) target: &'a ProbeTarget,
    /// The call that asked for this one.
    pub(crate) above: Option<&'a Agency<'a>>,
    /// How many this call has asked for.
    pub(crate) made: AtomicU32,
}

impl Agency<'_> {
    /// This call's, the one's that asked for it, and so on.
    fn line(&self) -> impl Iterator<Item = &Agency<'_>> {
        iter::successors(Some(self), |agency| agency.checks.as_ref()?.above)
    }

    fn granted(&self, allows: impl Fn(&Grants) -> bool) -> bool {
        self.line().all(|agency| allows(agency.grants))
    }

    /// Whether this call, or one that it is made for, is a plugin's with these very grants.
    pub(crate) fn is_of(&self, grants: &Grants) -> bool {
        self.line()
            .any(|agency| std::ptr::eq(agency.grants, grants))
    }

    /// Does what a plugin asks, should that be granted.
    pub(crate) async fn answer(&self, ask: Ask, left: Duration) -> Answer {
        match ask {
            Ask::Exec { command } => Answer::Exec(self.run(&command, left).await),
            Ask::Resolve { host, port } => Answer::Resolve(self.resolve(&host, port, left).await),
            Ask::Secret { name, key } => Answer::Secret(self.secret(&name, &key, left).await),
            Ask::Stat { volume, path } => Answer::Stat(
                self.file(&volume, left, move |root| files::stat(&root, &path))
                    .await,
            ),
            Ask::Read {
                volume,
                path,
                offset,
                length,
            } => Answer::Read(
                self.file(&volume, left, move |root| {
                    files::read(&root, &path, offset, length)
                })
                .await,
            ),
            Ask::Usage => {
                let usage = timeout(left, self.exec.usage()).await;
                Answer::Usage(usage.unwrap_or_default())
            }
            Ask::LogTail { lines } => Answer::LogTail(self.log_tail(lines, left).await),
            Ask::Mounts(ask) => Answer::Mounts(self.exec.mount(ask).await),
            Ask::Images(ask) => Answer::Images(self.exec.image(ask).await),
            // A check is a call that may ask for a check.
            Ask::Check { command } => Answer::Check(Box::pin(self.check(&command, left)).await),
        }
    }

    async fn run(&self, command: &[String], left: Duration) -> Result<(i32, Vec<u8>), ExecError> {
        if !self.granted(|grants| grants.exec) {
            return Err(ExecError::Denied("exec needs the grant exec".into()));
        }
        match self.exec.exec(command, left).await {
            Ok(ended) => Ok(ended),
            Err(None) => Err(ExecError::Timeout),
            Err(Some(why)) => Err(ExecError::Failed(why)),
        }
    }

    async fn resolve(
        &self,
        host: &str,
        port: u16,
        left: Duration,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        if self.granted(|grants| grants.allows_host(host, port)) {
            return resolve(host, port, left).await;
        }
        if self.named.has(host, port) {
            let resolved = resolve(host, port, left).await;
            return resolved.and_then(|addresses| named::keep_outside(host, addresses));
        }
        let host = protocol::cut(host.to_owned());
        Err(ResolveError::Denied(format!(
            "{host}:{port} needs the grant hosts"
        )))
    }

    async fn secret(&self, name: &str, key: &str, left: Duration) -> Result<Vec<u8>, SecretError> {
        if !self.granted(|grants| grants.allows_secret(name, key)) {
            let what = protocol::cut(format!("{name}/{key}"));
            return Err(SecretError::Denied(format!(
                "secret {what} needs the grant secrets"
            )));
        }
        let asked = timeout(left, self.exec.secret(name, key)).await;
        asked.unwrap_or_else(|_| Err(SecretError::Unavailable("time is up".into())))
    }

    async fn log_tail(&self, lines: u32, left: Duration) -> Result<Vec<String>, LogError> {
        if !self.granted(|grants| grants.logs) {
            let why = "the container's log needs the grant logs".into();
            return Err(LogError::Denied(why));
        }
        let asked = timeout(left, self.exec.log_tail(lines.min(LOG_LINES_MAX))).await;
        let lines = asked.unwrap_or_else(|_| Err("time is up".into()));
        lines.map_err(LogError::Unavailable)
    }

    async fn file<T: Send + 'static>(
        &self,
        volume: &str,
        left: Duration,
        look: impl FnOnce(std::path::PathBuf) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        if !self.granted(|grants| grants.volumes) {
            let why = "files of volumes need the grant volumes".into();
            return Err(FileError::Denied(why));
        }
        let Some(root) = self.exec.volume(volume) else {
            return Err(FileError::NotFound);
        };
        // A volume may be somebody's file system, which answers when it likes.
        let looked = tokio::task::spawn_blocking(move || look(root));
        match timeout(left, looked).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => Err(FileError::Other(error.to_string())),
            Err(_) => Err(FileError::Other("time is up".into())),
        }
    }

    async fn check(&self, command: &[String], left: Duration) -> Result<Outcome, CheckError> {
        let Some(checks) = &self.checks else {
            let why = "only a probe runs probes".into();
            return Err(CheckError::Other(why));
        };
        if self.line().count() > DEPTH_MAX {
            let why = format!("probes run probes to a depth of {DEPTH_MAX}");
            return Err(CheckError::InvalidArguments(why));
        }
        if checks.made.fetch_add(1, Ordering::Relaxed) >= CHECKS_MAX {
            let why = format!("a probe runs at most {CHECKS_MAX} others");
            return Err(CheckError::InvalidArguments(why));
        }
        let Some((plugin, arguments)) = prober::named_by(command) else {
            return Err(CheckError::InvalidArguments("no command".into()));
        };
        // Whoever asks has to hear of it before its own end.
        let left = left.saturating_sub((left / 20).min(Duration::from_millis(50)));
        let outcome = checks
            .host
            .check_for(
                plugin,
                arguments,
                checks.target,
                left,
                self.exec,
                Some(self),
            )
            .await;
        Ok(Outcome {
            verdict: match outcome.result {
                ProbeResult::Success => Verdict::Success,
                ProbeResult::Failure => Verdict::Failure,
                ProbeResult::Unknown => Verdict::Unknown,
            },
            message: outcome.message,
        })
    }
}

async fn resolve(host: &str, port: u16, left: Duration) -> Result<Vec<IpAddr>, ResolveError> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let trouble = match timeout(left, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => return Ok(addresses.map(|address| address.ip()).collect()),
        Ok(Err(_)) => "no such host",
        Err(_) => "i/o timeout",
    };
    Err(ResolveError::NotFound(format!(
        "dial tcp: lookup {host}: {trouble}"
    )))
}
