//! What a write has to pass besides the rules of its kind, in the order kube-apiserver's plugins run.

mod mirror;
mod namespace;
mod priority;
mod runtime_class;
mod service_account;
mod tolerations;

use serde_json::Value;
use wherry_api::Status;

use crate::call::Call;

pub(crate) async fn create(call: &Call, namespace: &str, object: &mut Value) -> Result<(), Status> {
    if call.resource.namespaced {
        namespace::check(call, namespace, object).await?;
    }
    if call.resource.group.is_empty() && call.resource.plural == "pods" {
        mirror::check(call, object)?;
        service_account::admit(call, namespace, object).await?;
        tolerations::add(object);
        runtime_class::admit(call, object).await?;
        priority::admit(call, object)?;
    }
    Ok(())
}
