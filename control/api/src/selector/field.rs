//! Objects chosen by a few of their fields.

use std::fmt;

use serde_json::Value;

use crate::{Resource, field::quote, meta};

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldRequirement {
    /// The field, such as `spec.nodeName`.
    pub field: String,
    /// It must be the value; otherwise it must not be.
    pub is_equal: bool,
    /// The value.
    pub value: String,
}

/// Conditions on fields; all of them must hold, and none holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Reads `a=b,c==d,e!=f`; `\`, `,` and `=` in a value are written with a `\` before them.
    ///
    /// # Errors
    /// When the text is no selector; the message is for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let no_term = || format!("invalid selector: '{text}'; can't understand '{term}'");
            let (field, operator, value) = split_term(term).ok_or_else(no_term)?;
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                is_equal: operator != "!=",
                value: unescape(value)?,
            });
        }
        Ok(Self { requirements })
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The conditions.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// Whether the resource has all these fields.
    ///
    /// # Errors
    /// With the message for a `BadRequest` when it has not.
    pub fn check(&self, resource: &Resource) -> Result<(), String> {
        let known = resource.strategy.selectable_fields();
        for requirement in &self.requirements {
            let field = requirement.field.as_str();
            let is_known =
                field == "metadata.name" || field == "metadata.namespace" || known.contains(&field);
            if !is_known {
                return Err(if known.is_empty() {
                    format!(
                        "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        quote(field)
                    )
                } else {
                    format!("field label not supported: {field}")
                });
            }
        }
        Ok(())
    }

    /// The value a field must have, when one is asked for.
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|requirement| requirement.is_equal && requirement.field == field)
            .map(|requirement| requirement.value.as_str())
    }

    /// Whether an object meets all conditions.
    pub fn matches(&self, resource: &Resource, object: &Value) -> bool {
        self.requirements.iter().all(|requirement| {
            let is_same = match requirement.field.as_str() {
                "metadata.name" => meta::name(object) == requirement.value,
                "metadata.namespace" => meta::namespace(object) == requirement.value,
                field => {
                    resource
                        .strategy
                        .selectable_field(object, field)
                        .unwrap_or_default()
                        == requirement.value
                }
            };
            is_same == requirement.is_equal
        })
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if requirement.is_equal { "=" } else { "!=" };
            let value = requirement
                .value
                .replace('\\', "\\\\")
                .replace(',', "\\,")
                .replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", requirement.field)?;
        }
        Ok(())
    }
}

/// Splits at commas that have no `\` before them.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut is_escaped) = (0, false);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    let at = term.find(['=', '!'])?;
    let rest = &term[at..];
    let operator = ["!=", "==", "="]
        .into_iter()
        .find(|operator| rest.starts_with(operator))?;
    Some((&term[..at], operator, &rest[operator.len()..]))
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => {
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: \\{c}"
                    ));
                }
                None => {
                    return Err("invalid field selector: invalid escape sequence: \\".to_owned());
                }
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {c}"
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}
