//! Event of events.k8s.io: the Events of the core group, in newer words.

use jiff::Timestamp;
use serde_json::Value;

use super::Event;
use crate::{FieldError, Strategy, resource::Conversion, table::Column};

/// Words of events.k8s.io, and those of the core group for the same.
const WORDS: [(&str, &str); 7] = [
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
];

static CONVERSION: Conversion = Conversion {
    group: "",
    version: "v1",
    to_stored: |event| rename(event, WORDS.iter().copied()),
    from_stored: |event| rename(event, WORDS.iter().map(|(newer, core)| (*core, *newer))),
};

fn rename(event: &mut Value, words: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(fields) = event.as_object_mut() else {
        return;
    };
    for (from, to) in words {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

pub(in super::super) const COLUMNS: &[Column] = super::COLUMNS;

pub(in super::super) struct NewerEvent;

impl Strategy for NewerEvent {
    fn validate(&self, event: &Value) -> Vec<FieldError> {
        let mut stored = event.clone();
        (CONVERSION.to_stored)(&mut stored);
        let mut errors = Event.validate(&stored);
        for error in &mut errors {
            for (newer, core) in WORDS {
                if let Some(rest) = error.field.strip_prefix(core) {
                    error.field = format!("{newer}{rest}");
                    break;
                }
            }
        }
        errors
    }

    fn conversion(&self) -> Option<&'static Conversion> {
        Some(&CONVERSION)
    }

    fn selectable_field(&self, event: &Value, field: &str) -> Option<String> {
        let i = self
            .selectable_fields()
            .iter()
            .position(|known| *known == field)?;
        Event.selectable_field(event, Event.selectable_fields().get(i)?)
    }

    /// In the order of those of the core group.
    fn selectable_fields(&self) -> &'static [&'static str] {
        &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "source",
            "type",
        ]
    }

    fn row(&self, event: &Value, now: Timestamp) -> Vec<Value> {
        Event.row(event, now)
    }
}
