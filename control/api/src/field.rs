//! What is wrong with a field, in the words of Kubernetes (`k8s.io/apimachinery/pkg/util/validation/field`).

use std::fmt;

use serde_json::Value;

/// What sort of trouble a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldErrorKind {
    /// Something named elsewhere is not there.
    NotFound,
    /// Nothing was given.
    Required,
    /// A value that must be unique appears twice.
    Duplicate,
    /// The value does not follow the field's rules.
    Invalid,
    /// The value is none of the known ones.
    NotSupported,
    /// The field may not be set, or not be changed.
    Forbidden,
    /// The value has too many bytes.
    TooLong,
    /// The list has too many items.
    TooMany,
    /// The value has the wrong type.
    TypeInvalid,
    /// The check itself failed.
    InternalError,
}

impl FieldErrorKind {
    /// Reason as it stands in the causes of a `Status`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::InternalError => "InternalError",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::InternalError => "Internal error",
        }
    }
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What sort of trouble.
    pub kind: FieldErrorKind,
    /// Path of the field, such as `spec.containers[0].name`.
    pub field: String,
    /// The value that was refused; null where none is shown.
    pub bad_value: Value,
    /// What would have been right.
    pub detail: String,
}

impl FieldError {
    fn new(
        kind: FieldErrorKind,
        path: &Path<'_>,
        bad_value: Value,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            field: path.to_string(),
            bad_value,
            detail: detail.into(),
        }
    }

    /// Nothing was given.
    pub fn required(path: &Path<'_>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, path, Value::Null, detail)
    }

    /// The value does not follow the field's rules.
    pub fn invalid(path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, path, value.into(), detail)
    }

    /// The value is none of `supported`, which stand in the order they are to be shown.
    pub fn not_supported(path: &Path<'_>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|value| quote(value)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(FieldErrorKind::NotSupported, path, value.into(), detail)
    }

    /// The field may not be set, or not be changed.
    pub fn forbidden(path: &Path<'_>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, path, Value::Null, detail)
    }

    /// The value appeared before.
    pub fn duplicate(path: &Path<'_>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, path, value.into(), "")
    }

    /// The value has more than `bytes_max` bytes.
    pub fn too_long(path: &Path<'_>, bytes_max: usize) -> Self {
        Self::new(
            FieldErrorKind::TooLong,
            path,
            Value::Null,
            format!("may not be more than {bytes_max} bytes"),
        )
    }

    /// The list has `count` items, more than `count_max`.
    pub fn too_many(path: &Path<'_>, count: usize, count_max: usize) -> Self {
        Self::new(
            FieldErrorKind::TooMany,
            path,
            count.into(),
            format!("must have at most {count_max} items"),
        )
    }

    /// What the value names is not there.
    pub fn not_found(path: &Path<'_>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, path, value.into(), "")
    }

    /// The value has the wrong type.
    pub fn type_invalid(
        path: &Path<'_>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(FieldErrorKind::TypeInvalid, path, value.into(), detail)
    }

    /// The check itself failed.
    pub fn internal(path: &Path<'_>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::InternalError, path, Value::Null, detail)
    }

    /// The message without the field, as it stands in the causes of a `Status`.
    pub fn body(&self) -> String {
        use FieldErrorKind as K;
        let mut text = match self.kind {
            K::Required | K::Forbidden | K::TooLong | K::InternalError | K::TypeInvalid => {
                self.kind.text().to_owned()
            }
            _ => format!("{}: {}", self.kind.text(), shown(&self.bad_value)),
        };
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        other => other.to_string(),
    }
}

/// Quotes a string as Go's `%q` does.
pub fn quote(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Where a field is. Lives on the stack while an object is walked; text is made only for an error.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    part: Part<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The object itself.
    pub const ROOT: Path<'static> = Path {
        parent: None,
        part: Part::Root,
    };

    /// A field of the object itself.
    pub fn new(field: &'a str) -> Self {
        Self {
            parent: None,
            part: Part::Field(field),
        }
    }

    /// A field below this one.
    pub fn child<'b>(&'b self, field: &'b str) -> Path<'b> {
        Path {
            parent: Some(self),
            part: Part::Field(field),
        }
    }

    /// An item of this list.
    pub fn index<'b>(&'b self, index: usize) -> Path<'b> {
        Path {
            parent: Some(self),
            part: Part::Index(index),
        }
    }

    /// An entry of this map.
    pub fn key<'b>(&'b self, key: &'b str) -> Path<'b> {
        Path {
            parent: Some(self),
            part: Part::Key(key),
        }
    }

    /// The names of the fields alone, without indexes and keys.
    pub(crate) fn fields(&self) -> String {
        let mut names = Vec::new();
        let mut at = Some(self);
        while let Some(path) = at {
            if let Part::Field(name) = path.part {
                names.push(name);
            }
            at = path.parent;
        }
        names.reverse();
        names.join(".")
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::with_capacity(8);
        let mut at = Some(self);
        while let Some(path) = at {
            parts.push(path.part);
            at = path.parent;
        }
        let mut is_first = true;
        for part in parts.iter().rev() {
            match part {
                Part::Root => continue,
                Part::Field(field) if is_first => write!(f, "{field}")?,
                Part::Field(field) => write!(f, ".{field}")?,
                Part::Index(index) => write!(f, "[{index}]")?,
                Part::Key(key) => write!(f, "[{key}]")?,
            }
            is_first = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_kubernetes() {
        let spec = Path::new("spec");
        let containers = spec.child("containers");
        let first = containers.index(0);
        let name = first.child("name");
        for (error, text) in [
            (
                FieldError::required(&name, ""),
                "spec.containers[0].name: Required value",
            ),
            (
                FieldError::required(&spec, "must be set"),
                "spec: Required value: must be set",
            ),
            (
                FieldError::invalid(&name, "y", "no"),
                "spec.containers[0].name: Invalid value: \"y\": no",
            ),
            (
                FieldError::invalid(&name, -1, "no"),
                "spec.containers[0].name: Invalid value: -1: no",
            ),
            (
                FieldError::not_supported(&name, "Foo", &["A", "B"]),
                "spec.containers[0].name: Unsupported value: \"Foo\": supported values: \"A\", \"B\"",
            ),
            (
                FieldError::forbidden(&spec.key("a/b"), "no"),
                "spec[a/b]: Forbidden: no",
            ),
            (
                FieldError::duplicate(&name, "a\"b"),
                "spec.containers[0].name: Duplicate value: \"a\\\"b\"",
            ),
            (
                FieldError::too_long(&name, 63),
                "spec.containers[0].name: Too long: may not be more than 63 bytes",
            ),
            (
                FieldError::too_many(&containers, 4, 3),
                "spec.containers: Too many: 4: must have at most 3 items",
            ),
            (
                FieldError::not_found(&name, "v"),
                "spec.containers[0].name: Not found: \"v\"",
            ),
            (
                FieldError::internal(&name, "oh"),
                "spec.containers[0].name: Internal error: oh",
            ),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn the_root_adds_nothing_to_a_path() {
        assert_eq!(Path::ROOT.child("data").key("x").to_string(), "data[x]");
    }
}
