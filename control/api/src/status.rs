//! `metav1.Status`: how every request that fails is answered, in the words of kube-apiserver.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{FieldError, Resource, field::quote};

/// An answer that is no object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct Status {
    /// Always `Status`.
    #[serde(default = "kind")]
    pub kind: String,
    /// Always `v1`.
    #[serde(default = "api_version")]
    pub api_version: String,
    /// Empty, or list metadata.
    #[serde(default)]
    pub metadata: Map<String, Value>,
    /// `Success` or `Failure`.
    #[serde(default)]
    pub status: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// For programs, such as `NotFound`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What the failure is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
    /// HTTP status.
    #[serde(default)]
    pub code: u16,
}

/// What a failure is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Its kind, or its resource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Its uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// What is wrong, field by field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    /// When to try again; 0: not stated.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusCause {
    /// For programs, such as `FieldValueInvalid`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Path of the field.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn kind() -> String {
    "Status".to_owned()
}

fn api_version() -> String {
    "v1".to_owned()
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl Status {
    /// A failure in the caller's own words.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind: kind(),
            api_version: api_version(),
            metadata: Map::new(),
            status: "Failure".to_owned(),
            message: message.into(),
            reason: reason.to_owned(),
            details: None,
            code,
        }
    }

    /// Says what the failure is about.
    pub fn with_details(mut self, details: StatusDetails) -> Self {
        self.details = Some(details);
        self
    }

    /// Says when to try again.
    pub fn with_retry_after_seconds(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// Whether this is a failure for `reason`.
    pub fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }

    fn of(code: u16, reason: &str, resource: &Resource, name: &str, message: String) -> Self {
        Self::failure(code, reason, message).with_details(StatusDetails {
            name: name.to_owned(),
            group: resource.group.to_owned(),
            kind: resource.plural.to_owned(),
            ..StatusDetails::default()
        })
    }

    /// 200: what was asked for is done, and there is no object to show (a deletion).
    pub fn success(resource: &Resource, name: &str, uid: &str) -> Self {
        let mut status = Self::of(200, "", resource, name, String::new());
        status.status = "Success".to_owned();
        if let Some(details) = &mut status.details {
            details.uid = uid.to_owned();
        }
        status
    }

    /// 404: no such object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::of(
            404,
            "NotFound",
            resource,
            name,
            format!("{} {} not found", resource.qualified(), quote(name)),
        )
    }

    /// 404: no such path.
    pub fn unknown_path() -> Self {
        Self::failure(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
        .with_details(StatusDetails::default())
    }

    /// 409: the name is taken.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {} already exists", resource.qualified(), quote(name));
        Self::of(409, "AlreadyExists", resource, name, message)
    }

    /// 409: the object is not in the state the request needs.
    pub fn conflict(resource: &Resource, name: &str, detail: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {}: {detail}",
            resource.qualified(),
            quote(name)
        );
        Self::of(409, "Conflict", resource, name, message)
    }

    /// 409: somebody else wrote first.
    pub fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422: the object breaks the rules of its kind.
    pub fn invalid(resource: &Resource, name: &str, errors: Vec<FieldError>) -> Self {
        Self::invalid_kind(resource.group, resource.kind, name, errors)
    }

    /// 422, for a kind without a row of its own (`DeleteOptions`, `Binding`).
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for error in &errors {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let qualified = if group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{group}")
        };
        let text = if texts.len() == 1 {
            texts.remove(0)
        } else {
            format!("[{}]", texts.join(", "))
        };
        let causes = errors
            .into_iter()
            .map(|error| StatusCause {
                reason: error.kind.reason().to_owned(),
                message: error.body(),
                field: error.field,
            })
            .collect();
        Self::failure(
            422,
            "Invalid",
            format!("{qualified} {} is invalid: {text}", quote(name)),
        )
        .with_details(StatusDetails {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            causes,
            ..StatusDetails::default()
        })
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// 401: nobody known is asking.
    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 403: whoever is asking may not.
    pub fn forbidden(resource: &Resource, name: &str, detail: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {detail}", resource.qualified())
        } else {
            format!(
                "{} {} is forbidden: {detail}",
                resource.qualified(),
                quote(name)
            )
        };
        Self::of(403, "Forbidden", resource, name, message)
    }

    /// 403 by the authorizer; empty `namespace`: at the cluster scope.
    pub fn forbidden_verb(
        resource: &Resource,
        subresource: &str,
        name: &str,
        namespace: &str,
        user: &str,
        verb: &str,
    ) -> Self {
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {}", quote(namespace))
        };
        let below = if subresource.is_empty() {
            resource.plural.to_owned()
        } else {
            format!("{}/{subresource}", resource.plural)
        };
        let detail = format!(
            "User {} cannot {verb} resource {} in API group {} {scope}",
            quote(user),
            quote(&below),
            quote(resource.group)
        );
        Self::forbidden(resource, name, &detail)
    }

    /// Says why as well; an empty `reason` changes nothing.
    pub fn with_reason(mut self, reason: &str) -> Self {
        if !reason.is_empty() {
            self.message = format!("{}: {reason}", self.message);
        }
        self
    }

    /// 403 for a path that is no resource.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        let message = format!(
            "forbidden: User {} cannot {verb} path {}",
            quote(user),
            quote(path)
        );
        Self::failure(403, "Forbidden", message).with_details(StatusDetails::default())
    }

    /// 405: the resource has no such verb.
    pub fn method_not_allowed(resource: &Resource, verb: &str) -> Self {
        let message = format!(
            "{verb} is not supported on resources of kind {}",
            quote(&resource.qualified())
        );
        Self::of(405, "MethodNotAllowed", resource, "", message)
    }

    /// 405: the path has no such method.
    pub fn path_method_not_allowed() -> Self {
        Self::failure(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with_details(StatusDetails::default())
    }

    /// 406: none of the accepted types can be had.
    pub fn not_acceptable(types: &[&str]) -> Self {
        let message = format!(
            "only the following media types are accepted: {}",
            types.join(", ")
        );
        Self::failure(406, "NotAcceptable", message)
    }

    /// 410: a revision or a continue token that is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// 410 for a continue token; `token` begins the list anew without consistency with the pages before.
    pub fn continue_expired(token: Option<&str>) -> Self {
        let mut status = Self::expired(match token {
            Some(_) => {
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter, or use the continue token in this response to retrieve the \
                 remainder of the results. Continuing with the provided token results in an inconsistent list - \
                 objects that were created, modified, or deleted between the time the first chunk was returned and \
                 now may show up in the list."
            }
            None => {
                "The provided continue parameter is too old to display a consistent list result. You must start a \
                 new list without the continue parameter."
            }
        });
        if let Some(token) = token {
            status.metadata.insert("continue".to_owned(), token.into());
        }
        status
    }

    /// 410 for a watch from a revision before the oldest that is kept.
    pub fn too_old(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// 410: it was here, and will not be again.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::failure(410, "Gone", message)
    }

    /// 413: the body has more than `bytes_max` bytes.
    pub fn request_entity_too_large(bytes_max: usize) -> Self {
        let message = format!("Request entity too large: limit is {bytes_max}");
        Self::failure(413, "RequestEntityTooLarge", message)
    }

    /// 415: the body is in a format that is not read here.
    pub fn unsupported_media_type(types: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            types.join(", ")
        );
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 429: try again in `retry_after_seconds`.
    pub fn too_many_requests(message: &str, retry_after_seconds: u32) -> Self {
        Self::failure(429, "TooManyRequests", message).with_retry_after_seconds(retry_after_seconds)
    }

    /// 500: the trouble is here, not with the request.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let text = message.to_string();
        let mut status = Self::failure(
            500,
            "InternalError",
            format!("Internal error occurred: {text}"),
        );
        status
            .details
            .get_or_insert_default()
            .causes
            .push(StatusCause {
                message: text,
                ..StatusCause::default()
            });
        status
    }

    /// 503: not now.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", message)
    }

    /// 504: it took longer than the request allows.
    pub fn timeout(message: &str) -> Self {
        let mut status = Self::failure(504, "Timeout", format!("Timeout: {message}"));
        status.details = Some(StatusDetails::default());
        status
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::field::Path;

    fn row(group: &str, plural: &str) -> &'static Resource {
        crate::find(group, "v1", plural).expect("row")
    }

    #[test]
    fn messages_are_those_of_kube_apiserver() {
        let (pods, leases) = (row("", "pods"), row("coordination.k8s.io", "leases"));
        for (status, code, reason, message) in [
            (
                Status::not_found(pods, "x"),
                404,
                "NotFound",
                "pods \"x\" not found",
            ),
            (
                Status::not_found(leases, "x"),
                404,
                "NotFound",
                "leases.coordination.k8s.io \"x\" not found",
            ),
            (
                Status::already_exists(pods, "x"),
                409,
                "AlreadyExists",
                "pods \"x\" already exists",
            ),
            (
                Status::modified(pods, "x"),
                409,
                "Conflict",
                "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes \
                 to the latest version and try again",
            ),
            (Status::unauthorized(), 401, "Unauthorized", "Unauthorized"),
            (
                Status::forbidden_verb(pods, "", "", "default", "x", "list"),
                403,
                "Forbidden",
                "pods is forbidden: User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \
                 \"default\"",
            ),
            (
                Status::forbidden_verb(pods, "log", "p", "", "x", "get"),
                403,
                "Forbidden",
                "pods \"p\" is forbidden: User \"x\" cannot get resource \"pods/log\" in API group \"\" at the cluster \
                 scope",
            ),
            (
                Status::too_old(3, 9),
                410,
                "Expired",
                "too old resource version: 3 (9)",
            ),
            (
                Status::request_entity_too_large(3_145_728),
                413,
                "RequestEntityTooLarge",
                "Request entity too large: limit is 3145728",
            ),
            (
                Status::internal("oh"),
                500,
                "InternalError",
                "Internal error occurred: oh",
            ),
        ] {
            assert_eq!(
                (status.code, status.reason.as_str(), status.message.as_str()),
                (code, reason, message)
            );
            assert_eq!(status.status, "Failure");
        }
    }

    #[test]
    fn an_invalid_object_is_told_field_by_field() {
        let spec = Path::new("spec");
        let a = FieldError::required(&spec.child("a"), "");
        let b = FieldError::invalid(&spec.child("b"), "x", "no");
        let status = Status::invalid(row("", "pods"), "p", vec![a.clone()]);
        assert_eq!(
            status.message,
            "Pod \"p\" is invalid: spec.a: Required value"
        );
        let status = Status::invalid(row("coordination.k8s.io", "leases"), "p", vec![a, b]);
        assert_eq!(
            status.message,
            "Lease.coordination.k8s.io \"p\" is invalid: [spec.a: Required value, spec.b: Invalid value: \"x\": no]"
        );
        assert_eq!(
            status.to_json(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": status.message, "reason": "Invalid", "code": 422,
                "details": {
                    "name": "p", "group": "coordination.k8s.io", "kind": "Lease",
                    "causes": [
                        {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.a"},
                        {"reason": "FieldValueInvalid", "message": "Invalid value: \"x\": no", "field": "spec.b"},
                    ],
                },
            })
        );
    }

    #[test]
    fn a_deletion_is_answered_with_success() {
        assert_eq!(
            Status::success(row("", "pods"), "p", "u").to_json(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 200,
                "details": {"name": "p", "kind": "pods", "uid": "u"},
            })
        );
    }
}
