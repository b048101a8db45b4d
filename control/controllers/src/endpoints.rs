//! Endpoints and EndpointSlices: where the pods of a Service are.
//!
//! ```text
//!  Service with selector ─▶ its pods ─┬▶ EndpointSlices `<service>-<hash>`, at most 100 endpoints each
//!                                     └▶ Endpoints of the Service's name
//!  Service without selector ─▶ Endpoints made by hand ─▶ EndpointSlices of the same
//! ```
//!
//! Slices that are there keep the endpoints they have, so that a change writes one slice and not all.

mod legacy;
mod mirror;
mod plan;
mod slices;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Endpoints, Service, ServicePort},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::{
    pods::PodView,
    watched::{Watched, key_of},
    workqueue::{Key, Reconcile, WorkQueue},
};

use self::slices::Changes;

/// Services looked at at once (`--concurrent-service-endpoint-syncs`).
const WORKERS: usize = 5;
/// On slices: the Service that they are of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// On slices: who keeps them.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const OF_PODS: &str = "endpointslice-controller.k8s.io";
const OF_ENDPOINTS: &str = "endpointslicemirroring-controller.k8s.io";
/// On what belongs to a Service without a cluster IP.
const HEADLESS: &str = "service.kubernetes.io/headless";

type Labels = BTreeMap<String, String>;

/// A Service, as far as its endpoints depend on it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceView {
    key: Key,
    uid: String,
    labels: Labels,
    is_deleting: bool,
    is_external_name: bool,
    is_headless: bool,
    /// `None`: its endpoints are made by hand.
    selector: Option<Labels>,
    publishes_not_ready: bool,
    families: Vec<String>,
    ports: Vec<ServicePort>,
}

impl From<Service> for ServiceView {
    fn from(service: Service) -> Self {
        let key = key_of(&service);
        let spec = service.spec.unwrap_or_default();
        let families = spec.ip_families.filter(|families| !families.is_empty());
        let is_v6 = |ip: &String| ip.contains(':');
        let family = if spec.cluster_ip.as_ref().is_some_and(is_v6) {
            "IPv6"
        } else {
            "IPv4"
        };
        Self {
            key,
            uid: service.metadata.uid.unwrap_or_default(),
            labels: service.metadata.labels.unwrap_or_default(),
            is_deleting: service.metadata.deletion_timestamp.is_some(),
            is_external_name: spec.type_.as_deref() == Some("ExternalName"),
            is_headless: spec.cluster_ip.as_deref() == Some("None"),
            selector: spec.selector.filter(|selector| !selector.is_empty()),
            publishes_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            families: families.unwrap_or_else(|| vec![family.to_owned()]),
            ports: spec.ports.unwrap_or_default(),
        }
    }
}

impl ServiceView {
    fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| {
            selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        })
    }
}

/// Services that have gone, until their Endpoints have.
type Gone = Arc<Mutex<HashSet<Key>>>;

/// What the controller hears with.
pub(crate) struct Prepared {
    client: Client,
    queue: Arc<WorkQueue>,
    gone: Gone,
}

/// The controller.
struct Controller {
    client: Client,
    gone: Gone,
    services: Arc<Watched<ServiceView>>,
    pods: Arc<Watched<PodView>>,
    endpoints: Arc<Watched<Endpoints>>,
    slices: Arc<Watched<EndpointSlice>>,
}

impl Prepared {
    /// Hears of changes from now on; of pods too after [`Prepared::hear_pods`].
    pub(crate) fn new(
        client: Client,
        services: &mut Watched<ServiceView>,
        endpoints: &mut Watched<Endpoints>,
        slices: &mut Watched<EndpointSlice>,
    ) -> Self {
        let queue = Arc::new(WorkQueue::default());
        let gone = Gone::default();
        let (named, left) = (queue.clone(), gone.clone());
        services.listen(move |old, new| {
            let Some(service) = new.or(old) else { return };
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            match new {
                Some(_) => left.remove(&service.key),
                None => left.insert(service.key.clone()),
            };
            named.add(service.key.clone());
        });
        endpoints.name_in(&queue);
        let named = queue.clone();
        slices.listen(move |old, new| {
            for slice in old.into_iter().chain(new) {
                if let Some(service) = slices::service(slice) {
                    named.add(service);
                }
            }
        });
        Self {
            client,
            queue,
            gone,
        }
    }

    /// A change of a pod is one of the Services that choose it.
    pub(crate) fn hear_pods(
        &self,
        pods: &mut Watched<PodView>,
        services: &Arc<Watched<ServiceView>>,
    ) {
        let (named, services) = (self.queue.clone(), services.clone());
        pods.listen(move |old, new| {
            if let (Some(old), Some(new)) = (old, new)
                && plan::is_same(old, new)
            {
                return;
            }
            let Some(pod) = new.or(old) else { return };
            for service in services.in_namespace(&pod.key.namespace) {
                let chooses = |pod: &Arc<PodView>| service.selects(&pod.labels);
                if old.is_some_and(chooses) || new.is_some_and(chooses) {
                    named.add(service.key.clone());
                }
            }
        });
    }

    /// Runs until shutdown.
    pub(crate) async fn run(
        self,
        services: Arc<Watched<ServiceView>>,
        pods: Arc<Watched<PodView>>,
        endpoints: Arc<Watched<Endpoints>>,
        slices: Arc<Watched<EndpointSlice>>,
        shutdown: CancellationToken,
    ) {
        let controller = Arc::new(Controller {
            client: self.client,
            gone: self.gone,
            services,
            pods,
            endpoints,
            slices,
        });
        self.queue.reconcile(controller, shutdown).await;
    }
}

impl Reconcile for Controller {
    const WORKERS: usize = WORKERS;

    fn complaint(&self) -> &'static str {
        "Endpoints not reconciled"
    }

    async fn complete(&self) {
        tokio::join!(
            self.services.complete(),
            self.pods.complete(),
            self.endpoints.complete(),
            self.slices.complete()
        );
    }

    async fn reconcile(&self, key: &Key) -> kube::Result<Option<Duration>> {
        let endpoints = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            self.end(key, endpoints.as_deref()).await?;
            return Ok(None);
        };
        if service.is_deleting || service.is_external_name {
            return Ok(None);
        }
        if service.selector.is_none() {
            let changes = match endpoints
                .as_deref()
                .filter(|found| mirror::is_wanted(found))
            {
                Some(endpoints) => mirror::plan(endpoints, &self.slices_of(key, OF_ENDPOINTS)),
                None => Changes::all_gone(&self.slices_of(key, OF_ENDPOINTS)),
            };
            self.apply(key, changes).await?;
            return Ok(None);
        }
        let pods: Vec<_> = self
            .pods
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|pod| service.selects(&pod.labels))
            .collect();
        let changes = plan::plan(&service, &pods, &self.slices_of(key, OF_PODS));
        self.apply(key, changes).await?;
        // Whatever was mirrored before the Service had a selector.
        let mirrored = self.slices_of(key, OF_ENDPOINTS);
        self.apply(key, Changes::all_gone(&mirrored)).await?;
        if let Some(wanted) = legacy::plan(&service, &pods, endpoints.as_deref()) {
            self.write_endpoints(key, &wanted, endpoints.is_some())
                .await?;
        }
        Ok(None)
    }
}

impl Controller {
    /// A Service has gone, and its Endpoints go with it. Its slices have an owner and are collected.
    async fn end(&self, key: &Key, endpoints: Option<&Endpoints>) -> kube::Result<()> {
        let gone = || self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let was_there = gone().contains(key);
        if endpoints.is_some_and(|found| was_there || legacy::is_ours(found)) {
            let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
            accept(
                &[404],
                api.delete(&key.name, &DeleteParams::default()).await,
            )?;
        }
        gone().remove(key);
        self.apply(key, Changes::all_gone(&self.slices_of(key, OF_ENDPOINTS)))
            .await
    }

    fn slices_of(&self, service: &Key, managed_by: &str) -> Vec<Arc<EndpointSlice>> {
        let prefix = format!("{}-", service.name);
        let mut found = self.slices.with_prefix(&service.namespace, &prefix);
        found.retain(|slice| {
            let labels = slice.metadata.labels.as_ref();
            labels.is_some_and(|labels| {
                labels.get(SERVICE_NAME) == Some(&service.name)
                    && labels.get(MANAGED_BY).is_some_and(|by| by == managed_by)
            })
        });
        found
    }

    async fn apply(&self, key: &Key, changes: Changes) -> kube::Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let parameters = PostParams::default();
        for slice in &changes.create {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            match api.create(&parameters, slice).await {
                // Made a moment ago, and not seen yet.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    accept(&[404], api.replace(name, &parameters, slice).await)?;
                }
                created => accept(&[404], created)?,
            }
        }
        for slice in &changes.update {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            accept(&[404], api.replace(name, &parameters, slice).await)?;
        }
        for name in &changes.delete {
            accept(&[404], api.delete(name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }

    async fn write_endpoints(
        &self,
        key: &Key,
        wanted: &Endpoints,
        is_there: bool,
    ) -> kube::Result<()> {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let parameters = PostParams::default();
        if !is_there {
            match api.create(&parameters, wanted).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                created => return accept(&[404], created),
            }
        }
        accept(&[404], api.replace(&key.name, &parameters, wanted).await)
    }
}

/// Some refusals only say that the world has moved on, and that news of it is on the way. So does the refusal to make
/// something in a namespace that goes away.
fn accept<T>(codes: &[u16], result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status))
            if codes.contains(&status.code)
                || (status.code == 403
                    && status.message.contains("because it is being terminated")) =>
        {
            Ok(())
        }
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests;
