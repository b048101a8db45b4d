//! What must not stand in a recording: values of Secrets, wherever they turn up again. Pure.
//!
//! Each becomes a text of the same length, always the same one: lengths that a protocol counts stay right, and the recording
//! can be played back.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::value;

/// Repeated and cut to the length of what it stands for.
const STANDS_FOR_IT: &[u8] = b"redacted-";

/// Values that must not be seen, the longest first: one may be a part of another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Redactor(BTreeMap<std::cmp::Reverse<usize>, Vec<Vec<u8>>>);

fn placeholder(length: usize) -> Vec<u8> {
    STANDS_FOR_IT.iter().copied().cycle().take(length).collect()
}

impl Redactor {
    /// Remembers a value, as it is and as base64 writes it.
    pub(crate) fn hide(&mut self, secret: &[u8]) {
        // A line end is no part of what is typed in.
        let trimmed = secret.trim_ascii();
        let forms = [secret.to_vec(), trimmed.to_vec()];
        let encoded = forms.clone().map(|form| STANDARD.encode(form).into_bytes());
        for form in forms.into_iter().chain(encoded) {
            let known = self.0.entry(std::cmp::Reverse(form.len())).or_default();
            if !form.is_empty() && !known.contains(&form) {
                known.push(form);
            }
        }
    }

    /// Bytes without what is hidden.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        for secret in self.0.values().flatten() {
            let mut at = 0;
            while at + secret.len() <= out.len() {
                if out[at..].starts_with(secret) {
                    out.splice(at..at + secret.len(), placeholder(secret.len()));
                    at += secret.len();
                } else {
                    at += 1;
                }
            }
        }
        out
    }

    /// A value of a script without what is hidden.
    pub(crate) fn value(&self, found: &Value) -> Value {
        match found {
            Value::String(text) => {
                let bytes = self.bytes(text.as_bytes());
                match String::from_utf8(bytes) {
                    Ok(text) => Value::String(text),
                    Err(error) => value::bytes_to_value(error.as_bytes()),
                }
            }
            Value::Array(all) => all.iter().map(|found| self.value(found)).collect(),
            Value::Object(map) => match (map.len(), value::value_to_bytes(found)) {
                (1, Some(bytes)) => value::bytes_to_value(&self.bytes(&bytes)),
                _ => {
                    let pairs = map.iter();
                    pairs
                        .map(|(key, found)| (key.clone(), self.value(found)))
                        .collect()
                }
            },
            other => other.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_secret_is_replaced_by_as_many_bytes_wherever_it_turns_up() {
        let mut redactor = Redactor::default();
        redactor.hide(b"sesame\n");
        redactor.hide(b"sesame-and-more");
        redactor.hide(b"");
        let asked =
            json!(["AUTH $6 sesame", {"base64": STANDARD.encode(b"\0sesame\xff")}, 6, null]);
        let shown = redactor.value(&asked);
        let hidden =
            json!(["AUTH $6 redact", {"base64": STANDARD.encode(b"\0redact\xff")}, 6, null]);
        assert_eq!(shown, hidden);
        let body = json!({"body": "sesame-and-more, sesame, sesam"});
        let hidden = json!({"body": "redacted-redact, redact, sesam"});
        assert_eq!(redactor.value(&body), hidden);
        let encoded = STANDARD.encode("sesame");
        let header = redactor.value(&json!(["authorization", format!("Bearer {encoded}")]));
        assert!(!header.to_string().contains(&encoded), "{header}");
        assert_eq!(redactor.bytes(b"nothing of it"), b"nothing of it");
    }
}
