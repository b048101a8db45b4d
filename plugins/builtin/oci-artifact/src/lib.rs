//! Volumes of artifacts from OCI registries: what `oras push` puts there, and layers that are tar archives.
//!
//! | Attribute | |
//! |---|---|
//! | `reference` | `registry/repository:tag` or `…@sha256:…` |
//! | `plainHTTP` | `true`: without TLS |
//! | `hosts` | further hosts that the registry sends its clients to, for tokens and blobs |
//! | `directory` | where in the volume it goes |
//! | `refreshSeconds` | asked again after; 0: never |
//!
//! The Secret's `username` and `password` are for the registry and its token server; `ca.crt` holds authorities to trust.

mod challenge;
mod reference;

use std::{
    io::{self, Read},
    mem,
};

use fetch::{Headers, Told, base64};
use serde_json::Value;
use sha2::{Digest, Sha256};
use unpack::{Place, Tree, Volume};
use wherry_plugin::{
    http::Download,
    populator::Populated,
    volume::{self, Error, request},
};

use crate::{challenge::Challenge, reference::Reference};

const KNOWN: [&str; 6] = [
    "reference",
    "plainHTTP",
    "hosts",
    "directory",
    "refreshSeconds",
    "sizeLimit",
];
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
/// Indexes that lead to indexes.
const DEPTH_MAX: usize = 3;

/// A registry, and what it wants to see.
struct Registry {
    base: String,
    repository: String,
    authorization: Option<String>,
}

fn login() -> Option<String> {
    let text = |key: &str| Some(String::from_utf8_lossy(&request::credential(key)?).into_owned());
    let (user, password) = (text("username")?, text("password").unwrap_or_default());
    Some(format!(
        "Basic {}",
        base64(format!("{user}:{password}").as_bytes())
    ))
}

impl Registry {
    /// GET of something of the repository's, with a token once the registry has asked for one.
    fn get(&mut self, path: &str, accept: &str) -> volume::Result<(String, Download)> {
        let url = format!("{}/v2/{}/{path}", self.base, self.repository);
        let answer = self.send(&url, accept)?;
        if answer.status() != 401 {
            return Ok((url.clone(), fetch::check(&url, answer)?));
        }
        let challenge = fetch::header(&answer, "www-authenticate").unwrap_or_default();
        self.authorization = match Challenge::parse(&challenge) {
            Some(Challenge::Basic) => login(),
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => Some(self.token(&realm, service.as_deref(), scope.as_deref())?),
            None => None,
        };
        if self.authorization.is_none() {
            return Err(Error::Unauthorized(format!(
                "{url}: the registry wants a login: {challenge}"
            )));
        }
        let answer = self.send(&url, accept)?;
        Ok((url.clone(), fetch::check(&url, answer)?))
    }

    fn send(&self, url: &str, accept: &str) -> volume::Result<Download> {
        let mut headers: Headers = vec![("accept".into(), accept.into())];
        headers.extend(
            self.authorization
                .iter()
                .map(|value| ("authorization".into(), value.clone())),
        );
        fetch::send("GET", url, &headers, &[])
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> volume::Result<String> {
        let scope = match scope {
            Some(scope) => scope.to_owned(),
            None => format!("repository:{}:pull", self.repository),
        };
        let joint = if realm.contains('?') { '&' } else { '?' };
        let service = service.map_or_else(String::new, |service| {
            format!("service={}&", escape(service))
        });
        let url = format!("{realm}{joint}{service}scope={}", escape(&scope));
        let headers = login()
            .map(|login| ("authorization".to_owned(), login))
            .into_iter()
            .collect();
        let answer = fetch::get(&url, &headers)?;
        let answer: Value = parse(&url, &fetch::read_all(&url, answer)?)?;
        let token = answer["token"]
            .as_str()
            .or_else(|| answer["access_token"].as_str());
        let token =
            token.ok_or_else(|| Error::Unauthorized(format!("{realm}: it gives no token")))?;
        Ok(format!("Bearer {token}"))
    }
}

/// As a query has it.
fn escape(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:/".contains(byte);
    text.bytes()
        .map(|byte| match plain(&byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

fn parse(what: &str, bytes: &[u8]) -> volume::Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| Error::Other(format!("{what}: {error}")))
}

fn digest_of(bytes: &[u8]) -> String {
    named(Sha256::digest(bytes).as_slice())
}

fn named(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn populate(current: Option<String>) -> volume::Result<Populated> {
    request::only(&KNOWN)?;
    let text = request::required("reference")?;
    let reference = Reference::parse(&text).map_err(Error::InvalidAttributes)?;
    let refresh = fetch::refresh_seconds()?;
    let is_plain: bool = request::parse_or("plainHTTP", false)?;
    let directory = request::attribute("directory").unwrap_or_default();
    let scheme = if is_plain { "http" } else { "https" };
    let mut registry = Registry {
        base: format!("{scheme}://{}", reference.registry),
        repository: reference.repository,
        authorization: None,
    };
    let mut wanted = reference.object;
    for _ in 0..DEPTH_MAX {
        let (url, answer) = registry.get(&format!("manifests/{wanted}"), MANIFESTS)?;
        let bytes = fetch::read_all(&url, answer)?;
        let digest = digest_of(&bytes);
        if wanted.starts_with("sha256:") && wanted != digest {
            return Err(Error::Other(format!("{url}: its digest is {digest}")));
        }
        let manifest = parse(&url, &bytes)?;
        if let Some(list) = manifest["manifests"].as_array() {
            let next =
                choose(list).ok_or_else(|| Error::NotFound(format!("{url}: an empty index")))?;
            wanted = next.to_owned();
            continue;
        }
        if current.as_deref() == Some(digest.as_str()) {
            return Ok(Populated::new(digest).refresh_after(refresh));
        }
        let layers = manifest["layers"].as_array();
        let layers =
            layers.ok_or_else(|| Error::Other(format!("{url}: a manifest without layers")))?;
        for layer in layers {
            write(&mut registry, layer, &directory)?;
        }
        return Ok(Populated::new(digest).refresh_after(refresh));
    }
    Err(Error::Other(format!(
        "{text}: indexes that lead to indexes"
    )))
}

/// Of an index: the manifest of no platform, of Linux, or the first.
fn choose(list: &[Value]) -> Option<&str> {
    let of_no_platform = list.iter().find(|entry| entry["platform"].is_null());
    let of_linux = || list.iter().find(|entry| entry["platform"]["os"] == "linux");
    of_no_platform.or_else(of_linux).or_else(|| list.first())?["digest"].as_str()
}

/// Reads a blob, and knows its digest.
struct Blob<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

fn write(registry: &mut Registry, layer: &Value, directory: &str) -> volume::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (digest, kind) = (text(&layer["digest"]), text(&layer["mediaType"]));
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::Other(format!("a layer with the digest {digest:?}")));
    }
    let title = text(&layer["annotations"]["org.opencontainers.image.title"]);
    let is_packed = layer["annotations"]["io.deis.oras.content.unpack"] == "true";
    let is_tar = kind.ends_with(".tar") || kind.ends_with("+gzip") || kind.ends_with(".tar.gzip");
    if kind.ends_with("+zstd") {
        return Err(Error::Other(format!(
            "layer {digest}: {kind} is not read here"
        )));
    }
    let (url, answer) = registry.get(&format!("blobs/{digest}"), "*/*")?;
    let total = layer["size"].as_u64().unwrap_or(0);
    let mut blob = Blob {
        inner: Told::new(answer, total),
        hash: Sha256::new(),
    };
    let mut place = Place {
        directory: directory.to_owned(),
        ..Place::default()
    };
    let written = match title.is_empty() {
        true if is_tar => unpack::unpack(&mut blob, &place, &mut Volume),
        _ if is_packed => {
            // As oras does it: the archive holds the directory of that name.
            unpack::unpack(&mut blob, &place, &mut Volume)
        }
        is_nameless => {
            let name = if is_nameless {
                digest.replace(':', "-")
            } else {
                title
            };
            place.directory = match directory.trim_matches('/') {
                "" | "." => name,
                directory => format!("{directory}/{name}"),
            };
            Volume.file(&place.directory, false, &mut blob)
        }
    };
    written.map_err(|error| Error::Other(format!("{url}: {error}")))?;
    io::copy(&mut blob, &mut io::sink())?;
    let found = named(mem::take(&mut blob.hash).finalize().as_slice());
    match found == digest {
        true => Ok(()),
        false => Err(Error::Other(format!("{url}: its digest is {found}"))),
    }
}

wherry_plugin::populator!(populate);
