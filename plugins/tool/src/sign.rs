//! Keys and signatures: made here, looked at by nodes and by cosign.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::{Context, Result, bail};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use wherry_images::signature::{self, PublicKey, Signature, blocks, to_pem};

/// Makes a key pair: `path` and `path` with `.pub`. Never over one that is there.
pub(crate) fn generate(path: &Path) -> Result<()> {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
        .map_err(|_| anyhow::anyhow!("no key could be made"))?;
    let public = public_key(&key_of(pkcs8.as_ref())?);
    let public_path = path.with_extension("pub");
    if public_path == path {
        bail!("{}: is what the public key is called", path.display());
    }
    let write = |path: &Path, mode, text: String| {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(mode).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| path.display().to_string())
    };
    write(path, 0o600, to_pem("PRIVATE KEY", pkcs8.as_ref()))?;
    write(&public_path, 0o644, public.to_pem())?;
    println!("private key  {}", path.display());
    println!("public key   {}", public_path.display());
    Ok(())
}

fn key_of(pkcs8: &[u8]) -> Result<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &SystemRandom::new())
        .map_err(|error| anyhow::anyhow!("{error}"))
}

fn public_key(key: &EcdsaKeyPair) -> PublicKey {
    PublicKey::from_point(key.public_key().as_ref())
}

/// Reads a private key.
pub(crate) fn read_key(path: &Path) -> Result<EcdsaKeyPair> {
    let pem = fs::read_to_string(path)
        .with_context(|| format!("{} (--generate-key makes a key)", path.display()))?;
    let Some(der) = blocks(&pem, "PRIVATE KEY").next() else {
        let advice = if pem.contains("ENCRYPTED") {
            "is encrypted: `cosign` itself can sign with it"
        } else if pem.contains("EC PRIVATE KEY") {
            "is in the older form: `openssl pkcs8 -topk8 -nocrypt -in KEY -out KEY2` makes one that can be used"
        } else {
            "has no PEM block PRIVATE KEY"
        };
        bail!("{} {advice}", path.display());
    };
    key_of(&der?).with_context(|| format!("{}: no ECDSA key on P-256", path.display()))
}

/// Signs the digest of an artifact in a repository.
pub(crate) fn sign(key: &EcdsaKeyPair, repository: &str, digest: &str) -> Result<Signature> {
    let payload = signature::payload(repository, digest).into_bytes();
    let signature = key.sign(&SystemRandom::new(), &payload);
    let signature = signature.map_err(|_| anyhow::anyhow!("signing failed"))?;
    Ok(Signature {
        payload,
        signature: signature.as_ref().to_vec(),
    })
}

/// Reads public keys.
pub(crate) fn read_public(path: &Path) -> Result<Vec<PublicKey>> {
    let pem = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    PublicKey::read_all(&pem).with_context(|| path.display().to_string())
}
