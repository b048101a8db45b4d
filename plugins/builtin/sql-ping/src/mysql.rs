//! MySQL's protocol as far as the answer to a login without a password. A client that went away before its login would
//! count as one that failed, and the server blocks hosts that fail often.

use alloc::{format, string::String, vec::Vec};

use kit::tcp::{Connection, TcpError};

use crate::{Login, Said, read};

/// Longest packet read; greetings and errors have a few hundred bytes.
const PACKET_BYTES_MAX: usize = 8 * 1024;
/// Version 4.1, connect with a database, authentication by plugins, secure connections.
const LONG_PASSWORD: u32 = 1;
const CONNECT_WITH_DB: u32 = 1 << 3;
const PROTOCOL_41: u32 = 1 << 9;
const SECURE_CONNECTION: u32 = 1 << 15;
const PLUGIN_AUTH: u32 = 1 << 19;
const UTF8_GENERAL: u8 = 33;
/// First bytes of what servers say.
const GREETING: u8 = 10;
const ERROR: u8 = 0xff;
/// Of errors, `ER_ACCESS_DENIED_ERROR` and its kin, which come from a server that takes connections.
const ABOUT_LOGIN: [u16; 6] = [1044, 1045, 1049, 1251, 1698, 3118];

pub(crate) fn ask(connection: &Connection, login: &Login) -> Result<Said, TcpError> {
    let greeting = packet(connection)?;
    match greeting.first() {
        Some(&GREETING) => {}
        Some(&ERROR) => return Ok(error(&greeting)),
        _ => {
            return Ok(Said::Not(
                "the server does not speak MySQL's protocol".into(),
            ));
        }
    }
    let version = greeting[1..].split(|byte| *byte == 0).next();
    let version = String::from_utf8_lossy(version.unwrap_or_default());
    // MariaDB calls itself so since clients believed in single digits.
    let version = version.strip_prefix("5.5.5-").unwrap_or(&version);
    connection.write(&response(login))?;
    let answer = packet(connection)?;
    match (answer.first(), error(&answer)) {
        (Some(&ERROR), Said::Not(why)) => Ok(Said::Not(why)),
        (None, _) => Ok(Said::Not("the server closed the connection".into())),
        _ => Ok(Said::Ready(format!("{version} is alive"))),
    }
}

/// A packet's content: three bytes of length, a number, and so many bytes.
fn packet(connection: &Connection) -> Result<Vec<u8>, TcpError> {
    match read(connection, 4)?[..] {
        [a, b, c, _] => {
            let length = u32::from_le_bytes([a, b, c, 0]) as usize;
            read(connection, length.min(PACKET_BYTES_MAX))
        }
        _ => Ok(Vec::new()),
    }
}

fn response(login: &Login) -> Vec<u8> {
    let with_database = match login.database {
        Some(_) => CONNECT_WITH_DB,
        None => 0,
    };
    let capabilities =
        LONG_PASSWORD | PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH | with_database;
    let mut body = capabilities.to_le_bytes().to_vec();
    body.extend_from_slice(&(1u32 << 24).to_le_bytes());
    body.push(UTF8_GENERAL);
    body.extend_from_slice(&[0; 23]);
    body.extend_from_slice(login.user.as_bytes());
    // The end of the name, and a password of no bytes.
    body.extend_from_slice(&[0, 0]);
    if let Some(database) = &login.database {
        body.extend_from_slice(database.as_bytes());
        body.push(0);
    }
    body.extend_from_slice(b"mysql_native_password\0");
    let mut packet = (body.len() as u32).to_le_bytes()[..3].to_vec();
    packet.push(1);
    packet.extend_from_slice(&body);
    packet
}

/// After the first byte: a number, and `#` with five characters where the server is past its greeting, and the text.
fn error(packet: &[u8]) -> Said {
    let [_, a, b, text @ ..] = packet else {
        return Said::Not("an error without a number".into());
    };
    let number = u16::from_le_bytes([*a, *b]);
    if ABOUT_LOGIN.contains(&number) {
        return Said::Ready(String::new());
    }
    let text = match text {
        [b'#', _, _, _, _, _, text @ ..] => text,
        text => text,
    };
    Said::Not(format!("error {number}: {}", String::from_utf8_lossy(text)))
}
