//! Quality of service: class, cgroup, CPU shares and OOM score, by the kubelet's arithmetic. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use wherry_runtime_api::LinuxResources;

use super::{is_sidecar, quantity, spec, uid};

/// A pod's `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QosClass {
    /// Every container has limits of CPU and memory, and requests as large.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl QosClass {
    /// As in the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

fn amount(map: Option<&BTreeMap<String, Quantity>>, resource: &str) -> i128 {
    map.and_then(|map| map.get(resource))
        .and_then(quantity::millis)
        .unwrap_or(0)
}

/// A request, or the limit where only that is given, in thousandths.
pub(crate) fn request_millis(container: &Container, resource: &str) -> i128 {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|r| r.requests.as_ref());
    if requests.is_some_and(|requests| requests.contains_key(resource)) {
        return amount(requests, resource);
    }
    limit_millis(container, resource)
}

/// A limit in thousandths; 0 is none.
pub(crate) fn limit_millis(container: &Container, resource: &str) -> i128 {
    amount(
        container.resources.as_ref().and_then(|r| r.limits.as_ref()),
        resource,
    )
}

/// What a container may use: its own limit, else the one its pod names as a whole (`getMemoryLimit` and `getCPULimit` of
/// the kubelet's runtime manager); 0 is no limit.
fn effective_limit_millis(pod: &Pod, container: &Container, resource: &str) -> i128 {
    match limit_millis(container, resource) {
        0 => {
            let own = spec(pod).resources.as_ref();
            amount(own.and_then(|own| own.limits.as_ref()), resource)
        }
        limit => limit,
    }
}

/// The class of a pod.
pub(crate) fn class(pod: &Pod) -> QosClass {
    let spec = spec(pod);
    let mut is_guaranteed = true;
    let mut is_best_effort = true;
    if let Some(own) = spec.resources.as_ref().filter(|own| is_given(own)) {
        for resource in ["cpu", "memory"] {
            let limit = amount(own.limits.as_ref(), resource);
            let request = own_request(own, resource);
            is_best_effort &= request == 0 && limit == 0;
            is_guaranteed &= limit > 0 && request == limit;
        }
        return of(is_best_effort, is_guaranteed);
    }
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        for resource in ["cpu", "memory"] {
            let (request, limit) = (
                request_millis(container, resource),
                limit_millis(container, resource),
            );
            is_best_effort &= request == 0 && limit == 0;
            is_guaranteed &= limit > 0 && request == limit;
        }
    }
    of(is_best_effort, is_guaranteed)
}

fn of(is_best_effort: bool, is_guaranteed: bool) -> QosClass {
    match (is_best_effort, is_guaranteed) {
        (true, _) => QosClass::BestEffort,
        (false, true) => QosClass::Guaranteed,
        (false, false) => QosClass::Burstable,
    }
}

/// Whether the pod as a whole names resources of its own.
fn is_given(own: &ResourceRequirements) -> bool {
    [&own.limits, &own.requests]
        .into_iter()
        .flatten()
        .any(|list| !list.is_empty())
}

fn own_request(own: &ResourceRequirements, resource: &str) -> i128 {
    match own.requests.as_ref().filter(|r| r.contains_key(resource)) {
        Some(requests) => amount(Some(requests), resource),
        None => amount(own.limits.as_ref(), resource),
    }
}

/// What a pod requests of a resource, thousandths: what it names itself, else what its containers need;
/// with the overhead of its RuntimeClass.
pub(crate) fn pod_request_millis(pod: &Pod, resource: &str) -> i128 {
    let spec = spec(pod);
    let own = spec
        .resources
        .as_ref()
        .map(|own| own_request(own, resource));
    match own.filter(|own| *own > 0) {
        Some(own) => own + amount(spec.overhead.as_ref(), resource),
        None => pod_millis(pod, resource, request_millis),
    }
}

/// The limit of a pod as a whole, thousandths: what it names itself, else the sum of its containers'
/// where each has one.
fn pod_limit_millis(pod: &Pod, resource: &str) -> Option<i128> {
    let spec = spec(pod);
    let own = spec.resources.as_ref().and_then(|own| own.limits.as_ref());
    if let Some(own) = own.filter(|own| own.contains_key(resource)) {
        return Some(amount(Some(own), resource) + amount(spec.overhead.as_ref(), resource));
    }
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .all(|container| limit_millis(container, resource) > 0)
        .then(|| pod_millis(pod, resource, limit_millis))
}

/// What a pod needs of a resource: the sum of its containers with the sidecars, or the largest step of
/// its start; thousandths.
pub(crate) fn pod_millis(pod: &Pod, resource: &str, of: fn(&Container, &str) -> i128) -> i128 {
    let spec = spec(pod);
    let mut sidecars = 0;
    let mut largest_init = 0;
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            sidecars += of(container, resource);
            largest_init = largest_init.max(sidecars);
        } else {
            largest_init = largest_init.max(sidecars + of(container, resource));
        }
    }
    let main: i128 = spec.containers.iter().map(|c| of(c, resource)).sum();
    let overhead = amount(spec.overhead.as_ref(), resource);
    (main + sidecars).max(largest_init) + overhead
}

/// The pod's cgroup below `root`.
pub(crate) fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let uid = uid(pod);
    match class(pod) {
        QosClass::Guaranteed => format!("{root}/kubepods/pod{uid}"),
        QosClass::Burstable => format!("{root}/kubepods/burstable/pod{uid}"),
        QosClass::BestEffort => format!("{root}/kubepods/besteffort/pod{uid}"),
    }
}

/// `cpu.shares` for a request (`MilliCPUToShares`): never below what the kernel takes.
pub(crate) fn cpu_shares(millis: i128) -> u64 {
    u64::try_from(millis * 1024 / 1000)
        .unwrap_or(0)
        .clamp(2, 262_144)
}

/// CPU quota for a limit (`MilliCPUToQuota`), µs in each 100 ms; at least 1 ms.
pub(crate) fn cpu_quota_us(millis: i128) -> i64 {
    i64::try_from(millis * 100_000 / 1000)
        .unwrap_or(i64::MAX)
        .max(1000)
}

/// Limits of the pod as a whole. `pids_max` is the node's rule for every pod.
pub(crate) fn pod_resources(pod: &Pod, pids_max: Option<u64>) -> LinuxResources {
    let cpu_limit = pod_limit_millis(pod, "cpu");
    let memory_limit = pod_limit_millis(pod, "memory").map(|millis| millis / 1000);
    let spec = spec(pod);
    let sizes: BTreeSet<&str> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .filter_map(|c| c.resources.as_ref()?.limits.as_ref())
        .flat_map(BTreeMap::keys)
        .map(String::as_str)
        .filter(|name| name.starts_with(HUGEPAGES))
        .collect();
    let hugepages = sizes.into_iter().filter_map(|name| {
        let bytes = pod_millis(pod, name, limit_millis) / 1000;
        Some((page_size(name)?, u64::try_from(bytes).ok()?))
    });
    LinuxResources {
        cpu_shares: Some(cpu_shares(pod_request_millis(pod, "cpu"))),
        cpu_quota_us: cpu_limit.map(cpu_quota_us),
        cpu_period_us: cpu_limit.map(|_| 100_000),
        memory_bytes_max: memory_limit.and_then(|bytes| u64::try_from(bytes).ok()),
        pids_max,
        hugepage_bytes_max: hugepages.collect(),
        ..LinuxResources::default()
    }
}

/// Limits of one container. `memory_capacity_bytes` is the node's.
pub(crate) fn container_resources(
    pod: &Pod,
    container: &Container,
    memory_capacity_bytes: u64,
) -> LinuxResources {
    let cpu_limit = effective_limit_millis(pod, container, "cpu");
    let memory_limit = effective_limit_millis(pod, container, "memory") / 1000;
    let hugepages = container
        .resources
        .iter()
        .filter_map(|r| r.limits.as_ref())
        .flatten();
    LinuxResources {
        cpu_shares: Some(cpu_shares(request_millis(container, "cpu"))),
        cpu_quota_us: (cpu_limit > 0).then(|| cpu_quota_us(cpu_limit)),
        cpu_period_us: (cpu_limit > 0).then_some(100_000),
        memory_bytes_max: (memory_limit > 0)
            .then(|| u64::try_from(memory_limit).unwrap_or(u64::MAX)),
        pids_max: None,
        oom_score_adj: Some(oom_score_adj(pod, container, memory_capacity_bytes)),
        hugepage_bytes_max: hugepages
            .filter_map(|(name, size)| Some((page_size(name)?, quantity::bytes(size)?)))
            .collect(),
    }
}

const HUGEPAGES: &str = "hugepages-";

/// `hugepages-2Mi` as the kernel names its limit: `2MB`.
fn page_size(resource: &str) -> Option<String> {
    Some(resource.strip_prefix(HUGEPAGES)?.replace('i', "B"))
}

/// How early the kernel kills a container when memory is short (`GetContainerOOMScoreAdjust`).
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity_bytes: u64) -> i32 {
    const GUARANTEED: i32 = -997;
    const BEST_EFFORT: i32 = 1000;
    let spec = spec(pod);
    if spec
        .priority
        .is_some_and(|priority| priority >= 2_000_000_000)
    {
        return GUARANTEED;
    }
    match class(pod) {
        QosClass::Guaranteed => GUARANTEED,
        QosClass::BestEffort => BEST_EFFORT,
        QosClass::Burstable => {
            let requested = |c: &Container| request_millis(c, "memory") / 1000;
            let mut request = requested(container);
            let is_init = |name: &str| {
                let mut inits = spec.init_containers.iter().flatten();
                inits.any(|c| c.name == name)
            };
            if is_sidecar(container) && is_init(&container.name) {
                // A sidecar is not to be killed before the containers it serves.
                let least = spec
                    .containers
                    .iter()
                    .map(requested)
                    .min()
                    .unwrap_or(request);
                request = request.max(least);
            }
            let capacity = i128::from(memory_capacity_bytes.max(1));
            let score = i32::try_from(1000 - 1000 * request / capacity).unwrap_or(0);
            score.clamp(1000 + GUARANTEED, BEST_EFFORT - 1)
        }
    }
}

#[cfg(test)]
mod tests;
