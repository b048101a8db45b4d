//! Volumes of archives from web servers.
//!
//! | Attribute | |
//! |---|---|
//! | `url` | of a tar, tar.gz or zip |
//! | `digest` | `sha256:…` of the archive; any other content is refused |
//! | `stripComponents` | leading parts of each path that are left out |
//! | `subdirectory` | only what is below it, after that |
//! | `directory` | where in the volume it goes |
//! | `refreshSeconds` | asked again after; 0: never |
//!
//! The Secret's `token`, or `username` and `password`, are shown to the server that `url` names; `ca.crt` holds
//! authorities to trust.

use std::io::{self, Read};

use fetch::Told;
use sha2::{Digest, Sha256};
use unpack::{Place, Volume};
use wherry_plugin::{
    populator::Populated,
    volume::{self, Error, request},
};

const KNOWN: [&str; 7] = [
    "url",
    "digest",
    "stripComponents",
    "subdirectory",
    "directory",
    "refreshSeconds",
    "sizeLimit",
];

/// Hashes what is read.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

fn populate(current: Option<String>) -> volume::Result<Populated> {
    request::only(&KNOWN)?;
    let url = request::required("url")?;
    let refresh = fetch::refresh_seconds()?;
    let wanted = request::attribute("digest").filter(|digest| !digest.is_empty());
    if let Some(digest) = &wanted {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::InvalidAttributes(format!(
                "digest {digest:?} is no sha256:…"
            )));
        }
    }
    let place = Place {
        strip_components: request::parse_or("stripComponents", 0)?,
        subdirectory: request::attribute("subdirectory").unwrap_or_default(),
        directory: request::attribute("directory").unwrap_or_default(),
    };
    // What has a digest never changes.
    if let (Some(current), Some(wanted)) = (&current, &wanted)
        && version_digest(current).eq_ignore_ascii_case(wanted)
    {
        return Ok(Populated::new(current.clone()).refresh_after(refresh));
    }
    let mut headers = fetch::Headers::new();
    headers.extend(fetch::authorization().map(|value| ("authorization".to_owned(), value)));
    let etag = current
        .as_deref()
        .and_then(|current| current.split_once(' '));
    if let Some((_, etag)) = etag {
        headers.push(("if-none-match".to_owned(), etag.to_owned()));
    }
    let answer = fetch::send("GET", &url, &headers, &[])?;
    if answer.status() == 304
        && let Some(current) = current
    {
        return Ok(Populated::new(current).refresh_after(refresh));
    }
    let answer = fetch::check(&url, answer)?;
    let etag = fetch::header(&answer, "etag");
    let total = fetch::announced(&answer);
    let mut archive = Hashed {
        inner: Told::new(answer, total),
        hash: Sha256::new(),
    };
    let unpacked = unpack::unpack(&mut archive, &place, &mut Volume);
    // Another archive than the digest names is likelier to be damaged than to be well made.
    let rest = match &unpacked {
        Ok(()) => Ok(0),
        Err(_) => io::copy(&mut archive, &mut io::sink()),
    };
    let digest = format!("sha256:{}", hex(&archive.hash.finalize()));
    if let Some(wanted) = wanted
        && rest.is_ok()
        && !digest.eq_ignore_ascii_case(&wanted)
    {
        return Err(Error::Other(format!(
            "{url}: its digest is {digest}, not {wanted}"
        )));
    }
    unpacked.map_err(|error| named(&url, error))?;
    let version = match etag {
        Some(etag) => format!("{digest} {etag}"),
        None => digest,
    };
    Ok(Populated::new(version).refresh_after(refresh))
}

/// A version is the digest and, where the server tells one, its ETag.
fn version_digest(version: &str) -> &str {
    version.split(' ').next().unwrap_or_default()
}

fn named(url: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Unavailable(format!("{url}: it ends early")),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::AlreadyExists => {
            Error::Other(format!("{url}: {error}"))
        }
        _ => match Error::from(error) {
            Error::Other(why) => Error::Unavailable(format!("{url}: {why}")),
            error => error,
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

wherry_plugin::populator!(populate);
