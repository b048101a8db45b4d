//! What the endpoints answer when they cannot, and why the server cannot start.

use std::net::SocketAddr;

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use thiserror::Error;

/// The server cannot be started.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A certificate, key or CA cannot be used. Usual cause: the files do not belong together.
    #[error("kubelet server: {what}: {why}")]
    Tls {
        /// Which of them.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The address is taken or not this machine's.
    #[error("kubelet server: listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The trouble.
        #[source]
        source: std::io::Error,
    },
}

/// An answer other than success: plain text, which the API server puts into a Status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl HttpError {
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
        }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            message: message.into(),
        }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            message: message.into(),
        }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        (self.status, self.message).into_response()
    }
}
