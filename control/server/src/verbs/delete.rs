//! DELETE of one.
//!
//! ```text
//!            grace > 0                      agent: grace 0
//!  live ──────────────────▶ terminating ──────────────────────▶ gone
//!    │                          │  (a later delete may shorten)  ▲
//!    │ finalizers               ▼                                │ last finalizer removed
//!    └────────────────▶ waiting for finalizers ──────────────────┘
//! ```

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use wherry_api::{FieldError, Resource, Status, field::Path, meta};
use wherry_store::{KeyValue, StoreError};

use crate::{
    admission,
    answer::{self, Answer},
    call::{self, Call},
    stored,
    verbs::{CONFLICT_TRIES_MAX, durability, store_status},
};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Namespaces that the cluster cannot be without.
const NAMESPACES_KEPT: &[&str] = &["default", "kube-system", "kube-public"];

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) propagation_policy: Option<String>,
    pub(crate) orphan_dependents: Option<bool>,
    pub(crate) preconditions: Option<Preconditions>,
    pub(crate) dry_run: Option<Vec<String>>,
}

/// What must be true of the object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

impl DeleteOptions {
    /// From the body, and where it is silent from the parameters.
    pub(crate) fn read(call: &Call, headers: &HeaderMap, body: &Bytes) -> Result<Self, Status> {
        let mut options = if body.iter().all(u8::is_ascii_whitespace) {
            Self::default()
        } else {
            let (value, _) = call::read_value(headers, body)?;
            serde_json::from_value(value).map_err(|error| Status::bad_request(error.to_string()))?
        };
        let query = &call.query;
        if options.grace_period_seconds.is_none() {
            options.grace_period_seconds = query.number("gracePeriodSeconds")?;
        }
        if options.propagation_policy.is_none() && query.has("propagationPolicy") {
            options.propagation_policy = Some(query.get("propagationPolicy").to_owned());
        }
        if options.orphan_dependents.is_none() && query.has("orphanDependents") {
            options.orphan_dependents = Some(query.flag("orphanDependents"));
        }
        let invalid = |error| Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", vec![error]);
        match options.propagation_policy.as_deref() {
            None | Some("Orphan" | "Background" | "Foreground") => {}
            Some(other) => {
                let supported = ["Background", "Foreground", "Orphan"];
                return Err(invalid(FieldError::not_supported(
                    &Path::new("propagationPolicy"),
                    other,
                    &supported,
                )));
            }
        }
        if options.propagation_policy.is_some() && options.orphan_dependents.is_some() {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            return Err(invalid(FieldError::invalid(
                &Path::new("propagationPolicy"),
                Value::Null,
                detail,
            )));
        }
        Ok(options)
    }

    pub(crate) fn is_dry_run(&self, call: &Call) -> Result<bool, Status> {
        let from_body = self.dry_run.iter().flatten().map(String::as_str);
        call::check_dry_run(from_body.chain(call.query.all("dryRun")), "DeleteOptions")
    }
}

/// What became of an object.
#[derive(Clone, Debug)]
pub(crate) enum Deleted {
    /// It is gone; this is what it was.
    Gone(KeyValue),
    /// It will be.
    Pending(KeyValue),
}

pub(crate) async fn delete(call: &Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let options = DeleteOptions::read(call, headers, body)?;
    Ok(respond(
        call,
        &delete_object(call, call.name(), &options).await?,
    ))
}

/// The object where its resource shows it, and a `Status` otherwise.
pub(crate) fn respond(call: &Call, deleted: &Deleted) -> axum::response::Response {
    let shows_object = matches!(
        call.resource.plural,
        "pods" | "services" | "serviceaccounts"
    );
    match deleted {
        Deleted::Gone(kv) if !shows_object => {
            let status =
                Status::success(call.resource, call.name(), meta::uid(&stored::decode(kv)));
            answer::status(call.accept, &status)
        }
        Deleted::Gone(kv) | Deleted::Pending(kv) => answer::object(
            call.accept,
            Default::default(),
            call.resource,
            StatusCode::OK,
            kv,
        ),
    }
}

/// What a deletion does to an object.
#[derive(Debug, PartialEq)]
enum Step {
    /// Nothing: it is being deleted already, and this changes nothing.
    Leave,
    /// It stays for now, in this form.
    Mark(Value),
    /// It goes.
    Remove,
}

/// Decides what a deletion does. Pure.
fn decide(resource: &Resource, object: &Value, options: &DeleteOptions, now: Timestamp) -> Step {
    let mut marked = object.clone();
    let finalizers = finalizers_after(object, options);
    let metadata = meta::metadata_mut(&mut marked);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(finalizers));
    }
    let is_kept = !finalizers.is_empty()
        || object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty());

    let mut set = |deletion: Timestamp, grace_seconds: i64| {
        metadata.insert(
            "deletionTimestamp".into(),
            meta::format_time(deletion).into(),
        );
        metadata.insert("deletionGracePeriodSeconds".into(), grace_seconds.into());
    };
    let default_grace = resource
        .deletion_grace_seconds
        .map(|grace_of| grace_of(object));
    let grace_asked = options
        .grace_period_seconds
        .map(|seconds| if seconds < 0 { 1 } else { seconds });
    // An object with nothing to stop is not given time for it, however much was asked for.
    let grace = match default_grace {
        None | Some(0) => 0,
        Some(default) => grace_asked.unwrap_or(if default < 0 { 1 } else { default }),
    };
    if let Some(deletion) = meta::deletion_timestamp(object) {
        let current = meta::deletion_grace_period_seconds(object).unwrap_or_default();
        if current > 0 && default_grace != Some(0) {
            // A later delete may shorten the grace period and never lengthens it.
            match grace_asked {
                Some(asked) if asked < current => {
                    if asked == 0 && !is_kept {
                        return Step::Remove;
                    }
                    set(deletion - SignedDuration::from_secs(current - asked), asked);
                    return Step::Mark(marked);
                }
                _ => {
                    return if marked == *object {
                        Step::Leave
                    } else {
                        Step::Mark(marked)
                    };
                }
            }
        }
        if current > 0 {
            set(now, 0);
        }
        return match is_kept {
            false => Step::Remove,
            true if marked == *object => Step::Leave,
            true => Step::Mark(marked),
        };
    }
    if grace == 0 && !is_kept {
        return Step::Remove;
    }
    set(now + SignedDuration::from_secs(grace), grace);
    if resource.plural == "namespaces" && resource.group.is_empty() {
        marked["status"]["phase"] = "Terminating".into();
    }
    Step::Mark(marked)
}

fn finalizers_after(object: &Value, options: &DeleteOptions) -> Vec<String> {
    let mut finalizers: Vec<String> = meta::finalizers(object).map(str::to_owned).collect();
    let wanted = match (
        options.propagation_policy.as_deref(),
        options.orphan_dependents,
    ) {
        (Some("Orphan"), _) | (_, Some(true)) => Some(ORPHAN),
        (Some("Foreground"), _) => Some(FOREGROUND),
        (Some(_), _) | (_, Some(false)) => None,
        (None, None) => return finalizers,
    };
    finalizers.retain(|finalizer| {
        (finalizer != ORPHAN && finalizer != FOREGROUND) || wanted == Some(finalizer)
    });
    if let Some(wanted) = wanted
        && !finalizers.iter().any(|finalizer| finalizer == wanted)
    {
        finalizers.push(wanted.to_owned());
    }
    finalizers
}

fn check_preconditions(
    call: &Call,
    name: &str,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let Some(wanted) = &options.preconditions else {
        return Ok(());
    };
    let check = |what: &str, wanted: &Option<String>, found: &str| match wanted {
        Some(wanted) if wanted != found => {
            let detail = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            Err(Status::conflict(call.resource, name, &detail))
        }
        _ => Ok(()),
    };
    check("UID", &wanted.uid, meta::uid(object))?;
    check(
        "ResourceVersion",
        &wanted.resource_version,
        meta::resource_version(object),
    )
}

/// Deletes an object by all the rules.
pub(crate) async fn delete_object(
    call: &Call,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, Status> {
    let resource = call.resource;
    let key = stored::key(resource, call.namespace(), name);
    let fail = |error| store_status(resource, name, error);
    if resource.group.is_empty()
        && resource.plural == "namespaces"
        && NAMESPACES_KEPT.contains(&name)
    {
        return Err(Status::forbidden(
            resource,
            name,
            "this namespace may not be deleted",
        ));
    }
    let is_dry_run = options.is_dry_run(call)?;
    for _ in 0..CONFLICT_TRIES_MAX {
        let (current, _) = call.app.store.get(&key).await.map_err(fail)?;
        let current = current.ok_or_else(|| Status::not_found(resource, name))?;
        let object = stored::decode_as(resource, &current);
        check_preconditions(call, name, &object, options)?;
        admission::delete(call, &call.path.subresource, &object)?;
        let step = decide(resource, &object, options, Timestamp::now());
        let result = match step {
            Step::Leave => return Ok(Deleted::Pending(current)),
            Step::Remove if is_dry_run => return Ok(Deleted::Gone(current)),
            Step::Remove => {
                let removed = call.app.store.delete(&key, current.mod_revision).await;
                if removed.is_ok() && resource.group.is_empty() && resource.plural == "services" {
                    call.app.service_ips.release(&call.app.store, &object).await;
                }
                removed.map(Deleted::Gone)
            }
            Step::Mark(mut marked) => {
                if crate::verbs::create::counts_generation(resource, &marked)
                    && !meta::is_deleting(&object)
                {
                    meta::metadata_mut(&mut marked)
                        .insert("generation".into(), (meta::generation(&object) + 1).into());
                }
                let value = stored::encode(resource, &marked);
                if is_dry_run {
                    let value = value.into();
                    return Ok(Deleted::Pending(KeyValue { value, ..current }));
                }
                let written = call
                    .app
                    .store
                    .update(&key, value, current.mod_revision, durability(resource))
                    .await;
                written.map(Deleted::Pending)
            }
        };
        match result {
            Ok(deleted) => return Ok(deleted),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Err(Status::modified(resource, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> &'static Resource {
        wherry_api::find("", "v1", "pods").expect("a row")
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn running() -> Value {
        json!({
            "metadata": {"name": "a", "uid": "1"},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30, "containers": []},
            "status": {"phase": "Running"},
        })
    }

    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions {
            grace_period_seconds: Some(seconds),
            ..DeleteOptions::default()
        }
    }

    fn marked(step: Step) -> Value {
        match step {
            Step::Mark(value) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_running_pod_is_given_its_grace_period() {
        let pod = marked(decide(pods(), &running(), &DeleteOptions::default(), now()));
        assert_eq!(pod["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
        let pod = marked(decide(pods(), &running(), &grace(5), now()));
        assert_eq!(pod["metadata"]["deletionTimestamp"], "2026-01-01T00:00:05Z");
    }

    #[test]
    fn a_second_delete_shortens_the_grace_period_and_never_lengthens_it() {
        let pod = marked(decide(pods(), &running(), &DeleteOptions::default(), now()));
        assert_eq!(decide(pods(), &pod, &grace(60), now()), Step::Leave);
        assert_eq!(
            decide(pods(), &pod, &DeleteOptions::default(), now()),
            Step::Leave
        );
        let shorter = marked(decide(pods(), &pod, &grace(10), now()));
        assert_eq!(
            shorter["metadata"]["deletionTimestamp"],
            "2026-01-01T00:00:10Z"
        );
        assert_eq!(decide(pods(), &shorter, &grace(0), now()), Step::Remove);
    }

    #[test]
    fn a_pod_with_nothing_to_stop_goes_at_once() {
        let mut pod = running();
        pod["spec"].as_object_mut().unwrap().remove("nodeName");
        assert_eq!(
            decide(pods(), &pod, &DeleteOptions::default(), now()),
            Step::Remove
        );
        assert_eq!(decide(pods(), &running(), &grace(0), now()), Step::Remove);
    }

    #[test]
    fn finalizers_keep_an_object() {
        let mut pod = running();
        pod["metadata"]["finalizers"] = json!(["example.com/keep"]);
        let kept = marked(decide(pods(), &pod, &grace(0), now()));
        assert_eq!(kept["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(decide(pods(), &kept, &grace(0), now()), Step::Leave);
        let foreground = DeleteOptions {
            propagation_policy: Some("Foreground".into()),
            ..DeleteOptions::default()
        };
        let configmaps = wherry_api::find("", "v1", "configmaps").unwrap();
        let kept = marked(decide(
            configmaps,
            &json!({"metadata": {"name": "a"}}),
            &foreground,
            now(),
        ));
        assert_eq!(
            kept["metadata"]["finalizers"],
            json!(["foregroundDeletion"])
        );
    }
}
