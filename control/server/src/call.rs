//! A request to a resource, with who asks and how they want the answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::Value;
use wherry_api::{FieldError, Resource, Status, decode, field::Path, table::IncludeObject};
use wherry_store::{KeyValue, StoreError};

use crate::{
    App, UserInfo,
    moment::Moment,
    protobuf,
    request::{Accept, Query, ResourcePath},
};

/// Largest body that is read; kube-apiserver's limit.
pub(crate) const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Longest name of a field manager.
const MANAGER_CHARS_MAX: usize = 128;

/// Media types of bodies.
const BODY_TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];

/// A request to a resource.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) user: UserInfo,
    pub(crate) resource: &'static Resource,
    pub(crate) path: ResourcePath,
    pub(crate) query: Query,
    pub(crate) accept: Accept,
    /// What the client calls itself.
    pub(crate) user_agent: String,
    /// Sent back in `Warning` headers.
    pub(crate) warnings: Warnings,
    /// For the audit log.
    pub(crate) notes: Notes,
    /// Of what it is judged by.
    pub(crate) moment: Arc<Moment>,
}

/// What a client is to be told beside its answer, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    pub(crate) fn push(&self, warning: String) {
        let mut warnings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What admission has to say to the audit log, by the annotation's key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes(Arc<Mutex<BTreeMap<String, String>>>);

impl Notes {
    pub(crate) fn put(&self, key: String, text: String) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.insert(key, text);
    }

    pub(crate) fn take(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What becomes of fields that do not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl Call {
    /// Reads a key that the request is judged by.
    pub(crate) async fn judged_by(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.moment.get(&*self.app.store, key).await
    }

    /// Reads all keys of a prefix that the request is judged by.
    pub(crate) async fn judged_by_all(&self, prefix: &str) -> Result<Vec<KeyValue>, StoreError> {
        self.moment.list(&*self.app.store, prefix).await
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.path.namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.path.name
    }

    /// Whose the fields are that this request changes.
    ///
    /// # Errors
    /// The name given cannot be one.
    pub(crate) fn field_manager(&self) -> Result<String, Status> {
        let given = self.query.get("fieldManager");
        if given.is_empty() {
            // As `prefixFromUserAgent`: `kubectl/v1.33.0 (linux/amd64) …`.
            let prefix = self.user_agent.split('/').next().unwrap_or_default();
            let printable = prefix.chars().filter(|c| !c.is_control());
            let name: String = printable.take(MANAGER_CHARS_MAX).collect();
            return Ok(if name.is_empty() {
                "unknown".to_owned()
            } else {
                name
            });
        }
        let path = Path::new("fieldManager");
        let error = if given.len() > MANAGER_CHARS_MAX {
            FieldError::too_long(&path, MANAGER_CHARS_MAX)
        } else if given.chars().any(char::is_control) {
            FieldError::invalid(&path, given, "should only contain printable characters")
        } else {
            return Ok(given.to_owned());
        };
        Err(Status::invalid_kind(
            "meta.k8s.io",
            "PatchOptions",
            "",
            vec![error],
        ))
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_dry_run(&self) -> Result<bool, Status> {
        check_dry_run(self.query.all("dryRun"), "CreateOptions")
    }

    pub(crate) fn include(&self) -> Result<IncludeObject, Status> {
        self.query
            .get("includeObject")
            .parse()
            .map_err(Status::bad_request)
    }

    fn field_validation(&self) -> Result<FieldValidation, Status> {
        match self.query.get("fieldValidation") {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Strict" => Ok(FieldValidation::Strict),
            "Ignore" => Ok(FieldValidation::Ignore),
            other => Err(Status::invalid_kind(
                "meta.k8s.io",
                "CreateOptions",
                "",
                vec![FieldError::not_supported(
                    &Path::new("fieldValidation"),
                    other,
                    &["Ignore", "Warn", "Strict"],
                )],
            )),
        }
    }

    /// The object in a body, its known fields checked.
    pub(crate) fn read_object(
        &mut self,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Value, Status> {
        let (mut object, raw) = read_value(headers, body)?;
        let resource = self.resource;
        self.check_type(&mut object)?;
        let decoded = decode::check(resource, &mut object, &raw).map_err(Status::bad_request)?;
        self.apply_field_validation(&decoded)?;
        Ok(object)
    }

    /// A configuration to be applied, its known fields checked.
    pub(crate) fn read_config(&mut self, body: &Bytes) -> Result<Value, Status> {
        let mut config: Value = serde_saphyr::from_slice(body)
            .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
        self.check_type(&mut config)?;
        let decoded =
            decode::check(self.resource, &mut config, &[]).map_err(Status::bad_request)?;
        self.apply_field_validation(&decoded)?;
        Ok(config)
    }

    /// The types of an object that a patch made.
    pub(crate) fn check_patched(
        &mut self,
        object: &mut Value,
        is_first: bool,
    ) -> Result<(), Status> {
        let resource = self.resource;
        let decoded = decode::check(resource, object, &[]).map_err(Status::bad_request)?;
        if is_first {
            self.apply_field_validation(&decoded)
        } else {
            Ok(())
        }
    }

    fn apply_field_validation(&mut self, decoded: &decode::Decoded) -> Result<(), Status> {
        match self.field_validation()? {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => decoded
                .warnings()
                .into_iter()
                .for_each(|warning| self.warnings.push(warning)),
            FieldValidation::Strict => {
                if let Some(error) = decoded.strict_error(self.resource) {
                    return Err(Status::bad_request(error));
                }
            }
        }
        Ok(())
    }

    /// Makes sure that a body is of the path's kind; a kind left out is the path's.
    fn check_type(&self, object: &mut Value) -> Result<(), Status> {
        let resource = self.resource;
        let Some(members) = object.as_object_mut() else {
            return Err(Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: json: cannot unmarshal into Go value of type v1.{}",
                resource.kind, resource.version, resource.kind, resource.kind
            )));
        };
        let (api_version, kind) = (resource.api_version(), resource.kind);
        let found = |members: &serde_json::Map<String, Value>, field: &str| {
            members
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (found_version, found_kind) = (found(members, "apiVersion"), found(members, "kind"));
        if !found_kind.is_empty() && found_kind != kind {
            return Err(Status::bad_request(format!(
                "{found_kind} in version {found_version:?} cannot be handled as a {kind}: the object provided is \
                 unrecognized (must be of type {kind})"
            )));
        }
        if !found_version.is_empty() && found_version != api_version {
            return Err(Status::bad_request(format!(
                "the API version in the data ({found_version}) does not match the expected API version ({api_version})"
            )));
        }
        members.insert("apiVersion".into(), api_version.into());
        members.insert("kind".into(), kind.into());
        Ok(())
    }
}

/// Reads `dryRun`, of which there is one kind.
pub(crate) fn check_dry_run<'a>(
    values: impl Iterator<Item = &'a str>,
    kind: &str,
) -> Result<bool, Status> {
    let mut is_dry_run = false;
    for value in values {
        if value != "All" {
            return Err(Status::invalid_kind(
                "meta.k8s.io",
                kind,
                "",
                vec![FieldError::not_supported(
                    &Path::new("dryRun"),
                    value,
                    &["All"],
                )],
            ));
        }
        is_dry_run = true;
    }
    Ok(is_dry_run)
}

/// A body as a value, and as JSON text (empty when it was in another form).
pub(crate) fn read_value(headers: &HeaderMap, body: &Bytes) -> Result<(Value, Bytes), Status> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let unreadable = |error: &dyn std::fmt::Display| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of the kind of this path): couldn't get version/kind; json \
             parse error: {error}"
        ))
    };
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => {
            let value = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
            Ok((value, body.clone()))
        }
        "application/yaml" => {
            let value = serde_saphyr::from_slice(body).map_err(|error| unreadable(&error))?;
            Ok((value, Bytes::new()))
        }
        "application/vnd.kubernetes.protobuf" => {
            let value =
                protobuf::decode(body).map_err(|error| Status::bad_request(error.to_string()))?;
            Ok((value, Bytes::new()))
        }
        _ => Err(Status::unsupported_media_type(BODY_TYPES)),
    }
}
