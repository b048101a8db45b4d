//! Questions asked by creating an object that is answered and not kept: who am I, may I, whose token is this.

use http::StatusCode;
use serde_json::{Value, json};
use wherry_api::Status;

use crate::{
    App, UserInfo,
    answer::{self, Answer},
    authn,
    authz::Attributes,
    request::Accept,
    token::ISSUER,
};

/// A resource of this kind.
pub(crate) struct Review {
    pub(crate) group: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespaced: bool,
}

const fn review(
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
) -> Review {
    Review {
        group,
        plural,
        singular,
        kind,
        namespaced: false,
    }
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// All of them, `v1` each.
pub(crate) const REVIEWS: &[Review] = &[
    review(
        AUTHENTICATION,
        "selfsubjectreviews",
        "selfsubjectreview",
        "SelfSubjectReview",
    ),
    review(AUTHENTICATION, "tokenreviews", "tokenreview", "TokenReview"),
    Review {
        namespaced: true,
        ..review(
            AUTHORIZATION,
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
            "LocalSubjectAccessReview",
        )
    },
    review(
        AUTHORIZATION,
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "SelfSubjectAccessReview",
    ),
    review(
        AUTHORIZATION,
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        "SelfSubjectRulesReview",
    ),
    review(
        AUTHORIZATION,
        "subjectaccessreviews",
        "subjectaccessreview",
        "SubjectAccessReview",
    ),
];

pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Review> {
    REVIEWS
        .iter()
        .find(|review| review.group == group && review.plural == plural && version == "v1")
}

/// Answers one.
pub(crate) async fn serve(
    app: &App,
    user: &UserInfo,
    accept: Accept,
    namespace: &str,
    review: &Review,
    mut object: Value,
) -> Answer {
    if !object.is_object() {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {})",
            review.kind
        )));
    }
    object["kind"] = review.kind.into();
    object["apiVersion"] = format!("{}/v1", review.group).into();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let spec = object["spec"].clone();
    object["status"] = match review.plural {
        "selfsubjectreviews" => json!({"userInfo": describe(user)}),
        "tokenreviews" => token_review(app, &spec).await,
        "selfsubjectaccessreviews" => access(app, user, &spec, "").await,
        "selfsubjectrulesreviews" => {
            let asked = spec["namespace"].as_str().unwrap_or_default();
            if asked.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            rules(app, user, asked)
        }
        _ => access(app, &subject(&spec), &spec, namespace).await,
    };
    Ok(answer::value(accept, StatusCode::CREATED, &object))
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

async fn token_review(app: &App, spec: &Value) -> Value {
    let token = spec["token"].as_str().unwrap_or_default();
    let mut audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    match authn::token_user(app, token, &audiences).await {
        Ok((user, audiences)) => {
            json!({"authenticated": true, "user": describe(&user), "audiences": audiences})
        }
        Err(error) => json!({"authenticated": false, "user": {}, "error": error}),
    }
}

fn subject(spec: &Value) -> UserInfo {
    let groups: Vec<&str> = spec["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    UserInfo {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        groups: groups.into_iter().map(str::to_owned).collect(),
        ..UserInfo::default()
    }
}

async fn access(app: &App, user: &UserInfo, spec: &Value, namespace: &str) -> Value {
    let text = |part: &str, field: &str| spec[part][field].as_str().unwrap_or_default().to_owned();
    let attributes = if spec["nonResourceAttributes"].is_object() {
        let part = "nonResourceAttributes";
        Attributes {
            verb: text(part, "verb"),
            path: text(part, "path"),
            ..Attributes::default()
        }
    } else {
        let part = "resourceAttributes";
        let asked = text(part, "namespace");
        Attributes {
            verb: text(part, "verb"),
            group: text(part, "group"),
            resource: text(part, "resource"),
            subresource: text(part, "subresource"),
            namespace: if asked.is_empty() {
                namespace.to_owned()
            } else {
                asked
            },
            name: text(part, "name"),
            ..Attributes::default()
        }
    };
    match app.authorize(user, &attributes).await {
        Ok(()) => json!({"allowed": true}),
        Err(reason) if reason.is_empty() => json!({"allowed": false}),
        Err(reason) => json!({"allowed": false, "reason": reason}),
    }
}

fn rules(app: &App, user: &UserInfo, namespace: &str) -> Value {
    if user.is_in("system:masters") {
        return json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        });
    }
    let (of_resources, of_urls) = app.rbac.review(user, namespace);
    json!({
        "resourceRules": of_resources,
        "nonResourceRules": of_urls,
        // What nodes may is no role.
        "incomplete": user.node_name().is_some(),
    })
}
