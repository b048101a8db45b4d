//! Volumes for claims: binding them to each other, making and taking away those of the built-in class, and keeping
//! what is in use.
//!
//! ```text
//!  claim ── pending ─▶ class waits? ── yes ─▶ the scheduler names a node, or a volume ─┐
//!              │                                                                      ▼
//!              └─ a volume that suffices, or one that is made ───────────────────▶ bound ─▶ released, when the claim goes
//! ```
//!
//! The volumes of `local-path.wherry.dev` are directories below the root of the node that the first pod of a claim is
//! scheduled to. The node makes and removes them when it is asked through the API server's node proxy, so that it needs
//! no rights on claims and volumes. A provisioner that is a plugin's (`loop.wherry.dev`, or the name of a Plugin) is asked
//! the same way to make volumes and to take them away, on the claim's node or any that has it; one that makes none
//! (`memfs.wherry.dev`) gives volumes that exist where they are mounted, which are only written down. The nodes that have
//! a plugin's volume mounted make it larger. Left to others: choosing the node ([`crate::scheduler`]), mounting, and the
//! volumes of other provisioners.

mod effects;
mod ephemeral;
mod expand;
mod flights;
pub(crate) mod matching;
mod plan;
mod provision;
mod provisioner;
pub(crate) mod view;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::{
    events::Recorder,
    nodes::NodeView,
    pods::PodView,
    watched::Watched,
    workqueue::{Key, WorkQueue},
};

use self::{
    effects::{Effects, failed},
    flights::{Flights, Turn},
    plan::{ClaimStep, PLUGIN, VolumeStep, World, claim_step, unfit_for_plugin, volume_step},
    provisioner::Creation,
    view::{ClaimView, ClassView, VolumeView},
};

/// Claims and volumes that are looked at at once: one of each, so that two claims do not choose one volume.
const WORKERS: usize = 1;

/// When something that others have to do is looked at again (`--pvclaimbinder-sync-period`).
const SYNC_PERIOD: Duration = Duration::from_secs(15);

/// Volumes and claims, ready to be run.
pub(crate) struct Prepared {
    client: Client,
    recorder: Recorder,
    volumes: Watched<VolumeView>,
    claims: Watched<ClaimView>,
    classes: Watched<ClassView>,
    queues: Queues,
}

#[derive(Clone, Default)]
struct Queues {
    claims: Arc<WorkQueue>,
    volumes: Arc<WorkQueue>,
    /// Pods that have volumes made for them.
    pods: Arc<WorkQueue>,
}

/// What all of it sees.
struct Controller {
    volumes: Arc<Watched<VolumeView>>,
    claims: Arc<Watched<ClaimView>>,
    classes: Arc<Watched<ClassView>>,
    pods: Arc<Watched<PodView>>,
    nodes: Arc<Watched<NodeView>>,
    queues: Queues,
    effects: Arc<Effects>,
    /// What nodes' plugins have been asked for.
    flights: Arc<Flights>,
}

impl Prepared {
    /// Hears of pods; of everything else it hears itself.
    pub(crate) fn new(client: Client, recorder: Recorder, pods: &mut Watched<PodView>) -> Self {
        let queues = Queues::default();
        let mut volumes = Watched::<VolumeView>::new("PersistentVolumes");
        let mut claims = Watched::<ClaimView>::new("PersistentVolumeClaims");
        let of = queues.clone();
        volumes.listen(move |old, new| {
            if let Some(volume) = new.or(old) {
                of.volumes.add(Key::new("", &volume.name));
                if let Some(claim) = volume.claim_key() {
                    of.claims.add(claim);
                }
            }
        });
        let of = queues.clone();
        claims.listen(move |old, new| {
            if let Some(claim) = new.or(old) {
                of.claims.add(claim.key.clone());
                if !claim.volume.is_empty() {
                    of.volumes.add(Key::new("", &claim.volume));
                }
            }
        });
        let of = queues.clone();
        pods.listen(move |old, new| {
            let was_using = old.is_some_and(|pod| !pod.is_finished());
            let is_using = new.is_some_and(|pod| !pod.is_finished());
            let Some(pod) = new.or(old).filter(|pod| !pod.claims.is_empty()) else {
                return;
            };
            // Volumes are made larger where they are mounted.
            let has_moved = old.is_some_and(|old| new.is_some_and(|new| old.node != new.node));
            if was_using != is_using || has_moved {
                for name in &pod.claims {
                    of.claims.add(Key::new(&pod.key.namespace, name));
                }
            }
            if pod.has_ephemeral && old.is_none() {
                of.pods.add(pod.key.clone());
            }
        });
        Self {
            client,
            recorder,
            volumes,
            claims,
            classes: Watched::new("StorageClasses"),
            queues,
        }
    }

    /// Looks after volumes and claims until shutdown.
    pub(crate) async fn run(
        self,
        pods: Arc<Watched<PodView>>,
        nodes: Arc<Watched<NodeView>>,
        shutdown: CancellationToken,
    ) {
        let mut classes = self.classes;
        let (volumes, claims) = (Arc::new(self.volumes), Arc::new(self.claims));
        let (of_claims, queue) = (claims.clone(), self.queues.claims.clone());
        // A class that comes may be what claims have waited for.
        classes.listen(move |_, new| {
            if new.is_some() {
                let waiting = of_claims.all();
                for claim in waiting.iter().filter(|claim| claim.phase != "Bound") {
                    queue.add(claim.key.clone());
                }
            }
        });
        let classes = Arc::new(classes);
        let flights = Arc::new(Flights::default());
        let controller = Arc::new(Controller {
            volumes: volumes.clone(),
            claims: claims.clone(),
            classes: classes.clone(),
            pods: pods.clone(),
            nodes: nodes.clone(),
            queues: self.queues.clone(),
            effects: Arc::new(Effects::new(self.client.clone(), self.recorder)),
            flights: Arc::clone(&flights),
        });
        let stop = || shutdown.clone();
        let client = self.client;
        let work = async {
            tokio::join!(
                volumes.complete(),
                claims.complete(),
                classes.complete(),
                pods.complete(),
                nodes.complete()
            );
            let (of_claims, of_volumes, of_pods) =
                (controller.clone(), controller.clone(), controller.clone());
            tokio::join!(
                self.queues
                    .claims
                    .run("Claim not looked after", WORKERS, stop(), move |key| {
                        let controller = of_claims.clone();
                        async move { controller.look_at_claim(&key).await }
                    }),
                self.queues
                    .volumes
                    .run("Volume not looked after", WORKERS, stop(), move |key| {
                        let controller = of_volumes.clone();
                        async move { controller.look_at_volume(&key.name).await }
                    }),
                self.queues
                    .pods
                    .run("Claims not made for a pod", WORKERS, stop(), move |key| {
                        let controller = of_pods.clone();
                        async move { controller.make_claims(&key).await }
                    }),
            );
        };
        tokio::join!(
            volumes.clone().run(
                Api::<PersistentVolume>::all(client.clone()),
                VolumeView::from,
                stop()
            ),
            claims.clone().run(
                Api::<PersistentVolumeClaim>::all(client.clone()),
                ClaimView::from,
                stop()
            ),
            classes.clone().run(
                Api::<StorageClass>::all(client.clone()),
                ClassView::from,
                stop()
            ),
            async {
                // What is not there yet when it is told to stop will not come.
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = work => {}
                }
                flights.stop().await;
            }
        );
    }
}

impl Controller {
    async fn look_at_claim(&self, key: &Key) -> kube::Result<Option<Duration>> {
        let Some(claim) = self.claims.get(key) else {
            self.flights.forget(key);
            return Ok(None);
        };
        let users = self.users(&claim);
        if claim.is_deleted {
            if users.is_empty() {
                self.effects.release_claim(&claim).await?;
            }
            return Ok(None);
        }
        if self.effects.protect_claim(&claim).await? {
            return Ok(None);
        }
        let world = World {
            volumes: self.volumes.all(),
            classes: self.classes.all(),
            nodes: self
                .nodes
                .all()
                .iter()
                .map(|node| node.key.name.clone())
                .collect(),
            waiting_pod: users
                .iter()
                .find(|pod| pod.node.is_empty())
                .map(|pod| pod.key.name.clone()),
        };
        let step = claim_step(&claim, &world);
        match step {
            ClaimStep::Done => Ok(None),
            ClaimStep::Wait(say) => {
                if let Some(say) = say {
                    self.effects.say_of_claim(&claim, say);
                }
                if claim.phase != "Bound" {
                    self.effects.set_claim_phase(&claim, "Pending").await?;
                }
                Ok(Some(SYNC_PERIOD))
            }
            ClaimStep::Bind(volume) => {
                if let Some(volume) = self.volumes.get(&Key::new("", volume)) {
                    self.effects.bind(&claim, &volume).await?;
                }
                Ok(None)
            }
            ClaimStep::Lost(say) => {
                if claim.phase != "Lost" {
                    self.effects.set_claim_phase(&claim, "Lost").await?;
                    self.effects.say_of_claim(&claim, say);
                }
                Ok(None)
            }
            ClaimStep::TakeClass(class) => {
                self.effects.take_class(&claim, &class).await?;
                Ok(None)
            }
            ClaimStep::Ask {
                class,
                provisioner,
                node,
            } => {
                if !self.effects.is_installed(&provisioner).await? {
                    self.effects.ask(&claim, &provisioner).await?;
                    return Ok(Some(SYNC_PERIOD));
                }
                if let Some(why) = unfit_for_plugin(&claim) {
                    let message =
                        format!("failed to provision volume with StorageClass {class:?}: {why}");
                    self.effects
                        .say_of_claim(&claim, failed("ProvisioningFailed", message));
                    return Ok(Some(SYNC_PERIOD));
                }
                self.provision(claim, class, provisioner, node).await
            }
            ClaimStep::Make { node, class } => {
                let view = self.nodes.get(&Key::new("", &node));
                let labels = view.map(|node| node.labels.clone()).unwrap_or_default();
                self.effects.make(&claim, &node, &labels, &class).await
            }
            ClaimStep::Give {
                class,
                plugin,
                node,
            } => self.provision(claim, class, plugin, node).await,
            ClaimStep::ForgetNode => {
                self.effects.forget_node(&claim).await?;
                Ok(None)
            }
            ClaimStep::Grow(volume) => {
                self.effects.grow(&claim, &volume, None).await?;
                Ok(None)
            }
            ClaimStep::Expand(volume) => {
                let on_nodes = users.iter().filter(|pod| !pod.node.is_empty());
                let on_nodes: Vec<_> = on_nodes
                    .map(|pod| (pod.node.clone(), pod.key.name.clone()))
                    .collect();
                self.effects.expand(&claim, &volume, &on_nodes).await
            }
            ClaimStep::Settle => {
                self.effects.settle(&claim).await?;
                Ok(None)
            }
        }
    }

    /// Has a plugin make a claim's volume, if it is not at it.
    async fn provision(
        &self,
        claim: Arc<ClaimView>,
        class: String,
        provisioner: String,
        node: String,
    ) -> kube::Result<Option<Duration>> {
        if self.effects.name_provisioner(&claim, &provisioner).await? {
            // It is looked at again as it has been written.
            return Ok(None);
        }
        self.effects.set_claim_phase(&claim, "Pending").await?;
        let key = claim.key.clone();
        let failures = match self.flights.turn(&key, &provisioner, Instant::now()) {
            Turn::UnderWay => return Ok(None),
            Turn::Wait(left) => return Ok(Some(left)),
            Turn::Go(failures) => failures,
        };
        let creation = Creation {
            claim,
            class,
            provisioner: provisioner.clone(),
            node,
            nodes: self.nodes.all(),
            failures,
        };
        let effects = Arc::clone(&self.effects);
        let work = async move { effects.create(creation).await };
        self.flights.begin(key, &provisioner, &self.queues, work);
        Ok(None)
    }

    /// Has a plugin take a volume away, if it is not at it.
    fn delete(&self, volume: Arc<VolumeView>) -> Option<Duration> {
        let key = Key::new("", &volume.name);
        let plugin = volume.annotations.get(PLUGIN).cloned().unwrap_or_default();
        match self.flights.turn(&key, &plugin, Instant::now()) {
            Turn::UnderWay => return None,
            Turn::Wait(left) => return Some(left),
            Turn::Go(_) => {}
        }
        let (effects, nodes) = (Arc::clone(&self.effects), self.nodes.all());
        let work = async move { effects.delete(volume, nodes).await };
        self.flights.begin(key, &plugin, &self.queues, work);
        None
    }

    /// Pods that use a claim and have not ended.
    fn users(&self, claim: &ClaimView) -> Vec<Arc<PodView>> {
        let mut pods = self.pods.in_namespace(&claim.key.namespace);
        pods.retain(|pod| !pod.is_finished() && pod.claims.contains(&claim.key.name));
        pods
    }

    async fn look_at_volume(&self, name: &str) -> kube::Result<Option<Duration>> {
        let Some(volume) = self.volumes.get(&Key::new("", name)) else {
            self.flights.forget(&Key::new("", name));
            return Ok(None);
        };
        let key = volume.claim_key();
        let claim = key.as_ref().and_then(|key| self.claims.get(key));
        if volume.is_deleted {
            let is_bound = claim.as_ref().is_some_and(|claim| claim.volume == name);
            if !is_bound {
                self.effects.release_volume(&volume).await?;
            }
            return Ok(None);
        }
        if self.effects.protect_volume(&volume).await? {
            return Ok(None);
        }
        let step = volume_step(&volume, claim.as_deref());
        let is_released = match step {
            VolumeStep::Keep
            | VolumeStep::Remove { .. }
            | VolumeStep::Delete
            | VolumeStep::Forget
            | VolumeStep::Leave
            | VolumeStep::Fail(_) => {
                // What is seen here may be old, and what follows cannot be undone.
                if self.effects.is_claim_there(&volume).await? {
                    return Ok(Some(SYNC_PERIOD));
                }
                true
            }
            _ => false,
        };
        if is_released && volume.phase != "Failed" {
            self.effects.set_volume_phase(&volume, "Released").await?;
        }
        match step {
            VolumeStep::Phase(phase) => {
                self.effects.set_volume_phase(&volume, phase).await?;
                if phase == "Available" {
                    self.look_at_waiting_claims();
                }
            }
            VolumeStep::Claim => {
                if let Some(key) = key {
                    self.queues.claims.add(key);
                }
            }
            VolumeStep::Unbind => self.effects.unbind(&volume).await?,
            VolumeStep::Keep | VolumeStep::Leave => {}
            VolumeStep::Delete => return Ok(self.delete(volume)),
            VolumeStep::Forget => self.effects.forget(&volume).await?,
            VolumeStep::Remove { node } => return self.effects.remove(&volume, &node).await,
            VolumeStep::Fail(say) => {
                if volume.phase != "Failed" {
                    self.effects.set_volume_phase(&volume, "Failed").await?;
                    self.effects.say_of_volume(&volume, say);
                }
            }
        }
        Ok(None)
    }

    /// There is a volume that somebody may have waited for.
    fn look_at_waiting_claims(&self) {
        for claim in self.claims.all() {
            if claim.phase == "Pending" {
                self.queues.claims.add(claim.key.clone());
            }
        }
    }

    async fn make_claims(&self, key: &Key) -> kube::Result<Option<Duration>> {
        ephemeral::make(&self.effects, key).await
    }
}

#[cfg(test)]
mod tests;
