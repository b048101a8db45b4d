//! Jobs: pods until enough of them have succeeded.
//!
//! ```text
//!  Job, its pods ─▶ count (succeeded, failed, active) ─▶ ended? ─▶ active pods deleted, then Complete or Failed
//!                                                     └▶ suspended? ─▶ active pods deleted
//!                                                     └▶ how many more, after which wait ─▶ creations, deletions
//! ```
//!
//! **Counting.** Pods that have ended may be deleted, and still count. Kubernetes keeps each of them by a finalizer until
//! it is in the Job's status, which costs two more writes a pod and leaves pods that cannot go when nobody runs the
//! controller. Here the totals of the status are the record: this process remembers the pods that it has counted, and
//! when one goes its count stays. A new process takes the difference between the totals and the pods that are there as
//! those that have gone. What escapes it is a pod that ended *and* was deleted while no controller ran: it is made
//! again. An Indexed Job loses none even so, since the status has its indexes by number.

mod indexes;
mod plan;
mod policy;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobStatus},
    core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PropagationPolicy},
};
use tokio_util::sync::CancellationToken;

use crate::{
    events::Recorder,
    expectations::Expectations,
    pod_control::{self, Owner, PodControl},
    pods::{self, PodView},
    status,
    watched::{Watched, key_of},
    workqueue::{Key, Reconcile, WorkQueue},
};

pub(crate) use self::plan::has;
use self::plan::{NewPod, Tally};

/// Jobs looked at at once (`--concurrent-job-syncs`).
const WORKERS: usize = 5;
/// On pods of Indexed Jobs: which index they are for.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The same: how often the index has failed before.
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Jobs of which somebody else takes care say who in `managedBy`.
const US: &str = "kubernetes.io/job-controller";
const KIND: (&str, &str) = ("batch/v1", "Job");

/// What the controller hears with.
pub(crate) struct Prepared {
    control: PodControl,
    queue: Arc<WorkQueue>,
}

/// The controller.
struct Controller {
    control: PodControl,
    jobs: Arc<Watched<Job>>,
    pods: Arc<Watched<PodView>>,
    tallies: Mutex<HashMap<Key, (String, Tally)>>,
}

impl Prepared {
    /// Hears of changes from now on.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        jobs: &mut Watched<Job>,
        pods: &mut Watched<PodView>,
    ) -> Self {
        let queue = Arc::new(WorkQueue::default());
        let expectations = Arc::new(Expectations::default());
        jobs.name_in(&queue);
        // A Job's pods have its uid among their labels: nobody else's can be meant.
        let nobody = |_: &str, _: &BTreeMap<String, String>| Vec::new();
        pod_control::listen(pods, KIND, queue.clone(), expectations.clone(), nobody);
        let control = PodControl {
            client,
            recorder,
            component: "job-controller",
            expectations,
        };
        Self { control, queue }
    }

    /// Runs until shutdown.
    pub(crate) async fn run(
        self,
        jobs: Arc<Watched<Job>>,
        pods: Arc<Watched<PodView>>,
        shutdown: CancellationToken,
    ) {
        let controller = Arc::new(Controller {
            control: self.control,
            jobs,
            pods,
            tallies: Mutex::default(),
        });
        self.queue.reconcile(controller, shutdown).await;
    }
}

impl Reconcile for Controller {
    const WORKERS: usize = WORKERS;

    fn complaint(&self) -> &'static str {
        "Job not reconciled"
    }

    async fn complete(&self) {
        tokio::join!(self.jobs.complete(), self.pods.complete());
    }

    async fn reconcile(&self, key: &Key) -> kube::Result<Option<Duration>> {
        let Some(job) = self.jobs.get(key) else {
            self.control.expectations.forget(key);
            let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
            tallies.remove(key);
            return Ok(None);
        };
        let spec = job.spec.clone().unwrap_or_default();
        if job.metadata.deletion_timestamp.is_some()
            || spec.managed_by.as_deref().is_some_and(|by| by != US)
        {
            return Ok(None);
        }
        let old = job.status.clone().unwrap_or_default();
        if let Some(ended) = plan::ended(&old) {
            return self.expire(&job, ended).await;
        }
        if !self.control.expectations.are_met(key) {
            return Ok(None);
        }
        let owner = Owner::new(KIND, key, job.uid());
        let selector = pods::selector(&spec.selector.clone().unwrap_or_default());
        let claim = owner.claim(&selector, pods::of_owner(&self.pods, key, &owner.uid));
        let api: Api<Job> = Api::namespaced(self.control.client.clone(), &key.namespace);
        let pods = self
            .control
            .settle(&owner, claim, owner.is_there(&api))
            .await?;
        let plan = self.plan(key, &job, &owner, &pods);
        let new_pods: Vec<Pod> = plan
            .create
            .iter()
            .map(|new| new_pod(&owner, &job, new))
            .collect();
        self.control.delete(&owner, &plan.delete).await?;
        let created = self.control.create(&owner, &new_pods).await;
        let mut wanted = plan.status;
        if created.is_err() {
            // Some were not made: the next look counts those that were.
            wanted.active = old.active;
        }
        let name = (key.name.as_str(), owner.uid.as_str());
        status::write(&api, name, job.status.as_ref(), &wanted).await?;
        self.tell(&owner, &old, &wanted);
        created?;
        let again = plan
            .again_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        Ok(again.map(Duration::from_secs))
    }
}

impl Controller {
    fn plan(&self, key: &Key, job: &Job, owner: &Owner, pods: &[Arc<PodView>]) -> plan::Plan {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let (uid, tally) = tallies.entry(key.clone()).or_default();
        if *uid != owner.uid {
            *uid = owner.uid.clone();
            *tally = Tally::default();
        }
        let plan = plan::plan(job, pods, tally, Timestamp::now());
        let spared = plan.delete.iter().map(|pod| pod.uid.clone());
        tally.spared.extend(spared);
        plan
    }

    /// Events for what is new.
    fn tell(&self, owner: &Owner, old: &JobStatus, new: &JobStatus) {
        for condition in new.conditions.iter().flatten() {
            let is_old =
                old.conditions.iter().flatten().any(|known| {
                    known.type_ == condition.type_ && known.status == condition.status
                });
            if is_old {
                continue;
            }
            let (type_, reason, message) =
                match (condition.type_.as_str(), condition.status.as_str()) {
                    ("Complete", _) => ("Normal", "Completed", "Job completed".to_owned()),
                    ("Failed", _) => {
                        let reason = match condition.reason.as_deref() {
                            Some("BackoffLimitExceeded") => "BackoffLimitExceeded",
                            Some("DeadlineExceeded") => "DeadlineExceeded",
                            Some("PodFailurePolicy") => "PodFailurePolicy",
                            Some("MaxFailedIndexesExceeded") => "MaxFailedIndexesExceeded",
                            _ => "FailedIndexes",
                        };
                        (
                            "Warning",
                            reason,
                            condition.message.clone().unwrap_or_default(),
                        )
                    }
                    ("Suspended", "True") => ("Normal", "Suspended", "Job suspended".to_owned()),
                    ("Suspended", _) => ("Normal", "Resumed", "Job resumed".to_owned()),
                    _ => continue,
                };
            self.control.say(owner, type_, reason, message);
        }
    }

    /// A Job that has ended goes when its time is over.
    async fn expire(&self, job: &Job, ended: Timestamp) -> kube::Result<Option<Duration>> {
        let spec = job.spec.as_ref();
        let Some(seconds) = spec.and_then(|spec| spec.ttl_seconds_after_finished) else {
            return Ok(None);
        };
        let left = ended.as_second() + i64::from(seconds) - Timestamp::now().as_second();
        if left > 0 {
            return Ok(u64::try_from(left).ok().map(Duration::from_secs));
        }
        let key = key_of(job);
        let api: Api<Job> = Api::namespaced(self.control.client.clone(), &key.namespace);
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..pod_control::of_uid(&job.uid().unwrap_or_default())
        };
        match api.delete(&key.name, &parameters).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(None),
        }
    }
}

fn new_pod(owner: &Owner, job: &Job, new: &NewPod) -> Pod {
    let template = job.spec.clone().unwrap_or_default().template;
    let mut pod = owner.pod(&template, None);
    let Some(index) = new.index else { return pod };
    let number = index.to_string();
    pod.metadata.generate_name = Some(format!("{}-{index}-", owner.key.name));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(INDEX.to_owned(), number.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), number);
    if let Some(failures) = new.failures {
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
    }
    let spec = pod.spec.get_or_insert_default();
    if spec.hostname.is_none() {
        spec.hostname = Some(format!("{}-{index}", owner.key.name));
    }
    for container in &mut spec.containers {
        add_index_variable(container);
    }
    for container in spec.init_containers.iter_mut().flatten() {
        add_index_variable(container);
    }
    pod
}

fn add_index_variable(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables
        .iter()
        .any(|variable| variable.name == INDEX_VARIABLE)
    {
        return;
    }
    variables.push(EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.annotations['{INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
    });
}

#[cfg(test)]
mod tests;
