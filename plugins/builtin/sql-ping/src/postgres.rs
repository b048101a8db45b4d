//! PostgreSQL's protocol 3.0, as far as the answer to the start-up message.

use alloc::{format, string::String, vec::Vec};

use kit::tcp::{Connection, TcpError};

use crate::{Login, Said, read};

const PROTOCOL: u32 = 3 << 16;
/// Longest error read.
const ERROR_BYTES_MAX: usize = 8 * 1024;
/// `cannot_connect_now`: it starts, stops, or recovers.
const CANNOT_CONNECT_NOW: &str = "57P03";

pub(crate) fn ask(connection: &Connection, login: &Login) -> Result<Said, TcpError> {
    connection.write(&start_up(login))?;
    let head = read(connection, 5)?;
    let Some((&kind, length)) = head.split_first() else {
        return Ok(Said::Not("the server closed the connection".into()));
    };
    match (kind, length) {
        (b'R', _) => Ok(Said::Ready("accepting connections".into())),
        (b'E', &[a, b, c, d]) => {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            let body = read(connection, length.saturating_sub(4).min(ERROR_BYTES_MAX))?;
            Ok(error(&body))
        }
        _ => Ok(Said::Not(
            "the server does not speak PostgreSQL's protocol".into(),
        )),
    }
}

fn start_up(login: &Login) -> Vec<u8> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    let database = login.database.as_ref().map(|name| ("database", name));
    for (key, value) in [("user", &login.user)].into_iter().chain(database) {
        for text in [key, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    let mut message = (body.len() as u32 + 4).to_be_bytes().to_vec();
    message.extend_from_slice(&body);
    message
}

/// Fields are a letter and a text that ends with 0. An error that is about the login comes from a server that takes
/// connections.
fn error(body: &[u8]) -> Said {
    let field = |letter: u8| {
        let text = body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&letter));
        text.map(|text| String::from_utf8_lossy(&text[1..]))
    };
    let code = field(b'C').unwrap_or_default();
    let message = field(b'M').unwrap_or_default();
    match code == CANNOT_CONNECT_NOW || code.is_empty() {
        true => Said::Not(format!("rejecting connections: {message}")),
        false => Said::Ready("accepting connections".into()),
    }
}
