//! `/openapi/v2`, as JSON or protobuf, whichever is asked for.
//!
//! Both are made when first asked for and kept compressed, since making them takes far more memory than keeping them.

use std::{
    io::{Read, Write},
    sync::OnceLock,
};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use wherry_api::{Status, openapi};

use crate::{
    answer::{self, Answer},
    compress,
};

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// As clients ask for it, although `@` may not stand in a media type.
const PROTOBUF_DEPRECATED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Protobuf,
}

/// One form of the document.
struct Kept {
    gzip: Bytes,
    plain_bytes: usize,
    etag: String,
}

/// Answers, or says what can be had.
pub(super) fn serve(headers: &HeaderMap) -> Answer {
    let form = negotiate(headers).ok_or_else(|| Status::not_acceptable(&[JSON, PROTOBUF]))?;
    let kept = kept(form);
    let content_type = match form {
        Form::Json => JSON,
        Form::Protobuf => PROTOBUF,
    };
    let takes_gzip = compress::takes_gzip(headers);
    let mut response = if super::is_known(headers, &kept.etag) {
        answer::raw(StatusCode::NOT_MODIFIED, content_type, "")
    } else if takes_gzip {
        let mut response = answer::raw(StatusCode::OK, content_type, kept.gzip.clone());
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        answer::raw(StatusCode::OK, content_type, kept.plain())
    };
    let headers = response.headers_mut();
    headers.insert(
        header::VARY,
        HeaderValue::from_static("Accept, Accept-Encoding"),
    );
    if let Ok(etag) = HeaderValue::from_str(&kept.etag) {
        headers.insert(header::ETAG, etag);
    }
    Ok(response)
}

impl Kept {
    fn build(form: Form) -> Self {
        let plain = match form {
            Form::Json => openapi::v2().to_string().into_bytes(),
            Form::Protobuf => openapi::v2_protobuf(),
        };
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&plain).expect("memory can be written");
        let gzip = encoder.finish().expect("memory can be written");
        Self {
            etag: format!("\"{}\"", super::hash(&plain)),
            plain_bytes: plain.len(),
            gzip: gzip.into(),
        }
    }

    fn plain(&self) -> Vec<u8> {
        let mut plain = Vec::with_capacity(self.plain_bytes);
        GzDecoder::new(&*self.gzip)
            .read_to_end(&mut plain)
            .expect("what was compressed here");
        plain
    }
}

fn kept(form: Form) -> &'static Kept {
    static AS_JSON: OnceLock<Kept> = OnceLock::new();
    static AS_PROTOBUF: OnceLock<Kept> = OnceLock::new();
    let cell = match form {
        Form::Json => &AS_JSON,
        Form::Protobuf => &AS_PROTOBUF,
    };
    cell.get_or_init(|| {
        let built = super::aside(|| Kept::build(form));
        // Nothing of that thread's memory is to stay.
        Kept {
            gzip: Bytes::copy_from_slice(&built.gzip),
            ..built
        }
    })
}

/// The form the client likes best; `None`: it takes neither.
fn negotiate(headers: &HeaderMap) -> Option<Form> {
    let mut ranges: Vec<(f32, bool, Form)> = Vec::new();
    let mut is_silent = true;
    let values = headers.get_all(header::ACCEPT).iter();
    for range in values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
    {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        is_silent &= name.is_empty();
        let quality = parts
            .filter_map(|part| part.strip_prefix("q="))
            .find_map(|text| text.trim().parse().ok())
            .unwrap_or(1.0_f32);
        let form = match &*name {
            JSON | "application/*" | "*/*" => Form::Json,
            PROTOBUF | PROTOBUF_DEPRECATED => Form::Protobuf,
            _ => continue,
        };
        if quality > 0.0 {
            ranges.push((quality, name.ends_with('*'), form));
        }
    }
    // The first among equals stays the first.
    ranges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    match ranges.first() {
        Some((_, _, form)) => Some(*form),
        None => is_silent.then_some(Form::Json),
    }
}

#[cfg(test)]
mod tests {
    use axum::response::Response;
    use http_body_util::BodyExt;

    use super::*;

    fn headers(pairs: &[(http::HeaderName, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    async fn body(response: Response) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    #[test]
    fn the_form_liked_best_is_taken() {
        for (accept, form) in [
            ("", Some(Form::Json)),
            ("*/*", Some(Form::Json)),
            ("application/json, */*", Some(Form::Json)),
            (PROTOBUF, Some(Form::Protobuf)),
            (PROTOBUF_DEPRECATED, Some(Form::Protobuf)),
            (
                "application/json;q=0.5, application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
                Some(Form::Protobuf),
            ),
            (
                "application/com.github.proto-openapi.spec.v2.v1.0+protobuf;q=0, application/*",
                Some(Form::Json),
            ),
            (
                "*/*, application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
                Some(Form::Protobuf),
            ),
            ("application/yaml", None),
            ("application/json;q=0", None),
        ] {
            let asked = headers(&[(header::ACCEPT, accept)]);
            assert_eq!(negotiate(&asked), form, "{accept}");
        }
        assert_eq!(negotiate(&HeaderMap::new()), Some(Form::Json));
    }

    #[tokio::test]
    async fn each_form_is_whole_with_and_without_gzip_and_not_sent_twice() {
        let json = openapi::v2().to_string().into_bytes();
        for (accept, content_type, expected) in [
            (JSON, JSON, json),
            (PROTOBUF_DEPRECATED, PROTOBUF, openapi::v2_protobuf()),
        ] {
            let plain = serve(&headers(&[(header::ACCEPT, accept)])).unwrap();
            assert_eq!(plain.headers()[header::CONTENT_TYPE], content_type);
            assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
            let etag = plain.headers()[header::ETAG].to_str().unwrap().to_owned();
            assert!(body(plain).await == expected);

            let asked = headers(&[(header::ACCEPT, accept), (header::ACCEPT_ENCODING, "gzip")]);
            let gzip = serve(&asked).unwrap();
            assert_eq!(gzip.headers()[header::CONTENT_ENCODING], "gzip");
            assert_eq!(gzip.headers()[header::ETAG], etag);
            let gzip = body(gzip).await;
            assert!(gzip.len() < 256 * 1024, "{} bytes stay", gzip.len());
            let mut bytes = Vec::new();
            GzDecoder::new(&*gzip).read_to_end(&mut bytes).unwrap();
            assert!(bytes == expected);

            let again = headers(&[(header::ACCEPT, accept), (header::IF_NONE_MATCH, &etag)]);
            let again = serve(&again).unwrap();
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
            assert_eq!(again.headers()[header::ETAG], etag);
            assert!(body(again).await.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_had_is_406() {
        let status = serve(&headers(&[(header::ACCEPT, "application/yaml")])).unwrap_err();
        assert_eq!(status.code, 406);
    }
}
