//! Credentials out of pull secrets, matched to images as Kubernetes does. Pure.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose};
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use wherry_runtime_api::RegistryAuth;

/// The registry of names that name none.
const DOCKER_HUB: &str = "index.docker.io";

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

/// Credentials with the pattern of images they are for (`*.example.com:5000/team`).
pub(crate) type Keyring = Vec<(String, RegistryAuth)>;

/// Credentials of a pull secret, of either type.
///
/// # Errors
/// The secret is of neither type, or makes no sense.
pub(crate) fn parse(secret: &Secret) -> Result<Keyring, String> {
    let data = |key: &str| {
        secret
            .data
            .as_ref()
            .and_then(|data| data.get(key))
            .map(|value| value.0.as_slice())
    };
    match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(json), _) => parse_config(json).map_err(|e| format!(".dockerconfigjson: {e}")),
        (None, Some(json)) => serde_json::from_slice(json)
            .map(to_keyring)
            .map_err(|e| format!(".dockercfg: {e}")),
        (None, None) => Err("it has neither .dockerconfigjson nor .dockercfg".into()),
    }
}

/// Credentials in the form of docker's `config.json`. Credential helpers are no part of it.
///
/// # Errors
/// It is not JSON of that form.
pub(crate) fn parse_config(json: &[u8]) -> Result<Keyring, String> {
    let config: DockerConfigJson = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    Ok(to_keyring(config.auths))
}

fn to_keyring(entries: BTreeMap<String, Entry>) -> Keyring {
    entries
        .into_iter()
        .filter_map(|(pattern, entry)| Some((strip(&pattern).into(), to_auth(entry)?)))
        .collect()
}

fn strip(pattern: &str) -> &str {
    let pattern = pattern
        .strip_prefix("https://")
        .or_else(|| pattern.strip_prefix("http://"))
        .unwrap_or(pattern);
    // Docker writes the address of the old API; only the host means anything.
    let pattern = pattern
        .strip_suffix("/v1/")
        .or_else(|| pattern.strip_suffix("/v2/"))
        .unwrap_or(pattern);
    let pattern = pattern
        .strip_suffix("/v1")
        .or_else(|| pattern.strip_suffix("/v2"))
        .unwrap_or(pattern);
    pattern.trim_end_matches('/')
}

fn to_auth(entry: Entry) -> Option<RegistryAuth> {
    if !entry.identity_token.is_empty() {
        return Some(RegistryAuth::IdentityToken(entry.identity_token));
    }
    if !entry.registry_token.is_empty() {
        return Some(RegistryAuth::Bearer(entry.registry_token));
    }
    if !entry.username.is_empty() {
        return Some(RegistryAuth::Basic {
            username: entry.username,
            password: entry.password,
        });
    }
    let auth = entry.auth.trim();
    let bytes = general_purpose::STANDARD
        .decode(auth)
        .or_else(|_| general_purpose::STANDARD_NO_PAD.decode(auth))
        .or_else(|_| general_purpose::URL_SAFE.decode(auth))
        .ok()?;
    let (username, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    Some(RegistryAuth::Basic {
        username: username.into(),
        password: password.trim_end_matches('\0').into(),
    })
}

/// The credentials to try for an image, best match first.
pub(crate) fn lookup(keyring: &Keyring, image: &str) -> Vec<RegistryAuth> {
    let (host, path) = split(image);
    let mut found: Vec<_> = keyring
        .iter()
        .filter(|(pattern, _)| matches(pattern, host, path))
        .collect();
    // Longest first: the most particular.
    found.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
    let mut list: Vec<RegistryAuth> = Vec::new();
    for (_, auth) in found {
        if !list.contains(auth) {
            list.push(auth.clone());
        }
    }
    list
}

/// Registry and repository of an image's name.
fn split(image: &str) -> (&str, &str) {
    match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "docker.io" => (DOCKER_HUB, path),
            host => (host, path),
        },
        _ => (DOCKER_HUB, image),
    }
}

fn matches(pattern: &str, host: &str, path: &str) -> bool {
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let pattern_host = if pattern_host == "docker.io" {
        DOCKER_HUB
    } else {
        pattern_host
    };
    let port = |host: &str| host.rsplit_once(':').map(|(_, port)| port.to_owned());
    let name = |host: &str| {
        host.rsplit_once(':')
            .map_or(host, |(name, _)| name)
            .to_owned()
    };
    if port(pattern_host) != port(host) {
        return false;
    }
    let (pattern_name, name) = (name(pattern_host), name(host));
    let (pattern_parts, parts): (Vec<_>, Vec<_>) =
        (pattern_name.split('.').collect(), name.split('.').collect());
    pattern_parts.len() == parts.len()
        && pattern_parts
            .iter()
            .zip(&parts)
            .all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
        && path.starts_with(pattern_path)
}

/// `*` is any run of characters, `?` any one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| glob(rest, &text[skipped..])),
        ([b'?', pattern @ ..], [_, text @ ..]) => glob(pattern, text),
        ([a, pattern @ ..], [b, text @ ..]) => a == b && glob(pattern, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(key: &str, json: &str) -> Secret {
        let data = [(key.to_owned(), ByteString(json.as_bytes().to_vec()))];
        Secret {
            data: Some(data.into()),
            ..Secret::default()
        }
    }

    fn user(auth: &RegistryAuth) -> &str {
        match auth {
            RegistryAuth::Basic { username, .. } => username,
            RegistryAuth::Bearer(token) | RegistryAuth::IdentityToken(token) => token,
        }
    }

    #[test]
    fn both_forms_of_pull_secret_are_read() {
        let new = secret(
            ".dockerconfigjson",
            r#"{"auths":{"https://quay.io/v2/":{"auth":"YW5uOnNlY3JldA=="}}}"#,
        );
        let old = secret(
            ".dockercfg",
            r#"{"quay.io":{"username":"ann","password":"secret","email":"x"}}"#,
        );
        let expected = RegistryAuth::Basic {
            username: "ann".into(),
            password: "secret".into(),
        };
        let ring = vec![("quay.io".to_owned(), expected)];
        assert_eq!(parse(&new).as_ref(), Ok(&ring));
        assert_eq!(parse(&old), Ok(ring));
        let why = parse(&secret(".dockercfg", "not json")).expect_err("no JSON");
        assert!(why.starts_with(".dockercfg: "), "{why}");
        let why = parse(&secret("token", "x")).expect_err("no pull secret");
        assert_eq!(why, "it has neither .dockerconfigjson nor .dockercfg");
    }

    #[test]
    fn credentials_match_as_in_kubernetes_longest_first() {
        let ring: Keyring = [
            "*.example.com",
            "reg.example.com/team",
            "reg.example.com:5000",
            "index.docker.io",
        ]
        .map(|pattern| (pattern.to_owned(), RegistryAuth::Bearer(pattern.to_owned())))
        .into();
        let table: [(&str, &[&str]); 6] = [
            (
                "reg.example.com/team/app:1",
                &["reg.example.com/team", "*.example.com"],
            ),
            ("reg.example.com/other:1", &["*.example.com"]),
            ("reg.example.com:5000/app", &["reg.example.com:5000"]),
            ("a.b.example.com/app", &[]),
            ("nginx", &["index.docker.io"]),
            ("docker.io/library/nginx@sha256:0", &["index.docker.io"]),
        ];
        for (image, expected) in table {
            let found = lookup(&ring, image);
            assert_eq!(
                found.iter().map(user).collect::<Vec<_>>(),
                expected,
                "{image}"
            );
        }
    }
}
