//! What a Job needs now. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};

use super::{
    INDEX, INDEX_FAILURES,
    indexes::{self, Indexes},
    policy::{self, Verdict},
};
use crate::{
    pods::{Phase, PodView},
    replica_set::time,
};

/// Pods made or deleted at once (`MaxPodCreateDeletePerSync`).
const BURST: usize = 500;
/// Before a pod is made again that failed; doubles with each failure in a row, up to ten minutes.
const BACKOFF_SECONDS: i64 = 10;
const BACKOFF_SECONDS_MAX: i64 = 600;

/// Pods that have ended, by what they were counted as. Kept in memory; see the head of `job.rs`.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    is_begun: bool,
    /// Counted, and there when last seen.
    known: HashMap<String, Outcome>,
    /// Counted, and gone since.
    gone_succeeded: i32,
    gone_failed: i32,
    /// Deleted because they were too many: no failures.
    pub(super) spared: HashSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Succeeded,
    Failed,
    Ignored,
}

/// A pod to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewPod {
    pub(super) index: Option<i32>,
    /// How often its index has failed.
    pub(super) failures: Option<i32>,
}

/// What to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) create: Vec<NewPod>,
    pub(super) delete: Vec<Arc<PodView>>,
    pub(super) status: JobStatus,
    /// When time alone changes something.
    pub(super) again_seconds: Option<i64>,
}

/// Whether a condition holds.
pub(crate) fn has(status: &JobStatus, type_: &str) -> bool {
    let conditions = status.conditions.iter().flatten();
    conditions
        .into_iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

/// When a Job ended, if it has.
pub(super) fn ended(status: &JobStatus) -> Option<Timestamp> {
    let ends = status.conditions.iter().flatten().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    });
    ends.map(|end| {
        end.last_transition_time
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
    })
}

fn int(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A pod's index.
fn index(pod: &PodView) -> Option<i32> {
    pod.annotations.get(INDEX)?.parse().ok()
}

fn index_failures(pod: &PodView) -> i32 {
    let before = pod.annotations.get(INDEX_FAILURES);
    before.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// The state of a Job, counted.
struct Counted {
    succeeded: i32,
    failed: i32,
    active: Vec<Arc<PodView>>,
    /// Being deleted, and not ended.
    terminating: Vec<Arc<PodView>>,
    completed: Indexes,
    failed_indexes: Indexes,
    /// How often each index has failed, and when last.
    index_failures: BTreeMap<i32, (i32, Option<Timestamp>)>,
    /// Failures after the last success, and when the last of them was.
    in_a_row: (i32, Option<Timestamp>),
    /// A rule that ends the Job.
    fails_by: Option<String>,
}

/// Counts, and remembers what was counted.
fn count(job: &Job, spec: &JobSpec, pods: &[Arc<PodView>], tally: &mut Tally) -> Counted {
    let status = job.status.clone().unwrap_or_default();
    let completions = spec.completions.unwrap_or(0);
    let is_indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let waits_for_end = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let parse =
        |text: &Option<String>| indexes::parse(text.as_deref().unwrap_or_default(), completions);
    let mut counted = Counted {
        succeeded: 0,
        failed: 0,
        active: Vec::new(),
        terminating: Vec::new(),
        completed: parse(&status.completed_indexes),
        failed_indexes: parse(&status.failed_indexes),
        index_failures: BTreeMap::new(),
        in_a_row: (0, None),
        fails_by: None,
    };
    let mut present = HashMap::new();
    let mut ends = Vec::new();
    for pod in pods {
        let is_leaving = pod.deleted.is_some() && !pod.is_finished();
        if is_leaving {
            counted.terminating.push(pod.clone());
        }
        let outcome = match pod.phase {
            Phase::Succeeded => Outcome::Succeeded,
            Phase::Failed => Outcome::Failed,
            _ if is_leaving && !waits_for_end => Outcome::Failed,
            _ => {
                if !is_leaving {
                    counted.active.push(pod.clone());
                }
                continue;
            }
        };
        let outcome = match (outcome, tally.spared.contains(&pod.uid)) {
            (Outcome::Failed, true) => Outcome::Ignored,
            (Outcome::Failed, false) => match policy::verdict(spec, pod) {
                Verdict::Ignore => Outcome::Ignored,
                Verdict::Count => Outcome::Failed,
                Verdict::FailIndex => {
                    counted.failed_indexes.extend(index(pod));
                    Outcome::Failed
                }
                Verdict::FailJob(why) => {
                    counted.fails_by.get_or_insert(why);
                    Outcome::Failed
                }
            },
            (outcome, _) => outcome,
        };
        match outcome {
            Outcome::Succeeded => {
                counted.succeeded += 1;
                let is_index = |index: &i32| (0..completions).contains(index);
                counted.completed.extend(index(pod).filter(is_index));
            }
            Outcome::Failed => {
                counted.failed += 1;
                if let Some(index) = index(pod).filter(|_| is_indexed) {
                    let known = counted.index_failures.entry(index).or_default();
                    known.0 = known.0.max(index_failures(pod) + 1);
                    known.1 = known.1.max(pod.finished.or(pod.deleted));
                }
            }
            Outcome::Ignored => {}
        }
        if outcome != Outcome::Ignored {
            let at = pod.finished.or(pod.deleted).unwrap_or(pod.created);
            ends.push((at, outcome));
        }
        present.insert(pod.uid.clone(), outcome);
    }
    if !tally.is_begun {
        // What was counted before this process began, and is not there any more.
        tally.is_begun = true;
        tally.gone_succeeded = (status.succeeded.unwrap_or(0) - counted.succeeded).max(0);
        tally.gone_failed = (status.failed.unwrap_or(0) - counted.failed).max(0);
    }
    for (uid, outcome) in &tally.known {
        match outcome {
            _ if present.contains_key(uid) => {}
            Outcome::Succeeded => tally.gone_succeeded += 1,
            Outcome::Failed => tally.gone_failed += 1,
            Outcome::Ignored => {}
        }
    }
    let there: HashSet<&String> = pods.iter().map(|pod| &pod.uid).collect();
    tally.spared.retain(|uid| there.contains(uid));
    tally.known = present;
    counted.succeeded = if is_indexed {
        int(counted.completed.len())
    } else {
        counted.succeeded + tally.gone_succeeded
    };
    counted.failed += tally.gone_failed;
    ends.sort_by_key(|(at, _)| *at);
    let row = ends
        .iter()
        .rev()
        .take_while(|(_, outcome)| *outcome == Outcome::Failed);
    counted.in_a_row = (int(row.count()), ends.last().map(|(at, _)| *at));
    counted
}

/// Decides.
pub(super) fn plan(job: &Job, pods: &[Arc<PodView>], tally: &mut Tally, now: Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let mut status = job.status.clone().unwrap_or_default();
    let mut counted = count(job, &spec, pods, tally);
    let mut plan = Plan {
        create: Vec::new(),
        delete: Vec::new(),
        status: JobStatus::default(),
        again_seconds: None,
    };
    let is_suspended = spec.suspend.unwrap_or(false);
    if status.start_time.is_none() && !is_suspended {
        status.start_time = Some(time(now));
    }
    fail_indexes(&spec, &mut counted);
    let target = target(&spec, &status, &counted, now);
    let mut active = int(counted.active.len());
    if let Some((type_, reason, message)) = target {
        plan.delete.clone_from(&counted.active);
        let is_good = type_ == "Complete";
        if counted.active.is_empty() && counted.terminating.is_empty() {
            condition(&mut status, type_, true, &reason, &message, now);
            if is_good {
                status.completion_time = Some(time(now));
            }
        } else {
            // It has ended for good once its last pod has.
            let soon = if is_good {
                "SuccessCriteriaMet"
            } else {
                "FailureTarget"
            };
            condition(&mut status, soon, true, &reason, &message, now);
        }
        active = 0;
    } else if is_suspended {
        plan.delete.clone_from(&counted.active);
        active = 0;
        if condition(
            &mut status,
            "Suspended",
            true,
            "JobSuspended",
            "Job suspended",
            now,
        ) {
            status.start_time = None;
        }
    } else {
        if has(&status, "Suspended") {
            condition(
                &mut status,
                "Suspended",
                false,
                "JobResumed",
                "Job resumed",
                now,
            );
            status.start_time = Some(time(now));
        }
        manage(&spec, &counted, now, &mut plan);
        active = active + int(plan.create.len()) - int(plan.delete.len());
        if let (Some(seconds), Some(start)) = (spec.active_deadline_seconds, &status.start_time) {
            let left = start.0.as_second() + seconds - now.as_second();
            plan.again(left.max(1));
        }
    }
    let shown = |count: i32| (count > 0).then_some(count);
    let leaving: HashSet<&String> = plan.delete.iter().map(|pod| &pod.uid).collect();
    let ready = counted
        .active
        .iter()
        .filter(|pod| pod.is_ready() && !leaving.contains(&pod.uid));
    status.active = shown(active);
    status.ready = Some(int(ready.count()));
    status.terminating = Some(int(counted.terminating.len() + plan.delete.len()));
    status.succeeded = shown(counted.succeeded);
    status.failed = shown(counted.failed);
    let set = |indexes: &Indexes| (!indexes.is_empty()).then(|| indexes::format(indexes));
    status.completed_indexes = set(&counted.completed);
    status.failed_indexes = set(&counted.failed_indexes);
    plan.status = status;
    plan
}

impl Plan {
    fn again(&mut self, seconds: i64) {
        self.again_seconds = Some(
            self.again_seconds
                .map_or(seconds, |known| known.min(seconds)),
        );
    }
}

/// Indexes that have failed too often by themselves.
fn fail_indexes(spec: &JobSpec, counted: &mut Counted) {
    if let Some(limit) = spec.backoff_limit_per_index {
        let over = counted.index_failures.iter();
        let over = over.filter(|(_, (failures, _))| *failures > limit);
        let over: Vec<i32> = over.map(|(index, _)| *index).collect();
        counted.failed_indexes.extend(over);
    }
    counted.failed_indexes = &counted.failed_indexes - &counted.completed;
}

/// How the Job ends, if it is to: a condition, its reason and its message.
fn target(
    spec: &JobSpec,
    status: &JobStatus,
    counted: &Counted,
    now: Timestamp,
) -> Option<(&'static str, String, String)> {
    let decided = status.conditions.iter().flatten().find_map(|condition| {
        let type_ = match condition.type_.as_str() {
            "FailureTarget" => "Failed",
            "SuccessCriteriaMet" => "Complete",
            _ => return None,
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some((type_, text(&condition.reason), text(&condition.message)))
    });
    if decided.is_some() {
        return decided;
    }
    let failed =
        |reason: &str, message: &str| Some(("Failed", reason.to_owned(), message.to_owned()));
    if let Some(why) = &counted.fails_by {
        return failed("PodFailurePolicy", why);
    }
    if is_past_backoff_limit(spec, counted) {
        let message = "Job has reached the specified backoff limit";
        return failed("BackoffLimitExceeded", message);
    }
    let is_late = |seconds: i64| {
        let start = status.start_time.as_ref();
        start.is_some_and(|start| now.as_second() - start.0.as_second() >= seconds)
    };
    if !spec.suspend.unwrap_or(false) && spec.active_deadline_seconds.is_some_and(is_late) {
        let message = "Job was active longer than specified deadline";
        return failed("DeadlineExceeded", message);
    }
    let failed_indexes = int(counted.failed_indexes.len());
    if spec
        .max_failed_indexes
        .is_some_and(|max| failed_indexes > max)
    {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return failed("MaxFailedIndexesExceeded", message);
    }
    if let Some(message) = policy::is_success(spec, &counted.completed) {
        return Some(("Complete", "SuccessPolicy".to_owned(), message));
    }
    let complete = ("Complete", "CompletionsReached".to_owned());
    let message = "Reached expected number of succeeded pods".to_owned();
    match spec.completions {
        None => (counted.succeeded > 0 && counted.active.is_empty())
            .then_some((complete.0, complete.1, message)),
        Some(wanted) if counted.succeeded >= wanted => Some((complete.0, complete.1, message)),
        Some(wanted) if failed_indexes > 0 && counted.succeeded + failed_indexes >= wanted => {
            failed("FailedIndexes", "Job has failed indexes")
        }
        Some(_) => None,
    }
}

fn is_past_backoff_limit(spec: &JobSpec, counted: &Counted) -> bool {
    let limit = spec.backoff_limit.unwrap_or(6);
    let template = spec.template.spec.as_ref();
    let restarts_in_place =
        template.and_then(|spec| spec.restart_policy.as_deref()) == Some("OnFailure");
    let restarts: i32 = counted.active.iter().map(|pod| pod.restarts).sum();
    counted.failed > limit || (restarts_in_place && restarts > 0 && restarts >= limit)
}

/// Brings the number of pods to what is wanted.
fn manage(spec: &JobSpec, counted: &Counted, now: Timestamp, plan: &mut Plan) {
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
    let active = counted.active.len();
    let left = |wanted: i32| {
        let done = counted.succeeded + int(counted.failed_indexes.len());
        usize::try_from(wanted - done).unwrap_or(0)
    };
    let wanted = match spec.completions {
        Some(completions) => parallelism.min(left(completions)),
        // Once one has succeeded, those that run finish, and no others begin.
        None if counted.succeeded > 0 => parallelism.min(active),
        None => parallelism,
    };
    if active > wanted {
        let mut pods = counted.active.clone();
        pods.sort_by_key(|pod| (pod.is_ready(), pod.phase, std::cmp::Reverse(pod.created)));
        plan.delete = pods
            .into_iter()
            .take((active - wanted).min(BURST))
            .collect();
        return;
    }
    let waits_for_end = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let occupied = if waits_for_end {
        counted.terminating.len()
    } else {
        0
    };
    let missing = (wanted - active).saturating_sub(occupied).min(BURST);
    if missing == 0 {
        return;
    }
    let is_per_index = spec.backoff_limit_per_index.is_some();
    if !is_per_index {
        let (failures, last) = counted.in_a_row;
        let wait = wait_seconds(failures, last, now);
        if wait > 0 {
            return plan.again(wait);
        }
    }
    if spec.completion_mode.as_deref() != Some("Indexed") {
        let one = NewPod {
            index: None,
            failures: None,
        };
        plan.create = vec![one; missing];
        return;
    }
    let busy: Vec<&Arc<PodView>> = counted
        .active
        .iter()
        .chain(counted.terminating.iter().filter(|_| waits_for_end))
        .collect();
    let busy: Indexes = busy.into_iter().filter_map(|pod| index(pod)).collect();
    let free = (0..spec.completions.unwrap_or(0)).filter(|index| {
        !busy.contains(index)
            && !counted.completed.contains(index)
            && !counted.failed_indexes.contains(index)
    });
    for index in free {
        if plan.create.len() == missing {
            break;
        }
        let (failures, last) = counted
            .index_failures
            .get(&index)
            .copied()
            .unwrap_or_default();
        let wait = if is_per_index {
            wait_seconds(failures, last, now)
        } else {
            0
        };
        if wait > 0 {
            plan.again(wait);
            continue;
        }
        plan.create.push(NewPod {
            index: Some(index),
            failures: is_per_index.then_some(failures),
        });
    }
}

/// How long until a pod is made again after so many failures in a row.
fn wait_seconds(failures: i32, last: Option<Timestamp>, now: Timestamp) -> i64 {
    let (Some(last), 1..) = (last, failures) else {
        return 0;
    };
    let doublings = (failures - 1).min(10);
    let wait = (BACKOFF_SECONDS << doublings).min(BACKOFF_SECONDS_MAX);
    (last.as_second() + wait - now.as_second()).max(0)
}

/// Sets a condition; answers whether that changed it.
fn condition(
    status: &mut JobStatus,
    type_: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let holds = if holds { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().position(|known| known.type_ == type_);
    if known.is_some_and(|known| conditions[known].status == holds) {
        return false;
    }
    let new = JobCondition {
        type_: type_.to_owned(),
        status: holds.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(time(now)),
        last_transition_time: Some(time(now)),
    };
    match known {
        Some(known) => conditions[known] = new,
        None => conditions.push(new),
    }
    true
}
