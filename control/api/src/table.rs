//! `meta.k8s.io/v1` Table: what `kubectl get` prints, made where the object is known.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{Resource, meta};

/// A column of a resource's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type of the cells.
    pub type_: &'static str,
    /// OpenAPI format, such as `name` for the column that names the object.
    pub format: &'static str,
    /// What it shows.
    pub description: &'static str,
    /// 0 is always printed, more only with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// A column of text that is always printed.
    pub const fn text(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            type_: "string",
            format: "",
            description,
            priority: 0,
        }
    }

    /// The column that names the object.
    pub const fn name() -> Self {
        Self {
            name: "Name",
            type_: "string",
            format: "name",
            description: "Name must be unique within a namespace and is required when creating resources.",
            priority: 0,
        }
    }

    /// The column that shows the age.
    pub const fn age() -> Self {
        Self::text(
            "Age",
            "CreationTimestamp is the time at which this object was created, in UTC.",
        )
    }

    /// Makes it a column of numbers.
    pub const fn integer(mut self) -> Self {
        self.type_ = "integer";
        self
    }

    /// Makes it one that only `-o wide` prints.
    pub const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

/// How much of the object goes with each row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl std::str::FromStr for IncludeObject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "None" => Ok(Self::None),
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            other => Err(format!(
                "includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            )),
        }
    }
}

/// The `columnDefinitions` of a resource's table.
pub fn column_definitions(resource: &Resource) -> Value {
    definitions(resource.columns)
}

/// The `columnDefinitions` of a table of these columns.
pub fn definitions(columns: &[Column]) -> Value {
    columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.type_,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}

/// One row of the table.
pub fn row(resource: &Resource, object: &Value, now: Timestamp, include: IncludeObject) -> Value {
    let cells = resource.strategy.row(object, now);
    debug_assert_eq!(cells.len(), resource.columns.len(), "cells of {resource:?}");
    match include {
        IncludeObject::None => json!({"cells": cells, "object": null}),
        IncludeObject::Metadata => json!({"cells": cells, "object": partial_metadata(object)}),
        IncludeObject::Object => json!({"cells": cells, "object": object}),
    }
}

/// A whole table; `metadata` is that of the list (`resourceVersion`, `continue`, `remainingItemCount`).
/// `with_columns` is false for all but the first event of a watch.
pub fn render<'a>(
    resource: &Resource,
    items: impl IntoIterator<Item = &'a Value>,
    metadata: Value,
    now: Timestamp,
    include: IncludeObject,
    with_columns: bool,
) -> Value {
    let rows: Vec<Value> = items
        .into_iter()
        .map(|item| row(resource, item, now, include))
        .collect();
    let columns = if with_columns {
        column_definitions(resource)
    } else {
        json!([])
    };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// `PartialObjectMetadata` of an object.
pub fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// A length of time as kubectl shows it (`k8s.io/apimachinery/pkg/util/duration.HumanDuration`).
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |large: i64, large_unit: char, small: i64, small_unit: char| match small {
        0 => format!("{large}{large_unit}"),
        small => format!("{large}{large_unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(days, 'd', hours % 24, 'h'),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => two(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

/// How long ago an RFC 3339 time was; `<unknown>` without one.
pub fn since(time: &str, now: Timestamp) -> String {
    match meta::parse_time(time) {
        Some(time) => {
            human_duration((now.as_millisecond() - time.as_millisecond()).div_euclid(1000))
        }
        None => "<unknown>".to_owned(),
    }
}

/// Age of an object.
pub fn age(object: &Value, now: Timestamp) -> String {
    since(meta::str_of(object, "creationTimestamp"), now)
}

/// A text, or `<none>` when it is empty.
pub fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_look_as_kubectl_shows_them() {
        const MINUTE: i64 = 60;
        const HOUR: i64 = 3600;
        const DAY: i64 = 86400;
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (9 * MINUTE + 59, "9m59s"),
            (10 * MINUTE + 5, "10m"),
            (179 * MINUTE, "179m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + MINUTE, "3h1m"),
            (8 * HOUR + MINUTE, "8h"),
            (47 * HOUR, "47h"),
            (2 * DAY, "2d"),
            (2 * DAY + HOUR, "2d1h"),
            (8 * DAY + HOUR, "8d"),
            (729 * DAY, "729d"),
            (730 * DAY, "2y"),
            (731 * DAY, "2y1d"),
            (8 * 365 * DAY + DAY, "8y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn a_row_carries_as_much_of_the_object_as_was_asked_for() {
        let resource = crate::find("", "v1", "configmaps").expect("configmaps");
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(
            row(resource, &object, now, IncludeObject::None)["object"],
            Value::Null
        );
        assert_eq!(
            row(resource, &object, now, IncludeObject::Object)["object"],
            object
        );
        let table = render(
            resource,
            [&object],
            json!({"resourceVersion": "7"}),
            now,
            IncludeObject::Metadata,
            true,
        );
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(table["rows"][0]["cells"], json!(["a", 1, "<unknown>"]));
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(table["metadata"]["resourceVersion"], "7");
    }
}
