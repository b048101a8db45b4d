//! Large answers are compressed for clients that take it and are not on this machine.
//!
//! Over loopback the time to compress is longer than the time to send.

use std::io::Write;

use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};

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
        let is_remote = request
            .extensions()
            .get::<PeerAddress>()
            .is_some_and(|peer| !peer.0.ip().is_loopback());
        if is_remote && takes_gzip(request.headers()) {
            Self::Gzip
        } else {
            Self::Plain
        }
    }
}

/// Whether a client takes gzip, wherever it is.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(is_gzip)
}

fn is_gzip(coding: &str) -> bool {
    let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
    let is_refused = quality
        .trim()
        .strip_prefix("q=")
        .and_then(|q| q.trim().parse().ok())
        == Some(0.0_f32);
    name.trim() == "gzip" && !is_refused
}

/// Compresses an answer while it is sent.
pub(crate) fn compress(mut response: Response, wanted: Wanted) -> Response {
    let is_small = http_body::Body::size_hint(response.body())
        .exact()
        .is_some_and(|bytes| bytes < BYTES_MIN);
    let is_live = response.extensions().get::<Live>().is_some();
    if wanted == Wanted::Plain
        || response.status() != StatusCode::OK
        || is_small
        || is_live
        || response.headers().contains_key(header::CONTENT_ENCODING)
    {
        return response;
    }
    response
        .headers_mut()
        .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
        .headers_mut()
        .append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    let (parts, body) = response.into_parts();
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let compressed = stream::unfold(
        (body.into_data_stream(), Some(encoder)),
        |(mut plain, encoder)| async move {
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
        },
    );
    Response::from_parts(parts, Body::from_stream(compressed))
}

/// Marks an answer whose parts have to arrive as they are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live;

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;

    use super::*;

    fn asked(peer: &str, coding: &str) -> Wanted {
        let mut request = Request::new(Body::empty());
        request
            .extensions_mut()
            .insert(PeerAddress(peer.parse().unwrap()));
        request
            .headers_mut()
            .insert(header::ACCEPT_ENCODING, coding.parse().unwrap());
        Wanted::of(&request)
    }

    #[test]
    fn those_who_take_it_and_are_elsewhere_get_it() {
        assert_eq!(asked("192.0.2.1:5", "gzip"), Wanted::Gzip);
        assert_eq!(asked("192.0.2.1:5", "br, gzip;q=0.5"), Wanted::Gzip);
        assert_eq!(asked("192.0.2.1:5", "gzip;q=0"), Wanted::Plain);
        assert_eq!(asked("127.0.0.1:5", "gzip"), Wanted::Plain);
        assert_eq!(asked("[::1]:5", "gzip"), Wanted::Plain);
    }

    #[tokio::test]
    async fn what_is_large_is_compressed_and_whole_and_what_is_small_or_live_is_not() {
        let text = "0123456789".repeat(50_000);
        let response = compress(Response::new(Body::from(text.clone())), Wanted::Gzip);
        assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert!(bytes.len() < text.len() / 10);
        let mut plain = String::new();
        flate2::read::GzDecoder::new(&*bytes)
            .read_to_string(&mut plain)
            .unwrap();
        assert_eq!(plain, text);
        let mut live = Response::new(Body::from(text));
        live.extensions_mut().insert(Live);
        for response in [live, Response::new(Body::from("small"))] {
            assert!(
                !compress(response, Wanted::Gzip)
                    .headers()
                    .contains_key(header::CONTENT_ENCODING)
            );
        }
    }
}
