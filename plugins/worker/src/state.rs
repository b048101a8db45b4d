//! What a call's store holds, and the small interfaces of the world.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wherry_plugin_host::protocol::{self, Answer, Ask, LogLevel, ProbeTarget};

use crate::{
    asks::datetime,
    bindings::wherry::plugin::{
        clock,
        log::{self, Level},
        outcomes, target,
        types::{self, Datetime},
    },
    deadlines::Deadlines,
    filesystem::Kept,
    limits::Limiter,
    populate::Volume,
    serve::Worker,
    tls::NodeRoots,
};

/// Lines of a call that are kept.
const LOG_LINES_MAX: usize = 100;

/// How a call asks the agent: a question at a time.
pub(crate) struct Agent {
    pub(crate) worker: Arc<Worker>,
    pub(crate) call: u64,
}

/// Store data of a call.
pub(crate) struct State {
    /// Made for those that ask: most guests have no use for WASI.
    wasi: Option<WasiCtx>,
    pub(crate) table: ResourceTable,
    pub(crate) limiter: Limiter,
    pub(crate) target: ProbeTarget,
    pub(crate) roots: Arc<NodeRoots>,
    pub(crate) deadlines: Arc<Deadlines>,
    pub(crate) connections: usize,
    pub(crate) log: Vec<(LogLevel, String)>,
    pub(crate) log_dropped: u32,
    pub(crate) denied: Option<String>,
    /// What the call is about, if that is a volume.
    pub(crate) volume: Option<Volume>,
    /// What the guest of a file system keeps with the volume server.
    pub(crate) kept: Option<Kept>,
    /// Nobody asks for what is called otherwise.
    pub(crate) agent: Option<Agent>,
    begun: Instant,
    timeout: Duration,
}

impl State {
    pub(crate) fn new(
        target: ProbeTarget,
        timeout: Duration,
        limiter: Limiter,
        (roots, deadlines): (Arc<NodeRoots>, Arc<Deadlines>),
        agent: Option<Agent>,
    ) -> Self {
        Self {
            wasi: None,
            table: ResourceTable::new(),
            limiter,
            target,
            roots,
            deadlines,
            connections: 0,
            log: Vec::new(),
            log_dropped: 0,
            denied: None,
            volume: None,
            kept: None,
            agent,
            begun: Instant::now(),
            timeout,
        }
    }

    /// A kept instance is called again.
    pub(crate) fn renew(&mut self, timeout: Duration) {
        self.begun = Instant::now();
        self.timeout = timeout;
    }

    /// A kept instance waits for its next call: nothing of the last one stays.
    pub(crate) fn rest(&mut self) {
        self.table = ResourceTable::new();
        self.target = ProbeTarget::default();
        self.connections = 0;
        self.log.clear();
        self.log_dropped = 0;
        self.denied = None;
        self.agent = None;
    }

    /// A kept instance is called for another container.
    pub(crate) fn begin_again(&mut self, target: ProbeTarget, timeout: Duration, agent: Agent) {
        self.target = target;
        self.agent = Some(agent);
        self.renew(timeout);
    }

    /// When the host gives up on what a guest waits for: the call's time. The guest itself ends a little later, so
    /// that it can say what took so long.
    pub(crate) fn io_deadline(&self) -> Instant {
        self.begun + self.timeout
    }

    /// The same, with who keeps it.
    pub(crate) fn deadline(&self) -> (Arc<Deadlines>, Instant) {
        (Arc::clone(&self.deadlines), self.io_deadline())
    }

    /// Tells the agent how many bytes are done, of how many.
    pub(crate) fn tell(&self, done: u64, total: u64) {
        if let Some(agent) = &self.agent {
            agent.worker.tell(agent.call, done, total);
        }
    }

    /// Asks the agent for what only it may do.
    pub(crate) async fn ask(&mut self, ask: Ask) -> wasmtime::Result<Answer> {
        if let Some(kept) = &mut self.kept {
            return kept.ask_agent(ask).await;
        }
        match &self.agent {
            Some(agent) => agent.worker.ask(agent.call, ask).await,
            None => wasmtime::bail!("there is no agent to be asked"),
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: self.wasi.get_or_insert_with(|| WasiCtx::builder().build()),
            table: &mut self.table,
        }
    }
}

impl types::Host for State {}
impl outcomes::Host for State {}

impl log::Host for State {
    async fn write(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        if self.log.len() < LOG_LINES_MAX {
            let level = match level {
                Level::Debug => LogLevel::Debug,
                Level::Info => LogLevel::Info,
                Level::Warn => LogLevel::Warn,
                Level::Error => LogLevel::Error,
            };
            self.log.push((level, protocol::cut(message)));
        } else {
            self.log_dropped = self.log_dropped.saturating_add(1);
        }
        Ok(())
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl clock::Host for State {
    async fn now(&mut self) -> wasmtime::Result<Datetime> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(datetime(now.unwrap_or_default()))
    }

    async fn monotonic(&mut self) -> wasmtime::Result<u64> {
        Ok(nanoseconds(self.begun.elapsed()))
    }

    async fn remaining(&mut self) -> wasmtime::Result<u64> {
        Ok(nanoseconds(
            self.io_deadline().saturating_duration_since(Instant::now()),
        ))
    }
}

impl target::Host for State {
    async fn ip(&mut self) -> wasmtime::Result<String> {
        let ip = self.target.ip.map(|ip| ip.to_string());
        Ok(ip.unwrap_or_default())
    }

    async fn port(&mut self, name_or_number: String) -> wasmtime::Result<Option<u16>> {
        let named = self.target.ports.get(&name_or_number).copied();
        Ok(named.or_else(|| name_or_number.parse().ok().filter(|port| *port > 0)))
    }

    async fn pod(&mut self) -> wasmtime::Result<String> {
        Ok(self.target.pod.clone())
    }

    async fn namespace(&mut self) -> wasmtime::Result<String> {
        Ok(self.target.namespace.clone())
    }

    async fn container(&mut self) -> wasmtime::Result<String> {
        Ok(self.target.container.clone())
    }

    async fn label(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.target.labels.get(&key).cloned())
    }

    async fn annotation(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.target.annotations.get(&key).cloned())
    }

    async fn started_at(&mut self) -> wasmtime::Result<Datetime> {
        Ok(datetime(self.target.started_at))
    }

    async fn restart_count(&mut self) -> wasmtime::Result<u32> {
        Ok(self.target.restart_count)
    }
}
