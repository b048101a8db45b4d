//! The API's images of static pods: made, made again when somebody deletes them, removed with the pod.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use wherry_runtime_api::PodUid;

use crate::{
    pod::{self, CONFIG_HASH_ANNOTATION, CONFIG_MIRROR_ANNOTATION},
    publish::{Publisher, Target},
};

/// Between looks that no event asked for.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// What should be mirrored, and what is.
#[derive(Default)]
struct Picture {
    wanted: HashMap<PodUid, Arc<Pod>>,
    there: HashMap<PodUid, Arc<Pod>>,
    listed: bool,
}

/// Keeps mirrors as they should be.
pub(crate) struct Mirrors {
    picture: std::sync::Mutex<Picture>,
    changed: tokio::sync::Notify,
    publisher: Publisher,
}

impl Mirrors {
    /// Mirrors whose statuses `publisher` writes.
    pub(crate) fn new(publisher: Publisher) -> Self {
        Self {
            picture: std::sync::Mutex::default(),
            changed: tokio::sync::Notify::new(),
            publisher,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Picture> {
        // Every change is one insert or remove.
        self.picture
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A static pod that should have a mirror.
    pub(crate) fn want(&self, pod: Arc<Pod>) {
        self.lock().wanted.insert(pod::uid(&pod), pod);
        self.changed.notify_one();
    }

    /// A static pod that is gone.
    pub(crate) fn unwant(&self, uid: &PodUid) {
        self.lock().wanted.remove(uid);
        self.publisher.target(uid, None, None);
        self.changed.notify_one();
    }

    /// What the API has.
    pub(crate) fn see(&self, uid: PodUid, mirror: Option<Arc<Pod>>) {
        match mirror {
            Some(mirror) => {
                // One that is being deleted by somebody counts as gone once it is.
                if mirror.metadata.deletion_timestamp.is_none() {
                    self.publisher
                        .target(&uid, Some(Target::of(&mirror)), mirror.status.as_ref());
                }
                self.lock().there.insert(uid, mirror);
            }
            None => {
                self.publisher.target(&uid, None, None);
                self.lock().there.remove(&uid);
            }
        }
        self.changed.notify_one();
    }

    /// All the API has was seen: mirrors of others are gone.
    pub(crate) fn listed(&self, mirrored: &HashSet<PodUid>) {
        let mut picture = self.lock();
        picture.listed = true;
        let gone: Vec<_> = picture
            .there
            .keys()
            .filter(|uid| !mirrored.contains(*uid))
            .cloned()
            .collect();
        for uid in gone {
            picture.there.remove(&uid);
            self.publisher.target(&uid, None, None);
        }
        drop(picture);
        self.changed.notify_one();
    }

    /// Reconciles until shutdown.
    pub(crate) async fn run(
        self: Arc<Self>,
        client: Client,
        node_name: String,
        shutdown: CancellationToken,
    ) {
        let mut ticks = interval(LOOK_PERIOD);
        let mut owner = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                _ = ticks.tick() => {}
            }
            let (missing, left) = {
                let picture = self.lock();
                if !picture.listed {
                    continue;
                }
                let is_missing = |uid: &PodUid| !picture.there.contains_key(uid);
                let missing: Vec<_> = picture
                    .wanted
                    .iter()
                    .filter(|(uid, _)| is_missing(uid))
                    .map(|(_, pod)| Arc::clone(pod))
                    .collect();
                // Left over, or marked by somebody: a mirror is gone when this node says so.
                let left: Vec<_> = picture
                    .there
                    .iter()
                    .filter(|(uid, mirror)| {
                        !picture.wanted.contains_key(*uid)
                            || mirror.metadata.deletion_timestamp.is_some()
                    })
                    .map(|(_, mirror)| Arc::clone(mirror))
                    .collect();
                (missing, left)
            };
            if owner.is_none() && !missing.is_empty() {
                owner = Api::<Node>::all(client.clone())
                    .get(&node_name)
                    .await
                    .ok()
                    .and_then(|node| to_owner(&node));
            }
            for mirror in left {
                delete(&client, &mirror).await;
            }
            for pod in missing {
                create(&client, &pod, owner.clone()).await;
            }
        }
    }
}

fn to_owner(node: &Node) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone()?,
        uid: node.metadata.uid.clone()?,
        controller: Some(true),
        block_owner_deletion: None,
    })
}

/// A static pod as the API shows it. Pure.
pub(crate) fn mirror_of(pod: &Pod, owner: Option<OwnerReference>) -> Pod {
    let mut mirror = pod.clone();
    let hash = pod::annotation(pod, CONFIG_HASH_ANNOTATION)
        .unwrap_or_default()
        .to_owned();
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    mirror
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(CONFIG_MIRROR_ANNOTATION.into(), hash);
    mirror.metadata.owner_references = owner.map(|owner| vec![owner]);
    mirror.status = None;
    mirror
}

async fn create(client: &Client, pod: &Pod, owner: Option<OwnerReference>) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), pod::namespace(pod));
    match pods
        .create(&PostParams::default(), &mirror_of(pod, owner))
        .await
    {
        Ok(_) => info!(pod = pod::name(pod), "Mirror pod created"),
        Err(error) => debug!(pod = pod::name(pod), %error, "Mirror pod not created yet"),
    }
}

async fn delete(client: &Client, mirror: &Pod) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), pod::namespace(mirror));
    let preconditions = Preconditions {
        uid: mirror.metadata.uid.clone(),
        ..Preconditions::default()
    };
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match pods.delete(pod::name(mirror), &params).await {
        Ok(_) => info!(pod = pod::name(mirror), "Mirror pod deleted"),
        Err(error) => debug!(pod = pod::name(mirror), %error, "Mirror pod not deleted yet"),
    }
}
