//! Asking the API server who somebody is and whether they may.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::timeout;

use super::User;

/// How long a yes holds: a token that was revoked, or a role that was taken, is good for so long.
pub(crate) const POSITIVE_TTL: Duration = Duration::from_secs(120);
/// How long a no holds: a role that was given takes so long to be noticed.
pub(crate) const NEGATIVE_TTL: Duration = Duration::from_secs(30);
/// Longest wait for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A verb on a subresource of this node.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// Who.
    pub user: &'a User,
    /// `get`, `create` …
    pub verb: &'a str,
    /// The Node object's name.
    pub node: &'a str,
    /// `proxy`, `stats`, `metrics`, `log` …
    pub subresource: &'a str,
}

/// Knows users and what they may, as an API server does.
#[async_trait]
pub trait Reviewer: Send + Sync + 'static {
    /// Whose token it is; nobody's is `None`.
    async fn token(&self, token: &str) -> Result<Option<User>, String>;

    /// Whether they may.
    async fn access(&self, access: &Access<'_>) -> Result<bool, String>;
}

/// The API server's own reviews.
pub struct KubeReviewer {
    client: Client,
}

impl KubeReviewer {
    /// Reviews over this client; its user must be allowed to create both kinds of review.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

/// Waits for an answer, no longer than anybody would.
async fn answer<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

#[async_trait]
impl Reviewer for KubeReviewer {
    async fn token(&self, token: &str) -> Result<Option<User>, String> {
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let status = answer(reviews.create(&params, &review)).await?.status;
        let user = status
            .filter(|status| status.authenticated == Some(true))
            .and_then(|status| status.user);
        Ok(user.map(|user| User {
            name: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
        }))
    }

    async fn access(&self, access: &Access<'_>) -> Result<bool, String> {
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let attributes = ResourceAttributes {
            verb: Some(access.verb.to_owned()),
            version: Some("v1".into()),
            resource: Some("nodes".into()),
            subresource: Some(access.subresource.to_owned()),
            name: Some(access.node.to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(access.user.name.clone()),
                groups: Some(access.user.groups.clone()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let params = PostParams::default();
        let status = answer(reviews.create(&params, &review)).await?.status;
        Ok(status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}
