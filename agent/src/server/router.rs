//! Which path is answered by what.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Router, middleware,
    routing::{get, post},
};
use wherry_streaming::{StreamServer, Timeouts};

use super::{Config, Kubelet, Reviewer, auth, logs, metrics, pods, run, stats, storage, streams};

/// What handlers share.
#[derive(Clone)]
pub struct State {
    pub(crate) config: Arc<Config>,
    pub(crate) kubelet: Arc<dyn Kubelet>,
    pub(crate) streams: StreamServer,
    pub(crate) log_watcher: logs::LogWatcher,
    pub(crate) usage: stats::UsageHistory,
    pub(crate) started_at: SystemTime,
    pub(crate) reviewer: Option<Arc<dyn Reviewer>>,
    pub(crate) reviews: auth::Reviews,
}

impl State {
    /// The state of a server that has served nothing yet. Without a reviewer only those get in whom
    /// the config names.
    pub fn new(
        config: Config,
        kubelet: Arc<dyn Kubelet>,
        reviewer: Option<Arc<dyn Reviewer>>,
    ) -> Self {
        let timeouts = Timeouts {
            idle: config.streaming_connection_idle_timeout,
            ..Timeouts::default()
        };
        Self {
            config: Arc::new(config),
            kubelet,
            streams: StreamServer::new(timeouts),
            log_watcher: logs::LogWatcher::default(),
            usage: stats::UsageHistory::default(),
            started_at: SystemTime::now(),
            reviewer,
            reviews: auth::Reviews::default(),
        }
    }
}

/// All endpoints. Requests must carry who called (see [`super::Server`]), else only `/healthz` answers.
pub fn router(state: State) -> Router {
    let guarded = Router::new()
        .route("/pods", get(pods::pods))
        .route("/pods/", get(pods::pods))
        .route("/runningpods", get(pods::running_pods))
        .route("/runningpods/", get(pods::running_pods))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(logs::container_logs),
        )
        .route(
            "/exec/{namespace}/{pod}/{container}",
            get(streams::exec).post(streams::exec),
        )
        .route(
            "/exec/{namespace}/{pod}/{uid}/{container}",
            get(streams::exec).post(streams::exec),
        )
        .route(
            "/attach/{namespace}/{pod}/{container}",
            get(streams::attach).post(streams::attach),
        )
        .route(
            "/attach/{namespace}/{pod}/{uid}/{container}",
            get(streams::attach).post(streams::attach),
        )
        .route(
            "/portForward/{namespace}/{pod}",
            get(streams::port_forward).post(streams::port_forward),
        )
        .route(
            "/portForward/{namespace}/{pod}/{uid}",
            get(streams::port_forward).post(streams::port_forward),
        )
        .route("/run/{namespace}/{pod}/{container}", post(run::run))
        .route("/run/{namespace}/{pod}/{uid}/{container}", post(run::run))
        .route("/logs", get(run::logs_disabled))
        .route("/logs/", get(run::logs_disabled))
        .route("/logs/{*path}", get(run::logs_disabled))
        .route("/stats/summary", get(stats::summary))
        .route("/metrics", get(metrics::metrics))
        .route("/metrics/resource", get(metrics::resource))
        .route("/metrics/cadvisor", get(metrics::cadvisor))
        .route("/metrics/probes", get(metrics::probes))
        .route("/configz", get(pods::configz))
        .route(
            "/storage/local-path/{name}",
            post(storage::make).delete(storage::remove),
        )
        .route(
            "/storage/claims/{namespace}/{pod}/{claim}",
            post(storage::expand),
        )
        .route(
            "/storage/plugins/{plugin}/volumes/{name}",
            post(storage::create),
        )
        .route(
            "/storage/plugins/{plugin}/volumes/{name}/delete",
            post(storage::delete),
        )
        .layer(middleware::from_fn_with_state(
            state.clone(),
            auth::authorize,
        ));
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/healthz/ping", get(async || "ok"))
        .route("/healthz/log", get(async || "ok"))
        .route("/healthz/syncloop", get(pods::sync_loop))
        .merge(guarded)
        .with_state(state)
}
