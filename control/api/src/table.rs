//! `meta.k8s.io/v1` Table: what `kubectl get` prints, made where the object is known.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::meta;

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

/// One row of a table.
pub fn row(cells: Vec<Value>, object: &Value, include: IncludeObject) -> Value {
    let object = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial_metadata(object),
        IncludeObject::Object => object.clone(),
    };
    json!({"cells": cells, "object": object})
}

/// A whole table of what is not kept as it is shown.
pub fn of_rows(columns: &[Column], rows: impl IntoIterator<Item = Value>) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": definitions(columns),
        "rows": rows.into_iter().collect::<Vec<_>>(),
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
        let object = json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
        let shown = |include| row(vec!["a".into()], &object, include)["object"].clone();
        assert_eq!(shown(IncludeObject::None), Value::Null);
        assert_eq!(shown(IncludeObject::Object), object);
        let metadata = shown(IncludeObject::Metadata);
        assert_eq!(metadata["kind"], "PartialObjectMetadata");
        assert_eq!(metadata["metadata"], object["metadata"]);
    }

    #[test]
    fn a_table_says_what_its_cells_are() {
        let row = row(vec!["a".into()], &Value::Null, IncludeObject::None);
        let table = of_rows(&[Column::name()], [row]);
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(table["rows"], json!([{"cells": ["a"], "object": null}]));
    }
}
