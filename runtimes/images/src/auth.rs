//! Pull secrets: `.dockercfg` and `.dockerconfigjson`, and which of their credentials an image gets.
//!
//! Pure. The matching is that of Kubernetes' keyring: each part of the host may hold `*` and `?`,
//! ports are equal, the key's path is a prefix of the image's, and the longest key comes first.
//! Where the secret cannot be read the error never quotes it.

use std::collections::BTreeMap;

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;
use wherry_runtime_api::RegistryAuth;

use crate::reference::{self, Reference};

/// Docker's own registry, as its tools write it into their configuration.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// Tools differ in whether they pad.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The credentials of one secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    entries: Vec<(String, RegistryAuth)>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl Config {
    /// Reads a `kubernetes.io/dockerconfigjson` secret's value.
    ///
    /// # Errors
    /// Text for a log, without the secret in it.
    pub fn from_dockerconfigjson(text: &[u8]) -> Result<Self, String> {
        let file: File =
            serde_json::from_slice(text).map_err(|e| shape(".dockerconfigjson", &e))?;
        Self::from_entries(file.auths)
    }

    /// Reads a `kubernetes.io/dockercfg` secret's value.
    ///
    /// # Errors
    /// Text for a log, without the secret in it.
    pub fn from_dockercfg(text: &[u8]) -> Result<Self, String> {
        let entries = serde_json::from_slice(text).map_err(|e| shape(".dockercfg", &e))?;
        Self::from_entries(entries)
    }

    fn from_entries(all: BTreeMap<String, Entry>) -> Result<Self, String> {
        let mut entries = Vec::new();
        for (key, entry) in all {
            let auth = entry
                .auth()
                .map_err(|why| format!("credentials for {key:?}: {why}"))?;
            entries.extend(auth.map(|auth| (to_pattern(&key), auth)));
        }
        Ok(Self { entries })
    }

    /// Registry patterns and their credentials.
    pub fn entries(&self) -> &[(String, RegistryAuth)] {
        &self.entries
    }
}

impl Entry {
    fn auth(self) -> Result<Option<RegistryAuth>, String> {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = filled(self.registrytoken) {
            return Ok(Some(RegistryAuth::Bearer(token)));
        }
        if let Some(token) = filled(self.identitytoken) {
            return Ok(Some(RegistryAuth::IdentityToken(token)));
        }
        if let Some(auth) = filled(self.auth) {
            let decoded = LENIENT
                .decode(auth.trim())
                .map_err(|_| "auth is not base64".to_string())?;
            let decoded = String::from_utf8(decoded).map_err(|_| "auth is not text".to_string())?;
            let (username, password) = decoded.split_once(':').ok_or("auth has no colon")?;
            // Docker pads the password with NULs.
            let (username, password) = (
                username.to_string(),
                password.trim_matches('\0').to_string(),
            );
            return Ok(Some(RegistryAuth::Basic { username, password }));
        }
        Ok(match (filled(self.username), filled(self.password)) {
            (None, None) => None,
            (username, password) => Some(RegistryAuth::Basic {
                username: username.unwrap_or_default(),
                password: password.unwrap_or_default(),
            }),
        })
    }
}

fn shape(what: &str, error: &serde_json::Error) -> String {
    format!(
        "{what}: malformed at line {} column {}",
        error.line(),
        error.column()
    )
}

/// `https://index.docker.io/v1/` → `index.docker.io`.
fn to_pattern(key: &str) -> String {
    let bare = key
        .strip_prefix("https://")
        .or(key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = path
        .strip_prefix("v1/")
        .or(path.strip_prefix("v2/"))
        .unwrap_or(path);
    let path = path.trim_end_matches('/');
    if path.is_empty() || path == "v1" || path == "v2" {
        host.to_string()
    } else {
        format!("{host}/{path}")
    }
}

/// The credentials that fit an image, in the order they are to be tried. None for what is no
/// reference.
pub fn for_image(configs: &[Config], reference: &str) -> Vec<RegistryAuth> {
    let Ok(image) = reference::parse(reference) else {
        return Vec::new();
    };
    let mut entries: Vec<&(String, RegistryAuth)> =
        configs.iter().flat_map(|config| &config.entries).collect();
    entries.sort_by(|a, b| b.0.cmp(&a.0));
    let mut fitting: Vec<RegistryAuth> = Vec::new();
    let mut add = |auth: &RegistryAuth| {
        if !fitting.contains(auth) {
            fitting.push(auth.clone());
        }
    };
    for (pattern, auth) in &entries {
        if is_match(pattern, &image) {
            add(auth);
        }
    }
    if image.registry() == "docker.io" {
        for (pattern, auth) in entries {
            if pattern == DEFAULT_REGISTRY {
                add(auth);
            }
        }
    }
    fitting
}

fn is_match(pattern: &str, image: &Reference) -> bool {
    let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let port = |host: &str| {
        host.rsplit_once(':')
            .map_or((host.to_string(), None), |(h, p)| {
                (h.into(), Some(p.to_string()))
            })
    };
    let ((pattern_host, pattern_port), (image_host, image_port)) =
        (port(host), port(image.registry()));
    let (globs, parts): (Vec<&str>, Vec<&str>) = (
        pattern_host.split('.').collect(),
        image_host.split('.').collect(),
    );
    pattern_port == image_port
        && globs.len() == parts.len()
        && globs
            .iter()
            .zip(&parts)
            .all(|(glob, part)| is_glob_match(glob.as_bytes(), part.as_bytes()))
        && image.repository().starts_with(path)
}

fn is_glob_match(glob: &[u8], text: &[u8]) -> bool {
    match (glob, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            (0..=text.len()).any(|skipped| is_glob_match(rest, &text[skipped..]))
        }
        ([b'?', rest @ ..], [_, text @ ..]) => is_glob_match(rest, text),
        ([g, rest @ ..], [t, text @ ..]) => g == t && is_glob_match(rest, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str) -> RegistryAuth {
        RegistryAuth::Basic {
            username: username.into(),
            password: "p".into(),
        }
    }

    fn config(entries: &[(&str, &str)]) -> Config {
        let auths: BTreeMap<&str, serde_json::Value> = entries
            .iter()
            .map(|(key, user)| (*key, serde_json::json!({"username": user, "password": "p"})))
            .collect();
        Config::from_dockerconfigjson(serde_json::json!({ "auths": auths }).to_string().as_bytes())
            .unwrap()
    }

    #[test]
    fn images_get_the_credentials_kubernetes_would_try() {
        for (patterns, image, users) in [
            (vec![("quay.io", "a")], "quay.io/x/y:1", vec!["a"]),
            (vec![("quay.io", "a")], "quay.io:443/x/y", vec![]),
            (vec![("*.example.com", "a")], "r.example.com/x", vec!["a"]),
            (vec![("*.example.com", "a")], "r.b.example.com/x", vec![]),
            (vec![("r?.*", "a")], "r1.io/x", vec!["a"]),
            (
                vec![("q.io", "a"), ("q.io/team", "b"), ("q.io/other", "c")],
                "q.io/team/x",
                vec!["b", "a"],
            ),
            (
                vec![("https://index.docker.io/v1/", "a")],
                "nginx",
                vec!["a"],
            ),
            (
                vec![("docker.io", "a"), ("index.docker.io", "b")],
                "me/app",
                vec!["a", "b"],
            ),
            (
                vec![("http://127.0.0.1:5000/v2/", "a")],
                "127.0.0.1:5000/x",
                vec!["a"],
            ),
            (vec![("quay.io", "a")], "NOT A REFERENCE", vec![]),
        ] {
            let expected: Vec<_> = users.into_iter().map(basic).collect();
            assert_eq!(
                for_image(&[config(&patterns)], image),
                expected,
                "{patterns:?} {image}"
            );
        }
    }

    #[test]
    fn every_form_of_credential_is_read() {
        let text = br#"{"a.io": {"auth": "dTpwOnE="}, "b.io": {"identitytoken": "t"}, "c.io": {"registrytoken": "r"},
            "d.io": {"email": "x"}, "e.io": {"auth": "dTpw", "username": "z"}, "f.io": {"auth": "dTpwOnE"}}"#;
        let config = Config::from_dockercfg(text).unwrap();
        let user = |password: &str| RegistryAuth::Basic {
            username: "u".into(),
            password: password.into(),
        };
        assert_eq!(
            config.entries(),
            [
                ("a.io".to_string(), user("p:q")),
                ("b.io".into(), RegistryAuth::IdentityToken("t".into())),
                ("c.io".into(), RegistryAuth::Bearer("r".into())),
                ("e.io".into(), user("p")),
                ("f.io".into(), user("p:q")),
            ]
        );
    }

    #[test]
    fn errors_do_not_quote_the_secret() {
        for text in [
            r#"{"auths": {"a.io": {"auth": "S3CRET!"}}}"#,
            r#"{"auths": "S3CRET!"}"#,
            "S3CRET!",
        ] {
            let error = Config::from_dockerconfigjson(text.as_bytes()).unwrap_err();
            assert!(!error.contains("S3CRET"), "{error}");
        }
    }
}
