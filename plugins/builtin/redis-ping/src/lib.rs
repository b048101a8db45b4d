//! Whether a redis answers PING with PONG.
//!
//! `--port=` (name or number; 6379), `--host=` (the pod, where it is missing), `--password-secret=` (its key
//! `password` is shown to the server), `--username=` (besides the password).

#![no_std]

extern crate alloc;

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use kit::{
    Arguments, Guest, Outcome, ProbeError, denied_or, failure,
    secret::{self, SecretError},
    success,
    tcp::{Connection, TcpError},
};

/// Longest line of an answer.
const LINE_BYTES_MAX: usize = 512;

struct Plugin;

kit::export!(Plugin);

impl Guest for Plugin {
    fn check(arguments: Vec<String>) -> Result<Outcome, ProbeError> {
        let mut arguments = Arguments::new(arguments);
        let port = arguments.port(Some(6379))?;
        let host = arguments.host();
        let username = arguments.get("username");
        let password = arguments.get("password-secret").map(password).transpose()?;
        arguments.end()?;
        let mut commands = Vec::new();
        if let Some(password) = &password {
            let mut words = Vec::from([b"AUTH".as_slice()]);
            words.extend(username.as_ref().map(|name| name.as_bytes()));
            words.push(password);
            commands.push((command(&words), "+OK"));
        }
        commands.push((command(&[b"PING"]), "+PONG"));
        match talk(&host, port, &commands) {
            Ok(None) => success("PONG"),
            Ok(Some(answer)) => failure(format!("redis answered {answer}")),
            Err(error) => denied_or(error),
        }
    }
}

fn password(name: String) -> Result<Vec<u8>, ProbeError> {
    secret::get(&name, "password").map_err(|error| match error {
        SecretError::NotFound => ProbeError::Other(format!("secret {name} has no password")),
        SecretError::Denied(why) => ProbeError::Denied(why),
        SecretError::Unavailable(why) | SecretError::Other(why) => ProbeError::Other(why),
    })
}

/// A command as redis takes it: an array of strings, each with its length.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Says each command and hears what is expected; answers the first line that is something else.
fn talk(host: &str, port: u16, commands: &[(Vec<u8>, &str)]) -> Result<Option<String>, TcpError> {
    let connection = Connection::open(host, port)?;
    for (command, expected) in commands {
        connection.write(command)?;
        let line = line(&connection)?;
        if line != *expected {
            return Ok(Some(line));
        }
    }
    Ok(None)
}

fn line(connection: &Connection) -> Result<String, TcpError> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n") && bytes.len() < LINE_BYTES_MAX {
        let more = connection.read(LINE_BYTES_MAX as u32)?;
        if more.is_empty() {
            break;
        }
        bytes.extend_from_slice(&more);
    }
    let line = bytes.split(|byte| *byte == b'\r').next();
    Ok(match line.filter(|line| !line.is_empty()) {
        Some(line) => String::from_utf8_lossy(line).to_string(),
        None => "nothing".into(),
    })
}
