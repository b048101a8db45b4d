//! Arguments of the form `--name=value`.

use alloc::{format, string::String, vec::Vec};

use crate::ProbeError;

/// A probe's arguments; what nobody asks for is an error.
pub struct Arguments(Vec<String>);

impl Arguments {
    /// Takes them in.
    pub fn new(arguments: Vec<String>) -> Self {
        Self(arguments)
    }

    /// The values of all `--name=value`, in order.
    pub fn all(&mut self, name: &str) -> Vec<String> {
        let mut values = Vec::new();
        self.0.retain(|argument| {
            let value = argument
                .strip_prefix("--")
                .and_then(|rest| rest.strip_prefix(name))
                .and_then(|rest| rest.strip_prefix('='));
            values.extend(value.map(String::from));
            value.is_none()
        });
        values
    }

    /// The value of `--name=value`: the last one, should there be several.
    pub fn get(&mut self, name: &str) -> Option<String> {
        self.all(name).pop()
    }

    /// Whether `--name` is there.
    pub fn has(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0
            .retain(|argument| argument.strip_prefix("--") != Some(name));
        self.0.len() < before
    }

    /// The value that has to be there.
    pub fn need(&mut self, name: &str) -> Result<String, ProbeError> {
        self.get(name)
            .ok_or_else(|| ProbeError::InvalidArguments(format!("--{name}= is missing")))
    }

    /// A number, or what it is without the argument.
    pub fn number(&mut self, name: &str, default: u64) -> Result<u64, ProbeError> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| ProbeError::InvalidArguments(format!("--{name}={text} is no number"))),
        }
    }

    /// A port of the probed container, by its name or number: `--port=`, or this one.
    pub fn port(&mut self, default: Option<u16>) -> Result<u16, ProbeError> {
        let Some(text) = self.get("port") else {
            return default
                .ok_or_else(|| ProbeError::InvalidArguments("--port= is missing".into()));
        };
        crate::target::port(&text).ok_or_else(|| {
            ProbeError::InvalidArguments(format!("--port={text} is no port of the container"))
        })
    }

    /// Where to connect to: `--host=`, or the pod.
    pub fn host(&mut self) -> String {
        self.get("host")
            .filter(|host| !host.is_empty())
            .unwrap_or_else(crate::target::ip)
    }

    /// What has not been asked for, as it stands.
    pub fn rest(self) -> Vec<String> {
        self.0
    }

    /// That nothing is left.
    pub fn end(self) -> Result<(), ProbeError> {
        match self.0.first() {
            None => Ok(()),
            Some(unknown) => Err(ProbeError::InvalidArguments(format!(
                "unknown argument {unknown}"
            ))),
        }
    }
}
