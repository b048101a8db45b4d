//! PUT, and what it shares with PATCH and the subresources: changing an object by all the rules.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::Value;
use wherry_api::{FieldError, Resource, Status, field::Path, managed, meta};
use wherry_store::{KeyValue, StoreError};

use crate::{
    admission::{self, quota},
    answer::{self, Answer},
    call::Call,
    service_ips::Mode,
    stored,
    verbs::{
        CONFLICT_TRIES_MAX,
        create::{counts_generation, create_object},
        durability, store_status,
    },
};

/// Set by the server alone, so that an update keeps what is there.
const SYSTEM_METADATA: &[&str] = &[
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
];

pub(crate) async fn update(call: &mut Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let mut object = call.read_object(headers, body)?;
    let (name, namespace) = (call.name().to_owned(), call.namespace().to_owned());
    let found = meta::name(&object).to_owned();
    if found.is_empty() {
        return Err(Status::bad_request("name must be provided"));
    }
    if found != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({found}) does not match the name on the URL ({name})"
        )));
    }
    let found = meta::namespace(&object).to_owned();
    if !found.is_empty() && found != namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({found}) does not match the namespace on the URL ({namespace})"
        )));
    }
    if call.resource.namespaced {
        meta::metadata_mut(&mut object).insert("namespace".into(), namespace.into());
    }
    if meta::resource_version(&object).is_empty() && !may_be_unconditional(call.resource) {
        let error = FieldError::invalid(
            &Path::new("metadata").child("resourceVersion"),
            0,
            "must be specified for an update",
        );
        return Err(Status::invalid(call.resource, &name, vec![error]));
    }
    let subresource = call.path.subresource.clone();
    let result = modify(call, &subresource, |_| Ok(object.clone())).await;
    let (kv, code) = match result {
        Err(status)
            if status.is("NotFound")
                && may_create(call.resource)
                && meta::resource_version(&object).is_empty() =>
        {
            (
                create_object(call, object, Record::Track).await?,
                StatusCode::CREATED,
            )
        }
        result => (result?, StatusCode::OK),
    };
    Ok(answer::object(
        call.accept,
        call.include()?,
        call.resource,
        code,
        &kv,
    ))
}

/// As `AllowUnconditionalUpdate` of the strategies.
fn may_be_unconditional(resource: &Resource) -> bool {
    !matches!(
        resource.plural,
        "leases" | "runtimeclasses" | "serviceaccounts"
    )
}

/// As `AllowCreateOnUpdate` of the strategies.
fn may_create(resource: &Resource) -> bool {
    matches!(resource.plural, "leases" | "events" | "endpoints")
}

/// Who keeps the record of which field is whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// What changes is the caller's.
    Track,
    /// It is written already: the object was applied.
    Written,
}

impl Record {
    /// Writes the record of a changed object (`old` null: of a new one).
    pub(crate) fn write(
        self,
        call: &Call,
        subresource: &str,
        old: &Value,
        new: &mut Value,
    ) -> Result<(), Status> {
        // Leases and events are written all the time, and by one writer each.
        if self == Self::Written || subresource == "binding" {
            return Ok(());
        }
        if call.resource.lazy {
            let kept = old.pointer("/metadata/managedFields").cloned();
            let metadata = meta::metadata_mut(new);
            metadata.remove("managedFields");
            metadata.extend(kept.map(|kept| ("managedFields".to_owned(), kept)));
            return Ok(());
        }
        let act = managed::Act {
            resource: call.resource,
            subresource,
            manager: &call.field_manager()?,
            now: &meta::format_time(Timestamp::now()),
        };
        managed::track_update(&act, old, new);
        Ok(())
    }
}

/// Changes the object a call names, and records what of it is the caller's: see [`modify_with`].
pub(crate) async fn modify(
    call: &Call,
    subresource: &str,
    change: impl FnMut(&Value) -> Result<Value, Status>,
) -> Result<KeyValue, Status> {
    modify_with(call, subresource, Record::Track, change).await
}

/// Changes the object a call names: `change` makes the new one of the old, and is asked again when somebody
/// else wrote in between, unless the new object says which version it was made of.
pub(crate) async fn modify_with(
    call: &Call,
    subresource: &str,
    record: Record,
    mut change: impl FnMut(&Value) -> Result<Value, Status>,
) -> Result<KeyValue, Status> {
    let (resource, name) = (call.resource, call.name());
    let key = stored::key(resource, call.namespace(), name);
    let fail = |error| store_status(resource, name, error);
    let is_dry_run = call.is_dry_run()?;
    for _ in 0..CONFLICT_TRIES_MAX {
        let (current, _) = call.app.store.get(&key).await.map_err(fail)?;
        let current = current.ok_or_else(|| Status::not_found(resource, name))?;
        let old = stored::decode_as(resource, &current);
        let mut new = change(&old)?;
        let wanted = meta::resource_version(&new).to_owned();
        let is_conditional = !matches!(wanted.as_str(), "" | "0");
        if is_conditional && wanted != meta::resource_version(&old) {
            return Err(Status::modified(resource, name));
        }
        let (wanted_uid, uid) = (meta::uid(&new), meta::uid(&old));
        if !wanted_uid.is_empty() && wanted_uid != uid {
            let detail = format!(
                "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: \
                 Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {uid}"
            );
            return Err(Status::conflict(resource, name, &detail));
        }
        complete(call, subresource, &mut new, &old);
        record.write(call, subresource, &old, &mut new)?;
        admission::update(call, subresource, &new, &old).await?;
        let claim =
            if resource.group.is_empty() && resource.plural == "services" && subresource.is_empty()
            {
                Some(
                    call.app
                        .service_ips
                        .claim_changed(&call.app.store, &mut new, &old, Mode::of(is_dry_run))
                        .await?,
                )
            } else {
                None
            };
        // A binding is the server's own work, made of what has been checked.
        let errors = if subresource == "binding" {
            Vec::new()
        } else {
            resource.validate_update(subresource, &new, &old)
        };
        if !errors.is_empty() {
            return Err(Status::invalid(resource, name, errors));
        }
        if new == old {
            return Ok(current);
        }
        let value = stored::encode(resource, &new);
        let reserved = quota::reserve_change(call, subresource, &new, &old, is_dry_run).await?;
        if is_dry_run {
            let value = value.into();
            return Ok(KeyValue { value, ..current });
        }
        let is_removed = is_finished(&new, &old);
        let result = if is_removed {
            let removed = call.app.store.delete(&key, current.mod_revision).await;
            let value = value.into();
            removed.map(|kv| KeyValue { value, ..kv })
        } else {
            call.app
                .store
                .update(&key, value, current.mod_revision, durability(resource))
                .await
        };
        match result {
            Ok(kv) => {
                if let Some(claim) = claim {
                    claim.keep().await;
                    if is_removed {
                        call.app.service_ips.release(&call.app.store, &new).await;
                    }
                }
                return Ok(kv);
            }
            Err(error) => {
                reserved.release(&call.app).await;
                if is_conditional || !matches!(error, StoreError::Conflict { .. }) {
                    return Err(fail(error));
                }
            }
        }
    }
    Err(Status::modified(resource, name))
}

/// What the server, and not the client, says of a changed object.
fn complete(call: &Call, subresource: &str, new: &mut Value, old: &Value) {
    let resource = call.resource;
    stored::tidy_metadata(new);
    let metadata = meta::metadata_mut(new);
    metadata.insert("resourceVersion".into(), meta::resource_version(old).into());
    for field in SYSTEM_METADATA {
        match old
            .get("metadata")
            .and_then(|metadata| metadata.get(*field))
        {
            Some(value) => metadata.insert((*field).to_owned(), value.clone()),
            None => metadata.remove(*field),
        };
    }
    if subresource == "binding" {
        return;
    }
    resource.strategy.default(new);
    resource.strategy.prepare_update(subresource, new, old);
    if counts_generation(resource, new) && new.get("spec") != old.get("spec") {
        meta::metadata_mut(new).insert("generation".into(), (meta::generation(old) + 1).into());
    }
}

/// Whether an object that is being deleted has lost the last thing that kept it.
fn is_finished(new: &Value, old: &Value) -> bool {
    let is_kept_by_spec = new
        .pointer("/spec/finalizers")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    meta::is_deleting(old)
        && meta::finalizers(new).next().is_none()
        && meta::deletion_grace_period_seconds(new).unwrap_or_default() == 0
        && !is_kept_by_spec
}
