//! The v2 document in protobuf, which is the only form kubectl asks for it in: gnostic's `openapiv2/OpenAPIv2.proto`.
//!
//! A table says, for each message, which field of the JSON form has which number. The tables hold what [`super::v2`]
//! makes and all of `Schema`; a field that no table has is an error of whoever added it to the document, and asserted.

use serde_json::Value;

/// How a field is written down.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Texts,
    Bool,
    Int,
    Double,
    Any,
    Anys,
    /// A message of which this writes the content.
    Message(Write),
    /// A message for each item of a list.
    Messages(Write),
    /// A message that has these fields.
    Fields(&'static [Field], Extensions),
}

type Field = (u32, &'static str, Form);
type Write = fn(&mut Vec<u8>, &Value);
/// Number of the `x-…` fields, where there may be any.
type Extensions = Option<u32>;

const DOCUMENT: &[Field] = &[
    (1, "swagger", Form::Text),
    (2, "info", Form::Fields(INFO, Some(7))),
    (8, "paths", Form::Message(paths)),
    (9, "definitions", Form::Message(named_schemas)),
    (12, "security", Form::Messages(security_requirement)),
    (
        13,
        "securityDefinitions",
        Form::Message(security_definitions),
    ),
];

const INFO: &[Field] = &[
    (1, "title", Form::Text),
    (2, "version", Form::Text),
    (3, "description", Form::Text),
];

const API_KEY_SECURITY: &[Field] = &[
    (1, "type", Form::Text),
    (2, "name", Form::Text),
    (3, "in", Form::Text),
    (4, "description", Form::Text),
];

const PATH_ITEM: &[Field] = &[
    (2, "get", Form::Fields(OPERATION, Some(13))),
    (3, "put", Form::Fields(OPERATION, Some(13))),
    (4, "post", Form::Fields(OPERATION, Some(13))),
    (5, "delete", Form::Fields(OPERATION, Some(13))),
    (6, "options", Form::Fields(OPERATION, Some(13))),
    (7, "head", Form::Fields(OPERATION, Some(13))),
    (8, "patch", Form::Fields(OPERATION, Some(13))),
    (9, "parameters", Form::Messages(parameter)),
];

const OPERATION: &[Field] = &[
    (1, "tags", Form::Texts),
    (2, "summary", Form::Text),
    (3, "description", Form::Text),
    (5, "operationId", Form::Text),
    (6, "produces", Form::Texts),
    (7, "consumes", Form::Texts),
    (8, "parameters", Form::Messages(parameter)),
    (9, "responses", Form::Message(responses)),
    (10, "schemes", Form::Texts),
    (11, "deprecated", Form::Bool),
];

const BODY_PARAMETER: &[Field] = &[
    (1, "description", Form::Text),
    (2, "name", Form::Text),
    (3, "in", Form::Text),
    (4, "required", Form::Bool),
    (5, "schema", Form::Fields(SCHEMA, Some(31))),
];

const PATH_PARAMETER: &[Field] = &[
    (1, "required", Form::Bool),
    (2, "in", Form::Text),
    (3, "description", Form::Text),
    (4, "name", Form::Text),
    (5, "type", Form::Text),
    (6, "format", Form::Text),
    (19, "uniqueItems", Form::Bool),
];

/// As [`PATH_PARAMETER`], with `allowEmptyValue` put in at 5.
const QUERY_PARAMETER: &[Field] = &[
    (1, "required", Form::Bool),
    (2, "in", Form::Text),
    (3, "description", Form::Text),
    (4, "name", Form::Text),
    (5, "allowEmptyValue", Form::Bool),
    (6, "type", Form::Text),
    (7, "format", Form::Text),
    (20, "uniqueItems", Form::Bool),
];

const RESPONSE: &[Field] = &[
    (1, "description", Form::Text),
    (2, "schema", Form::Message(response_schema)),
];

const SCHEMA: &[Field] = &[
    (1, "$ref", Form::Text),
    (2, "format", Form::Text),
    (3, "title", Form::Text),
    (4, "description", Form::Text),
    (5, "default", Form::Any),
    (6, "multipleOf", Form::Double),
    (7, "maximum", Form::Double),
    (8, "exclusiveMaximum", Form::Bool),
    (9, "minimum", Form::Double),
    (10, "exclusiveMinimum", Form::Bool),
    (11, "maxLength", Form::Int),
    (12, "minLength", Form::Int),
    (13, "pattern", Form::Text),
    (14, "maxItems", Form::Int),
    (15, "minItems", Form::Int),
    (16, "uniqueItems", Form::Bool),
    (17, "maxProperties", Form::Int),
    (18, "minProperties", Form::Int),
    (19, "required", Form::Texts),
    (20, "enum", Form::Anys),
    (
        21,
        "additionalProperties",
        Form::Message(additional_properties),
    ),
    (22, "type", Form::Message(type_item)),
    (23, "items", Form::Message(items)),
    (24, "allOf", Form::Messages(schema)),
    (25, "properties", Form::Message(named_schemas)),
    (26, "discriminator", Form::Text),
    (27, "readOnly", Form::Bool),
    (30, "example", Form::Any),
];

/// `Document`, from the JSON form.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    fields(&mut out, document, DOCUMENT, Some(16));
    out
}

fn paths(out: &mut Vec<u8>, value: &Value) {
    for (path, item) in entries(value) {
        named(out, 2, path, |out| fields(out, item, PATH_ITEM, Some(10)));
    }
}

fn parameter(out: &mut Vec<u8>, value: &Value) {
    // ParametersItem { 1: Parameter { 1: BodyParameter, 2: NonBodyParameter { 1: header, 2: form, 3: query, 4: path } } }
    message(out, 1, |out| match value["in"].as_str() {
        Some("body") => message(out, 1, |out| fields(out, value, BODY_PARAMETER, Some(6))),
        Some("path") => message(out, 2, |out| {
            message(out, 4, |out| fields(out, value, PATH_PARAMETER, Some(22)));
        }),
        place => {
            debug_assert_eq!(place, Some("query"), "{value}");
            message(out, 2, |out| {
                message(out, 3, |out| fields(out, value, QUERY_PARAMETER, Some(23)));
            });
        }
    });
}

fn responses(out: &mut Vec<u8>, value: &Value) {
    for (code, response) in entries(value) {
        // ResponseValue { 1: Response }
        named(out, 1, code, |out| {
            message(out, 1, |out| fields(out, response, RESPONSE, Some(5)));
        });
    }
}

fn response_schema(out: &mut Vec<u8>, value: &Value) {
    // SchemaItem { 1: Schema }
    message(out, 1, |out| schema(out, value));
}

fn security_requirement(out: &mut Vec<u8>, value: &Value) {
    for (name, scopes) in entries(value) {
        // StringArray { 1: value }
        named(out, 1, name, |out| field(out, 1, Form::Texts, scopes));
    }
}

fn security_definitions(out: &mut Vec<u8>, value: &Value) {
    for (name, definition) in entries(value) {
        debug_assert_eq!(definition["type"], "apiKey");
        // SecurityDefinitionsItem { 2: ApiKeySecurity }
        named(out, 1, name, |out| {
            message(out, 2, |out| {
                fields(out, definition, API_KEY_SECURITY, Some(5));
            });
        });
    }
}

fn schema(out: &mut Vec<u8>, value: &Value) {
    fields(out, value, SCHEMA, Some(31));
}

/// `Definitions` and `Properties`.
fn named_schemas(out: &mut Vec<u8>, value: &Value) {
    for (name, value) in entries(value) {
        named(out, 1, name, |out| schema(out, value));
    }
}

fn additional_properties(out: &mut Vec<u8>, value: &Value) {
    match value {
        // One of two, so `false` says something too.
        Value::Bool(allowed) => varint_field(out, 2, (*allowed).into()),
        _ => message(out, 1, |out| schema(out, value)),
    }
}

fn type_item(out: &mut Vec<u8>, value: &Value) {
    let form = if value.is_array() {
        Form::Texts
    } else {
        Form::Text
    };
    field(out, 1, form, value);
}

fn items(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Array(_) => field(out, 1, Form::Messages(schema), value),
        _ => message(out, 1, |out| schema(out, value)),
    }
}

/// `Any`: its value as YAML, which JSON is.
fn any(out: &mut Vec<u8>, value: &Value) {
    bytes(out, 2, value.to_string().as_bytes());
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Fields of a message.
fn fields(out: &mut Vec<u8>, value: &Value, table: &[Field], extensions: Extensions) {
    for (number, name, form) in table {
        if let Some(value) = value.get(*name) {
            field(out, *number, *form, value);
        }
    }
    for (name, value) in entries(value) {
        match extensions {
            Some(number) if name.starts_with("x-") => {
                named(out, number, name, |out| any(out, value));
            }
            _ => debug_assert!(
                table.iter().any(|(_, known, _)| known == name),
                "no number for {name} of {value}"
            ),
        }
    }
}

fn field(out: &mut Vec<u8>, number: u32, form: Form, value: &Value) {
    let list = || value.as_array().into_iter().flatten();
    match form {
        // Empty, false and zero are what is not there.
        Form::Text => {
            if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
                bytes(out, number, text.as_bytes());
            }
        }
        Form::Bool => {
            if value.as_bool() == Some(true) {
                varint_field(out, number, 1);
            }
        }
        Form::Int => {
            if let Some(int) = value.as_i64().filter(|int| *int != 0) {
                varint_field(out, number, int.cast_unsigned());
            }
        }
        Form::Double => {
            if let Some(double) = value.as_f64().filter(|double| *double != 0.0) {
                varint(out, u64::from(number << 3 | 1));
                out.extend_from_slice(&double.to_le_bytes());
            }
        }
        Form::Texts => {
            for text in list().filter_map(Value::as_str) {
                bytes(out, number, text.as_bytes());
            }
        }
        Form::Any => message(out, number, |out| any(out, value)),
        Form::Anys => list().for_each(|item| message(out, number, |out| any(out, item))),
        Form::Message(write) => message(out, number, |out| write(out, value)),
        Form::Messages(write) => {
            list().for_each(|item| message(out, number, |out| write(out, item)));
        }
        Form::Fields(table, extensions) => {
            message(out, number, |out| fields(out, value, table, extensions));
        }
    }
}

/// An entry of a map: `{ 1: name, 2: value }`.
fn named(out: &mut Vec<u8>, number: u32, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    message(out, number, |out| {
        bytes(out, 1, name.as_bytes());
        message(out, 2, value);
    });
}

fn message(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut content = Vec::new();
    write(&mut content);
    bytes(out, number, &content);
}

fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(out, u64::from(number << 3 | 2));
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(number << 3));
    varint(out, value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests;
