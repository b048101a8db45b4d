//! Event of the core group.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{get, integer, is_set, text},
};

mod newer;

pub(super) use newer::{COLUMNS as NEWER_COLUMNS, NewerEvent};

const MESSAGE_BYTES_MAX: usize = 1024;

pub(super) const COLUMNS: &[Column] = &[
    Column::text(
        "Last Seen",
        "The time at which the most recent occurrence of this event was recorded.",
    ),
    Column::text(
        "Type",
        "Type of this event (Normal, Warning), new types could be added in the future",
    ),
    Column::text(
        "Reason",
        "This should be a short, machine understandable string that gives the reason for the transition.",
    ),
    Column::text("Object", "The object that this event is about."),
    Column::text(
        "Subobject",
        "If referring to a piece of an object, the path of that piece.",
    )
    .wide(),
    Column::text("Source", "The component reporting this event.").wide(),
    Column::text(
        "Message",
        "A human-readable description of the status of this operation.",
    ),
    Column::text(
        "First Seen",
        "The time at which the event was first recorded.",
    )
    .wide(),
    Column::text("Count", "The number of times this event has occurred.").wide(),
    Column {
        priority: 1,
        ..Column::name()
    },
];

pub(super) struct Event;

impl Strategy for Event {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let involved = text(get(object, "involvedObject"), "namespace");
        let namespace = meta::namespace(object);
        let is_new_style = is_set(object, "eventTime");
        // Events about what has no namespace are in `default` (and, of the new style, `kube-system`).
        let is_right = if involved.is_empty() {
            namespace == "default" || (is_new_style && namespace == "kube-system")
        } else {
            involved == namespace
        };
        if !is_right {
            let path = Path::new("involvedObject");
            errors.push(FieldError::invalid(
                &path.child("namespace"),
                involved,
                "does not match event.namespace",
            ));
        }
        if is_new_style {
            for field in [
                "reportingComponent",
                "reportingInstance",
                "action",
                "reason",
            ] {
                if text(object, field).is_empty() {
                    errors.push(FieldError::required(&Path::new(field), ""));
                }
            }
            if text(object, "message").len() > MESSAGE_BYTES_MAX {
                let detail = format!("can have at most {MESSAGE_BYTES_MAX} characters");
                errors.push(FieldError::invalid(&Path::new("message"), "", detail));
            }
        }
        errors
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        let reporter = || match text(get(object, "source"), "component") {
            "" => text(object, "reportingComponent"),
            component => component,
        };
        Some(
            match field {
                "reason" | "type" | "reportingComponent" => text(object, field),
                "source" => reporter(),
                _ if self.selectable_fields().contains(&field) => text(
                    get(object, "involvedObject"),
                    field.strip_prefix("involvedObject.")?,
                ),
                _ => return None,
            }
            .to_owned(),
        )
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let since = |time: &str| table::since(time, now);
        let first = match text(object, "firstTimestamp") {
            "" => since(text(object, "eventTime")),
            time => since(time),
        };
        let mut last = match text(object, "lastTimestamp") {
            "" => first.clone(),
            time => since(time),
        };
        let mut count = integer(object, "count").unwrap_or_default().max(1);
        if let Some(series) = object.get("series") {
            last = since(text(series, "lastObservedTime"));
            count = integer(series, "count").unwrap_or_default();
        }
        let involved = get(object, "involvedObject");
        let kind = text(involved, "kind").to_lowercase();
        let target = match text(involved, "name") {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        let source = get(object, "source");
        let component = match text(source, "component") {
            "" => text(object, "reportingComponent"),
            component => component,
        };
        let host = match text(source, "host") {
            "" => text(object, "reportingInstance"),
            host => host,
        };
        let source = if host.is_empty() {
            component.to_owned()
        } else {
            format!("{component}, {host}")
        };
        vec![
            last.into(),
            text(object, "type").into(),
            text(object, "reason").into(),
            target.into(),
            text(involved, "fieldPath").into(),
            source.into(),
            text(object, "message").trim().into(),
            first.into(),
            count.into(),
            meta::name(object).into(),
        ]
    }
}
