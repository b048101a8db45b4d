//! POST to a collection.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::Value;
use wherry_api::{Resource, Status, meta};
use wherry_store::{KeyValue, StoreError};

use crate::{
    admission::{self, quota},
    answer::{self, Answer},
    call::Call,
    service_ips::Mode,
    stored,
    verbs::{durability, store_status, update::Record},
};

/// How often a generated name is made anew when it is taken.
const GENERATE_TRIES_MAX: usize = 8;

pub(crate) async fn create(call: &mut Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    if call.resource.namespaced && call.namespace().is_empty() {
        return Err(Status::path_method_not_allowed());
    }
    let object = call.read_object(headers, body)?;
    let kv = create_object(call, object, Record::Track).await?;
    Ok(answer::object(
        call.accept,
        call.include()?,
        call.resource,
        StatusCode::CREATED,
        &kv,
    ))
}

/// Whether a resource counts the versions of its objects' specs.
pub(crate) fn counts_generation(resource: &Resource, object: &Value) -> bool {
    // As the strategies of these have it: their objects carry no generation.
    let is_exempt =
        resource.group.is_empty() && matches!(resource.plural, "nodes" | "namespaces" | "services");
    resource.has_status() && !is_exempt && object.get("spec").is_some()
}

/// Puts a decoded object into the store, by all the rules.
pub(crate) async fn create_object(
    call: &Call,
    mut object: Value,
    record: Record,
) -> Result<KeyValue, Status> {
    let resource = call.resource;
    if !matches!(meta::resource_version(&object), "" | "0") {
        return Err(Status::failure(
            500,
            "",
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let namespace = check_namespace(call, &mut object)?;
    let generate_name = meta::generate_name(&object).to_owned();
    let is_generated = meta::name(&object).is_empty() && !generate_name.is_empty();
    let metadata = meta::metadata_mut(&mut object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        metadata.remove(field);
    }
    metadata.remove("resourceVersion");
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert(
        "creationTimestamp".into(),
        meta::format_time(Timestamp::now()).into(),
    );

    stored::tidy_metadata(&mut object);

    resource.strategy.default(&mut object);
    record.write(call, "", &Value::Null, &mut object)?;
    if !is_generated {
        return finish(call, &namespace, object).await;
    }
    let mut tries = 0;
    loop {
        tries += 1;
        let mut named = object.clone();
        let name = meta::generated_name(&generate_name, rand::random());
        meta::metadata_mut(&mut named).insert("name".into(), name.into());
        match finish(call, &namespace, named).await {
            Err(status) if status.is("AlreadyExists") && tries < GENERATE_TRIES_MAX => {}
            result => return result,
        }
    }
}

async fn finish(call: &Call, namespace: &str, mut object: Value) -> Result<KeyValue, Status> {
    let resource = call.resource;
    admission::create(call, namespace, &mut object).await?;
    resource.strategy.prepare_create(&mut object);
    if counts_generation(resource, &object) {
        meta::metadata_mut(&mut object).insert("generation".into(), 1.into());
    }
    let name = meta::name(&object).to_owned();
    let errors = resource.validate_create(&object);
    if !errors.is_empty() {
        return Err(Status::invalid(resource, &name, errors));
    }
    let key = stored::key(resource, namespace, &name);
    let is_dry_run = call.is_dry_run()?;
    let reserved = quota::reserve_new(call, namespace, &object, is_dry_run).await?;
    let written = write(call, &key, &name, object, is_dry_run).await;
    if written.is_err() {
        reserved.release(&call.app).await;
    }
    written
}

async fn write(
    call: &Call,
    key: &str,
    name: &str,
    mut object: Value,
    is_dry_run: bool,
) -> Result<KeyValue, Status> {
    let resource = call.resource;
    let claim = if resource.group.is_empty() && resource.plural == "services" {
        Some(
            call.app
                .service_ips
                .claim_new(&call.app.store, &mut object, Mode::of(is_dry_run))
                .await?,
        )
    } else {
        None
    };
    let value = stored::encode(resource, &object);
    if is_dry_run {
        return match call.app.store.get(key).await {
            Ok((Some(_), _)) => Err(Status::already_exists(resource, name)),
            Ok((None, _)) => Ok(KeyValue {
                key: key.into(),
                value: value.into(),
                create_revision: 0,
                mod_revision: 0,
            }),
            Err(error) => Err(store_status(resource, name, error)),
        };
    }
    match call
        .app
        .store
        .create(key, value, durability(resource))
        .await
    {
        Ok(kv) => {
            if let Some(claim) = claim {
                claim.keep().await;
            }
            Ok(kv)
        }
        Err(StoreError::Exists(_)) => Err(Status::already_exists(resource, name)),
        Err(error) => Err(store_status(resource, name, error)),
    }
}

/// The namespace of the path is that of the object.
fn check_namespace(call: &Call, object: &mut Value) -> Result<String, Status> {
    let namespace = call.namespace().to_owned();
    if !call.resource.namespaced {
        return Ok(String::new());
    }
    let found = meta::namespace(object);
    if !found.is_empty() && found != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    meta::metadata_mut(object).insert("namespace".into(), namespace.clone().into());
    Ok(namespace)
}
