//! Volumes of objects from S3 and what speaks like it.
//!
//! | Attribute | |
//! |---|---|
//! | `endpoint` | `https://s3.eu-central-1.amazonaws.com`, or another server's URL |
//! | `bucket` | |
//! | `prefix` | only objects whose keys begin so; the files' names are without it |
//! | `region` | default `us-east-1` |
//! | `directory` | where in the volume they go |
//! | `refreshSeconds` | asked again after; 0: never |
//!
//! The Secret's `accessKeyID`, `secretAccessKey` and, if there is one, `sessionToken` sign the requests (signature
//! version 4); without them nothing is signed, for buckets that are everybody's. `ca.crt` holds authorities to trust.

mod list;
mod sign;

use std::{io, time::UNIX_EPOCH};

use fetch::{Headers, Told};
use sha2::{Digest, Sha256};
use wherry_plugin::{
    clock,
    http::Download,
    populator::{File, Populated},
    volume::{self, Error, request},
};

use crate::{
    list::{Listing, Object},
    sign::{Keys, Request, Scope},
};

const KNOWN: [&str; 7] = [
    "endpoint",
    "bucket",
    "prefix",
    "region",
    "directory",
    "refreshSeconds",
    "sizeLimit",
];
/// Objects of a volume.
const OBJECTS_MAX: usize = 1_000_000;

struct Bucket {
    endpoint: String,
    bucket: String,
    region: String,
    keys: Option<Keys>,
}

impl Bucket {
    fn get(&self, key: &str, query: &[(&str, &str)]) -> volume::Result<(String, Download)> {
        let mut path = format!("/{}", sign::encode(&self.bucket, true));
        if !key.is_empty() {
            path = format!("{path}/{}", sign::encode(key, false));
        }
        let query = sign::query(query);
        let joint = if query.is_empty() { "" } else { "?" };
        let url = format!("{}{path}{joint}{query}", self.endpoint);
        let mut headers = Headers::new();
        if let Some(keys) = &self.keys {
            let host = self
                .endpoint
                .split("://")
                .nth(1)
                .unwrap_or_default()
                .to_owned();
            let since = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let seconds = since.as_secs();
            let request = Request {
                method: "GET",
                path: &path,
                query: &query,
                headers: vec![("host".to_owned(), host)],
            };
            let scope = Scope {
                region: &self.region,
                service: "s3",
                seconds,
            };
            headers = sign::sign(request, keys, &scope);
        }
        let answer = fetch::send("GET", &url, &headers, &[])?;
        Ok((url.clone(), fetch::check(&url, answer)?))
    }

    fn list(&self, prefix: &str) -> volume::Result<Vec<Object>> {
        let mut objects = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut query = vec![("list-type", "2"), ("prefix", prefix)];
            if let Some(token) = &token {
                query.push(("continuation-token", token));
            }
            let (url, answer) = self.get("", &query)?;
            let bytes = fetch::read_all(&url, answer)?;
            let text = String::from_utf8_lossy(&bytes);
            let listing = Listing::parse(&text).ok_or_else(|| {
                Error::Other(format!(
                    "{url}: the answer is no list of a bucket's objects"
                ))
            })?;
            objects.extend(listing.objects);
            if objects.len() > OBJECTS_MAX {
                return Err(Error::NoSpace(format!(
                    "{url}: more than {OBJECTS_MAX} objects"
                )));
            }
            match listing.next {
                Some(next) if token.as_ref() != Some(&next) => token = Some(next),
                Some(_) => return Err(Error::Other(format!("{url}: a list without end"))),
                None => return Ok(objects),
            }
        }
    }
}

fn keys() -> volume::Result<Option<Keys>> {
    let text = |names: [&str; 2]| {
        let value = names.into_iter().find_map(request::credential)?;
        Some(String::from_utf8_lossy(&value).trim_end().to_owned())
    };
    let id = text(["accessKeyID", "AWS_ACCESS_KEY_ID"]);
    let secret = text(["secretAccessKey", "AWS_SECRET_ACCESS_KEY"]);
    match (id, secret) {
        (Some(id), Some(secret)) => Ok(Some(Keys {
            id,
            secret,
            token: text(["sessionToken", "AWS_SESSION_TOKEN"]),
        })),
        (None, None) => Ok(None),
        _ => Err(Error::InvalidAttributes(
            "the Secret has one of accessKeyID and secretAccessKey, and not the other".into(),
        )),
    }
}

/// A name for everything that a list says, whatever its order.
fn version(objects: &mut [Object]) -> String {
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    let mut hash = Sha256::new();
    for object in objects {
        hash.update(format!(
            "{}\0{}\0{}\0",
            object.key, object.etag, object.size
        ));
    }
    let hex: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn populate(current: Option<String>) -> volume::Result<Populated> {
    request::only(&KNOWN)?;
    let refresh = fetch::refresh_seconds()?;
    let endpoint = request::required("endpoint")?;
    if fetch::origin(&endpoint) != endpoint.trim_end_matches('/') || !endpoint.contains("://") {
        let why = format!("endpoint {endpoint:?} is no URL of a server alone");
        return Err(Error::InvalidAttributes(why));
    }
    let bucket = Bucket {
        endpoint: endpoint.trim_end_matches('/').to_owned(),
        bucket: request::required("bucket")?,
        region: request::attribute("region").unwrap_or_else(|| "us-east-1".into()),
        keys: keys()?,
    };
    let prefix = request::attribute("prefix").unwrap_or_default();
    let directory = request::attribute("directory").unwrap_or_default();
    let directory = directory.trim_matches('/');
    let mut objects = bucket.list(&prefix)?;
    let version = version(&mut objects);
    if current.as_deref() == Some(version.as_str()) {
        return Ok(Populated::new(version).refresh_after(refresh));
    }
    for object in &objects {
        let name = object.key.strip_prefix(&prefix).unwrap_or(&object.key);
        let name = name.trim_start_matches('/');
        // Consoles make "folders" of empty objects.
        if name.is_empty() || name.ends_with('/') {
            continue;
        }
        let path = match directory {
            "" | "." => name.to_owned(),
            directory => format!("{directory}/{name}"),
        };
        let (url, answer) = bucket.get(&object.key, &[])?;
        let mut file = File::create(&path).map_err(|error| {
            Error::Other(format!("object {:?}: {}", object.key, error.message()))
        })?;
        let mut body = Told::new(answer, object.size);
        let length = io::copy(&mut body, &mut file).map_err(|error| match Error::from(error) {
            Error::Other(why) => Error::Unavailable(format!("{url}: {why}")),
            error => error,
        })?;
        if length != object.size {
            let size = object.size;
            return Err(Error::Unavailable(format!(
                "{url}: {length} of {size} bytes"
            )));
        }
    }
    Ok(Populated::new(version).refresh_after(refresh))
}

wherry_plugin::populator!(populate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_of_what_is_there_and_not_of_its_order() {
        let object = |key: &str, etag: &str| Object {
            key: key.into(),
            etag: etag.into(),
            size: 1,
        };
        let one = version(&mut [object("a", "1"), object("b", "2")]);
        assert_eq!(one, version(&mut [object("b", "2"), object("a", "1")]));
        assert_ne!(one, version(&mut [object("a", "1"), object("b", "3")]));
        assert_ne!(one, version(&mut []));
    }
}
