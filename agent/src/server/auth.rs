//! Who asks, and whether they may.
//!
//! ```text
//!  client certificate ─┐                          allowed by the config ─┐
//!  bearer token ───────┴─▶ User (TokenReview) ──▶ SubjectAccessReview ───┴─▶ the endpoint
//!      neither: 401                                     no: 403
//! ```
//!
//! What the config allows needs no API server: the API server's own requests are answered while it is
//! busy. Everybody else is reviewed, as with the kubelet's webhook mode, and the answers are kept for
//! a while. `/healthz` asks nobody.

mod cache;
mod request;
pub(crate) mod review;

use axum::{
    extract::{Request, State as Shared},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tracing::debug;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) use self::request::Attributes;
pub use self::review::{KubeReviewer, Reviewer};
use self::{cache::Cache, review::Access};
use super::{Config, State};

/// Whoever asks, and is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User name; a certificate's common name.
    pub name: String,
    /// Groups; a certificate's organisations.
    pub groups: Vec<String>,
}

impl User {
    /// The subject of a certificate that TLS has verified.
    pub(crate) fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|attribute| attribute.as_str().ok())
            .map(str::to_owned)
            .collect();
        Some(Self { name, groups })
    }

    /// Whether the config lets them in.
    pub(crate) fn is_allowed(&self, config: &Config) -> bool {
        config.allowed_users.contains(&self.name)
            || self
                .groups
                .iter()
                .any(|group| config.allowed_groups.contains(group))
    }
}

/// How a connection was made; added to each of its requests by the listener.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Option<User>);

/// What reviews have said, so that the API server is not asked each time. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reviews {
    /// By the token's digest: the token itself is not kept.
    tokens: Cache<[u8; 32], User>,
    accesses: Cache<(String, Vec<String>, &'static str, &'static str), bool>,
}

/// Lets through those who may, in the words of the kubelet's own filter.
pub(crate) async fn authorize(
    Shared(state): Shared<State>,
    request: Request,
    next: Next,
) -> Response {
    let caller = request.extensions().get::<Caller>();
    let known = caller.and_then(|caller| caller.0.clone());
    let token = bearer_token(request.headers()).map(str::to_owned);
    let user = match (known, token) {
        (Some(user), _) => Some(user),
        (None, Some(token)) => authenticate(&state, &token).await,
        (None, None) => None,
    };
    let Some(user) = user else {
        return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response();
    };
    let attributes = Attributes::of(request.method(), request.uri().path());
    if user.is_allowed(&state.config) {
        return next.run(request).await;
    }
    match is_granted(&state, &user, &attributes).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            let message = format!(
                "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{}])",
                user.name,
                attributes.verb,
                attributes.subresources.join(" ")
            );
            (StatusCode::FORBIDDEN, message).into_response()
        }
        Err(error) => {
            debug!(%error, user = user.name, "Access not reviewed");
            let message = format!(
                "Authorization error (user={}, verb={}, resource=nodes, subresource(s)=[{}])",
                user.name,
                attributes.verb,
                attributes.subresources.join(" ")
            );
            (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        }
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whose token it is. One whose review fails is no token.
async fn authenticate(state: &State, token: &str) -> Option<User> {
    let reviewer = state.reviewer.as_ref()?;
    let key: [u8; 32] = Sha256::digest(token).into();
    if let Some(user) = state.reviews.tokens.get(&key) {
        return Some(user);
    }
    match reviewer.token(token).await {
        Ok(Some(user)) => {
            state
                .reviews
                .tokens
                .put(key, user.clone(), review::POSITIVE_TTL);
            Some(user)
        }
        Ok(None) => None,
        Err(error) => {
            debug!(%error, "Token not reviewed");
            None
        }
    }
}

/// Whether one of the subresources is theirs.
async fn is_granted(state: &State, user: &User, attributes: &Attributes) -> Result<bool, String> {
    let Some(reviewer) = &state.reviewer else {
        return Ok(false);
    };
    for subresource in attributes.subresources {
        let key = (
            user.name.clone(),
            user.groups.clone(),
            attributes.verb,
            *subresource,
        );
        let granted = match state.reviews.accesses.get(&key) {
            Some(granted) => granted,
            None => {
                let access = Access {
                    user,
                    verb: attributes.verb,
                    node: state.kubelet.node_name(),
                    subresource,
                };
                let granted = reviewer.access(&access).await?;
                let ttl = if granted {
                    review::POSITIVE_TTL
                } else {
                    review::NEGATIVE_TTL
                };
                state.reviews.accesses.put(key, granted, ttl);
                granted
            }
        };
        if granted {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_bearer_token_is_what_stands_after_the_word() {
        let table = [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer ", None),
            ("Bearer", None),
        ];
        for (value, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(bearer_token(&headers), expected, "{value}");
        }
        assert_eq!(bearer_token(&HeaderMap::new()), None);
    }
}
