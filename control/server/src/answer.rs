//! Answers: objects, lists and errors, in the form that was asked for.

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use wherry_api::{
    Resource, Status,
    table::{self, IncludeObject},
};
use wherry_store::KeyValue;

use crate::{
    request::{Accept, Format, Shape},
    stored,
};

/// What handlers give back.
pub(crate) type Answer = Result<Response, Status>;

/// A JSON value as an answer.
pub(crate) fn value(accept: Accept, code: StatusCode, value: &Value) -> Response {
    let (bytes, content_type) = match accept.format {
        Format::Yaml => (
            serde_saphyr::to_string(value)
                .unwrap_or_default()
                .into_bytes(),
            accept.format.content_type(),
        ),
        Format::Json => {
            let mut bytes = if accept.pretty {
                serde_json::to_vec_pretty(value)
            } else {
                serde_json::to_vec(value)
            }
            .unwrap_or_default();
            bytes.push(b'\n');
            (bytes, accept.format.content_type())
        }
    };
    raw(code, content_type, bytes)
}

/// Bytes as an answer.
pub(crate) fn raw(
    code: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Bytes>,
) -> Response {
    let mut response = Response::new(Body::from(bytes.into()));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Text as an answer.
pub(crate) fn text(code: StatusCode, text: impl Into<String>) -> Response {
    raw(code, "text/plain; charset=utf-8", text.into())
}

/// A failure (or the success of a deletion) as an answer.
pub(crate) fn status(accept: Accept, status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(accept, code, &status.to_json());
    if let Some(seconds) = status
        .details
        .as_ref()
        .map(|details| details.retry_after_seconds)
        .filter(|s| *s > 0)
    {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An object as an answer.
pub(crate) fn object(
    accept: Accept,
    include: IncludeObject,
    resource: &Resource,
    code: StatusCode,
    kv: &KeyValue,
) -> Response {
    if accept.format == Format::Json && !accept.pretty {
        let mut bytes = Vec::with_capacity(kv.value.len() + 64);
        write_shaped(
            &mut bytes,
            accept.shape,
            include,
            resource,
            kv,
            Timestamp::now(),
            true,
        );
        bytes.push(b'\n');
        return raw(code, accept.format.content_type(), bytes);
    }
    let shown = match accept.shape {
        Shape::Object | Shape::Discovery(_) => stored::decode_as(resource, kv),
        Shape::Table | Shape::Metadata => {
            let mut bytes = Vec::new();
            write_shaped(
                &mut bytes,
                accept.shape,
                include,
                resource,
                kv,
                Timestamp::now(),
                true,
            );
            serde_json::from_slice(&bytes).unwrap_or_default()
        }
    };
    value(accept, code, &shown)
}

/// Writes one object in the shape asked for; as a table, it is one with a single row.
pub(crate) fn write_shaped(
    out: &mut Vec<u8>,
    shape: Shape,
    include: IncludeObject,
    resource: &Resource,
    kv: &KeyValue,
    now: Timestamp,
    with_columns: bool,
) {
    match shape {
        Shape::Object | Shape::Discovery(_) => stored::write_object(out, resource, kv),
        Shape::Metadata => write_metadata(out, kv),
        Shape::Table => {
            write_table_head(
                out,
                resource,
                with_columns,
                &json!({"resourceVersion": kv.mod_revision.to_string()}),
            );
            write_row(out, include, resource, kv, now);
            out.extend_from_slice(b"]}");
        }
    }
}

/// Writes one object as an item of a list, or as a row.
pub(crate) fn write_item(
    out: &mut Vec<u8>,
    shape: Shape,
    include: IncludeObject,
    resource: &Resource,
    kv: &KeyValue,
    now: Timestamp,
) {
    match shape {
        Shape::Object | Shape::Discovery(_) => stored::write_item(out, resource, kv),
        Shape::Metadata => write_metadata(out, kv),
        Shape::Table => write_row(out, include, resource, kv, now),
    }
}

/// Writes what comes before the items of a list; `]}` ends it.
pub(crate) fn write_list_head(
    out: &mut Vec<u8>,
    shape: Shape,
    resource: &Resource,
    metadata: &Value,
) {
    let head = match shape {
        Shape::Table => return write_table_head(out, resource, true, metadata),
        Shape::Metadata => {
            format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\"items\":["
            )
        }
        Shape::Object | Shape::Discovery(_) => format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            resource.list_kind(),
            resource.api_version()
        ),
    };
    out.extend_from_slice(head.as_bytes());
}

fn write_table_head(out: &mut Vec<u8>, resource: &Resource, with_columns: bool, metadata: &Value) {
    let columns = if with_columns {
        table::definitions(resource.columns)
    } else {
        json!([])
    };
    let head = format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\"columnDefinitions\":{columns},\"rows\":["
    );
    out.extend_from_slice(head.as_bytes());
}

fn write_row(
    out: &mut Vec<u8>,
    include: IncludeObject,
    resource: &Resource,
    kv: &KeyValue,
    now: Timestamp,
) {
    let object = stored::decode(kv);
    out.extend_from_slice(b"{\"cells\":");
    serde_json::to_writer(&mut *out, &resource.strategy.row(&object, now))
        .expect("memory can be written");
    match include {
        IncludeObject::None => out.extend_from_slice(b",\"object\":null"),
        IncludeObject::Metadata => {
            out.extend_from_slice(b",\"object\":");
            write_metadata(out, kv);
        }
        IncludeObject::Object => {
            out.extend_from_slice(b",\"object\":");
            stored::write_object(out, resource, kv);
        }
    }
    out.push(b'}');
}

fn write_metadata(out: &mut Vec<u8>, kv: &KeyValue) {
    #[derive(Deserialize)]
    struct WithMetadata<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let value = kv.value.bytes();
    let metadata = serde_json::from_slice::<WithMetadata<'_>>(&value)
        .map_or("{}", |object| object.metadata.get());
    out.extend_from_slice(
        b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{",
    );
    out.extend_from_slice(format!("\"resourceVersion\":\"{}\"", kv.mod_revision).as_bytes());
    let rest = metadata.strip_prefix('{').unwrap_or(metadata).trim_start();
    if rest != "}" {
        out.push(b',');
    }
    out.extend_from_slice(rest.as_bytes());
    out.push(b'}');
}
