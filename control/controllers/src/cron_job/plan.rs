//! What a CronJob needs now. Pure.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::api::{
    batch::v1::{CronJob, CronJobStatus, Job, JobStatus},
    core::v1::ObjectReference,
};
use wherry_api::cron::Schedule;

use crate::{job, replica_set::time};

/// More runs missed than this are a sign that a clock is wrong.
const MISSED_MAX: usize = 100;

/// An event to make.
pub(super) type Remark = (&'static str, &'static str, String);

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Jobs that are history.
    pub(super) forget: Vec<Arc<Job>>,
    /// Jobs that give way to the next.
    pub(super) replace: Vec<Arc<Job>>,
    /// The moment for which a Job is to begin.
    pub(super) start: Option<Timestamp>,
    pub(super) status: CronJobStatus,
    pub(super) remarks: Vec<Remark>,
    /// When to look again.
    pub(super) again: Option<Timestamp>,
}

fn has(job: &Job, type_: &str) -> bool {
    let none = JobStatus::default();
    job::has(job.status.as_ref().unwrap_or(&none), type_)
}

fn is_ended(job: &Job) -> bool {
    has(job, "Complete") || has(job, "Failed")
}

fn created(job: &Job) -> Option<Timestamp> {
    Some(job.metadata.creation_timestamp.as_ref()?.0)
}

/// The schedule in its zone, or why it cannot be followed.
fn schedule(cron: &CronJob) -> Result<Schedule, Remark> {
    let spec = cron.spec.clone();
    let zone = spec.time_zone.as_deref().unwrap_or("UTC");
    if TimeZone::get(zone).is_err() {
        return Err((
            "Warning",
            "UnknownTimeZone",
            format!("invalid timeZone: {zone}"),
        ));
    }
    Schedule::parse_in(&spec.schedule, zone).map_err(|why| {
        let message = format!("unparseable schedule: {} : {why}", spec.schedule);
        ("Warning", "UnparseableSchedule", message)
    })
}

/// The latest moment after `since` and not after `now`, and whether far too many were missed.
pub(super) fn latest(
    schedule: &Schedule,
    since: Timestamp,
    now: Timestamp,
) -> Option<(Timestamp, bool)> {
    let until_now = |from: Timestamp| {
        std::iter::successors(Some(from), |at| schedule.next_after(*at))
            .skip(1)
            .take_while(|at| *at <= now)
    };
    let missed: Vec<_> = until_now(since).take(MISSED_MAX + 1).collect();
    if missed.len() <= MISSED_MAX {
        return missed.last().map(|at| (*at, false));
    }
    // Begin near the end: a year of minutes is long.
    let mut back = SignedDuration::from_mins(1);
    loop {
        let from = (now - back).max(since);
        if let Some(last) = until_now(from).last() {
            return Some((last, true));
        }
        if from == since {
            return missed.last().map(|at| (*at, true));
        }
        back *= 4;
    }
}

/// Decides. `jobs` are its own.
pub(super) fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let spec = cron.spec.clone();
    let mut plan = Plan {
        status: cron.status.clone().unwrap_or_default(),
        ..Plan::default()
    };
    let (mut ended, active): (Vec<_>, Vec<_>) = jobs.iter().cloned().partition(|job| is_ended(job));
    ended.sort_by_key(|job| std::cmp::Reverse(created(job)));
    for (type_, keep) in [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let of_type = ended.iter().filter(|job| has(job, type_));
        let old = of_type.skip(usize::try_from(keep).unwrap_or(0));
        plan.forget.extend(old.cloned());
    }
    tell_ended(&mut plan, &ended);
    let best = ended
        .iter()
        .filter_map(|job| job.status.as_ref()?.completion_time.clone())
        .max_by_key(|time| time.0);
    if let Some(best) = best
        && plan
            .status
            .last_successful_time
            .as_ref()
            .is_none_or(|known| known.0 < best.0)
    {
        plan.status.last_successful_time = Some(best);
    }
    let active: Vec<_> = active
        .into_iter()
        .filter(|job| job.metadata.deletion_timestamp.is_none())
        .collect();
    plan.status.active = references(&active);
    if spec.suspend.unwrap_or(false) {
        return plan;
    }
    let schedule = match schedule(cron) {
        Ok(schedule) => schedule,
        Err(remark) => {
            plan.remarks.push(remark);
            return plan;
        }
    };
    plan.again = schedule.next_after(now);
    due(cron, &schedule, active, now, &mut plan);
    plan
}

/// Jobs that were active when last looked at, and have ended.
fn tell_ended(plan: &mut Plan, ended: &[Arc<Job>]) {
    let known: Vec<_> = plan.status.active.take().into_iter().flatten().collect();
    for job in ended {
        let was_active = known.iter().any(|known| known.uid == job.metadata.uid);
        if was_active {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            let type_ = if has(job, "Complete") {
                "Complete"
            } else {
                "Failed"
            };
            let message = format!("Saw completed job: {name}, condition: {type_}");
            plan.remarks.push(("Normal", "SawCompletedJob", message));
        }
    }
}

fn due(
    cron: &CronJob,
    schedule: &Schedule,
    active: Vec<Arc<Job>>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let spec = cron.spec.clone();
    let last = plan.status.last_schedule_time.as_ref();
    let begun = last.or(cron.metadata.creation_timestamp.as_ref());
    let begun = begun.map_or(now, |time| time.0);
    let Some((due, too_many)) = latest(schedule, begun, now) else {
        return;
    };
    if too_many {
        let message = format!(
            "too many missed start times: more than {MISSED_MAX}. Set or decrease .spec.startingDeadlineSeconds or \
             check clock skew"
        );
        plan.remarks
            .push(("Warning", "TooManyMissedTimes", message));
    }
    let late = now.as_second() - due.as_second();
    if spec
        .starting_deadline_seconds
        .is_some_and(|deadline| late > deadline)
    {
        let message = format!("Missed scheduled time to start a job: {due}");
        plan.remarks.push(("Warning", "MissSchedule", message));
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.remarks
                .push(("Normal", "JobAlreadyActive", message.to_owned()));
            return;
        }
        Some("Replace") => {
            plan.replace = active;
            plan.status.active = None;
        }
        _ => {}
    }
    plan.start = Some(due);
    plan.status.last_schedule_time = Some(time(due));
}

fn references(jobs: &[Arc<Job>]) -> Option<Vec<ObjectReference>> {
    let references: Vec<_> = jobs.iter().map(|job| reference(job)).collect();
    (!references.is_empty()).then_some(references)
}

/// How the status names a Job.
pub(super) fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        field_path: None,
    }
}
