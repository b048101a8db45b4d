//! One HTTP/1.1 request without TLS, and its answer: what most checks are, hundreds of times a second.
//!
//! A library of clients that keep connections does this with a task, channels and buffers of its own, which cost more
//! than the request. What is not a plain GET or HEAD is left to it ([`is_plain`]).

use ::http::{Method, Request as HyperRequest, header};
use tokio::net::TcpStream;

use crate::bindings::wherry::plugin::http::Response;

/// Bytes of an answer's head, and of a line of a chunked body and its trailers.
const HEAD_BYTES_MAX: usize = 128 << 10;
/// Headers of an answer.
const HEADERS_MAX: usize = 100;
/// Bytes that are asked of the kernel at a time.
const READ_BYTES: usize = 4 << 10;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// What came is no HTTP.
    Malformed(&'static str),
    /// The connection ended before the answer did.
    Closed,
    /// The connection failed.
    Io(std::io::ErrorKind, String),
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        match error.kind() {
            K::ConnectionReset | K::BrokenPipe | K::ConnectionAborted => Self::Closed,
            kind => Self::Io(kind, error.to_string()),
        }
    }
}

/// Whether a request has no body, and asks for nothing but an answer.
pub(crate) fn is_plain<B>(request: &HyperRequest<B>, body: &[u8]) -> bool {
    let asks_for_more = [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::EXPECT,
        header::UPGRADE,
    ];
    matches!(*request.method(), Method::GET | Method::HEAD)
        && body.is_empty()
        && !asks_for_more
            .iter()
            .any(|name| request.headers().contains_key(name))
}

/// The request as it is sent.
pub(crate) fn head<B>(request: &HyperRequest<B>) -> Vec<u8> {
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(request.method().as_str().as_bytes());
    head.push(b' ');
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    head.extend_from_slice(path.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// How long an answer's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Bytes(u64),
    Chunked,
    /// As long as the connection.
    UntilClosed,
}

/// Who gives the answer's bytes.
pub(crate) trait Source {
    /// Appends what is there, at least one byte; 0 is the end.
    async fn read(&mut self, to: &mut Vec<u8>) -> std::io::Result<usize>;
}

impl Source for TcpStream {
    async fn read(&mut self, to: &mut Vec<u8>) -> std::io::Result<usize> {
        to.reserve(READ_BYTES);
        loop {
            self.readable().await?;
            match self.try_read_buf(to) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

/// An answer as it arrives.
struct Arriving<'a, S> {
    source: &'a mut S,
    bytes: Vec<u8>,
    /// Of those, how many have been taken in.
    taken: usize,
}

/// Reads the answer to a request of this method, with at most so many bytes of its body.
pub(crate) async fn receive(
    source: &mut impl Source,
    method: &Method,
    body_bytes_max: usize,
) -> Result<Response, Trouble> {
    let mut arriving = Arriving {
        source,
        bytes: Vec::new(),
        taken: 0,
    };
    loop {
        let (mut response, length) = arriving.head(method).await?;
        // What is said meanwhile is no answer; other protocols are not spoken.
        if !(100..=199).contains(&response.status) || response.status == 101 {
            arriving.body(&mut response, length, body_bytes_max).await?;
            return Ok(response);
        }
    }
}

impl<S: Source> Arriving<'_, S> {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Waits for more; what has been taken in is dropped.
    async fn more(&mut self) -> Result<(), Trouble> {
        match self.read().await? {
            true => Ok(()),
            false => Err(Trouble::Closed),
        }
    }

    /// The same; answers whether there was more.
    async fn read(&mut self) -> Result<bool, Trouble> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        Ok(self.source.read(&mut self.bytes).await? > 0)
    }

    async fn head(&mut self, method: &Method) -> Result<(Response, Length), Trouble> {
        loop {
            if let Some((length, response, body)) = parse(self.rest(), method)? {
                self.taken += length;
                return Ok((response, body));
            }
            if self.rest().len() >= HEAD_BYTES_MAX {
                return Err(Trouble::Malformed("message head is too large"));
            }
            self.more().await?;
        }
    }

    async fn body(
        &mut self,
        response: &mut Response,
        length: Length,
        max: usize,
    ) -> Result<(), Trouble> {
        match length {
            Length::Bytes(length) => {
                self.bytes_of(response, length, max).await?;
            }
            Length::UntilClosed => loop {
                if !keep(response, self.rest(), max) {
                    return Ok(());
                }
                self.taken = self.bytes.len();
                if !self.read().await? {
                    return Ok(());
                }
            },
            Length::Chunked => loop {
                let length = chunk_length(&self.line().await?)?;
                if length == 0 {
                    response.trailers = self.trailers().await?;
                    return Ok(());
                }
                if !self.bytes_of(response, length, max).await? {
                    return Ok(());
                }
                if !self.line().await?.is_empty() {
                    return Err(Trouble::Malformed("invalid chunk size parsed"));
                }
            },
        }
        Ok(())
    }

    /// Takes so many bytes in; answers whether all of them were wanted.
    async fn bytes_of(
        &mut self,
        response: &mut Response,
        length: u64,
        max: usize,
    ) -> Result<bool, Trouble> {
        let mut left = length;
        while left > 0 {
            if self.rest().is_empty() {
                self.more().await?;
            }
            let there = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(self.rest().len());
            if !keep(response, &self.bytes[self.taken..self.taken + there], max) {
                return Ok(false);
            }
            self.taken += there;
            left -= there as u64;
        }
        Ok(true)
    }

    /// A line of a chunked body, without its end.
    async fn line(&mut self) -> Result<Vec<u8>, Trouble> {
        loop {
            if let Some(end) = self.rest().iter().position(|byte| *byte == b'\n') {
                let line = self.rest()[..end].trim_ascii_end().to_vec();
                self.taken += end + 1;
                return Ok(line);
            }
            if self.rest().len() >= HEAD_BYTES_MAX {
                return Err(Trouble::Malformed("line of a chunked body is too long"));
            }
            self.more().await?;
        }
    }

    async fn trailers(&mut self) -> Result<Vec<(String, Vec<u8>)>, Trouble> {
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(trailers);
            }
            let colon = line.iter().position(|byte| *byte == b':');
            let colon = colon.ok_or(Trouble::Malformed("invalid HTTP header parsed"))?;
            if trailers.len() == HEADERS_MAX {
                return Err(Trouble::Malformed("message head is too large"));
            }
            let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
            trailers.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
    }
}

/// Appends to the body what is wanted of it; answers whether that was all.
fn keep(response: &mut Response, bytes: &[u8], max: usize) -> bool {
    let room = max - response.body.len();
    response
        .body
        .extend_from_slice(&bytes[..bytes.len().min(room)]);
    response.body_is_cut = bytes.len() > room;
    !response.body_is_cut
}

fn chunk_length(line: &[u8]) -> Result<u64, Trouble> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let digits = std::str::from_utf8(digits.trim_ascii()).ok();
    let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let length = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    length.ok_or(Trouble::Malformed("invalid chunk size parsed"))
}

/// A head, if all of it is there: its length, what it says, and how long the body is.
fn parse(bytes: &[u8], method: &Method) -> Result<Option<(usize, Response, Length)>, Trouble> {
    let mut space = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut space);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(Trouble::Malformed(words(error))),
    };
    let status = head.code.unwrap_or_default();
    let headers: Vec<_> = head
        .headers
        .iter()
        .map(|header| (header.name.to_ascii_lowercase(), header.value.to_vec()))
        .collect();
    let body = match *method == Method::HEAD || matches!(status, 100..=199 | 204 | 304) {
        true => Length::Bytes(0),
        false => length_of(&headers)?,
    };
    let response = Response {
        status,
        headers,
        body: Vec::new(),
        body_is_cut: false,
        trailers: Vec::new(),
    };
    Ok(Some((length, response, body)))
}

/// As RFC 9112 has it, section 6.3.
fn length_of(headers: &[(String, Vec<u8>)]) -> Result<Length, Trouble> {
    let all = |name: &'static str| {
        let of_name = headers.iter().filter(move |(there, _)| there == name);
        of_name.flat_map(|(_, value)| value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii))
    };
    if let Some(coding) = all("transfer-encoding").last() {
        return Ok(match coding.eq_ignore_ascii_case(b"chunked") {
            true => Length::Chunked,
            false => Length::UntilClosed,
        });
    }
    let invalid = Trouble::Malformed("invalid content-length parsed");
    let mut length = None;
    for text in all("content-length") {
        let number = std::str::from_utf8(text).ok();
        let number = number.filter(|number| number.bytes().all(|digit| digit.is_ascii_digit()));
        let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) else {
            return Err(invalid);
        };
        if length.is_some_and(|length| length != number) {
            return Err(invalid);
        }
        length = Some(number);
    }
    Ok(length.map_or(Length::UntilClosed, Length::Bytes))
}

fn words(error: httparse::Error) -> &'static str {
    use httparse::Error as E;
    match error {
        E::Version => "invalid HTTP version parsed",
        E::Status => "invalid HTTP status-code parsed",
        E::TooManyHeaders => "message head is too large",
        E::HeaderName | E::HeaderValue | E::NewLine | E::Token => "invalid HTTP header parsed",
    }
}

#[cfg(test)]
mod tests;
