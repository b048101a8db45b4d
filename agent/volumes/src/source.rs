//! Where volumes get the objects they show.

use async_trait::async_trait;
use k8s_openapi::api::{
    authentication::v1::TokenRequestStatus,
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret},
};

/// The objects that volumes show, however the agent gets at them (a watch, a cache, the disk).
///
/// `Ok(None)` is "the API server says there is none"; `Err` is "could not be asked", in which case
/// a volume that is set up already keeps what it has.
#[async_trait]
pub trait ObjectSource: Send + Sync + 'static {
    /// A ConfigMap.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, String>;

    /// A Secret.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, String>;

    /// A claim of a pod's namespace.
    async fn persistent_volume_claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, String>;

    /// What a claim is bound to.
    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, String>;

    /// A new token for a ServiceAccount, bound to a pod. Asked for only when there is none in the
    /// volume or that one is near its end.
    async fn service_account_token(
        &self,
        params: &TokenParams,
    ) -> Result<TokenRequestStatus, String>;
}

/// What a projected token is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenParams {
    /// Namespace of pod and ServiceAccount.
    pub namespace: String,
    /// The ServiceAccount.
    pub service_account: String,
    /// Audiences; empty for the API server's own.
    pub audiences: Vec<String>,
    /// Wanted lifetime in seconds.
    pub expiration_seconds: i64,
    /// The pod it is bound to.
    pub pod_name: String,
    /// The pod it is bound to.
    pub pod_uid: String,
}
