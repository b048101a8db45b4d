//! What a write has to pass besides the rules of its kind, in the order kube-apiserver's plugins run.

mod csr;
mod limit_ranger;
mod mirror;
mod namespace;
mod node_restriction;
mod pod_security;
pub(crate) mod priority;
pub(crate) mod quota;
mod runtime_class;
mod service_account;
mod storage;
mod tolerations;

pub use pod_security::{PodSecurityConfig, PodSecurityError};

use std::sync::atomic::Ordering;

use serde_json::Value;
use wherry_api::Status;

use crate::{call::Call, rbac};

pub(crate) async fn create(call: &Call, namespace: &str, object: &mut Value) -> Result<(), Status> {
    if call.resource.namespaced {
        namespace::check(call, namespace, object).await?;
    }
    node_restriction::create(call, object)?;
    rbac::check_escalation(call, object).await?;
    if csr::is_for(call) {
        csr::create(call, object)?;
    }
    if storage::is_for(call) {
        storage::create(call, object).await?;
    }
    limit_ranger::create(call, namespace, object).await?;
    if call.resource.group.is_empty() && call.resource.plural == "pods" {
        mirror::check(call, object)?;
        service_account::admit(call, namespace, object).await?;
        tolerations::add(object, call.app.toleration_seconds.load(Ordering::Relaxed));
        runtime_class::admit(call, object).await?;
        priority::admit(call, object).await?;
    }
    pod_security::namespace::create(call, object)?;
    pod_security::check(call, namespace, object).await?;
    Ok(())
}

/// What a change has to pass besides the rules of its kind.
pub(crate) async fn update(
    call: &Call,
    subresource: &str,
    new: &Value,
    old: &Value,
) -> Result<(), Status> {
    node_restriction::update(call, subresource, new, old)?;
    limit_ranger::update(call, subresource, new).await?;
    if storage::is_for(call) && subresource.is_empty() {
        storage::update(call, new, old).await?;
    }
    if csr::is_for(call) {
        csr::update(call, subresource, new, old).await?;
    }
    if matches!(subresource, "" | "ephemeralcontainers") && new.get("spec") != old.get("spec") {
        pod_security::check(call, call.namespace(), new).await?;
    }
    pod_security::namespace::update(call, subresource, new, old).await?;
    let is_same = |field: &str| new.get(field) == old.get(field);
    if is_same("rules") && is_same("subjects") && is_same("aggregationRule") {
        return Ok(());
    }
    rbac::check_escalation(call, new).await
}

/// What a deletion has to pass; `subresource` is `eviction` for one that is asked for as such.
pub(crate) fn delete(call: &Call, subresource: &str, object: &Value) -> Result<(), Status> {
    node_restriction::delete(call, subresource, object)
}

pub(crate) use node_restriction::token;
pub(crate) use tolerations::SECONDS as TOLERATION_SECONDS;
