//! Objects that pods refer to: ConfigMaps, Secrets, RuntimeClasses, ServiceAccounts.
//!
//! Only what a pod of this node names is ever asked for. An answer is good for a moment, so that many
//! pods starting at once ask once; when the API server cannot be asked, the last answer stands, so
//! that containers restart without it. What volumes show is followed object by object ([`follow`]).

mod follow;

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        authentication::v1::{
            BoundObjectReference, TokenRequest, TokenRequestSpec, TokenRequestStatus,
        },
        core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, ServiceAccount},
        node::v1::RuntimeClass,
    },
};
use kube::{Api, Client, Resource, api::PostParams};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::debug;
use wherry_volumes::{ObjectRef, ObjectSource, TokenParams};

use follow::{Follow, Followed, Shown};

/// How long an answer is good.
const FRESH: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Answers remembered of each kind; the oldest is forgotten beyond.
const REMEMBERED_MAX: usize = 512;

/// Why an object could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ObjectError {
    /// There is no API server, or it does not answer, and nothing is remembered.
    #[error("{what}: {why}")]
    Unavailable {
        /// `configmap ns/name`.
        what: String,
        /// The trouble.
        why: String,
    },
}

struct Answer<T> {
    object: Option<Arc<T>>,
    at: Instant,
}

struct Cache<T> {
    answers: Mutex<HashMap<(String, String), Answer<T>>>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self {
            answers: Mutex::default(),
        }
    }
}

impl<T> Cache<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Answer<T>>> {
        // Every change is one insert or remove.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That there is none is never taken from here: somebody may just be creating it.
    fn fresh(&self, key: &(String, String)) -> Option<Arc<T>> {
        self.lock()
            .get(key)
            .filter(|answer| answer.at.elapsed() < FRESH)?
            .object
            .clone()
    }

    fn stale(&self, key: &(String, String)) -> Option<Option<Arc<T>>> {
        self.lock().get(key).map(|answer| answer.object.clone())
    }

    fn put(&self, key: (String, String), object: Option<Arc<T>>) {
        let mut answers = self.lock();
        if answers.len() >= REMEMBERED_MAX
            && !answers.contains_key(&key)
            && let Some(oldest) = answers
                .iter()
                .min_by_key(|(_, answer)| answer.at)
                .map(|(key, _)| key.clone())
        {
            answers.remove(&oldest);
        }
        answers.insert(
            key,
            Answer {
                object,
                at: Instant::now(),
            },
        );
    }

    async fn get(
        &self,
        what: &str,
        namespace: &str,
        name: &str,
        ask: impl Future<Output = Result<Option<T>, String>>,
    ) -> Result<Option<Arc<T>>, ObjectError> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(object) = self.fresh(&key) {
            return Ok(Some(object));
        }
        let answer = tokio::time::timeout(TIMEOUT, ask)
            .await
            .unwrap_or_else(|_| Err("no answer in time".into()));
        match answer {
            Ok(object) => {
                let object = object.map(Arc::new);
                self.put(key, object.clone());
                Ok(object)
            }
            Err(why) => match self.stale(&key) {
                Some(object) => {
                    debug!(
                        kind = what,
                        namespace, name, why, "Going on with what is remembered"
                    );
                    Ok(object)
                }
                None => Err(ObjectError::Unavailable {
                    what: format!("{what} {namespace}/{name}"),
                    why,
                }),
            },
        }
    }
}

/// Objects that pods refer to.
pub(crate) struct Objects {
    client: Option<Client>,
    config_maps: Cache<ConfigMap>,
    secrets: Cache<Secret>,
    claims: Cache<PersistentVolumeClaim>,
    persistent_volumes: Cache<PersistentVolume>,
    classes: Cache<RuntimeClass>,
    accounts: Cache<ServiceAccount>,
    followed_config_maps: Followed<ConfigMap>,
    followed_secrets: Followed<Secret>,
}

/// Follows an object that a volume shows, as long as it is kept.
pub(crate) enum Following {
    /// A ConfigMap.
    ConfigMap(Follow<ConfigMap>),
    /// A Secret.
    Secret(Follow<Secret>),
}

impl Following {
    /// Waits for another version of it; the first one counts. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        match self {
            Self::ConfigMap(object) => object.changed().await,
            Self::Secret(object) => object.changed().await,
        }
    }

    /// Whether the API server tells of changes by now.
    pub(crate) fn is_watched(&self) -> bool {
        match self {
            Self::ConfigMap(object) => object.is_watched(),
            Self::Secret(object) => object.is_watched(),
        }
    }
}

impl Objects {
    /// Asks `client`; without one there are no objects.
    pub(crate) fn new(client: Option<Client>) -> Self {
        Self {
            client,
            config_maps: Cache::default(),
            secrets: Cache::default(),
            claims: Cache::default(),
            persistent_volumes: Cache::default(),
            classes: Cache::default(),
            accounts: Cache::default(),
            followed_config_maps: Followed::default(),
            followed_secrets: Followed::default(),
        }
    }

    /// Follows an object of a namespace; `None` without an API server.
    pub(crate) fn follow(&self, namespace: &str, object: &ObjectRef) -> Option<Following> {
        let client = self.client.as_ref()?;
        Some(match object {
            ObjectRef::ConfigMap(name) => {
                let followed = &self.followed_config_maps;
                Following::ConfigMap(followed.follow(client, namespace, name))
            }
            ObjectRef::Secret(name) => {
                let followed = &self.followed_secrets;
                Following::Secret(followed.follow(client, namespace, name))
            }
        })
    }

    /// Objects that are watched now.
    #[cfg(test)]
    pub(crate) fn watched(&self) -> usize {
        self.followed_config_maps.count() + self.followed_secrets.count()
    }

    /// What a watch says, else what the API server says.
    async fn shown<K: Shown>(
        &self,
        followed: &Followed<K>,
        cache: &Cache<K>,
        what: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<K>, String> {
        if let Some(object) = followed.known(namespace, name) {
            return Ok(Some(K::clone(&object)));
        }
        let object = cache
            .get(what, namespace, name, self.ask(namespace, name))
            .await;
        object
            .map(|object| object.map(Arc::unwrap_or_clone))
            .map_err(text)
    }

    async fn ask<K>(&self, namespace: &str, name: &str) -> Result<Option<K>, String>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let client = self.client.clone().ok_or_else(no_server)?;
        Api::<K>::namespaced(client, namespace)
            .get_opt(name)
            .await
            .map_err(text)
    }

    /// A ConfigMap; `None` if there is none.
    pub(crate) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, ObjectError> {
        self.config_maps
            .get("configmap", namespace, name, self.ask(namespace, name))
            .await
    }

    /// A Secret; `None` if there is none.
    pub(crate) async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, ObjectError> {
        self.secrets
            .get("secret", namespace, name, self.ask(namespace, name))
            .await
    }

    /// Names of the pull secrets of a ServiceAccount. Nodes may not be allowed to know.
    pub(crate) async fn account_pull_secrets(&self, namespace: &str, name: &str) -> Vec<String> {
        let account = self
            .accounts
            .get("serviceaccount", namespace, name, self.ask(namespace, name))
            .await;
        let account = account.ok().flatten();
        let secrets = account
            .iter()
            .filter_map(|account| account.image_pull_secrets.as_ref())
            .flatten();
        secrets.map(|secret| secret.name.clone()).collect()
    }

    /// The handler of a RuntimeClass; `None` if there is no such class. Without an API server the
    /// class's name is the handler.
    pub(crate) async fn runtime_handler(&self, class: &str) -> Result<Option<String>, ObjectError> {
        let Some(client) = self.client.clone() else {
            return Ok(Some(class.into()));
        };
        let ask = async move {
            Api::<RuntimeClass>::all(client)
                .get_opt(class)
                .await
                .map_err(text)
        };
        let class = self.classes.get("runtimeclass", "", class, ask).await?;
        Ok(class.map(|class| class.handler.clone()))
    }
}

fn no_server() -> String {
    "no API server".into()
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[async_trait]
impl ObjectSource for Objects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, String> {
        let (followed, cache) = (&self.followed_config_maps, &self.config_maps);
        self.shown(followed, cache, "configmap", namespace, name)
            .await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, String> {
        let (followed, cache) = (&self.followed_secrets, &self.secrets);
        self.shown(followed, cache, "secret", namespace, name).await
    }

    async fn persistent_volume_claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, String> {
        let asked = self.claims.get(
            "persistentvolumeclaim",
            namespace,
            name,
            self.ask(namespace, name),
        );
        let object = asked.await.map_err(text)?;
        Ok(object.map(Arc::unwrap_or_clone))
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, String> {
        let client = self.client.clone().ok_or_else(no_server)?;
        let ask = async move {
            Api::<PersistentVolume>::all(client)
                .get_opt(name)
                .await
                .map_err(text)
        };
        let asked = self
            .persistent_volumes
            .get("persistentvolume", "", name, ask);
        let object = asked.await.map_err(text)?;
        Ok(object.map(Arc::unwrap_or_clone))
    }

    async fn service_account_token(
        &self,
        params: &TokenParams,
    ) -> Result<TokenRequestStatus, String> {
        let client = self.client.clone().ok_or_else(no_server)?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, &params.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(params.audiences.clone()).filter(|list| !list.is_empty()),
                expiration_seconds: Some(params.expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(params.pod_name.clone()),
                    uid: Some(params.pod_uid.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(&params.service_account, &PostParams::default(), &request)
            .await;
        answer
            .map_err(text)?
            .status
            .ok_or_else(|| "the API server answered no token".into())
    }
}

#[cfg(test)]
mod tests;
