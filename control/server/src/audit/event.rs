//! `audit.k8s.io/v1` Event: one line of the log. Pure.

use std::collections::BTreeMap;

use http::header;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use wherry_api::meta;

use super::policy::{Level, Rule};
use crate::{UserInfo, request::ResourcePath, serve::PeerAddress};

/// Longest part of a user agent and of a path that is kept, characters.
const TEXT_MAX: usize = 1024;

/// What is known of a request.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(super) id: String,
    pub(super) uri: String,
    pub(super) path: String,
    pub(super) verb: String,
    pub(super) target: Option<ResourcePath>,
    pub(super) user_agent: String,
    pub(super) peer: Option<String>,
    pub(super) received: Timestamp,
    pub(super) user: UserInfo,
    pub(super) impersonated: Option<UserInfo>,
    /// `allow` or `forbid`, and why.
    pub(super) decision: Option<(&'static str, String)>,
    pub(super) request_object: Option<Value>,
    pub(super) response_object: Option<Value>,
    pub(super) is_truncated: bool,
    /// Annotations that admission gives.
    pub(super) notes: BTreeMap<String, String>,
    /// Reason and message of a failure.
    pub(super) failure: Option<(String, String)>,
    pub(super) code: u16,
}

fn short(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

fn describe(user: &UserInfo) -> Value {
    let mut described = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        described["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        described["extra"] = json!(user.extra);
    }
    described
}

fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    let items = object.get_mut("items").and_then(Value::as_array_mut);
    for item in items.into_iter().flatten() {
        if item.get("metadata").is_some() {
            meta::metadata_mut(item).remove("managedFields");
        }
    }
    if object.get("metadata").is_some_and(Value::is_object) {
        meta::metadata_mut(&mut object).remove("managedFields");
    }
    object
}

impl Facts {
    pub(super) fn of<B>(
        request: &http::Request<B>,
        target: Option<&ResourcePath>,
        verb: String,
    ) -> Self {
        let agent = request.headers().get(header::USER_AGENT);
        let peer = request.extensions().get::<PeerAddress>();
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            uri: short(
                request
                    .uri()
                    .path_and_query()
                    .map_or("", |uri| uri.as_str()),
            ),
            path: request.uri().path().to_owned(),
            verb,
            target: target.cloned(),
            user_agent: short(
                agent
                    .and_then(|agent| agent.to_str().ok())
                    .unwrap_or_default(),
            ),
            peer: peer.map(|peer| peer.0.ip().to_string()),
            received: Timestamp::now(),
            ..Self::default()
        }
    }

    /// The name of a new object is in its body.
    pub(super) fn name_from(&mut self, object: &Value) {
        if let Some(target) = &mut self.target
            && target.name.is_empty()
        {
            meta::name(object).clone_into(&mut target.name);
        }
    }

    pub(super) fn event(&self, stage: &str, rule: &Rule, now: Timestamp) -> Value {
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": rule.level.name(),
            "auditID": self.id,
            "stage": stage,
            "requestURI": self.uri,
            "verb": self.verb,
            "user": describe(&self.user),
            "requestReceivedTimestamp": meta::format_micro_time(self.received),
            "stageTimestamp": meta::format_micro_time(now),
        });
        if let Some(peer) = &self.peer {
            event["sourceIPs"] = json!([peer]);
        }
        if let Some(user) = &self.impersonated {
            event["impersonatedUser"] = describe(user);
        }
        if !self.user_agent.is_empty() {
            event["userAgent"] = self.user_agent.clone().into();
        }
        if let Some(target) = &self.target {
            event["objectRef"] = reference(target);
        }
        let mut annotations = Map::new();
        if stage != "RequestReceived" {
            event["responseStatus"] = self.status();
            if let Some((decision, reason)) = &self.decision {
                annotations.insert("authorization.k8s.io/decision".into(), (*decision).into());
                annotations.insert("authorization.k8s.io/reason".into(), reason.clone().into());
            }
            for (key, text) in &self.notes {
                annotations.insert(key.clone(), text.clone().into());
            }
            let shown = |object: &Value| match rule.omits_managed_fields {
                true => without_managed_fields(object),
                false => object.clone(),
            };
            if rule.level >= Level::Request
                && let Some(object) = &self.request_object
            {
                event["requestObject"] = shown(object);
            }
            if rule.level >= Level::RequestResponse
                && let Some(object) = &self.response_object
            {
                event["responseObject"] = shown(object);
            }
            if self.is_truncated {
                annotations.insert("audit.k8s.io/truncated".into(), "true".into());
            }
        }
        if !annotations.is_empty() {
            event["annotations"] = annotations.into();
        }
        event
    }

    fn status(&self) -> Value {
        let mut status = json!({"metadata": {}, "code": self.code});
        if let Some((reason, message)) = &self.failure {
            status["status"] = "Failure".into();
            status["message"] = message.clone().into();
            status["reason"] = reason.clone().into();
        }
        status
    }
}

fn reference(target: &ResourcePath) -> Value {
    let fields = [
        ("resource", &target.resource),
        ("namespace", &target.namespace),
        ("name", &target.name),
        ("apiGroup", &target.group),
        ("apiVersion", &target.version),
        ("subresource", &target.subresource),
    ];
    let fields = fields.into_iter().filter(|(_, text)| !text.is_empty());
    fields
        .map(|(field, text)| (field.to_owned(), Value::from(text.as_str())))
        .collect::<Map<_, _>>()
        .into()
}
