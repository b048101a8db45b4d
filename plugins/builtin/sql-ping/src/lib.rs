//! Whether a PostgreSQL or MySQL server takes connections, as `pg_isready` and `mysqladmin ping` tell it: who may log in
//! is not asked.
//!
//! `--kind=` (`postgres`, `mysql`), `--port=` (name or number; 5432, 3306), `--host=` (the pod, where it is missing),
//! `--user=` (`wherry-probe`), `--database=` (none).

#![no_std]

extern crate alloc;

mod mysql;
mod postgres;

use alloc::{format, string::String, vec::Vec};

use kit::{
    Arguments, Guest, Outcome, ProbeError, denied_or, failure, success,
    tcp::{Connection, TcpError},
};

struct Plugin;

kit::export!(Plugin);

/// What a server says to who connects.
enum Said {
    /// It takes connections.
    Ready(String),
    /// It does not now.
    Not(String),
}

/// Whose name to log in with, and to what.
struct Login {
    user: String,
    database: Option<String>,
}

impl Guest for Plugin {
    fn check(arguments: Vec<String>) -> Result<Outcome, ProbeError> {
        let mut arguments = Arguments::new(arguments);
        let kind = arguments.get("kind").unwrap_or_else(|| "postgres".into());
        let (port, ask): (u16, fn(&Connection, &Login) -> Result<Said, TcpError>) =
            match kind.as_str() {
                "postgres" => (5432, postgres::ask),
                "mysql" => (3306, mysql::ask),
                _ => {
                    let why = format!("--kind={kind} is neither postgres nor mysql");
                    return Err(ProbeError::InvalidArguments(why));
                }
            };
        let port = arguments.port(Some(port))?;
        let host = arguments.host();
        let login = Login {
            user: arguments
                .get("user")
                .unwrap_or_else(|| "wherry-probe".into()),
            database: arguments.get("database"),
        };
        arguments.end()?;
        match Connection::open(&host, port).and_then(|connection| ask(&connection, &login)) {
            Ok(Said::Ready(message)) => success(message),
            Ok(Said::Not(message)) => failure(message),
            Err(error) => denied_or(error),
        }
    }
}

/// Exactly so many bytes; fewer where the server finishes before.
fn read(connection: &Connection, bytes: usize) -> Result<Vec<u8>, TcpError> {
    let mut all = Vec::new();
    while all.len() < bytes {
        let more = connection.read((bytes - all.len()) as u32)?;
        if more.is_empty() {
            break;
        }
        all.extend_from_slice(&more);
    }
    Ok(all)
}
