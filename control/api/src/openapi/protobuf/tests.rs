//! A decoder of its own, with numbers written out again, that turns the bytes back into the JSON form.

use serde_json::json;

use super::*;

enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Varint(_) | Self::Fixed64(_) => panic!("not length-delimited"),
        }
    }

    fn text(self) -> Value {
        std::str::from_utf8(self.bytes()).expect("UTF-8").into()
    }

    fn bool(self) -> Value {
        match self {
            Self::Varint(value @ (0 | 1)) => (value == 1).into(),
            _ => panic!("not a bool"),
        }
    }
}

fn read_varint(from: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first().expect("whole");
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn read(mut from: &[u8]) -> Vec<(u64, Wire<'_>)> {
    let mut found = Vec::new();
    while !from.is_empty() {
        let tag = read_varint(&mut from);
        let wire = match tag & 7 {
            0 => Wire::Varint(read_varint(&mut from)),
            1 => {
                let (value, rest) = from.split_first_chunk().expect("whole");
                from = rest;
                Wire::Fixed64(*value)
            }
            2 => {
                let length = usize::try_from(read_varint(&mut from)).expect("small");
                let (value, rest) = from.split_at(length);
                from = rest;
                Wire::Bytes(value)
            }
            other => panic!("wire type {other}"),
        };
        found.push((tag >> 3, wire));
    }
    found
}

/// The content of a message that has one field, which is this one.
fn only(bytes: &[u8], number: u64) -> &[u8] {
    let mut found = read(bytes);
    assert_eq!(found.len(), 1);
    let (is, wire) = found.remove(0);
    assert_eq!(is, number);
    wire.bytes()
}

fn entry(bytes: &[u8]) -> (String, &[u8]) {
    let mut found = read(bytes).into_iter();
    let (name, value) = (found.next().expect("name"), found.next().expect("value"));
    assert_eq!((name.0, value.0, found.count()), (1, 2, 0));
    let name = name.1.text().as_str().expect("text").to_owned();
    (name, value.1.bytes())
}

fn push(to: &mut Value, name: &str, item: Value) {
    if to[name].is_null() {
        to[name] = json!([]);
    }
    to[name].as_array_mut().expect("list").push(item);
}

fn any(bytes: &[u8]) -> Value {
    serde_json::from_slice(only(bytes, 2)).expect("JSON is YAML")
}

fn extension(to: &mut Value, bytes: &[u8]) {
    let (name, value) = entry(bytes);
    assert!(name.starts_with("x-"));
    to[name] = any(value);
}

fn read_named(bytes: &[u8], item: impl Fn(&[u8]) -> Value) -> Value {
    let mut out = json!({});
    for (number, wire) in read(bytes) {
        assert_eq!(number, 1);
        let (name, value) = entry(wire.bytes());
        out[name] = item(value);
    }
    out
}

fn read_schema(bytes: &[u8]) -> Value {
    let mut out = json!({});
    for (number, wire) in read(bytes) {
        match (number, wire) {
            (1, wire) => out["$ref"] = wire.text(),
            (2, wire) => out["format"] = wire.text(),
            (4, wire) => out["description"] = wire.text(),
            (5, wire) => out["default"] = any(wire.bytes()),
            (7, Wire::Fixed64(value)) => out["maximum"] = f64::from_le_bytes(value).into(),
            (15, Wire::Varint(value)) => out["minItems"] = value.cast_signed().into(),
            (16, wire) => out["uniqueItems"] = wire.bool(),
            (19, wire) => push(&mut out, "required", wire.text()),
            (20, wire) => push(&mut out, "enum", any(wire.bytes())),
            (21, wire) => {
                let mut found = read(wire.bytes());
                assert_eq!(found.len(), 1);
                out["additionalProperties"] = match found.remove(0) {
                    (1, wire) => read_schema(wire.bytes()),
                    (2, wire) => wire.bool(),
                    (other, _) => panic!("AdditionalPropertiesItem.{other}"),
                };
            }
            (22, wire) => {
                let text = only(wire.bytes(), 1);
                out["type"] = std::str::from_utf8(text).expect("UTF-8").into();
            }
            (23, wire) => out["items"] = read_schema(only(wire.bytes(), 1)),
            (24, wire) => push(&mut out, "allOf", read_schema(wire.bytes())),
            (25, wire) => out["properties"] = read_named(wire.bytes(), read_schema),
            (31, wire) => extension(&mut out, wire.bytes()),
            (other, _) => panic!("Schema.{other}"),
        }
    }
    out
}

fn read_parameter(bytes: &[u8]) -> Value {
    let mut out = json!({});
    let mut found = read(only(bytes, 1));
    assert_eq!(found.len(), 1);
    let is_query = match found.remove(0) {
        (1, wire) => {
            for (number, wire) in read(wire.bytes()) {
                match number {
                    1 => out["description"] = wire.text(),
                    2 => out["name"] = wire.text(),
                    3 => out["in"] = wire.text(),
                    4 => out["required"] = wire.bool(),
                    5 => out["schema"] = read_schema(wire.bytes()),
                    other => panic!("BodyParameter.{other}"),
                }
            }
            return out;
        }
        (2, wire) => {
            found = read(wire.bytes());
            found.len() == 1 && found[0].0 == 3
        }
        (other, _) => panic!("Parameter.{other}"),
    };
    let (place, wire) = found.remove(0);
    for (number, wire) in read(wire.bytes()) {
        match (is_query, number) {
            (_, 1) => out["required"] = wire.bool(),
            (_, 2) => out["in"] = wire.text(),
            (_, 3) => out["description"] = wire.text(),
            (_, 4) => out["name"] = wire.text(),
            (true, 6) | (false, 5) => out["type"] = wire.text(),
            (true, 20) | (false, 19) => out["uniqueItems"] = wire.bool(),
            (_, other) => panic!("parameter of place {place}: {other}"),
        }
    }
    let expected = if is_query { (3, "query") } else { (4, "path") };
    assert_eq!((place, out["in"].as_str().expect("text")), expected);
    out
}

fn read_response(bytes: &[u8]) -> Value {
    let mut out = json!({});
    for (number, wire) in read(only(bytes, 1)) {
        match number {
            1 => out["description"] = wire.text(),
            2 => out["schema"] = read_schema(only(wire.bytes(), 1)),
            other => panic!("Response.{other}"),
        }
    }
    out
}

fn read_operation(bytes: &[u8]) -> Value {
    let mut out = json!({"parameters": []});
    for (number, wire) in read(bytes) {
        match number {
            3 => out["description"] = wire.text(),
            6 => push(&mut out, "produces", wire.text()),
            7 => push(&mut out, "consumes", wire.text()),
            8 => push(&mut out, "parameters", read_parameter(wire.bytes())),
            9 => out["responses"] = read_named(wire.bytes(), read_response),
            10 => push(&mut out, "schemes", wire.text()),
            13 => extension(&mut out, wire.bytes()),
            other => panic!("Operation.{other}"),
        }
    }
    out
}

fn read_path_item(bytes: &[u8]) -> Value {
    let mut out = json!({});
    for (number, wire) in read(bytes) {
        match number {
            2 => out["get"] = read_operation(wire.bytes()),
            3 => out["put"] = read_operation(wire.bytes()),
            4 => out["post"] = read_operation(wire.bytes()),
            5 => out["delete"] = read_operation(wire.bytes()),
            8 => out["patch"] = read_operation(wire.bytes()),
            9 => push(&mut out, "parameters", read_parameter(wire.bytes())),
            other => panic!("PathItem.{other}"),
        }
    }
    out
}

fn read_document(bytes: &[u8]) -> Value {
    let mut out = json!({"paths": {}});
    for (number, wire) in read(bytes) {
        match number {
            1 => out["swagger"] = wire.text(),
            2 => {
                for (number, wire) in read(wire.bytes()) {
                    match number {
                        1 => out["info"]["title"] = wire.text(),
                        2 => out["info"]["version"] = wire.text(),
                        other => panic!("Info.{other}"),
                    }
                }
            }
            8 => {
                for (number, wire) in read(wire.bytes()) {
                    assert_eq!(number, 2);
                    let (path, item) = entry(wire.bytes());
                    out["paths"][path] = read_path_item(item);
                }
            }
            9 => out["definitions"] = read_named(wire.bytes(), read_schema),
            12 => push(
                &mut out,
                "security",
                read_named(wire.bytes(), |scopes| {
                    read(scopes)
                        .into_iter()
                        .map(|(_, wire)| wire.text())
                        .collect()
                }),
            ),
            13 => {
                out["securityDefinitions"] = read_named(wire.bytes(), |item| {
                    let mut key = json!({});
                    for (number, wire) in read(only(item, 2)) {
                        let name = ["type", "name", "in", "description"]
                            [usize::try_from(number).expect("small") - 1];
                        key[name] = wire.text();
                    }
                    key
                });
            }
            other => panic!("Document.{other}"),
        }
    }
    out
}

#[test]
fn the_whole_document_comes_back() {
    let document = crate::openapi::v2();
    let back = read_document(&encode(&document));
    for part in ["definitions", "paths"] {
        let names = |of: &Value| -> Vec<String> {
            entries(&of[part]).map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(names(&back), names(&document));
        for (name, value) in entries(&document[part]) {
            assert_eq!(&back[part][name], value, "{name}");
        }
    }
    assert_eq!(back, document);
}

#[test]
fn what_the_document_has_not_yet_is_written_as_well() {
    let value = json!({
        "type": "object",
        "format": "é",
        "default": {"a": ["b\n", 1, null]},
        "maximum": 1.5,
        "minItems": 300,
        "uniqueItems": true,
        "enum": ["a", 2],
        "required": ["", "b"],
        "additionalProperties": false,
        "allOf": [{"$ref": "#/definitions/a"}, {}],
        "items": {"additionalProperties": true},
        "x-a": "text: \"quoted\"",
    });
    let mut bytes = Vec::new();
    schema(&mut bytes, &value);
    assert_eq!(read_schema(&bytes), value);
}

#[test]
fn bytes_are_as_protoc_makes_them() {
    let mut bytes = Vec::new();
    let value =
        json!({"type": "string", "minLength": 300, "maximum": 1.0, "readOnly": true, "title": ""});
    schema(&mut bytes, &value);
    let expected = [
        &[0x39, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..],
        &[0x60, 0xac, 0x02],
        &[0xb2, 0x01, 8, 0x0a, 6],
        b"string",
        &[0xd8, 0x01, 1],
    ]
    .concat();
    assert_eq!(bytes, expected);
}
