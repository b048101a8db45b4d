//! A runtime whose calls, and a prober whose checks are counted and timed, for `/metrics`.
//!
//! Operations have the kubelet's names. A call that was given up on (its future dropped) is not counted.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use tokio::{runtime::Handle, sync::broadcast::Receiver};
use wherry_plugin_host::{Exec, ProbeOutcome, ProbeRequest, ProbeResult, Prober};
use wherry_runtime_api::{
    AttachRequest, ContainerConfig, ContainerId, ContainerStats, ContainerStatus, Duplex,
    ExecRequest, ExecSyncResponse, ImageService, LinuxResources, PodSandbox, PodSandboxConfig,
    PodSandboxId, Runtime, RuntimeError, RuntimeEvent, RuntimeStatus, StreamSession,
};

use crate::{
    metrics::{
        Metrics, PROBE_DURATION, PROBES, RUNTIME_DURATION, RUNTIME_ERRORS, RUNTIME_OPERATIONS,
    },
    pod,
};

/// Passes every call on.
pub(crate) struct Metered {
    inner: Arc<dyn Runtime>,
    metrics: Arc<Metrics>,
}

impl Metered {
    /// Counts what `inner` is asked.
    pub(crate) fn new(inner: Arc<dyn Runtime>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    async fn call<T>(
        &self,
        operation: &str,
        call: impl Future<Output = Result<T, RuntimeError>>,
    ) -> Result<T, RuntimeError> {
        let begun = Instant::now();
        let answer = call.await;
        let label = format!("operation_type=\"{operation}\"");
        self.metrics.count(RUNTIME_OPERATIONS, &label);
        self.metrics
            .observe(RUNTIME_DURATION, &label, begun.elapsed());
        // That something is gone is an answer.
        if answer.as_ref().is_err_and(|error| !error.is_not_found()) {
            self.metrics.count(RUNTIME_ERRORS, &label);
        }
        answer
    }
}

#[async_trait]
impl Runtime for Metered {
    fn handler(&self) -> &'static str {
        self.inner.handler()
    }

    async fn status(&self) -> RuntimeStatus {
        self.inner.status().await
    }

    fn images(&self) -> Option<Arc<dyn ImageService>> {
        self.inner.images()
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox, RuntimeError> {
        self.call("run_podsandbox", self.inner.run_pod_sandbox(config))
            .await
    }

    async fn stop_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError> {
        self.call("stop_podsandbox", self.inner.stop_pod_sandbox(id))
            .await
    }

    async fn remove_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError> {
        self.call("remove_podsandbox", self.inner.remove_pod_sandbox(id))
            .await
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError> {
        self.call("list_podsandbox", self.inner.list_pod_sandboxes())
            .await
    }

    async fn create_container(
        &self,
        sandbox: &PodSandbox,
        config: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let call = self.inner.create_container(sandbox, config);
        self.call("create_container", call).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.call("start_container", self.inner.start_container(id))
            .await
    }

    async fn stop_container(
        &self,
        id: &ContainerId,
        grace_period: Duration,
    ) -> Result<(), RuntimeError> {
        let call = self.inner.stop_container(id, grace_period);
        self.call("stop_container", call).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.call("remove_container", self.inner.remove_container(id))
            .await
    }

    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        self.call("container_status", self.inner.container_status(id))
            .await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        self.call("list_containers", self.inner.list_containers())
            .await
    }

    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        let call = self.inner.update_container_resources(id, resources);
        self.call("update_container", call).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        id: &PodSandboxId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        let call = self.inner.update_pod_sandbox_resources(id, resources);
        self.call("update_podsandbox", call).await
    }

    fn subscribe(&self) -> Receiver<RuntimeEvent> {
        self.inner.subscribe()
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecSyncResponse, RuntimeError> {
        let call = self.inner.exec_sync(id, command, timeout);
        self.call("exec_sync", call).await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        request: &ExecRequest,
    ) -> Result<StreamSession, RuntimeError> {
        self.call("exec", self.inner.exec(id, request)).await
    }

    async fn attach(
        &self,
        id: &ContainerId,
        request: &AttachRequest,
    ) -> Result<StreamSession, RuntimeError> {
        self.call("attach", self.inner.attach(id, request)).await
    }

    async fn port_forward(
        &self,
        sandbox: &PodSandbox,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError> {
        self.call("port_forward", self.inner.port_forward(sandbox, port))
            .await
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.call("reopen_container_log", self.inner.reopen_container_log(id))
            .await
    }

    async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        self.call("container_stats", self.inner.container_stats(id))
            .await
    }
}

/// A prober of one container's probe of one kind.
pub(crate) struct MeteredProber {
    inner: Arc<dyn Prober>,
    metrics: Arc<Metrics>,
    labels: String,
    /// The same with each result: formatted once, not with every check.
    by_result: [String; 3],
}

impl MeteredProber {
    /// Counts checks of a container of `pod`; `kind` is `Liveness`, `Readiness` or `Startup`.
    pub(crate) fn new(
        inner: Arc<dyn Prober>,
        metrics: Arc<Metrics>,
        pod: &Pod,
        container: &str,
        kind: &str,
    ) -> Self {
        let labels = format!(
            "container=\"{container}\",namespace=\"{}\",pod=\"{}\",pod_uid=\"{}\",probe_type=\"{kind}\"",
            pod::namespace(pod),
            pod::name(pod),
            pod::uid(pod),
        );
        Self {
            inner,
            metrics,
            by_result: ["successful", "failed", "unknown"]
                .map(|result| format!("{labels},result=\"{result}\"")),
            labels,
        }
    }
}

#[async_trait]
impl Prober for MeteredProber {
    fn runtime(&self) -> Option<Handle> {
        self.inner.runtime()
    }

    async fn check(&self, request: &ProbeRequest, exec: &dyn Exec) -> ProbeOutcome {
        let begun = Instant::now();
        let outcome = self.inner.check(request, exec).await;
        let [successful, failed, unknown] = &self.by_result;
        let label = match outcome.result {
            ProbeResult::Success => successful,
            ProbeResult::Failure => failed,
            ProbeResult::Unknown => unknown,
        };
        self.metrics.count(PROBES, label);
        if outcome.result == ProbeResult::Success {
            self.metrics
                .observe(PROBE_DURATION, &self.labels, begun.elapsed());
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use wherry_runtime_api::fake::{Call, FakeClock, FakeRuntime};

    use super::*;

    #[tokio::test]
    async fn calls_are_counted_and_failures_told_apart_from_absence() {
        let metrics = Arc::new(Metrics::default());
        let fake = FakeRuntime::new("oci", FakeClock::default());
        let runtime = Metered::new(fake.clone(), Arc::clone(&metrics));
        let id = ContainerId::from("absent");
        assert!(runtime.container_stats(&id).await.is_err());
        assert!(runtime.start_container(&id).await.is_err());
        fake.fail_next(
            Call::StartContainer,
            RuntimeError::Internal("broken".into()),
        );
        assert!(runtime.start_container(&id).await.is_err());
        let text = metrics.render();
        for line in [
            "kubelet_runtime_operations_total{operation_type=\"container_stats\"} 1",
            "kubelet_runtime_operations_total{operation_type=\"start_container\"} 2",
            "kubelet_runtime_operations_errors_total{operation_type=\"start_container\"} 1",
            "kubelet_runtime_operations_duration_seconds_count{operation_type=\"start_container\"} 2",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        assert!(!text.contains("errors_total{operation_type=\"container_stats\"}"));
    }
}
