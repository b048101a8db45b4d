//! References in canonical form.

use oci_spec::distribution::Reference;
use wherry_runtime_api::ImageError;

/// Parses a reference as Kubernetes does: `nginx` is `docker.io/library/nginx:latest`.
///
/// With both a tag and a digest the tag is dropped, for the digest alone decides.
pub(crate) fn parse(reference: &str) -> Result<Reference, ImageError> {
    let invalid = |why: String| ImageError::InvalidName {
        reference: reference.into(),
        why,
    };
    if is_hex_digest(reference) {
        return Err(invalid("cannot specify 64-byte hexadecimal strings".into()));
    }
    let parsed: Reference = reference
        .parse()
        .map_err(|e: oci_spec::distribution::ParseError| invalid(e.to_string()))?;
    match parsed.digest() {
        Some(digest) if !digest.starts_with("sha256:") => {
            Err(invalid(format!("{digest}: only sha256 is supported")))
        }
        Some(digest) => {
            let digest = digest.to_ascii_lowercase();
            Ok(Reference::with_digest(
                parsed.registry().into(),
                parsed.repository().into(),
                digest,
            ))
        }
        None => Ok(parsed),
    }
}

/// `registry/repository`, without tag or digest.
pub(crate) fn name(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
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
            ("localhost/app:1", "localhost/app:1".into()),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest".into()),
            ("quay.io/x/y:1", "quay.io/x/y:1".into()),
            (
                &format!("quay.io/x/y@sha256:{hex}"),
                format!("quay.io/x/y@sha256:{hex}"),
            ),
            (
                &format!("quay.io/x/y:1@sha256:{hex}"),
                format!("quay.io/x/y@sha256:{hex}"),
            ),
        ] {
            assert_eq!(parse(given).unwrap().whole(), canonical, "{given}");
        }
    }

    #[test]
    fn what_cannot_be_a_reference_is_an_invalid_name() {
        for given in [
            "",
            "NGINX",
            "a b",
            "../x",
            "x:",
            "x@sha256:12",
            "/x",
            &"a".repeat(64),
            "x@md5:00",
        ] {
            assert!(
                matches!(parse(given), Err(ImageError::InvalidName { .. })),
                "{given}"
            );
        }
    }

    #[test]
    fn digests_are_safe_as_file_names() {
        assert!(digest_hex("sha256:../../etc").is_none());
        assert!(digest_hex("sha512:aa").is_none());
        assert!(digest_hex(&format!("sha256:{}", "0".repeat(64))).is_some());
    }
}
