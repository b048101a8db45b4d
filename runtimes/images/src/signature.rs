//! Signatures of artifacts, in the form of cosign's: ECDSA on P-256 over a "simple signing" document that names the
//! digest of the artifact's manifest.
//!
//! They lie beside the artifact, under the tag `sha256-<hex>.sig`: a layer of type [`MEDIA_TYPE`] is a document, and
//! its annotation [`ANNOTATION`] the signature.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{digest, signature};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use wherry_runtime_api::{ImageError, RegistryAuth};

use crate::{
    Store,
    manifest::{Descriptor, Document},
    reference,
    registry::{Repository, Trouble},
};

/// Of a signed document in a registry.
pub const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Of a layer: the signature of the document, base64.
pub const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What the documents say that they are.
const TYPE: &str = "cosign container image signature";
/// Signatures of one artifact that are looked at.
const SIGNATURES_MAX: usize = 64;
/// A P-256 public key in DER, but for the point that follows.
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point: 4, x, y.
const POINT_BYTES: usize = 65;

/// A signed document, as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The document, byte for byte.
    #[serde(with = "as_base64")]
    pub payload: Vec<u8>,
    /// ASN.1, as openssl writes it.
    #[serde(with = "as_base64")]
    pub signature: Vec<u8>,
}

mod as_base64 {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

/// Whose signatures are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    point: Vec<u8>,
}

/// Why an artifact does not count as signed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// There is no signature.
    #[error("{digest} is not signed")]
    Unsigned {
        /// Of the artifact.
        digest: String,
    },
    /// There are signatures, of other keys or of other content.
    #[error(
        "{digest} has {count} signature(s), none of them by a key of the policy for this content"
    )]
    Untrusted {
        /// Of the artifact.
        digest: String,
        /// How many were looked at.
        count: usize,
    },
    /// No key of this kind.
    #[error("public key: {0}")]
    Key(String),
}

impl PublicKey {
    /// Reads a PEM file's `PUBLIC KEY`s, such as `cosign.pub`.
    ///
    /// # Errors
    /// One of them is none on P-256, or there is none.
    pub fn read_all(pem: &str) -> Result<Vec<Self>, SignatureError> {
        let keys = blocks(pem, "PUBLIC KEY").map(|der| {
            let der = der?;
            let point = der.strip_prefix(&SPKI_PREFIX[..]);
            let point = point.filter(|point| point.len() == POINT_BYTES && point[0] == 4);
            let point =
                point.ok_or_else(|| SignatureError::Key("not one for ECDSA on P-256".into()))?;
            Ok(Self {
                point: point.to_vec(),
            })
        });
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        match keys.is_empty() {
            true => Err(SignatureError::Key("no PEM block PUBLIC KEY".into())),
            false => Ok(keys),
        }
    }

    /// From the point that a key pair has.
    pub fn from_point(point: &[u8]) -> Self {
        Self {
            point: point.to_vec(),
        }
    }

    /// As a PEM file.
    pub fn to_pem(&self) -> String {
        to_pem("PUBLIC KEY", &[&SPKI_PREFIX[..], &self.point].concat())
    }

    fn has_signed(&self, signed: &Signature) -> bool {
        let key =
            signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, &self.point);
        key.verify(&signed.payload, &signed.signature).is_ok()
    }
}

/// A PEM file.
pub fn to_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// The DER of a PEM file's blocks of a kind.
pub fn blocks<'a>(
    pem: &'a str,
    label: &str,
) -> impl Iterator<Item = Result<Vec<u8>, SignatureError>> + use<'a> {
    let (begin, end) = (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    );
    let mut rest = pem;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(begin.as_str())?;
        let (body, after) = after.split_once(end.as_str())?;
        rest = after;
        let text: String = body.split_whitespace().collect();
        let der = STANDARD.decode(text);
        Some(der.map_err(|error| SignatureError::Key(error.to_string())))
    })
}

/// The document that says that an artifact of a repository is meant.
pub fn payload(repository: &str, digest: &str) -> String {
    // The order of the fields is cosign's; nobody depends on it.
    json!({
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest},
            "type": TYPE,
        },
        "optional": null,
    })
    .to_string()
}

/// Whether an artifact's digest was signed by one of the keys.
///
/// # Errors
/// [`SignatureError::Unsigned`], [`SignatureError::Untrusted`].
pub fn verify(
    signatures: &[Signature],
    keys: &[PublicKey],
    digest: &str,
) -> Result<(), SignatureError> {
    if signatures.is_empty() {
        let digest = digest.to_owned();
        return Err(SignatureError::Unsigned { digest });
    }
    let is_good = |signed: &Signature| {
        names(&signed.payload, digest) && keys.iter().any(|key| key.has_signed(signed))
    };
    match signatures.iter().any(is_good) {
        true => Ok(()),
        false => Err(SignatureError::Untrusted {
            digest: digest.to_owned(),
            count: signatures.len(),
        }),
    }
}

/// The tag under which the signatures of a digest lie.
pub fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

impl Store {
    /// Fetches the signatures of a digest from the repository that a reference names; none is not an error. Nothing
    /// is kept.
    ///
    /// # Errors
    /// The registry cannot be asked, or what it answers makes no sense.
    pub async fn signatures(
        &self,
        reference: &str,
        digest: &str,
        auth: &[RegistryAuth],
    ) -> Result<Vec<Signature>, ImageError> {
        let parsed = reference::parse(reference)?;
        let tag = tag(digest);
        let asked = self.ask(&parsed, auth, |repository| fetch(repository, &tag));
        asked.await.map_err(|trouble| trouble.of(reference))
    }
}

async fn fetch(repository: Repository, tag: &str) -> Result<Vec<Signature>, Trouble> {
    let (text, _) = match repository.manifest(tag).await {
        Err(Trouble::NotFound) => return Ok(Vec::new()),
        answer => answer?,
    };
    let Document::Manifest(manifest) = Document::parse(&text).map_err(Trouble::Corrupt)? else {
        return Err(Trouble::Corrupt(format!("{tag} is an index")));
    };
    let mut signatures = Vec::new();
    for layer in manifest.layers.iter().take(SIGNATURES_MAX) {
        if let Some(signature) = annotated(layer)? {
            signatures.push(Signature {
                payload: repository.small_blob(&layer.digest).await?,
                signature,
            });
        }
    }
    Ok(signatures)
}

/// The signature that a layer is annotated with.
fn annotated(layer: &Descriptor) -> Result<Option<Vec<u8>>, Trouble> {
    let Some(text) = layer.annotations.get(ANNOTATION) else {
        return Ok(None);
    };
    if layer.media_type != MEDIA_TYPE || reference::digest_hex(&layer.digest).is_none() {
        return Ok(None);
    }
    match STANDARD.decode(text) {
        Ok(signature) => Ok(Some(signature)),
        Err(error) => Err(Trouble::Corrupt(format!("signature: {error}"))),
    }
}

/// Whether a document is about a digest. Where it was pushed to is not looked at: a mirror is as good.
fn names(payload: &[u8], digest: &str) -> bool {
    let Ok(document) = serde_json::from_slice::<Value>(payload) else {
        return false;
    };
    let critical = &document["critical"];
    critical["type"] == TYPE && critical["image"]["docker-manifest-digest"] == digest
}

/// `sha256:…` of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, bytes);
    let hex: String = hash
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
    };

    fn key() -> EcdsaKeyPair {
        let random = SystemRandom::new();
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random)
            .expect("the same")
    }

    fn sign(key: &EcdsaKeyPair, payload: &str) -> Signature {
        let signature = key.sign(&SystemRandom::new(), payload.as_bytes());
        Signature {
            payload: payload.into(),
            signature: signature.expect("a signature").as_ref().to_vec(),
        }
    }

    #[test]
    fn only_a_signature_by_the_key_for_the_content_is_good() {
        let (ours, theirs) = (key(), key());
        let public = PublicKey::from_point(ours.public_key().as_ref());
        let (digest, other) = (digest_of(b"a"), digest_of(b"b"));
        let good = sign(&ours, &payload("r/x", &digest));
        let keys = [public.clone()];
        let untrusted = |count| {
            Err(SignatureError::Untrusted {
                digest: digest.clone(),
                count,
            })
        };
        assert_eq!(verify(std::slice::from_ref(&good), &keys, &digest), Ok(()));
        let foreign = sign(&theirs, &payload("r/x", &digest));
        assert_eq!(
            verify(std::slice::from_ref(&foreign), &keys, &digest),
            untrusted(1)
        );
        assert_eq!(verify(&[foreign, good.clone()], &keys, &digest), Ok(()));
        let about_other = sign(&ours, &payload("r/x", &other));
        assert_eq!(verify(&[about_other], &keys, &digest), untrusted(1));
        let mut bent = good.clone();
        bent.payload.push(b' ');
        assert_eq!(verify(&[bent], &keys, &digest), untrusted(1));
        let no_document = sign(&ours, "nothing");
        assert_eq!(verify(&[no_document], &keys, &digest), untrusted(1));
        assert_eq!(
            verify(&[], &keys, &digest),
            Err(SignatureError::Unsigned {
                digest: digest.clone()
            })
        );
        assert_eq!(PublicKey::read_all(&public.to_pem()), Ok(vec![public]));
        let kept = serde_json::to_string(&good).expect("JSON");
        assert_eq!(serde_json::from_str::<Signature>(&kept).ok(), Some(good));
    }

    #[test]
    fn other_keys_are_refused_by_reason() {
        for (pem, why) in [
            ("", "no PEM block PUBLIC KEY"),
            (
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
                "not one for ECDSA on P-256",
            ),
        ] {
            let error = PublicKey::read_all(pem).expect_err(why);
            assert_eq!(error, SignatureError::Key(why.into()));
        }
    }
}
