//! References in canonical form.
//!
//! Parsed by hand: the usual regular expression takes 10 MB and a tenth of a second to compile,
//! which is half of what an idle agent may use.

use std::fmt;

use wherry_runtime_api::ImageError;

const DEFAULT_REGISTRY: &str = "docker.io";

/// The grammar's own limits.
const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// `registry/repository:tag` or `registry/repository@digest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    Tag(String),
    Digest(String),
}

impl Reference {
    /// Host, and port if there is one.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// What the registry knows it as.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    pub(crate) fn version(&self) -> &str {
        match &self.version {
            Version::Tag(version) | Version::Digest(version) => version,
        }
    }

    /// Whether a digest names it, so that it is the same content for ever.
    pub(crate) fn is_by_digest(&self) -> bool {
        matches!(self.version, Version::Digest(_))
    }

    /// `registry/repository`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = if self.is_by_digest() { '@' } else { ':' };
        write!(
            f,
            "{}/{}{before}{}",
            self.registry,
            self.repository,
            self.version()
        )
    }
}

/// Parses a reference as Kubernetes does: `nginx` is `docker.io/library/nginx:latest`.
///
/// With both a tag and a digest the tag is checked and dropped, for the digest alone decides.
pub(crate) fn parse(reference: &str) -> Result<Reference, ImageError> {
    parts(reference).map_err(|why| ImageError::InvalidName {
        reference: reference.into(),
        why,
    })
}

fn parts(text: &str) -> Result<Reference, String> {
    let format = || "invalid reference format".to_string();
    if is_hex_digest(text) {
        return Err(format!(
            "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        ));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon before the last slash belongs to a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry_like(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_string()
    };
    if !is_host(registry)
        || !repository
            .to_ascii_lowercase()
            .split('/')
            .all(is_path_component)
    {
        return Err(format());
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!(
            "invalid reference format: repository name ({repository}) must be lowercase"
        ));
    }
    if repository.len() > REPOSITORY_BYTES_MAX {
        return Err(format!(
            "repository name must not be more than {REPOSITORY_BYTES_MAX} characters"
        ));
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(format());
    }
    let version = match digest {
        None => Version::Tag(tag.unwrap_or("latest").to_string()),
        Some(digest) => match digest.split_once(':') {
            Some(("sha256", hex)) if hex.len() == 64 => match digest_hex(digest) {
                Some(_) => Version::Digest(digest.to_string()),
                None => return Err(format()),
            },
            Some(("sha256", _)) => return Err("invalid checksum digest length".into()),
            Some(_) => return Err("unsupported digest algorithm".into()),
            None => return Err(format()),
        },
    };
    Ok(Reference {
        registry: registry.to_string(),
        repository,
        version,
    })
}

/// Whether the part before the first slash is a registry rather than the start of a path.
fn is_registry_like(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => {
            let Some((address, after)) = v6.split_once(']') else {
                return false;
            };
            if !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') || address.is_empty() {
                return false;
            }
            (
                None,
                after.strip_prefix(':').or(after.is_empty().then_some("0")),
            )
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), Some("0")),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.is_none_or(|name| name.split('.').all(is_label))
        && port.is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Letters and digits, in groups set apart by one dot, one or two underscores, or dashes.
fn is_path_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(is_word) || !bytes.last().copied().is_some_and(is_word) {
        return false;
    }
    bytes.split(|b| is_word(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

/// Whether the text is 64 hexadecimal digits.
pub(crate) fn is_hex_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The hexadecimal half of `sha256:<hex>`, if it is one. Safe as a file name.
pub(crate) fn digest_hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    (is_hex_digest(hex) && !hex.bytes().any(|b| b.is_ascii_uppercase())).then_some(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_become_what_kubernetes_makes_of_them() {
        let hex = "a".repeat(64);
        for (given, canonical) in [
            ("nginx", "docker.io/library/nginx:latest".to_string()),
            ("nginx:1.25", "docker.io/library/nginx:1.25".into()),
            ("me/app", "docker.io/me/app:latest".into()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".into()),
            (
                "index.docker.io/nginx",
                "docker.io/library/nginx:latest".into(),
            ),
            ("localhost/app:1", "localhost/app:1".into()),
            ("LOCAL/app", "LOCAL/app:latest".into()),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest".into()),
            ("[::1]:5000/a:x", "[::1]:5000/a:x".into()),
            (
                "quay.io/x/y__z.w---v:V_1.0-rc",
                "quay.io/x/y__z.w---v:V_1.0-rc".into(),
            ),
            (
                &format!("quay.io/x/y@sha256:{hex}"),
                format!("quay.io/x/y@sha256:{hex}"),
            ),
            (
                &format!("quay.io/x/y:1@sha256:{hex}"),
                format!("quay.io/x/y@sha256:{hex}"),
            ),
        ] {
            let parsed = parse(given).unwrap();
            assert_eq!(parsed.to_string(), canonical, "{given}");
            assert_eq!(parse(&canonical).unwrap(), parsed, "{given}");
        }
    }

    #[test]
    fn what_cannot_be_a_reference_is_an_invalid_name() {
        let (hex, upper) = ("a".repeat(64), "A".repeat(64));
        let long = "a".repeat(256);
        for given in [
            "",
            "a b",
            "../x",
            "x:",
            "/x",
            "x/",
            "x//y",
            "-x",
            "x-",
            "a..b",
            "a___b",
            "a.-b",
            "x:-1",
            "x:a b",
            "x@sha256:12",
            "x@md5:00",
            "x@",
            "q.io:/x",
            "q.io:p/x",
            "-q.io/x",
            "[::1/x",
            "x@sha256",
            "é",
            "q.io/x\n",
            &hex,
            &long,
            &format!("x:{long}"),
            &format!("x@sha256:{upper}"),
        ] {
            assert!(
                matches!(parse(given), Err(ImageError::InvalidName { .. })),
                "{given}"
            );
        }
        assert_eq!(
            parse("me/NGINX").unwrap_err().to_string(),
            "couldn't parse image name \"me/NGINX\": invalid reference format: repository name (me/NGINX) must be \
             lowercase"
        );
    }

    #[test]
    fn digests_are_safe_as_file_names() {
        assert!(digest_hex("sha256:../../etc").is_none());
        assert!(digest_hex("sha512:aa").is_none());
        assert!(digest_hex(&format!("sha256:{}", "0".repeat(64))).is_some());
    }
}
