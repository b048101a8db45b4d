//! What an index lists.

use std::time::SystemTime;

use serde_json::Value;
use wherry_plugin::filesystem::Kind;

use crate::date;

/// Entries of one directory; an index with more is cut.
const LISTED_MAX: usize = 100_000;

/// An entry.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) is_directory: bool,
    /// Where the index says it to the byte.
    pub(crate) size: Option<u64>,
    pub(crate) modified: Option<SystemTime>,
}

impl Listed {
    pub(crate) fn kind(&self) -> Kind {
        match self.is_directory {
            true => Kind::Directory,
            false => Kind::File,
        }
    }
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}

/// Reads an index, in JSON or HTML.
pub(crate) fn read(body: &[u8], content_type: &str) -> Vec<Listed> {
    let mut listed = match content_type.starts_with("application/json") {
        true => json(body),
        false => html(&String::from_utf8_lossy(body)),
    };
    listed.retain(|entry| is_name(&entry.name));
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    listed.dedup_by(|a, b| a.name == b.name);
    listed.truncate(LISTED_MAX);
    listed
}

fn json(body: &[u8]) -> Vec<Listed> {
    let Ok(Value::Array(entries)) = serde_json::from_slice(body) else {
        return Vec::new();
    };
    let read = |entry: &Value| {
        Some(Listed {
            name: entry["name"].as_str()?.to_owned(),
            is_directory: entry["type"] == "directory",
            size: entry["size"].as_u64(),
            modified: entry["mtime"].as_str().and_then(date::parse),
        })
    };
    entries.iter().filter_map(read).collect()
}

/// Every link to something directly below is an entry.
fn html(text: &str) -> Vec<Listed> {
    let mut listed = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("href=") {
        rest = &rest[at + 5..];
        let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            continue;
        };
        let Some(end) = rest[1..].find(quote) else {
            break;
        };
        let link = &rest[1..1 + end];
        rest = &rest[1 + end..];
        let link = link.replace("&amp;", "&");
        let link = link.strip_prefix("./").unwrap_or(&link);
        let (name, is_directory) = match link.strip_suffix('/') {
            Some(name) => (name, true),
            None => (link, false),
        };
        // Others lead elsewhere, or sort the index.
        if !name.contains(['/', '?', '#', ':'])
            && let Some(name) = decode(name)
        {
            listed.push(Listed {
                name,
                is_directory,
                size: None,
                modified: None,
            });
        }
    }
    listed
}

/// `%20` is a blank.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}
