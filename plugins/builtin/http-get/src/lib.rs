//! Probes of kind httpGet: a status from 200 to 399 is success.
//!
//! | argument | |
//! |---|---|
//! | `--port=` | name or number |
//! | `--host=` | the pod, where it is missing |
//! | `--path=` | with its query; `/` |
//! | `--https` | TLS, whatever the server's certificate is |
//! | `--header=Name: value` | besides the kubelet's own; `Host` replaces; an empty `User-Agent` or `Accept` leaves it out |
//! | `--client-secret=` | of the pod's namespace: shows its `tls.crt` to the server, with the key `tls.key` |
//! | `--ca-secret=` | trusts the authorities in its `ca.crt` and nobody else |

#![no_std]

extern crate alloc;

mod target;

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use kit::{
    Arguments, Guest, Outcome, ProbeError, failure,
    http::{HttpError, Identity, Request, Response, Scheme, Trust, Version, send},
    http_error,
    secret::{self, SecretError},
    success,
};

use target::{Next, Target};

/// Body kept for the event (`maxRespBodyLength` of the kubelet).
const BODY_BYTES_MAX: u32 = 10 * 1024;
/// Redirects followed, as Go's client does.
const REDIRECTS_MAX: usize = 10;

struct Plugin;

kit::export!(Plugin);

impl Guest for Plugin {
    fn check(arguments: Vec<String>) -> Result<Outcome, ProbeError> {
        let mut arguments = Arguments::new(arguments);
        let is_https = arguments.has("https");
        let first = Target {
            is_https,
            port: arguments.port(Some(if is_https { 443 } else { 80 }))?,
            host: arguments.host(),
            path: target::rooted(&arguments.get("path").unwrap_or_default()),
        };
        let headers = headers(arguments.all("header"))?;
        let (trust, identity) = credentials(&mut arguments)?;
        arguments.end()?;
        get(first, |target| Request {
            method: "GET".into(),
            scheme: if target.is_https {
                Scheme::Https
            } else {
                Scheme::Http
            },
            host: target.host.clone(),
            port: target.port,
            path_with_query: target.path.clone(),
            headers: headers.clone(),
            body: Vec::new(),
            version: Version::Http1,
            trust: trust.clone(),
            identity: identity.clone(),
            body_bytes_max: BODY_BYTES_MAX,
        })
    }
}

/// Gets a target and where it leads to within its host.
fn get(first: Target, request: impl Fn(&Target) -> Request) -> Result<Outcome, ProbeError> {
    let url = first.url();
    let mut target = first.clone();
    for _ in 0..=REDIRECTS_MAX {
        let response = match send(&request(&target)) {
            Ok(response) => response,
            Err(HttpError::Denied(why)) => return Err(ProbeError::Denied(why)),
            Err(HttpError::Timeout(_)) => {
                return failure(format!(
                    "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                ));
            }
            Err(error) => {
                return failure(format!("Get \"{}\": {}", target.url(), http_error(error)));
            }
        };
        match next(&target, &response) {
            Some(Next::Here(next)) => target = next,
            // Away from the pod: not followed, and not held against it.
            Some(Next::Elsewhere) => return redirected(&response),
            None => return judge(&response),
        }
    }
    failure(format!(
        "Get \"{url}\": stopped after {REDIRECTS_MAX} redirects"
    ))
}

/// Where a redirect leads.
fn next(target: &Target, response: &Response) -> Option<Next> {
    if !matches!(response.status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let (_, location) = response
        .headers
        .iter()
        .find(|(name, value)| name == "location" && !value.is_empty())?;
    Some(target.follow(&String::from_utf8_lossy(location)))
}

fn judge(response: &Response) -> Result<Outcome, ProbeError> {
    match response.status {
        200..=299 => success(String::from_utf8_lossy(&response.body)),
        300..=399 => redirected(response),
        status => failure(format!("HTTP probe failed with statuscode: {status}")),
    }
}

fn redirected(response: &Response) -> Result<Outcome, ProbeError> {
    let body = String::from_utf8_lossy(&response.body);
    success(format!("Probe terminated redirects, Response body: {body}"))
}

/// The kubelet's headers and the probe's.
fn headers(given: Vec<String>) -> Result<Vec<(String, Vec<u8>)>, ProbeError> {
    let mut headers = Vec::new();
    for header in given {
        let Some((name, value)) = header.split_once(':') else {
            let why = format!("--header={header} has no colon");
            return Err(ProbeError::InvalidArguments(why));
        };
        headers.push((name.trim().to_string(), value.trim().as_bytes().to_vec()));
    }
    let mut sent = Vec::from([("connection".to_string(), b"close".to_vec())]);
    for (name, value) in [("user-agent", kit::USER_AGENT), ("accept", "*/*")] {
        let is_given = |(given, _): &(String, Vec<u8>)| given.eq_ignore_ascii_case(name);
        if !headers.iter().any(is_given) {
            sent.push((name.to_string(), value.as_bytes().to_vec()));
        }
    }
    let is_left_out = |name: &str| {
        ["user-agent", "accept", "host"]
            .iter()
            .any(|own| name.eq_ignore_ascii_case(own))
    };
    sent.extend(
        headers
            .into_iter()
            .filter(|(name, value)| !value.is_empty() || !is_left_out(name)),
    );
    Ok(sent)
}

/// Whom to trust and who to be, as Secrets of the pod's namespace say.
fn credentials(arguments: &mut Arguments) -> Result<(Trust, Option<Identity>), ProbeError> {
    let trust = match arguments.get("ca-secret") {
        None => Trust::Anybody,
        Some(name) => Trust::Authorities(key(&name, "ca.crt")?),
    };
    let identity = match arguments.get("client-secret") {
        None => None,
        Some(name) => Some(Identity {
            certificate_chain: key(&name, "tls.crt")?,
            private_key: key(&name, "tls.key")?,
        }),
    };
    Ok((trust, identity))
}

fn key(name: &str, key: &str) -> Result<Vec<u8>, ProbeError> {
    secret::get(name, key).map_err(|error| match error {
        SecretError::NotFound => ProbeError::Other(format!("secret {name} has no {key}")),
        SecretError::Denied(why) => ProbeError::Denied(why),
        SecretError::Unavailable(why) | SecretError::Other(why) => {
            ProbeError::Other(format!("secret {name}: {why}"))
        }
    })
}
