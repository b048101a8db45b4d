//! HTTP requests, made by the host from the node. In every world. Needs the grant `hosts` for whatever is not the
//! probed pod.

use std::io::{self, Read};

pub use crate::bindings::wherry::plugin::http::{
    HttpError as Error, Identity, Response, Scheme, Trust, Version,
};
use crate::{bindings::wherry::plugin::http, pieces};

/// Most of a body that one request sends or answers, bytes.
pub const BODY_BYTES_MAX: u32 = 1 << 20;

/// GET, as much of the body as there may be, authorities that the node trusts.
///
/// # Errors
/// See [`Error`]. Every status is an answer: see [`Response::ok`].
pub fn get(url: &str) -> Result<Response, Error> {
    Request::get(url)?.send()
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Request(http::Request);

impl Request {
    /// GET of a path that begins with `/`, by plain HTTP, from an address or a name.
    pub fn new(host: &str, port: u16, path_with_query: &str) -> Self {
        Self(http::Request {
            method: "GET".into(),
            scheme: Scheme::Http,
            host: host.into(),
            port,
            path_with_query: path_with_query.into(),
            headers: Vec::new(),
            body: Vec::new(),
            version: Version::Http1,
            trust: Trust::Node,
            identity: None,
            body_bytes_max: BODY_BYTES_MAX,
        })
    }

    /// GET of an `http://` or `https://` URL.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] names what is wrong with the URL.
    pub fn get(url: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::InvalidRequest(format!("{url}: {why}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| invalid("no scheme"))?;
        let (scheme, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            _ => return Err(invalid("neither http nor https")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(invalid("credentials belong into a header"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => match v6.split_once(']') {
                Some((host, "")) => (host, port),
                Some((host, rest)) => {
                    let number = rest.strip_prefix(':').and_then(|n| n.parse().ok());
                    (host, number.ok_or_else(|| invalid("port"))?)
                }
                None => return Err(invalid("[ without ]")),
            },
            None => match authority.split_once(':') {
                Some((host, number)) => (host, number.parse().map_err(|_| invalid("port"))?),
                None => (authority, port),
            },
        };
        if host.is_empty() {
            return Err(invalid("no host"));
        }
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        let mut request = Self::new(host, port, &path);
        request.0.scheme = scheme;
        Ok(request)
    }

    /// Another method than GET.
    pub fn method(mut self, method: &str) -> Self {
        self.0.method = method.into();
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let header = (name.to_owned(), value.as_ref().to_vec());
        self.0.headers.push(header);
        self
    }

    /// A body, at most [`BODY_BYTES_MAX`].
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.0.body = body.into();
        self
    }

    /// Over TLS, trusting somebody.
    pub fn https(mut self, trust: Trust) -> Self {
        self.0.scheme = Scheme::Https;
        self.0.trust = trust;
        self
    }

    /// With a certificate of the client's.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.0.identity = Some(identity);
        self
    }

    /// HTTP/2; without TLS by prior knowledge, as gRPC does.
    pub fn http2(mut self) -> Self {
        self.0.version = Version::Http2;
        self
    }

    /// Reads no more of the answer's body.
    pub fn body_bytes_max(mut self, bytes: u32) -> Self {
        self.0.body_bytes_max = bytes;
        self
    }

    /// Sends it on a connection of its own and waits for the answer. Redirects are answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send(&self) -> Result<Response, Error> {
        http::send(&self.0)
    }

    /// Sends it on a connection of its own and waits for the head of the answer. The body can be of any length.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn download(&self) -> Result<Download, Error> {
        http::Download::open(&self.0).map(Download)
    }
}

impl Response {
    /// Itself, if its status is 200 to 299.
    ///
    /// # Errors
    /// [`Error::Other`] names the status.
    pub fn ok(self) -> Result<Self, Error> {
        match self.status {
            200..300 => Ok(self),
            status => Err(Error::Other(format!("status {status}"))),
        }
    }

    /// The value of a header, by its name in lower case, should it be text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.and_then(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// An answer whose body is read piece by piece, however long it is: [`Read`], closed when dropped.
#[derive(Debug)]
pub struct Download(http::Download);

impl Download {
    /// 100 to 599.
    pub fn status(&self) -> u16 {
        self.0.status()
    }

    /// In order, names in lower case.
    pub fn headers(&self) -> Vec<(String, Vec<u8>)> {
        self.0.headers()
    }

    /// Itself, if its status is 200 to 299.
    ///
    /// # Errors
    /// [`Error::Other`] names the status.
    pub fn ok(self) -> Result<Self, Error> {
        match self.status() {
            200..300 => Ok(self),
            status => Err(Error::Other(format!("status {status}"))),
        }
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        pieces::read(buffer, |max| self.0.read(max))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind as K;
        let kind = match &error {
            Error::Timeout(_) => K::TimedOut,
            Error::ConnectionRefused(_) => K::ConnectionRefused,
            Error::NameNotFound(_) => K::NotFound,
            Error::ConnectionClosed(_) => K::ConnectionReset,
            Error::Denied(_) => K::PermissionDenied,
            Error::MalformedResponse(_) => K::InvalidData,
            Error::InvalidRequest(_) => K::InvalidInput,
            Error::Tls(_) | Error::Other(_) => K::Other,
        };
        io::Error::new(kind, error.message().to_owned())
    }
}

impl Error {
    /// What it is for people: names the address.
    pub fn message(&self) -> &str {
        match self {
            Self::Timeout(text)
            | Self::ConnectionRefused(text)
            | Self::NameNotFound(text)
            | Self::Tls(text)
            | Self::MalformedResponse(text)
            | Self::ConnectionClosed(text)
            | Self::Denied(text)
            | Self::InvalidRequest(text)
            | Self::Other(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_or_refused_by_reason() {
        for (url, is_https, host, port, path) in [
            ("http://a.example", false, "a.example", 80, "/"),
            (
                "https://a.example/x?y=z#w",
                true,
                "a.example",
                443,
                "/x?y=z",
            ),
            ("HTTP://[fd00::1]:8080/x", false, "fd00::1", 8080, "/x"),
            ("http://10.0.0.1:1?q", false, "10.0.0.1", 1, "/?q"),
        ] {
            let request = Request::get(url).expect(url).0;
            assert_eq!(request.scheme == Scheme::Https, is_https, "{url}");
            assert_eq!((request.host.as_str(), request.port), (host, port), "{url}");
            assert_eq!(request.path_with_query, path, "{url}");
        }
        for (url, why) in [
            ("a.example/x", "no scheme"),
            ("ftp://a.example/x", "neither http nor https"),
            ("http://a:b@c/", "credentials belong into a header"),
            ("http:///x", "no host"),
            ("http://a:x/", "port"),
            ("http://[::1/", "[ without ]"),
            ("http://[::1]x/", "port"),
        ] {
            match Request::get(url) {
                Err(Error::InvalidRequest(text)) => assert!(text.ends_with(why), "{text}"),
                other => panic!("{url}: {other:?}"),
            }
        }
    }
}
