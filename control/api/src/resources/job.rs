//! Job and CronJob of batch.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload;
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, empty, flag, get, integer, list, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Status", "Status of the job."),
    Column::text(
        "Completions",
        "Number of pods that have succeeded, of those that have to.",
    ),
    Column::text("Duration", "Time required to complete the job."),
    Column::age(),
    workload::CONTAINERS,
    workload::IMAGES,
    workload::SELECTOR,
];

pub(super) const CRON_COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Schedule",
        "The schedule in Cron format, see https://en.wikipedia.org/wiki/Cron.",
    ),
    Column::text("Timezone", "The time zone name for the given schedule."),
    Column::text("Suspend", "Whether runs that follow are suspended."),
    Column::text("Active", "Number of jobs that run.").integer(),
    Column::text(
        "Last Schedule",
        "When a job was last successfully scheduled.",
    ),
    Column::age(),
    workload::CONTAINERS,
    workload::IMAGES,
    workload::SELECTOR,
];

/// Labels by which a Job's pods are known; the controller that made them, and the job.
const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// The same, as they were before they had a prefix.
const OLD_LABELS: [(&str, &str); 2] = [("controller-uid", CONTROLLER_UID), ("job-name", JOB_NAME)];

const COMPLETION_MODES: &[&str] = &["Indexed", "NonIndexed"];
const CONCURRENCY: &[&str] = &["Allow", "Forbid", "Replace"];
/// A CronJob's Jobs are named after it, with a moment of eleven characters behind.
const CRON_NAME_MAX: usize = 52;

pub(super) struct Job;

fn default_job(spec: &mut Value) {
    if get(spec, "completions").is_null() && get(spec, "parallelism").is_null() {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    let is_indexed = text(spec, "completionMode") == "Indexed";
    let has_limit_per_index = !get(spec, "backoffLimitPerIndex").is_null();
    let limit = if is_indexed && has_limit_per_index {
        i32::MAX
    } else {
        6
    };
    default(spec, "backoffLimit", limit);
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    default(spec, "manualSelector", false);
    if get(spec, "podReplacementPolicy").is_null() {
        let policy = if get(spec, "podFailurePolicy").is_null() {
            "TerminatingOrFailed"
        } else {
            "Failed"
        };
        default(spec, "podReplacementPolicy", policy);
    }
    workload::default_template(spec);
}

fn validate_job_spec(spec: &Value, path: &Path<'_>, errors: &mut workload::Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        workload::not_negative(spec, field, path, errors);
    }
    let mode = text(spec, "completionMode");
    if !mode.is_empty() && !COMPLETION_MODES.contains(&mode) {
        errors.push(FieldError::not_supported(
            &path.child("completionMode"),
            mode,
            COMPLETION_MODES,
        ));
    }
    if mode == "Indexed" && get(spec, "completions").is_null() {
        errors.push(FieldError::required(
            &path.child("completions"),
            "when completion mode is Indexed",
        ));
    }
    if mode != "Indexed" {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
            if !get(spec, field).is_null() {
                errors.push(FieldError::invalid(
                    &path.child(field),
                    get(spec, field).clone(),
                    "requires indexed completion mode",
                ));
            }
        }
    }
    workload::template(spec, &["OnFailure", "Never"], "Job", path, errors);
    let policy = get(spec, "podFailurePolicy");
    if !policy.is_null() && text(get(get(spec, "template"), "spec"), "restartPolicy") != "Never" {
        errors.push(FieldError::invalid(
            &path.child("template"),
            text(get(get(spec, "template"), "spec"), "restartPolicy"),
            "only \"Never\" is supported when podFailurePolicy is specified",
        ));
    }
    let at = path.child("podFailurePolicy");
    let rules = at.child("rules");
    for (i, rule) in list(policy, "rules").iter().enumerate() {
        let action = text(rule, "action");
        let actions = &["Count", "FailIndex", "FailJob", "Ignore"];
        if !actions.contains(&action) {
            errors.push(FieldError::not_supported(
                &rules.index(i).child("action"),
                action,
                actions,
            ));
        }
    }
}

impl Strategy for Job {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            default_job(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
        let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
        let Some(spec) = object
            .get_mut("spec")
            .filter(|spec| !flag(spec, "manualSelector"))
        else {
            return;
        };
        if let Some(template) = spec.get_mut("template").filter(|value| value.is_object()) {
            default(template, "metadata", empty());
            default(&mut template["metadata"], "labels", empty());
            let labels = &mut template["metadata"]["labels"];
            for (label, value) in [(CONTROLLER_UID, &uid), (JOB_NAME, &name)] {
                labels[label] = value.clone().into();
            }
            for (old, label) in OLD_LABELS {
                labels[old] = labels[label].clone();
            }
        }
        if get(spec, "selector").is_null() {
            spec["selector"] = json!({"matchLabels": {CONTROLLER_UID: uid}});
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        validate_job_spec(get(object, "spec"), &Path::new("spec"), &mut errors);
        errors
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        let selector = get(spec, "selector");
        if selector.is_null() {
            errors.push(FieldError::required(&path.child("selector"), ""));
        } else {
            workload::selects_template(spec, &path, &mut errors);
        }
        if !flag(spec, "manualSelector") {
            let wanted = json!({"matchLabels": {CONTROLLER_UID: meta::uid(object)}});
            if *selector != wanted {
                errors.push(FieldError::invalid(
                    &path.child("selector"),
                    selector.clone(),
                    "`selector` not auto-generated",
                ));
            }
        }
        errors.extend(self.validate(object));
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for field in [
            "selector",
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
            "managedBy",
            "successPolicy",
        ] {
            workload::immutable(new, old, field, &mut errors);
        }
        // A suspended job that has not begun may still be told where to run.
        let has_begun = !get(get(old, "status"), "startTime").is_null();
        if has_begun || !flag(get(old, "spec"), "suspend") {
            workload::immutable(new, old, "template", &mut errors);
        }
        let is_elastic = text(get(new, "spec"), "completionMode") == "Indexed"
            && get(get(new, "spec"), "completions") == get(get(new, "spec"), "parallelism");
        if !is_elastic {
            workload::immutable(new, old, "completions", &mut errors);
        }
        errors
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        (field == "status.successful").then(|| workload::count(object, "succeeded").to_string())
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let succeeded = workload::count(object, "succeeded");
        let completions = match integer(spec, "completions") {
            Some(wanted) => format!("{succeeded}/{wanted}"),
            None => match integer(spec, "parallelism").unwrap_or(1) {
                parallel if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
                _ => format!("{succeeded}/1"),
            },
        };
        let mut row = vec![
            meta::name(object).into(),
            job_status(object).into(),
            completions.into(),
            duration(status, now).into(),
            table::age(object, now).into(),
        ];
        row.extend(workload::wide_cells(spec));
        row
    }
}

fn has_condition(object: &Value, type_: &str) -> bool {
    list(get(object, "status"), "conditions")
        .iter()
        .any(|condition| text(condition, "type") == type_ && text(condition, "status") == "True")
}

fn job_status(object: &Value) -> &'static str {
    if has_condition(object, "Complete") {
        "Complete"
    } else if has_condition(object, "Failed") {
        "Failed"
    } else if meta::is_deleting(object) {
        "Terminating"
    } else if has_condition(object, "Suspended") {
        "Suspended"
    } else if has_condition(object, "FailureTarget") {
        "FailureTarget"
    } else if has_condition(object, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn duration(status: &Value, now: Timestamp) -> String {
    let Some(start) = meta::parse_time(text(status, "startTime")) else {
        return String::new();
    };
    let end = meta::parse_time(text(status, "completionTime")).unwrap_or(now);
    table::human_duration(end.as_second() - start.as_second())
}

pub(super) struct CronJob;

impl Strategy for CronJob {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else {
            return;
        };
        default(spec, "concurrencyPolicy", "Allow");
        default(spec, "suspend", false);
        default(spec, "successfulJobsHistoryLimit", 3);
        default(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = spec.pointer_mut("/jobTemplate/spec") {
            // The job that is made of it gets the rest.
            workload::default_template(template);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        let schedule = text(spec, "schedule");
        let at = path.child("schedule");
        if schedule.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if schedule.contains("TZ") {
            errors.push(FieldError::invalid(
                &at,
                schedule,
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ));
        } else if let Err(why) = crate::cron::Schedule::parse(schedule) {
            errors.push(FieldError::invalid(&at, schedule, why));
        }
        if let Some(zone) = get(spec, "timeZone").as_str() {
            let at = path.child("timeZone");
            if zone.is_empty() {
                errors.push(FieldError::invalid(
                    &at,
                    zone,
                    "timeZone must be nil or non-empty string",
                ));
            } else if zone.eq_ignore_ascii_case("local") {
                errors.push(FieldError::invalid(
                    &at,
                    zone,
                    "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
                ));
            } else if jiff::tz::TimeZone::get(zone).is_err() {
                errors.push(FieldError::invalid(
                    &at,
                    zone,
                    format!("unknown time zone {zone}"),
                ));
            }
        }
        let policy = text(spec, "concurrencyPolicy");
        if !CONCURRENCY.contains(&policy) {
            errors.push(FieldError::not_supported(
                &path.child("concurrencyPolicy"),
                policy,
                CONCURRENCY,
            ));
        }
        for field in [
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ] {
            workload::not_negative(spec, field, &path, &mut errors);
        }
        let at = path.child("jobTemplate");
        validate_job_spec(
            get(get(spec, "jobTemplate"), "spec"),
            &at.child("spec"),
            &mut errors,
        );
        errors
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        if meta::name(object).len() > CRON_NAME_MAX {
            let metadata = Path::new("metadata");
            errors.push(FieldError::invalid(
                &metadata.child("name"),
                meta::name(object),
                format!("must be no more than {CRON_NAME_MAX} characters"),
            ));
        }
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let last = match text(status, "lastScheduleTime") {
            "" => "<none>".to_owned(),
            at => table::since(at, now),
        };
        let zone = get(spec, "timeZone").as_str().unwrap_or("<none>");
        let suspended = if flag(spec, "suspend") {
            "True"
        } else {
            "False"
        };
        let mut row = vec![
            meta::name(object).into(),
            text(spec, "schedule").into(),
            zone.into(),
            suspended.into(),
            list(status, "active").len().into(),
            last.into(),
            table::age(object, now).into(),
        ];
        row.extend(workload::wide_cells(get(get(spec, "jobTemplate"), "spec")));
        row
    }
}
