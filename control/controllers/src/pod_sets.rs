//! What the controllers of one kind of pod owner have in common: hearing of it, of its pods and of pods that nobody
//! controls, watching it, and looking at one object after the other.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use wherry_api::selector::LabelSelector;

use crate::{
    events::Recorder,
    expectations::Expectations,
    pod_control::{self, PodControl},
    pods::PodView,
    watched::{Watched, key_of, without_managed_fields},
    workqueue::{Reconcile, WorkQueue},
};

/// A kind's controller before it has eyes: what it hears goes to `queue`.
pub(crate) struct PodSets<S> {
    pub(crate) control: PodControl,
    pub(crate) queue: Arc<WorkQueue>,
    pub(crate) sets: Arc<Watched<S>>,
}

impl<S> PodSets<S>
where
    S: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Hears of changes of `sets` and `pods` from now on. `kind` is API version and kind; `selector` chooses the pods.
    pub(crate) fn new(
        kind: (&'static str, &'static str),
        component: &'static str,
        client: Client,
        recorder: Recorder,
        mut sets: Watched<S>,
        pods: &mut Watched<PodView>,
        selector: fn(&S) -> LabelSelector,
    ) -> Self {
        let queue = Arc::new(WorkQueue::default());
        let expectations = Arc::new(Expectations::default());
        sets.name_in(&queue);
        let sets = Arc::new(sets);
        let all = sets.clone();
        let candidates = move |namespace: &str, labels: &BTreeMap<String, String>| {
            let sets = all.in_namespace(namespace).into_iter();
            sets.filter(|set| selector(set).matches_labels(labels))
                .map(|set| key_of(&*set))
                .collect()
        };
        pod_control::listen(pods, kind, queue.clone(), expectations.clone(), candidates);
        let control = PodControl {
            client,
            recorder,
            component,
            expectations,
        };
        Self {
            control,
            queue,
            sets,
        }
    }
}

/// Watches a kind until shutdown, and has what is queued of it reconciled.
pub(crate) async fn watch_and_reconcile<S>(
    api: Api<S>,
    sets: Arc<Watched<S>>,
    queue: Arc<WorkQueue>,
    controller: Arc<impl Reconcile>,
    shutdown: CancellationToken,
) where
    S: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let watch = sets.run(api, without_managed_fields, shutdown.clone());
    tokio::join!(watch, queue.reconcile(controller, shutdown));
}
