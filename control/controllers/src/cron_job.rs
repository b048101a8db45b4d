//! CronJobs: a Job whenever it is time.
//!
//! ```text
//!  CronJob, its Jobs ─▶ which are history ─▶ deletions
//!                    ─▶ latest moment that is due ─▶ deadline, concurrency policy ─▶ a Job named after that moment
//!                    ─▶ next moment ─▶ look again then
//! ```
//!
//! The name makes it safe to look twice: one moment has one Job.

mod plan;

use std::{sync::Arc, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::batch::v1::{CronJob, Job},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams, PropagationPolicy},
};
use tokio_util::sync::CancellationToken;

use crate::{
    events::Recorder,
    expectations::Expectations,
    pod_control::{self, Owner, PodControl},
    pods, retry, status,
    watched::Watched,
    workqueue::{Key, Reconcile, WorkQueue},
};

/// CronJobs looked at at once (`--concurrent-cron-job-syncs`).
const WORKERS: usize = 5;
/// On Jobs: the moment that they are for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
const KIND: (&str, &str) = ("batch/v1", "CronJob");
/// A clock that wakes a little early would find that nothing is due.
const AFTER: Duration = Duration::from_millis(100);

/// What the controller hears with.
pub(crate) struct Prepared {
    control: PodControl,
    queue: Arc<WorkQueue>,
}

/// The controller.
struct Controller {
    control: PodControl,
    crons: Arc<Watched<CronJob>>,
    jobs: Arc<Watched<Job>>,
}

impl Prepared {
    /// Hears of changes from now on.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        crons: &mut Watched<CronJob>,
        jobs: &mut Watched<Job>,
    ) -> Self {
        let queue = Arc::new(WorkQueue::default());
        crons.name_in(&queue);
        let named = queue.clone();
        jobs.listen(move |old, new| {
            for job in old.into_iter().chain(new) {
                let owner = pods::controller(job.metadata.owner_references.as_ref());
                if let Some(owner) = owner.filter(|owner| owner.kind == KIND.1) {
                    let namespace = job.metadata.namespace.clone().unwrap_or_default();
                    named.add(Key::new(namespace, owner.name.clone()));
                }
            }
        });
        let control = PodControl {
            client,
            recorder,
            component: "cronjob-controller",
            expectations: Arc::new(Expectations::default()),
        };
        Self { control, queue }
    }

    /// Runs until shutdown.
    pub(crate) async fn run(
        self,
        crons: Arc<Watched<CronJob>>,
        jobs: Arc<Watched<Job>>,
        shutdown: CancellationToken,
    ) {
        let controller = Arc::new(Controller {
            control: self.control,
            crons,
            jobs,
        });
        self.queue.reconcile(controller, shutdown).await;
    }
}

impl Reconcile for Controller {
    const WORKERS: usize = WORKERS;

    fn complaint(&self) -> &'static str {
        "CronJob not reconciled"
    }

    async fn complete(&self) {
        tokio::join!(self.crons.complete(), self.jobs.complete());
    }

    async fn reconcile(&self, key: &Key) -> kube::Result<Option<Duration>> {
        let Some(cron) = self.crons.get(key) else {
            return Ok(None);
        };
        if cron.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let owner = Owner {
            api_version: KIND.0,
            kind: KIND.1,
            key: key.clone(),
            uid: cron.uid().unwrap_or_default(),
        };
        let mut jobs = self.jobs.in_namespace(&key.namespace);
        jobs.retain(|job| {
            let controller = pods::controller(job.metadata.owner_references.as_ref());
            controller.is_some_and(|controller| controller.uid == owner.uid)
        });
        let now = Timestamp::now();
        let plan = plan::plan(&cron, &jobs, now);
        for (type_, reason, message) in plan.remarks {
            self.control.say(&owner, type_, reason, message);
        }
        self.delete(&owner, &plan.forget).await?;
        self.delete(&owner, &plan.replace).await?;
        let mut wanted = plan.status;
        if let Some(due) = plan.start {
            let known = self.start(&owner, &cron, due).await?;
            if let Some(job) = known {
                let active = wanted.active.get_or_insert_default();
                if !active.iter().any(|known| known.uid == job.metadata.uid) {
                    active.push(plan::reference(&job));
                }
            }
        }
        let crons: Api<CronJob> = Api::namespaced(self.control.client.clone(), &key.namespace);
        let name = (key.name.as_str(), owner.uid.as_str());
        status::write(&crons, name, cron.status.as_ref(), &wanted).await?;
        let pause = plan.again.map(|at| at.duration_since(now).unsigned_abs());
        Ok(pause.map(|pause| pause + AFTER))
    }
}

impl Controller {
    fn api(&self, owner: &Owner) -> Api<Job> {
        Api::namespaced(self.control.client.clone(), &owner.key.namespace)
    }

    async fn delete(&self, owner: &Owner, jobs: &[Arc<Job>]) -> kube::Result<()> {
        for job in jobs {
            let name = job.name_any();
            let parameters = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Background),
                ..pod_control::of_uid(&job.uid().unwrap_or_default())
            };
            match self.api(owner).delete(&name, &parameters).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    let message = format!("Deleted job: {}", retry::text(&error));
                    self.control.say(owner, "Warning", "FailedDelete", message);
                    return Err(error);
                }
                Ok(_) => {
                    let message = format!("Deleted job {name}");
                    self.control
                        .say(owner, "Normal", "SuccessfulDelete", message);
                }
            }
        }
        Ok(())
    }

    /// Makes the Job of a moment; `None`: it has been made before, or cannot be here any more.
    async fn start(
        &self,
        owner: &Owner,
        cron: &CronJob,
        due: Timestamp,
    ) -> kube::Result<Option<Job>> {
        let job = new_job(owner, cron, due);
        let name = job.name_any();
        match self.api(owner).create(&PostParams::default(), &job).await {
            Ok(job) => {
                let message = format!("Created job {name}");
                self.control
                    .say(owner, "Normal", "SuccessfulCreate", message);
                Ok(Some(job))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(kube::Error::Api(status))
                if status.code == 403
                    && status.message.contains("because it is being terminated") =>
            {
                Ok(None)
            }
            Err(error) => {
                let message = format!("Error creating job: {}", retry::text(&error));
                self.control.say(owner, "Warning", "FailedCreate", message);
                Err(error)
            }
        }
    }
}

fn new_job(owner: &Owner, cron: &CronJob, due: Timestamp) -> Job {
    let spec = cron.spec.clone();
    let zone = spec.time_zone.as_deref().unwrap_or("UTC");
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    let template = spec.job_template.metadata.unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let shown = due.display_with_offset(zone.to_offset(due)).to_string();
    annotations.insert(SCHEDULED.to_owned(), shown);
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", owner.key.name, due.as_second() / 60)),
            namespace: Some(owner.key.namespace.clone()),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests;
