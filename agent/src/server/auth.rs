//! Who asks, by client certificate, and whether they may.

use axum::{
    extract::{Request, State as Shared},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Config, State};

/// The subject of a verified client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// Common name.
    pub(crate) name: String,
    /// Organisations.
    pub(crate) groups: Vec<String>,
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

/// Lets through those who may, in the words of the kubelet's own filter.
pub(crate) async fn authorize(
    Shared(state): Shared<State>,
    request: Request,
    next: Next,
) -> Response {
    let user = request
        .extensions()
        .get::<Caller>()
        .and_then(|caller| caller.0.as_ref());
    match user {
        None => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
        Some(user) if user.is_allowed(&state.config) => next.run(request).await,
        Some(user) => {
            let verb = match *request.method() {
                axum::http::Method::GET | axum::http::Method::HEAD => "get",
                _ => "create",
            };
            let message = format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[proxy])",
                user.name
            );
            (StatusCode::FORBIDDEN, message).into_response()
        }
    }
}
