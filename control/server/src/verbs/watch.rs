//! GET of a collection with `watch`: one event per line, until the client or the time is gone.
//!
//! ```text
//! no resourceVersion, or 0   everything there is as ADDED, then changes
//! resourceVersion=N          changes after N, or an ERROR event with 410 when they are forgotten
//! sendInitialEvents=true     everything there is, a bookmark that says so, then changes
//! ```

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wherry_api::{FieldError, Resource, Status, table::IncludeObject};
use wherry_store::{KeyValue, Revision};

use crate::{
    answer::{self, Answer},
    call::Call,
    compress::Live,
    feed::{Change, Seen, Subscription},
    filter::Filter,
    metrics::Gauge,
    request::{Format, Shape},
    stored,
    verbs::{
        list::{self, invalid_options},
        store_status,
    },
};

/// How long a watch lasts when the client does not say: this, and up to as much again, so that watches made
/// together do not end together. kube-apiserver's `--min-request-timeout`.
const TIMEOUT_SECONDS_MIN: u64 = 1_800;
/// How often a client that asked for bookmarks gets one; kube-apiserver's interval.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of events that are sent together when they are there together.
const CHUNK_BYTES: usize = 32 * 1024;
/// What a line has beside the object as stored: type, brackets, resource version.
const LINE_BYTES: usize = 96;

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

pub(crate) async fn watch(call: &Call) -> Answer {
    let filter = Arc::new(Filter::parse(
        call.resource,
        call.namespace(),
        call.name(),
        &call.query,
    )?);
    let asked = list::resource_version(call)?;
    let sends_initial = call
        .query
        .has("sendInitialEvents")
        .then(|| call.query.flag("sendInitialEvents"));
    let mode = call.query.get("resourceVersionMatch");
    match (sends_initial, mode) {
        (None, "") | (Some(_), "NotOlderThan") => {}
        (None, _) => {
            return Err(invalid_options("resourceVersionMatch", |path| {
                FieldError::forbidden(
                    path,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                )
            }));
        }
        (Some(_), "") => {
            return Err(invalid_options("resourceVersionMatch", |path| {
                FieldError::forbidden(
                    path,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                )
            }));
        }
        (Some(_), other) => {
            return Err(invalid_options("resourceVersionMatch", |path| {
                FieldError::not_supported(path, other, &["NotOlderThan"])
            }));
        }
    }
    let seconds = match call.query.number::<u64>("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => seconds,
        _ => TIMEOUT_SECONDS_MIN + rand::random_range(0..TIMEOUT_SECONDS_MIN),
    };
    let sends_bookmarks = call.query.flag("allowWatchBookmarks");

    let current = call
        .app
        .store
        .current_revision()
        .await
        .map_err(|error| store_status(call.resource, "", error))?;
    let (initial, from) = match (sends_initial, asked) {
        (Some(true), _) | (None, None | Some(0)) => {
            let page = call.app.store.list(filter.key_prefix(), None, 0, 0).await;
            let page = page.map_err(|error| store_status(call.resource, "", error))?;
            let items: VecDeque<KeyValue> = page
                .items
                .into_iter()
                .filter(|kv| filter.covers_key(&kv.key) && list::covers(&filter, kv))
                .collect();
            (items, page.revision)
        }
        (Some(false), None | Some(0)) => (VecDeque::new(), current),
        (_, Some(revision)) => (VecDeque::new(), revision),
    };
    let mut events = Events {
        resource: call.resource,
        shape: if matches!(call.accept.shape, Shape::Discovery(_)) {
            Shape::Object
        } else {
            call.accept.shape
        },
        format: call.accept.format,
        include: call.include()?,
        initial,
        marks_initial_end: sends_initial == Some(true) && sends_bookmarks,
        from,
        subscription: None,
        bookmarks: sends_bookmarks.then(|| {
            let mut ticks =
                tokio::time::interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            ticks
        }),
        deadline: Instant::now() + Duration::from_secs(seconds),
        shutdown: call.app.shutdown.clone(),
        has_sent_columns: false,
        last_error: None,
        is_over: false,
        _watchers: call.app.metrics.watchers.raise(),
    };
    match call.app.feeds.watch(call.resource, &filter, from).await {
        // A store put back from a copy is behind what clients have seen of it; 410 makes every one of them list again.
        _ if from > current => {
            let message = format!("resource version {from} is unknown, the newest is {current}");
            events.last_error = Some(Status::expired(message));
        }
        Ok(subscription) => events.subscription = Some(subscription),
        Err(error) => events.last_error = Some(store_status(call.resource, "", error)),
    }
    let body = Body::from_stream(stream::unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), events))
    }));
    let mut response = Response::new(body);
    let content_type = match call.accept.format {
        Format::Json => "application/json",
        Format::Yaml => "application/yaml;stream=watch",
    };
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.extensions_mut().insert(Live);
    Ok(response)
}

/// What a watch sends.
struct Events {
    resource: &'static Resource,
    shape: Shape,
    format: Format,
    include: IncludeObject,
    initial: VecDeque<KeyValue>,
    marks_initial_end: bool,
    from: Revision,
    subscription: Option<Subscription>,
    bookmarks: Option<tokio::time::Interval>,
    deadline: Instant,
    shutdown: CancellationToken,
    has_sent_columns: bool,
    /// Sent, and then the watch ends.
    last_error: Option<Status>,
    is_over: bool,
    _watchers: Gauge,
}

enum Next {
    Change(Seen, Arc<Change>),
    Bookmark,
    Over,
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while let Some(kv) = self.initial.pop_front() {
            self.write(&mut out, Seen::Added, &kv);
            if out.len() > CHUNK_BYTES {
                return Some(Bytes::from(out));
            }
        }
        if std::mem::take(&mut self.marks_initial_end) {
            self.write_bookmark(&mut out, self.from, &json!({INITIAL_EVENTS_END: "true"}));
        }
        if let Some(status) = self.last_error.take() {
            self.is_over = true;
            self.write_line(&mut out, "ERROR", status.to_json().to_string().as_bytes());
        }
        if !out.is_empty() {
            return Some(Bytes::from(out));
        }
        if self.is_over {
            return None;
        }
        let mut subscription = self.subscription.take()?;
        let next = tokio::select! {
            biased;
            change = subscription.next() => match change {
                Some((seen, change)) => Next::Change(seen, change),
                None => Next::Over,
            },
            () = tick(&mut self.bookmarks) => Next::Bookmark,
            () = tokio::time::sleep_until(self.deadline) => Next::Over,
            () = self.shutdown.cancelled() => Next::Over,
        };
        let is_bookmark = match next {
            Next::Change(seen, change) => {
                let line = self.line(seen, &change);
                match subscription.poll_now() {
                    // Alone, as it mostly is, it is sent from where all watchers have it.
                    Err(_) => {
                        self.subscription = Some(subscription);
                        return Some(line);
                    }
                    Ok((seen, change)) => {
                        out.extend_from_slice(&line);
                        out.extend_from_slice(&self.line(seen, &change));
                    }
                }
                false
            }
            Next::Bookmark => true,
            Next::Over => return None,
        };
        loop {
            match subscription.poll_now() {
                Ok((seen, change)) => out.extend_from_slice(&self.line(seen, &change)),
                Err(revision) => {
                    if is_bookmark {
                        self.write_bookmark(&mut out, revision, &Value::Null);
                    }
                    break;
                }
            }
            if out.len() > CHUNK_BYTES && !is_bookmark {
                break;
            }
        }
        self.subscription = Some(subscription);
        Some(Bytes::from(out))
    }

    /// An event as it is sent.
    fn line(&mut self, seen: Seen, change: &Change) -> Bytes {
        let is_common = self.format == Format::Json
            && self.shape == Shape::Object
            && self.resource.strategy.conversion().is_none();
        if is_common {
            return change.line(seen, |kv| {
                let mut line = Vec::with_capacity(kv.value.len() + LINE_BYTES);
                write_line_of(&mut line, seen.name(), |out| {
                    stored::write_object(out, self.resource, kv);
                });
                line
            });
        }
        let mut out = Vec::new();
        self.write(&mut out, seen, &change.shown(seen));
        Bytes::from(out)
    }

    fn write(&mut self, out: &mut Vec<u8>, seen: Seen, kv: &KeyValue) {
        let mut object = Vec::with_capacity(kv.value.len() + 64);
        let with_columns = !std::mem::replace(&mut self.has_sent_columns, true);
        answer::write_shaped(
            &mut object,
            self.shape,
            self.include,
            self.resource,
            kv,
            Timestamp::now(),
            with_columns,
        );
        self.write_line(out, seen.name(), &object);
    }

    fn write_bookmark(&mut self, out: &mut Vec<u8>, revision: Revision, annotations: &Value) {
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if !annotations.is_null() {
            metadata["annotations"] = annotations.clone();
        }
        let (kind, api_version) = match self.shape {
            Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
            Shape::Table => ("Table", "meta.k8s.io/v1".to_owned()),
            Shape::Object | Shape::Discovery(_) => {
                (self.resource.kind, self.resource.api_version())
            }
        };
        let mut object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        if self.shape == Shape::Table {
            object["columnDefinitions"] = json!([]);
            object["rows"] = json!([{
                "cells": [],
                "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata},
            }]);
        }
        self.write_line(out, "BOOKMARK", object.to_string().as_bytes());
    }

    fn write_line(&self, out: &mut Vec<u8>, seen: &str, object: &[u8]) {
        if self.format == Format::Yaml {
            let object: Value = serde_json::from_slice(object).unwrap_or_default();
            let text = serde_saphyr::to_string(&json!({"type": seen, "object": object}))
                .unwrap_or_default();
            out.extend_from_slice(b"---\n");
            out.extend_from_slice(text.as_bytes());
            return;
        }
        write_line_of(out, seen, |out| out.extend_from_slice(object));
    }
}

fn write_line_of(out: &mut Vec<u8>, seen: &str, write_object: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(seen.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    write_object(out);
    out.extend_from_slice(b"}\n");
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
