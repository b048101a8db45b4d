//! Large answers are compressed for clients that take it and are not on this machine.
//!
//! Over loopback the time to compress is longer than the time to send.

use std::io::Write;

use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::{StreamExt, stream};
use http::{HeaderValue, StatusCode, header};

use crate::serve::PeerAddress;

/// Answers below this many bytes are sent as they are; kube-apiserver's threshold.
const BYTES_MIN: u64 = 128 * 1024;

/// Whether the client wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Plain,
    Gzip,
}

impl Wanted {
    pub(crate) fn of(request: &Request) -> Self {
        let is_remote = request.extensions().get::<PeerAddress>().is_some_and(|peer| !peer.0.ip().is_loopback());
        let takes = request
            .headers()
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|coding| coding.trim().split(';').next() == Some("gzip") && !coding.contains("q=0"));
        if is_remote && takes { Self::Gzip } else { Self::Plain }
    }
}

/// Compresses an answer while it is sent.
pub(crate) fn compress(mut response: Response, wanted: Wanted) -> Response {
    let is_small = http_body::Body::size_hint(response.body()).exact().is_some_and(|bytes| bytes < BYTES_MIN);
    let is_live = response.extensions().get::<Live>().is_some();
    if wanted == Wanted::Plain
        || response.status() != StatusCode::OK
        || is_small
        || is_live
        || response.headers().contains_key(header::CONTENT_ENCODING)
    {
        return response;
    }
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    let (parts, body) = response.into_parts();
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let compressed = stream::unfold((body.into_data_stream(), Some(encoder)), |(mut plain, encoder)| async move {
        let mut encoder = encoder?;
        loop {
            match plain.next().await {
                Some(Ok(chunk)) => {
                    encoder.write_all(&chunk).expect("memory can be written");
                    if !encoder.get_ref().is_empty() {
                        let bytes = Bytes::from(std::mem::take(encoder.get_mut()));
                        return Some((Ok(bytes), (plain, Some(encoder))));
                    }
                }
                Some(Err(error)) => return Some((Err(error), (plain, None))),
                None => {
                    let bytes = encoder.finish().expect("memory can be written");
                    return Some((Ok(Bytes::from(bytes)), (plain, None)));
                }
            }
        }
    });
    Response::from_parts(parts, Body::from_stream(compressed))
}

/// Marks an answer whose parts have to arrive as they are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live;
