//! The server.

use std::time::SystemTime;

use wherry_plugin::{
    filesystem::{Errno, Result},
    http::{self, Request, Response, Trust},
    volume::{self, request},
};

use crate::{
    date,
    index::{self, Listed},
};

/// What a file is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) size: u64,
    pub(crate) modified: Option<SystemTime>,
    /// The server's own mark of this content.
    pub(crate) tag: String,
}

/// Where the root is, and who asks.
pub(crate) struct Remote {
    url: String,
    authorization: Option<String>,
    /// Whom TLS trusts, where that is not whom the node trusts.
    authorities: Option<Vec<u8>>,
    /// What went wrong last, in words.
    last: String,
}

impl Remote {
    pub(crate) fn new(url: &str) -> volume::Result<Self> {
        let invalid = |why: &str| volume::Error::InvalidAttributes(format!("url {url:?}: {why}"));
        if url.contains(['?', '#']) {
            return Err(invalid("a query or a fragment"));
        }
        let url = url.trim_end_matches('/').to_owned();
        Request::get(&url)?;
        Ok(Self {
            url,
            authorization: fetch::authorization(),
            authorities: request::credential("ca.crt"),
            last: String::new(),
        })
    }

    /// What stands for an error of the first request.
    pub(crate) fn trouble(&self, errno: Errno) -> volume::Error {
        let why = format!("{}: {}", self.url, self.last);
        match errno {
            Errno::NotFound => volume::Error::NotFound(why),
            Errno::Access => volume::Error::Unauthorized(why),
            _ => volume::Error::Unavailable(why),
        }
    }

    fn request(&self, path: &str, is_directory: bool) -> Result<Request> {
        let mut url = self.url.clone();
        for byte in path.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                    url.push(char::from(byte));
                }
                byte => url.push_str(&format!("%{byte:02X}")),
            }
        }
        if is_directory {
            url.push('/');
        }
        let mut request = Request::get(&url).map_err(|_| Errno::Invalid)?;
        if let Some(authorities) = &self.authorities
            && url.starts_with("https:")
        {
            request = request.https(Trust::Authorities(authorities.clone()));
        }
        Ok(match &self.authorization {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        })
    }

    fn send(&mut self, request: &Request) -> Result<Response> {
        let response = request.send().map_err(|error| {
            self.last = error.message().to_owned();
            match error {
                http::Error::Denied(_) => Errno::Access,
                _ => Errno::Io,
            }
        })?;
        match response.status {
            200 | 206 => Ok(response),
            status => {
                self.last = format!("status {status}");
                Err(match status {
                    401 | 403 => Errno::Access,
                    404 | 410 => Errno::NotFound,
                    _ => Errno::Io,
                })
            }
        }
    }

    /// What a directory has.
    pub(crate) fn list(&mut self, path: &str) -> Result<Vec<Listed>> {
        let request = self.request(path, true)?;
        let response = self.send(&request)?;
        if response.body_is_cut {
            self.last = "its index is longer than 1 MiB".into();
            return Err(Errno::TooLarge);
        }
        let content_type = response.header("content-type").unwrap_or_default();
        Ok(index::read(&response.body, content_type))
    }

    /// What a file is like.
    pub(crate) fn about(&mut self, path: &str) -> Result<About> {
        let request = self.request(path, false)?.method("HEAD");
        let response = self.send(&request)?;
        let size = response
            .header("content-length")
            .and_then(|size| size.parse().ok());
        Ok(About {
            size: size.ok_or(Errno::Io)?,
            modified: response.header("last-modified").and_then(date::parse),
            tag: response.header("etag").unwrap_or_default().to_owned(),
        })
    }

    /// Bytes of a file that has so many.
    pub(crate) fn read(
        &mut self,
        path: &str,
        from: u64,
        length: u64,
        size: u64,
    ) -> Result<Vec<u8>> {
        let range = format!("bytes={from}-{}", from + length.saturating_sub(1));
        let request = self.request(path, false)?.header("range", range);
        let response = self.send(&request)?;
        let wanted = length as usize;
        let bytes = match response.status {
            206 => {
                let total = response
                    .header("content-range")
                    .and_then(|range| range.rsplit_once('/')?.1.parse::<u64>().ok());
                if total.is_some_and(|total| total != size) {
                    // Another file by now: who asks again will see it.
                    return Err(Errno::Io);
                }
                response.body
            }
            // A server without ranges: what fits in one answer can be had all the same.
            _ if !response.body_is_cut && response.body.len() as u64 == size => {
                let begin = usize::try_from(from).map_err(|_| Errno::TooLarge)?;
                let end = begin.saturating_add(wanted).min(response.body.len());
                response.body.get(begin..end).ok_or(Errno::Io)?.to_vec()
            }
            _ => return Err(Errno::Io),
        };
        match bytes.len() == wanted {
            true => Ok(bytes),
            false => Err(Errno::Io),
        }
    }
}
