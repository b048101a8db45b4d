//! What the built-in populators share: URLs and redirects, credentials, what a status means, when to ask again.

mod base64;

use std::io::Read;

pub use base64::base64;
use wherry_plugin::{
    http::{Download, Request, Trust},
    volume::{self, Error, request},
};

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// Bytes of an answer that is read whole.
pub const WHOLE_BYTES_MAX: usize = 16 << 20;

/// Headers of a request.
pub type Headers = Vec<(String, String)>;

/// What a volume shows of itself to the server: its Secret's `token`, or `username` and `password`.
pub fn authorization() -> Option<String> {
    let text = |key: &str| {
        let value = request::credential(key)?;
        Some(String::from_utf8_lossy(&value).trim_end().to_owned())
    };
    if let Some(token) = text("token") {
        return Some(format!("Bearer {token}"));
    }
    let (user, password) = (text("username")?, text("password").unwrap_or_default());
    Some(format!(
        "Basic {}",
        base64(format!("{user}:{password}").as_bytes())
    ))
}

/// The seconds after which the volume wants to be looked at again; 0: never.
///
/// # Errors
/// The attribute is no number.
pub fn refresh_seconds() -> volume::Result<u32> {
    request::parse_or("refreshSeconds", 0)
}

/// A request of a URL, which trusts the authorities of the Secret's `ca.crt` if there are any.
fn prepare(method: &str, url: &str, headers: &Headers, body: &[u8]) -> volume::Result<Request> {
    let mut request = Request::get(url)?.method(method).body(body);
    if url.starts_with("https:")
        && let Some(authorities) = request::credential("ca.crt")
    {
        request = request.https(Trust::Authorities(authorities));
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    Ok(request
        .header("user-agent", "wherry")
        .header("accept-encoding", "identity"))
}

/// Sends a request, follows redirects, and answers whatever comes then. Credentials go to the first server alone.
///
/// # Errors
/// No answer, or no end of redirects.
pub fn send(method: &str, url: &str, headers: &Headers, body: &[u8]) -> volume::Result<Download> {
    let mut url = url.to_owned();
    let mut headers = headers.clone();
    for _ in 0..=REDIRECTS_MAX {
        let answer = prepare(method, &url, &headers, body)?.download()?;
        if !matches!(answer.status(), 301 | 302 | 303 | 307 | 308) {
            return Ok(answer);
        }
        let Some(location) = header(&answer, "location") else {
            return Ok(answer);
        };
        let next = join(&url, &location);
        if origin(&next) != origin(&url) {
            headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        }
        url = next;
    }
    Err(Error::Other(format!(
        "{url}: more than {REDIRECTS_MAX} redirects"
    )))
}

/// GET of something that has to be there.
///
/// # Errors
/// What [`check`] says of its status.
pub fn get(url: &str, headers: &Headers) -> volume::Result<Download> {
    check(url, send("GET", url, headers, &[])?)
}

/// The value of a header, by its name in lower case.
pub fn header(answer: &Download, name: &str) -> Option<String> {
    let found = answer
        .headers()
        .into_iter()
        .find(|(header, _)| header == name);
    found.and_then(|(_, value)| String::from_utf8(value).ok())
}

/// The answer, if its status is 200 to 299.
///
/// # Errors
/// What the status means for a volume, with the beginning of what the server says.
pub fn check(url: &str, mut answer: Download) -> volume::Result<Download> {
    let status = answer.status();
    if (200..300).contains(&status) {
        return Ok(answer);
    }
    let mut said = vec![0; 256];
    let length = answer.read(&mut said).unwrap_or(0);
    said.truncate(length);
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().next().unwrap_or_default().trim();
    let what = match line.starts_with('<') || line.is_empty() {
        true => format!("{url}: status {status}"),
        false => format!("{url}: status {status}: {line}"),
    };
    Err(match status {
        401 | 403 => Error::Unauthorized(what),
        404 | 410 => Error::NotFound(what),
        408 | 429 | 500..=599 => Error::Unavailable(what),
        _ => Error::Other(what),
    })
}

/// An answer's whole body.
///
/// # Errors
/// It is longer than [`WHOLE_BYTES_MAX`], or ended early.
pub fn read_all(what: &str, body: impl Read) -> volume::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    body.take(WHOLE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > WHOLE_BYTES_MAX {
        return Err(Error::Other(format!(
            "{what}: an answer of more than {WHOLE_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}

/// Scheme, host and port.
pub fn origin(url: &str) -> &str {
    let from = url.find("://").map_or(0, |at| at + 3);
    let end = url[from..]
        .find(['/', '?', '#'])
        .map_or(url.len(), |at| from + at);
    &url[..end]
}

/// Where a `Location` leads.
fn join(url: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    let scheme = url.split("://").next().unwrap_or_default();
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    let origin = origin(url);
    if location.starts_with('/') {
        return format!("{origin}{location}");
    }
    let path = url[origin.len()..]
        .split(['?', '#'])
        .next()
        .unwrap_or_default();
    let directory = path.rfind('/').map_or("/", |at| &path[..=at]);
    format!("{origin}{directory}{location}")
}

/// Counts what is read, and tells how far it is.
pub struct Told<R> {
    inner: R,
    done: u64,
    total: u64,
}

impl<R: Read> Told<R> {
    /// `total` is 0 where it is not known.
    pub fn new(inner: R, total: u64) -> Self {
        Self {
            inner,
            done: 0,
            total,
        }
    }
}

impl<R: Read> Read for Told<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.done += length as u64;
        wherry_plugin::populator::progress(self.done, self.total);
        Ok(length)
    }
}

/// The length that an answer announces; 0 where it does not.
pub fn announced(answer: &Download) -> u64 {
    header(answer, "content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_followed_from_where_it_was_said() {
        for (url, location, expected) in [
            ("http://a/x/y?z", "http://b/c", "http://b/c"),
            ("https://a:1/x/y", "/c?d", "https://a:1/c?d"),
            ("https://a/x/y?q=/", "c", "https://a/x/c"),
            ("https://a", "c", "https://a/c"),
            ("https://a/x", "//b/c", "https://b/c"),
        ] {
            assert_eq!(join(url, location), expected);
        }
        assert_eq!(origin("http://a:1/b/c"), "http://a:1");
        assert_eq!(origin("http://a?x"), "http://a");
    }
}
