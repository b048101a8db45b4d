//! GET of a collection.

use axum::{body::Body, response::Response};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wherry_api::{FieldError, Resource, Status, field::Path, table::IncludeObject};
use wherry_store::{KeyValue, Revision, StoreError};

use crate::{
    answer::{self, Answer},
    call::Call,
    filter::Filter,
    request::{Accept, Format, Shape},
    stored,
    verbs::store_status,
};

/// Bytes of a list that are put together at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Keys read at a time when a selector decides which of them count towards the limit.
const SELECT_PAGE: usize = 500;

/// Where the next page begins. Opaque to clients.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Continue {
    #[serde(rename = "v")]
    version: String,
    /// The revision all pages are true at; 0: whatever is true now, for a list that outlived its revision.
    #[serde(rename = "rv")]
    revision: Revision,
    /// The last key of the page before, without the collection's prefix.
    start: String,
    /// Keys after this page when the first was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self, Status> {
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .filter(|token| token.version == "meta.k8s.io/v1")
            .ok_or_else(|| {
                Status::bad_request(
                    "continue key is not valid: illegal base64 data or unknown version",
                )
            })
    }
}

/// A page.
pub(crate) struct Page {
    pub(crate) items: Vec<KeyValue>,
    pub(crate) revision: Revision,
    continue_token: String,
    remaining: Option<u64>,
}

/// What is wrong with the parameters of a list or a watch.
pub(crate) fn invalid_options(field: &str, make: impl FnOnce(&Path<'_>) -> FieldError) -> Status {
    Status::invalid_kind(
        "meta.k8s.io",
        "ListOptions",
        "",
        vec![make(&Path::new(field))],
    )
}

/// Reads `resourceVersion`; `None`: not given.
pub(crate) fn resource_version(call: &Call) -> Result<Option<Revision>, Status> {
    match call.query.get("resourceVersion") {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            invalid_options("resourceVersion", |path| {
                FieldError::invalid(
                    path,
                    text,
                    format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
                )
            })
        }),
    }
}

/// Reads a page of what `filter` lets through.
pub(crate) async fn read(call: &Call, filter: &Filter) -> Result<Page, Status> {
    let limit = call.query.number::<usize>("limit")?.unwrap_or_default();
    let asked = resource_version(call)?;
    let mode = call.query.get("resourceVersionMatch");
    let token = call.query.get("continue");
    if !mode.is_empty() {
        let forbidden = |detail: &str| {
            invalid_options("resourceVersionMatch", |path| {
                FieldError::forbidden(path, detail)
            })
        };
        if asked.is_none() {
            return Err(forbidden(
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !token.is_empty() {
            return Err(forbidden(
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if !matches!(mode, "Exact" | "NotOlderThan") {
            return Err(invalid_options("resourceVersionMatch", |path| {
                FieldError::not_supported(path, mode, &["Exact", "NotOlderThan", ""])
            }));
        }
        if mode == "Exact" && asked == Some(0) {
            return Err(forbidden(
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    let store = &call.app.store;
    let fail = |error| store_status(call.resource, "", error);
    if token.is_empty() {
        let at = match asked {
            None | Some(0) => 0,
            // A limit with a version has always meant that very version.
            Some(revision) if mode == "Exact" || (mode.is_empty() && limit > 0) => revision,
            Some(revision) => {
                let current = store.current_revision().await.map_err(fail)?;
                if revision > current {
                    return Err(fail(StoreError::Future {
                        asked: revision,
                        current,
                    }));
                }
                0
            }
        };
        return read_from(call, filter, None, limit, at, None)
            .await
            .map_err(fail);
    }
    if asked.is_some_and(|revision| revision > 0) {
        return Err(Status::bad_request(
            "specifying resource version is not allowed when using continue",
        ));
    }
    let token = Continue::parse(token)?;
    let after = format!("{}{}", filter.key_prefix(), token.start);
    match read_from(
        call,
        filter,
        Some(&after),
        limit,
        token.revision,
        token.left,
    )
    .await
    {
        Err(StoreError::Compacted { .. }) => {
            let anew = Continue {
                revision: 0,
                left: None,
                ..token
            };
            Err(Status::continue_expired(Some(&anew.encode())))
        }
        page => page.map_err(fail),
    }
}

async fn read_from(
    call: &Call,
    filter: &Filter,
    after: Option<&str>,
    limit: usize,
    mut revision: Revision,
    left: Option<u64>,
) -> Result<Page, StoreError> {
    let store = &call.app.store;
    let prefix = filter.key_prefix();
    let selects = !filter.is_everything();
    let mut after = after.map(str::to_owned);
    let mut items: Vec<KeyValue> = Vec::new();
    let more = loop {
        let page_max = match (limit, selects) {
            (0, _) => 0,
            (limit, true) => SELECT_PAGE.max(limit),
            (limit, false) => limit,
        };
        let page = store
            .list(prefix, after.as_deref(), page_max, revision)
            .await?;
        revision = page.revision;
        let read_last = page.items.last().map(|kv| kv.key.to_string());
        let mut rest = page.items.into_iter();
        for kv in rest.by_ref() {
            if !selects || (filter.covers_key(&kv.key) && covers(filter, &kv)) {
                items.push(kv);
                if limit > 0 && items.len() == limit {
                    break;
                }
            }
        }
        if limit > 0 && items.len() == limit {
            break page.more || rest.next().is_some();
        }
        if !page.more || read_last.is_none() {
            break false;
        }
        after = read_last;
    };
    let remaining = if !more || selects {
        None
    } else if let Some(left) = left {
        Some(left.saturating_sub(items.len() as u64)).filter(|left| *left > 0)
    } else {
        let (count, _) = store.count(prefix).await?;
        Some(count.saturating_sub(items.len() as u64)).filter(|left| *left > 0)
    };
    let continue_token = match items.last() {
        Some(last) if more => Continue {
            version: "meta.k8s.io/v1".into(),
            revision,
            start: last.key.get(prefix.len()..).unwrap_or_default().to_owned(),
            left: remaining,
        }
        .encode(),
        _ => String::new(),
    };
    Ok(Page {
        items,
        revision,
        continue_token,
        remaining,
    })
}

/// Whether a filter lets an object through that is still in its stored form.
pub(crate) fn covers(filter: &Filter, kv: &KeyValue) -> bool {
    let parsed = std::cell::OnceCell::new();
    filter.covers(|| parsed.get_or_init(|| stored::decode(kv)))
}

pub(crate) async fn list(call: &Call) -> Answer {
    let filter = Filter::parse(call.resource, call.namespace(), call.name(), &call.query)?;
    let page = read(call, &filter).await?;
    Ok(respond(call.accept, call.include()?, call.resource, page))
}

/// A page as an answer, put together while it is sent.
pub(crate) fn respond(
    accept: Accept,
    include: IncludeObject,
    resource: &'static Resource,
    page: Page,
) -> Response {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), page.revision.to_string().into());
    if !page.continue_token.is_empty() {
        metadata.insert("continue".into(), page.continue_token.into());
    }
    if let Some(remaining) = page.remaining {
        metadata.insert("remainingItemCount".into(), remaining.into());
    }
    let shape = if matches!(accept.shape, Shape::Discovery(_)) {
        Shape::Object
    } else {
        accept.shape
    };
    let mut head = Vec::new();
    answer::write_list_head(&mut head, shape, resource, &Value::Object(metadata));
    let chunks = Chunks {
        head,
        shape,
        include,
        resource,
        items: page.items.into_iter(),
        now: Timestamp::now(),
        state: State::Start,
    };
    if accept.format == Format::Yaml || accept.pretty {
        let whole: Vec<u8> = chunks.flatten().collect();
        return answer::value(
            accept,
            http::StatusCode::OK,
            &serde_json::from_slice(&whole).unwrap_or_default(),
        );
    }
    let body = Body::from_stream(stream::iter(chunks.map(Ok::<_, std::convert::Infallible>)));
    let mut response = Response::new(body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(Format::Json.content_type()),
    );
    response
}

enum State {
    Start,
    Items,
    End,
}

struct Chunks {
    head: Vec<u8>,
    shape: Shape,
    include: IncludeObject,
    resource: &'static Resource,
    items: std::vec::IntoIter<KeyValue>,
    now: Timestamp,
    state: State,
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut is_first = false;
        let mut out = match self.state {
            State::Start => {
                is_first = true;
                self.state = State::Items;
                std::mem::take(&mut self.head)
            }
            State::Items => Vec::with_capacity(CHUNK_BYTES + 8 * 1024),
            State::End => return None,
        };
        while out.len() < CHUNK_BYTES {
            let Some(kv) = self.items.next() else {
                out.extend_from_slice(b"]}\n");
                self.state = State::End;
                break;
            };
            if !std::mem::take(&mut is_first) {
                out.push(b',');
            }
            answer::write_item(
                &mut out,
                self.shape,
                self.include,
                self.resource,
                &kv,
                self.now,
            );
        }
        Some(Bytes::from(out))
    }
}
