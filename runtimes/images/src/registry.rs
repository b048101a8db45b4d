//! Speaks to registries: the OCI distribution protocol's reading half.
//!
//! Every answer that is kept in memory is bounded, and what names a digest is checked against it.
//! Credentials go to the registry they are for and to the token server it names, never to mirrors
//! or to where a registry redirects.

use std::{
    fs,
    net::IpAddr,
    sync::{Mutex, OnceLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::StreamExt;
use reqwest::{
    Client, Method, Response, StatusCode,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE,
    },
};
use serde::Deserialize;
use wherry_runtime_api::{ImageError, RegistryAuth};

use crate::{
    RegistryConfig, layer,
    manifest::{self, DOCUMENT_BYTES_MAX},
    reference::Reference,
};

/// Bytes of a token server's answer or an error's body.
const ANSWER_BYTES_MAX: u64 = 256 << 10;

/// What went wrong, before the image's name is put to it.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    NotFound,
    Unauthorized(String),
    Unavailable(String),
    Corrupt(String),
}

impl Trouble {
    /// With the image it happened to.
    pub(crate) fn of(self, reference: &str) -> ImageError {
        let reference = reference.to_string();
        match self {
            Self::NotFound => ImageError::NotFound { reference },
            Self::Unauthorized(why) => ImageError::Unauthorized { reference, why },
            Self::Unavailable(why) => ImageError::Unavailable { reference, why },
            Self::Corrupt(why) => ImageError::Corrupt { reference, why },
        }
    }

    /// Of several, the one that says most.
    pub(crate) fn weight(&self) -> u32 {
        match self {
            Self::Corrupt(_) => 3,
            Self::NotFound => 2,
            Self::Unavailable(_) => 1,
            Self::Unauthorized(_) => 0,
        }
    }
}

/// The HTTP clients, each made when first needed: one for the outside, perhaps through a proxy, and
/// one for this machine.
pub(crate) struct Http {
    outside: OnceLock<Client>,
    loopback: OnceLock<Client>,
    authorities: Vec<reqwest::Certificate>,
    config: RegistryConfig,
}

impl Http {
    pub(crate) fn build(config: &RegistryConfig) -> Result<Self, String> {
        let mut authorities = Vec::new();
        for path in &config.ca_files {
            let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
            let pem = fs::read(path).map_err(|e| named(&e))?;
            authorities.extend(reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| named(&e))?);
        }
        Ok(Self {
            outside: OnceLock::new(),
            loopback: OnceLock::new(),
            authorities,
            config: config.clone(),
        })
    }

    fn client(&self, is_loopback: bool) -> Result<&Client, Trouble> {
        let kept = if is_loopback {
            &self.loopback
        } else {
            &self.outside
        };
        if let Some(client) = kept.get() {
            return Ok(client);
        }
        // Whoever comes first decides for the process; the program has only this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            let builder = Client::builder()
                .user_agent(concat!("wherry/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(self.config.connect_timeout)
                .read_timeout(self.config.read_timeout)
                // Pulls come in bursts; between them a node keeps no connection.
                .pool_idle_timeout(Duration::from_secs(10));
            if is_loopback {
                builder.no_proxy()
            } else {
                builder
            }
        };
        // A machine without a certificate bundle can still use plain registries and named CAs.
        let client = builder()
            .tls_certs_merge(self.authorities.clone())
            .build()
            .or_else(|_| builder().tls_certs_only(self.authorities.clone()).build())
            .map_err(|e| Trouble::Unavailable(chain(&e)))?;
        Ok(kept.get_or_init(|| client))
    }

    /// Where an image may be read from: mirrors first.
    pub(crate) fn hosts(&self, reference: &Reference) -> Vec<Host> {
        let registry = reference.registry();
        let mirrors = self
            .config
            .mirrors
            .iter()
            .filter(|(host, _)| host == registry)
            .flat_map(|(_, all)| all);
        let mirrors = mirrors.map(|mirror| Host {
            address: mirror.clone(),
            mirrored: Some(registry.into()),
        });
        let address = if registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            registry
        };
        mirrors
            .chain([Host {
                address: address.into(),
                mirrored: None,
            }])
            .collect()
    }

    /// Opens a repository on a host with one credential. Sends nothing yet, save to find out
    /// whether a registry on this machine speaks TLS.
    pub(crate) async fn repository(
        &self,
        host: &Host,
        reference: &Reference,
        credential: Option<RegistryAuth>,
    ) -> Result<Repository, Trouble> {
        let is_loopback = is_loopback(&host.address);
        let client = self.client(is_loopback)?;
        let scheme = if self.config.insecure.contains(&host.address) {
            "http"
        } else if is_loopback {
            Self::scheme_of_loopback(client, &host.address).await?
        } else {
            "https"
        };
        let authorization = match &credential {
            Some(RegistryAuth::Bearer(token)) => Some(secret_header("Bearer", token)?),
            _ => None,
        };
        Ok(Repository {
            client: client.clone(),
            base: format!("{scheme}://{}/v2/", host.address),
            name: reference.repository().to_string(),
            mirrored: host.mirrored.clone(),
            credential,
            authorization: Mutex::new(authorization),
            resume_max: self.config.resume_max,
        })
    }

    async fn scheme_of_loopback(client: &Client, address: &str) -> Result<&'static str, Trouble> {
        let Err(tls) = client.get(format!("https://{address}/v2/")).send().await else {
            return Ok("https");
        };
        // A TLS server answers plain HTTP with 400: then the trouble is what TLS said.
        match client.get(format!("http://{address}/v2/")).send().await {
            Ok(plain) if plain.status() != StatusCode::BAD_REQUEST => Ok("http"),
            _ => Err(Trouble::Unavailable(chain(&tls))),
        }
    }
}

/// A registry or a mirror of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) address: String,
    /// The registry it stands in for.
    pub(crate) mirrored: Option<String>,
}

fn is_loopback(address: &str) -> bool {
    let host = match address.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => address.rsplit_once(':').map_or(address, |(host, _)| host),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A repository, read with one credential.
pub(crate) struct Repository {
    client: Client,
    base: String,
    name: String,
    mirrored: Option<String>,
    credential: Option<RegistryAuth>,
    authorization: Mutex<Option<HeaderValue>>,
    pub(crate) resume_max: u32,
}

/// A blob on its way.
pub(crate) struct Blob {
    /// Where in the blob the answer begins: as asked, or 0 if the registry cannot resume.
    pub(crate) offset: u64,
    pub(crate) response: Response,
}

impl Repository {
    /// A manifest or index, and its digest.
    pub(crate) async fn manifest(&self, tag_or_digest: &str) -> Result<(Vec<u8>, String), Trouble> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let answer = self
            .get(&format!("manifests/{tag_or_digest}"), headers)
            .await?;
        let text = bounded(answer, DOCUMENT_BYTES_MAX).await?;
        let digest = layer::digest_of(&text);
        if tag_or_digest.contains(':') && digest != tag_or_digest {
            return Err(Trouble::Corrupt(format!(
                "manifest digest mismatch: expected {tag_or_digest}, got {digest}"
            )));
        }
        Ok((text, digest))
    }

    /// A small blob: a config.
    pub(crate) async fn small_blob(&self, digest: &str) -> Result<Vec<u8>, Trouble> {
        let answer = self
            .get(&format!("blobs/{digest}"), HeaderMap::new())
            .await?;
        let blob = bounded(answer, DOCUMENT_BYTES_MAX).await?;
        let got = layer::digest_of(&blob);
        if got != digest {
            return Err(Trouble::Corrupt(format!(
                "config digest mismatch: expected {digest}, got {got}"
            )));
        }
        Ok(blob)
    }

    /// A blob from `offset` on, if the registry can do that.
    pub(crate) async fn blob(&self, digest: &str, offset: u64) -> Result<Blob, Trouble> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::try_from(format!("bytes={offset}-"))
                .expect("digits are valid in a header");
            headers.insert(RANGE, range);
        }
        let response = self.get(&format!("blobs/{digest}"), headers).await?;
        let starts_there = || {
            let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
            range
                .strip_prefix("bytes ")?
                .split('-')
                .next()?
                .parse()
                .ok()
        };
        let offset = match response.status() {
            StatusCode::PARTIAL_CONTENT => starts_there().unwrap_or(offset),
            _ => 0,
        };
        Ok(Blob { offset, response })
    }

    /// Sends a request; asked for credentials, once more with them.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<Response, Trouble> {
        let url = format!("{}{}/{path}", self.base, self.name);
        let send = async || {
            let mut request = self.client.get(&url).headers(headers.clone());
            if let Some(registry) = &self.mirrored {
                request = request.query(&[("ns", registry)]);
            }
            let authorization = self
                .authorization
                .lock()
                .map(|a| a.clone())
                .unwrap_or_default();
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            request
                .send()
                .await
                .map_err(|e| Trouble::Unavailable(chain(&e)))
        };
        let mut answer = send().await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let challenges: Vec<Challenge> = answer
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|header| Challenge::parse(header.to_str().ok()?))
                .collect();
            if let Some(authorization) = self.authorize(&challenges).await? {
                if let Ok(mut kept) = self.authorization.lock() {
                    *kept = Some(authorization);
                }
                answer = send().await?;
            }
        }
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let said = match bounded(answer, ANSWER_BYTES_MAX).await {
            Ok(body) => said(&body),
            Err(_) => String::new(),
        };
        let why = format!("registry answered {status}{said}");
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Trouble::Unauthorized(why),
            StatusCode::NOT_FOUND => Trouble::NotFound,
            StatusCode::RANGE_NOT_SATISFIABLE => Trouble::Corrupt(why),
            _ => Trouble::Unavailable(why),
        })
    }

    /// What to answer a challenge with; `None` if there is nothing to answer.
    async fn authorize(&self, challenges: &[Challenge]) -> Result<Option<HeaderValue>, Trouble> {
        let bearer = challenges.iter().find(|c| c.scheme == "bearer");
        let basic = challenges.iter().find(|c| c.scheme == "basic");
        match (bearer, basic, &self.credential) {
            (_, _, Some(RegistryAuth::Bearer(_))) => Ok(None),
            (Some(challenge), _, _) => self.token(challenge).await.map(Some),
            (None, Some(_), Some(RegistryAuth::Basic { username, password })) => {
                secret_header("Basic", &STANDARD.encode(format!("{username}:{password}"))).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Asks the token server.
    async fn token(&self, challenge: &Challenge) -> Result<HeaderValue, Trouble> {
        let realm = challenge
            .get("realm")
            .ok_or_else(|| Trouble::Unavailable("challenge without a realm".into()))?;
        let scope = challenge
            .get("scope")
            .map_or_else(|| format!("repository:{}:pull", self.name), String::from);
        if self.credential.is_some()
            && self.base.starts_with("https://")
            && !realm.starts_with("https://")
        {
            return Err(Trouble::Unauthorized(format!(
                "credentials not sent to {realm}: not a secure address"
            )));
        }
        let mut fields = vec![("scope", scope)];
        fields.extend(
            challenge
                .get("service")
                .map(|service| ("service", service.to_string())),
        );
        let request = match &self.credential {
            Some(RegistryAuth::IdentityToken(token)) => {
                fields.push(("grant_type", "refresh_token".into()));
                fields.push(("refresh_token", token.clone()));
                fields.push(("client_id", "wherry".into()));
                let form = reqwest::Url::parse_with_params("http://form/", &fields)
                    .map_err(|e| Trouble::Unavailable(e.to_string()))?;
                self.client
                    .request(Method::POST, realm)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_string())
            }
            Some(RegistryAuth::Basic { username, password }) => self
                .client
                .get(realm)
                .query(&fields)
                .basic_auth(username, Some(password)),
            _ => self.client.get(realm).query(&fields),
        };
        let answer = request
            .send()
            .await
            .map_err(|e| Trouble::Unavailable(chain(&e)))?;
        let status = answer.status();
        let body = bounded(answer, ANSWER_BYTES_MAX).await?;
        match status {
            status if status.is_success() => {}
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                return Err(Trouble::Unauthorized(format!(
                    "token server answered {status}{}",
                    said(&body)
                )));
            }
            status => {
                return Err(Trouble::Unavailable(format!(
                    "token server answered {status}{}",
                    said(&body)
                )));
            }
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let token: Token = serde_json::from_slice(&body)
            .map_err(|e| Trouble::Unavailable(format!("token server: {e}")))?;
        match token
            .token
            .or(token.access_token)
            .filter(|token| !token.is_empty())
        {
            Some(token) => secret_header("Bearer", &token),
            None => Err(Trouble::Unavailable(
                "token server answered without a token".into(),
            )),
        }
    }
}

fn secret_header(scheme: &str, secret: &str) -> Result<HeaderValue, Trouble> {
    let mut header = HeaderValue::try_from(format!("{scheme} {secret}"))
        .map_err(|_| Trouble::Unauthorized("credentials are not valid in a header".into()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Reads a body that must be small.
async fn bounded(answer: Response, bytes_max: u64) -> Result<Vec<u8>, Trouble> {
    let mut body = Vec::new();
    let mut stream = answer.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| Trouble::Unavailable(chain(&e)))?;
        if body.len() as u64 + chunk.len() as u64 > bytes_max {
            return Err(Trouble::Corrupt(format!(
                "document larger than {bytes_max} bytes"
            )));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The first error of a registry's error body, for people.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(default)]
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    match serde_json::from_slice::<Envelope>(body)
        .ok()
        .and_then(|envelope| envelope.errors.into_iter().next())
    {
        Some(Said { code, message }) => {
            let text: String = format!(": {}: {message}", code.to_lowercase())
                .chars()
                .take(300)
                .collect();
            text.replace(char::is_control, " ")
        }
        None => String::new(),
    }
}

/// An error with its causes, which is where the trouble is named.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A wait that doubles with each attempt, with some luck in it so that nodes do not march in step.
pub(crate) fn backoff(attempt: u32) -> Duration {
    let base = 200u64 << attempt.min(5);
    let luck = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| u64::from(now.subsec_nanos()) % base);
    Duration::from_millis(base / 2 + luck / 2)
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    /// In lower case.
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let mut parameters = Vec::new();
        while let Some((name, after)) = rest.split_once('=') {
            let value;
            if let Some(quoted) = after.strip_prefix('"') {
                let mut text = String::new();
                let mut characters = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, c)) = characters.next() {
                    match c {
                        '\\' => text.extend(characters.next().map(|(_, c)| c)),
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        c => text.push(c),
                    }
                }
                value = text;
                rest = &quoted[end..];
            } else {
                let end = after.find(',').unwrap_or(after.len());
                value = after[..end].trim().to_string();
                rest = &after[end..];
            }
            parameters.push((name.trim().to_ascii_lowercase(), value));
            rest = rest.trim_start_matches([',', ' ']);
        }
        (!scheme.is_empty()).then(|| Self {
            scheme: scheme.to_ascii_lowercase(),
            parameters,
        })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let challenge = Challenge::parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        )
        .unwrap();
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenge.get("scope"), Some("repository:a/b:pull,push"));
        let basic = Challenge::parse(r#"Basic realm="a \"b\"", charset=UTF-8"#).unwrap();
        assert_eq!(basic.get("realm"), Some("a \"b\""));
        assert_eq!(basic.get("charset"), Some("UTF-8"));
        assert_eq!(Challenge::parse("Negotiate").unwrap().scheme, "negotiate");
        assert_eq!(Challenge::parse(" "), None);
        Challenge::parse("Bearer realm=\"unterminated");
    }

    #[test]
    fn loopback_addresses_are_known() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.8.0.1",
            "[::1]:5000",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "docker.io",
            "10.0.0.1:5000",
            "localhost.example.com",
            "[2001:db8::1]:5000",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
