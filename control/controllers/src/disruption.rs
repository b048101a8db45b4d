//! PodDisruptionBudgets: how many of their pods may be evicted now. The API server refuses evictions by what this says.
//!
//! How many pods are expected is what their controllers want; a pod without a controller that is known here counts as
//! one that is wanted.

mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, Client, api::PostParams};
use tokio_util::sync::CancellationToken;

use crate::{
    pod_sets,
    pods::{self, PodView},
    replica_set::SetView,
    watched::{Watched, key_of},
    workqueue::{Key, Reconcile, WorkQueue},
};

/// Budgets looked at at once.
const WORKERS: usize = 2;

type Budgets = Arc<Watched<PodDisruptionBudget>>;

/// What the controller hears with.
pub(crate) struct Prepared {
    client: Client,
    queue: Arc<WorkQueue>,
    budgets: Budgets,
}

/// What the controller looks at besides its own kind.
pub(crate) struct World {
    pub(crate) pods: Arc<Watched<PodView>>,
    pub(crate) sets: Arc<Watched<SetView>>,
    pub(crate) controllers: Arc<Watched<SetView>>,
    pub(crate) deployments: Arc<Watched<Deployment>>,
    pub(crate) stateful: Arc<Watched<StatefulSet>>,
}

struct Controller {
    client: Client,
    budgets: Budgets,
    world: World,
}

fn chosen(budget: &PodDisruptionBudget, pod: &PodView) -> bool {
    let spec = budget.spec.as_ref();
    spec.and_then(|spec| spec.selector.as_ref())
        .is_some_and(|selector| pod.is_selected_by(&pods::selector(selector)))
}

impl Prepared {
    /// Hears of changes from now on.
    pub(crate) fn new(
        client: Client,
        pods: &mut Watched<PodView>,
        sets: [&mut Watched<SetView>; 2],
    ) -> Self {
        let queue = Arc::new(WorkQueue::default());
        let mut budgets = Watched::<PodDisruptionBudget>::new("PodDisruptionBudgets");
        budgets.name_in(&queue);
        let budgets = Arc::new(budgets);
        let (named, all) = (queue.clone(), budgets.clone());
        pods.listen(move |old, new| {
            let Some(pod) = new.or(old) else { return };
            for budget in all.in_namespace(&pod.key.namespace) {
                let chooses = |pod: &Arc<PodView>| chosen(&budget, pod);
                if old.is_some_and(chooses) || new.is_some_and(chooses) {
                    named.add(key_of(&*budget));
                }
            }
        });
        for sets in sets {
            let (named, all) = (queue.clone(), budgets.clone());
            sets.listen(move |old, new| {
                let replicas = |set: Option<&Arc<SetView>>| set.map(|set| set.replicas);
                if replicas(old) == replicas(new) {
                    return;
                }
                let Some(set) = new.or(old) else { return };
                for budget in all.in_namespace(&set.key.namespace) {
                    named.add(key_of(&*budget));
                }
            });
        }
        Self {
            client,
            queue,
            budgets,
        }
    }

    /// Watches its kind and runs until shutdown.
    pub(crate) async fn run(self, world: World, shutdown: CancellationToken) {
        let api = Api::all(self.client.clone());
        let (queue, budgets) = (self.queue, self.budgets);
        let controller = Arc::new(Controller {
            client: self.client,
            budgets: budgets.clone(),
            world,
        });
        pod_sets::watch_and_reconcile(api, budgets, queue, controller, shutdown).await;
    }
}

impl Reconcile for Controller {
    const WORKERS: usize = WORKERS;

    fn complaint(&self) -> &'static str {
        "PodDisruptionBudget not reconciled"
    }

    async fn complete(&self) {
        tokio::join!(
            self.budgets.complete(),
            self.world.pods.complete(),
            self.world.sets.complete(),
            self.world.controllers.complete(),
            self.world.deployments.complete(),
            self.world.stateful.complete()
        );
    }

    async fn reconcile(&self, key: &Key) -> kube::Result<Option<Duration>> {
        let Some(budget) = self.budgets.get(key) else {
            return Ok(None);
        };
        if budget.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let mut pods = self.world.pods.in_namespace(&key.namespace);
        pods.retain(|pod| !pod.is_finished() && chosen(&budget, pod));
        let expected = self.expected(&pods);
        let (status, again) = plan::status(&budget, &pods, expected, Timestamp::now());
        if budget.status.as_ref() != Some(&status) {
            // With the version that was read: an eviction that came between must not be lost.
            let mut wanted = (*budget).clone();
            wanted.status = Some(status);
            let api: Api<PodDisruptionBudget> =
                Api::namespaced(self.client.clone(), &key.namespace);
            let written = api
                .replace_status(&key.name, &PostParams::default(), &wanted)
                .await;
            match written {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                written => written.map(drop)?,
            }
        }
        let again = again.and_then(|seconds| u64::try_from(seconds).ok());
        Ok(again.map(|seconds| Duration::from_secs(seconds.max(1))))
    }
}

impl Controller {
    /// What the controllers of these pods want together.
    fn expected(&self, pods: &[Arc<PodView>]) -> i32 {
        let mut by_controller: BTreeMap<String, i32> = BTreeMap::new();
        let mut alone = 0;
        for pod in pods {
            match self.scale(pod) {
                Some((uid, replicas)) => {
                    by_controller.insert(uid, replicas);
                }
                None => alone += 1,
            }
        }
        by_controller.into_values().sum::<i32>() + alone
    }

    /// Who decides how many there are of a pod, and how many that is.
    fn scale(&self, pod: &PodView) -> Option<(String, i32)> {
        let owner = pod.controller.as_ref()?;
        let key = Key::new(pod.key.namespace.clone(), owner.name.clone());
        let of = |set: Arc<SetView>| (set.uid.clone(), set.replicas);
        match owner.kind.as_str() {
            "ReplicationController" => self.world.controllers.get(&key).map(of),
            "StatefulSet" => {
                let set = self.world.stateful.get(&key)?;
                let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
                Some((owner.uid.clone(), replicas.unwrap_or(1)))
            }
            "ReplicaSet" => {
                let set = self.world.sets.get(&key)?;
                let above = set.controller.as_ref();
                let Some(above) = above.filter(|above| above.kind == "Deployment") else {
                    return Some(of(set));
                };
                let key = Key::new(key.namespace.clone(), above.name.clone());
                let deployment = self.world.deployments.get(&key)?;
                let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
                Some((above.uid.clone(), replicas.unwrap_or(1)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
