//! Asks the runtimes what the node's containers use.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::{error::Elapsed, timeout};
use wherry_runtime_api::{
    ContainerState, ContainerStats, ContainerStatus, PodSandbox, PodSandboxState, Runtime,
    RuntimeError,
};

use super::super::{Kubelet, container::is_running};

/// Least time over which a rate is computed anew; cAdvisor's is about the same.
const RATE_PERIOD_MIN: Duration = Duration::from_secs(10);
/// Longest wait for one answer of a runtime.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Containers asked about at a time.
const CALLS_MAX: usize = 8;

/// One container's usage at a moment.
pub(crate) struct Sample {
    pub(crate) name: String,
    /// `oci://…`.
    pub(crate) id: String,
    pub(crate) image: String,
    pub(crate) started_at: SystemTime,
    pub(crate) stats: ContainerStats,
    /// CPU time per time, in billionths of a core.
    pub(crate) cpu_usage_nano_cores: Option<u64>,
}

/// A pod's containers at a moment.
pub(crate) struct PodSample {
    pub(crate) pod: Arc<Pod>,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) started_at: Option<SystemTime>,
    pub(crate) containers: Vec<Sample>,
    pub(crate) sandbox: Option<PodSandbox>,
}

impl PodSample {
    fn new(pod: Arc<Pod>) -> Self {
        let metadata = &pod.metadata;
        let status = pod.status.as_ref();
        let started_at = status.and_then(|status| status.start_time.as_ref());
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            started_at: started_at.map(|time| SystemTime::from(time.0)),
            containers: Vec::new(),
            sandbox: None,
            pod,
        }
    }

    /// A figure of all containers together.
    pub(crate) fn sum(&self, of: impl Fn(&ContainerStats) -> u64) -> u64 {
        self.containers.iter().map(|c| of(&c.stats)).sum()
    }

    /// The same of a figure that not every runtime knows; `None` where nobody does.
    pub(crate) fn sum_known(&self, of: impl Fn(&ContainerStats) -> Option<u64>) -> Option<u64> {
        self.containers
            .iter()
            .filter_map(|c| of(&c.stats))
            .reduce(|a, b| a + b)
    }
}

/// All of the node's pods that run, at a moment.
pub(crate) struct Samples {
    /// By namespace and name.
    pub(crate) pods: Vec<PodSample>,
    /// A runtime did not answer: some are missing.
    pub(crate) has_errors: bool,
}

/// CPU time seen before, for rates. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct UsageHistory {
    seen: Arc<Mutex<HashMap<String, Seen>>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: SystemTime,
    usage_ns: u64,
    nano_cores: Option<u64>,
}

impl UsageHistory {
    /// The rate over the last ten seconds or more, and remembers now. What is seen for the first time
    /// has the rate it had since `since`.
    pub(crate) fn rate(
        &self,
        key: &str,
        since: SystemTime,
        at: SystemTime,
        usage_ns: u64,
    ) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.get(key).copied();
        // A count that went back is another container's.
        let before = before.filter(|before| before.usage_ns <= usage_ns);
        let base = before.unwrap_or(Seen {
            at: since,
            usage_ns: 0,
            nano_cores: None,
        });
        let period = at.duration_since(base.at).unwrap_or_default();
        if period < RATE_PERIOD_MIN && base.nano_cores.is_some() {
            return base.nano_cores;
        }
        let used_ns = u128::from(usage_ns.saturating_sub(base.usage_ns));
        let nano_cores = (used_ns * 1_000_000_000)
            .checked_div(period.as_nanos())
            .and_then(|rate| u64::try_from(rate).ok());
        let now = Seen {
            at,
            usage_ns,
            nano_cores,
        };
        seen.insert(key.to_owned(), now);
        nano_cores
    }

    /// Forgets what is not there any more.
    fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|key, _| !key.contains("://") || is_there(key));
    }
}

type Answer = Result<Result<ContainerStats, RuntimeError>, Elapsed>;

async fn ask(
    (runtime, status): (Arc<dyn Runtime>, ContainerStatus),
) -> (&'static str, ContainerStatus, Answer) {
    let answer = timeout(CALL_TIMEOUT, runtime.container_stats(&status.id)).await;
    (runtime.handler(), status, answer)
}

/// Asks the runtimes for every running container of the node's pods.
pub(crate) async fn pod_samples(kubelet: &dyn Kubelet, history: &UsageHistory) -> Samples {
    let mut has_errors = false;
    let mut pods: HashMap<String, PodSample> = kubelet
        .pods()
        .into_iter()
        .map(PodSample::new)
        .map(|sample| (sample.uid.clone(), sample))
        .collect();
    let mut running: Vec<(Arc<dyn Runtime>, ContainerStatus)> = Vec::new();
    for runtime in kubelet.runtimes() {
        let lists = async {
            let sandboxes = runtime.list_pod_sandboxes().await?;
            Ok::<_, RuntimeError>((sandboxes, runtime.list_containers().await?))
        };
        let Ok(Ok((sandboxes, containers))) = timeout(CALL_TIMEOUT, lists).await else {
            has_errors = true;
            continue;
        };
        for sandbox in sandboxes {
            if let Some(pod) = pods.get_mut(sandbox.config.uid.as_str())
                && sandbox.state == PodSandboxState::Ready
            {
                pod.sandbox = Some(sandbox);
            }
        }
        let containers = containers
            .into_iter()
            .filter(|status| is_running(status) && pods.contains_key(status.pod.as_str()));
        running.extend(containers.map(|status| (Arc::clone(runtime), status)));
    }
    let mut waiting = running.into_iter();
    let mut answers = FuturesUnordered::new();
    for next in waiting.by_ref().take(CALLS_MAX) {
        answers.push(ask(next));
    }
    while let Some((handler, status, answer)) = answers.next().await {
        if let Some(next) = waiting.next() {
            answers.push(ask(next));
        }
        let stats = match answer {
            Ok(Ok(stats)) => stats,
            // It exited in between.
            Ok(Err(error)) if error.is_not_found() => continue,
            _ => {
                has_errors = true;
                continue;
            }
        };
        let Some(pod) = pods.get_mut(status.pod.as_str()) else {
            continue;
        };
        let started_at = match status.state {
            ContainerState::Running { started_at } => started_at,
            _ => status.created_at,
        };
        let id = format!("{handler}://{}", status.id);
        let cpu_ns = stats.cpu_usage_core_nanoseconds;
        let cpu_usage_nano_cores = history.rate(&id, started_at, stats.at, cpu_ns);
        pod.containers.push(Sample {
            name: status.name,
            id,
            image: status.image,
            started_at,
            stats,
            cpu_usage_nano_cores,
        });
    }
    let mut pods: Vec<PodSample> = pods
        .into_values()
        .filter(|pod| !pod.containers.is_empty())
        .collect();
    pods.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    for pod in &mut pods {
        pod.containers
            .sort_by(|one, other| one.name.cmp(&other.name));
    }
    history.retain(|id| {
        pods.iter()
            .any(|pod| pod.containers.iter().any(|container| container.id == id))
    });
    Samples { pods, has_errors }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_ten_seconds_or_more_and_of_the_whole_life_at_first() {
        let history = UsageHistory::default();
        let start = SystemTime::UNIX_EPOCH;
        let at = |seconds| start + Duration::from_secs(seconds);
        let rate = |seconds, usage_ns| history.rate("oci://c", start, at(seconds), usage_ns);
        // Two seconds old, one of them used.
        assert_eq!(rate(2, 1_000_000_000), Some(500_000_000));
        // Too soon for a new one.
        assert_eq!(rate(3, 2_000_000_000), Some(500_000_000));
        assert_eq!(rate(12, 1_000_000_000), Some(0));
        assert_eq!(rate(32, 11_000_000_000), Some(500_000_000));
        // Another container of that name.
        assert_eq!(rate(42, 0), Some(0));
        history.retain(|_| false);
        assert_eq!(history.rate("oci://c", at(50), at(50), 5), None);
    }
}
