//! Tests of a plugin as files: what it is asked, what the host answers, what it should say.
//!
//! ```yaml
//! given:                                  # answers at any time, for all cases
//!   target.ip: 10.88.0.2
//! cases:
//! - name: a redis that answers is ready
//!   arguments: [--port=6379]
//!   calls:                                # in this order, all of them and no others
//!   - tcp.connection.open: [10.88.0.2, 6379]
//!     answer: {ok: connection 1}
//!   - tcp.connection.write: [connection 1, "PING\r\n"]
//!     answer: ok
//!   - tcp.connection.read: [connection 1, 7]
//!     answer: {ok: "+PONG\r\n"}
//!   expect: {ok: {verdict: success, message: PONG}}
//! ```
//!
//! Of maps, only the fields that a script names are compared; of arguments, as many as it gives.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A test file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Script {
    /// Answers to functions that are called at any time, for all cases.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) given: Map<String, Value>,
    /// Bytes of memory of an instance. Default: what the command line says.
    #[serde(
        default,
        rename = "memoryBytes",
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) memory_bytes: Option<u64>,
    /// What is tried, each with an instance of its own.
    pub(crate) cases: Vec<Case>,
}

/// One instance, called once or several times.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// What is claimed.
    pub(crate) name: String,
    /// In addition to the file's.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) given: Map<String, Value>,
    /// The only step, where there are no `steps`.
    #[serde(flatten)]
    pub(crate) only: Step,
    /// Calls of the same instance, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<Step>,
    /// Lines of the log, as `info: text`; not looked at where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<Vec<Value>>,
    /// What a populator wrote: content by path, `-> target` for links; not looked at where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) volume: Option<BTreeMap<String, Value>>,
}

/// One call of the plugin.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Step {
    /// The function; the world's own where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) call: Option<String>,
    /// Its arguments. Of a function that takes one list, that list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) arguments: Vec<Value>,
    /// What it asks of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) calls: Vec<Map<String, Value>>,
    /// What it should say; `{trap: part of the message}` for one that ends badly.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub(crate) expect: Value,
}

/// A call of the host that a script expects.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expected {
    pub(crate) function: String,
    pub(crate) arguments: Vec<Value>,
    pub(crate) answer: Value,
}

impl Expected {
    /// `{function: [arguments…], answer: …}`.
    pub(crate) fn read(entry: &Map<String, Value>) -> Result<Self> {
        let mut functions = entry.iter().filter(|(key, _)| *key != "answer");
        let (Some((function, arguments)), None) = (functions.next(), functions.next()) else {
            let keys: Vec<_> = entry.keys().map(String::as_str).collect();
            bail!(
                "a call has a function and an answer, not: {}",
                keys.join(", ")
            );
        };
        Ok(Self {
            function: function.clone(),
            arguments: match arguments {
                Value::Array(arguments) => arguments.clone(),
                Value::Null => Vec::new(),
                one => vec![one.clone()],
            },
            answer: entry.get("answer").cloned().unwrap_or_default(),
        })
    }

    /// As it stands in a file.
    pub(crate) fn to_entry(&self) -> Map<String, Value> {
        let mut entry = Map::new();
        entry.insert(self.function.clone(), self.arguments.clone().into());
        if !self.answer.is_null() {
            entry.insert("answer".into(), self.answer.clone());
        }
        entry
    }
}

impl Case {
    /// Its calls of the plugin.
    pub(crate) fn steps(&self) -> Result<&[Step]> {
        let has_only = self.only.call.is_some()
            || !self.only.calls.is_empty()
            || !self.only.arguments.is_empty()
            || !self.only.expect.is_null();
        match self.steps.as_slice() {
            [] => Ok(std::slice::from_ref(&self.only)),
            _ if has_only => bail!(
                "{}: `steps` stand instead of `call`, `arguments`, `calls` and `expect`",
                self.name
            ),
            steps => Ok(steps),
        }
    }
}

impl Script {
    /// Reads a file.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        // Through JSON values, so that a map may have any keys.
        let value: Value = serde_saphyr::from_str(text)?;
        let script: Self = serde_json::from_value(value)?;
        if script.cases.is_empty() {
            bail!("no cases");
        }
        for case in &script.cases {
            for step in case.steps()? {
                for entry in &step.calls {
                    Expected::read(entry).with_context(|| case.name.clone())?;
                }
            }
        }
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_is_read_or_refused_by_reason() {
        let script = Script::parse(
            "cases:\n- name: x\n  arguments: [a]\n  calls:\n  - tcp.connection.open: [h, 1]\n    answer: {ok: connection 1}\n",
        )
        .expect("a script");
        let call = Expected::read(&script.cases[0].only.calls[0]).expect("a call");
        assert_eq!(call.function, "tcp.connection.open");
        assert_eq!(call.arguments, [json!("h"), json!(1)]);
        assert_eq!(call.answer, json!({"ok": "connection 1"}));
        assert_eq!(Expected::read(&call.to_entry()).ok(), Some(call));
        for (text, why) in [
            ("cases: []", "no cases"),
            (
                "cases:\n- name: x\n  calls:\n  - a: 1\n    b: 2\n",
                "not: a, b",
            ),
            (
                "cases:\n- name: x\n  steps: [{call: open}]\n  expect: ok\n",
                "stand instead",
            ),
            ("case: []", "unknown field"),
        ] {
            let said = format!("{:#}", Script::parse(text).expect_err(text));
            assert!(said.contains(why), "{said}");
        }
    }
}
