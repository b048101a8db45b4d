//! Who has to have signed a plugin before it is installed: what the node says, and what the Plugin object says.
//!
//! Signatures that were good are kept beside the compiled plugins, so that a node without its registry goes on; they
//! are looked at again each time, as keys may have been taken back.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tracing::warn;
use wherry_images::{
    Store, StoredImage,
    signature::{self, PublicKey, Signature},
};
use wherry_runtime_api::RegistryAuth;

/// A node's policy.
pub(crate) struct SignaturePolicy {
    /// None: unsigned plugins are good.
    keys: Option<Vec<PublicKey>>,
    kept: PathBuf,
}

impl SignaturePolicy {
    /// Reads public keys, PEM; without files there is no policy. Good signatures are kept below `root`.
    ///
    /// # Errors
    /// A file cannot be read or holds another kind of key.
    pub(crate) fn read(files: &[PathBuf], root: &Path) -> Result<Self> {
        let mut keys = Vec::new();
        for file in files {
            let named = || file.display().to_string();
            let pem = fs::read_to_string(file).with_context(named)?;
            keys.extend(PublicKey::read_all(&pem).with_context(named)?);
        }
        Ok(Self {
            keys: (!files.is_empty()).then_some(keys),
            kept: root.join("plugins/signatures"),
        })
    }

    /// Whether a plugin is signed as the node and its object demand. `auth` is what its image was pulled with: its
    /// signatures lie beside it.
    ///
    /// # Errors
    /// Says what is missing. A signature may be pushed later.
    pub(crate) async fn check(
        &self,
        images: &Store,
        reference: &str,
        image: &StoredImage,
        auth: &[RegistryAuth],
        of_object: &[String],
    ) -> Result<(), String> {
        let mut policies: Vec<Vec<PublicKey>> = self.keys.iter().cloned().collect();
        if !of_object.is_empty() {
            let keys = of_object.iter().map(|pem| PublicKey::read_all(pem));
            let keys = keys.collect::<Result<Vec<_>, _>>();
            let keys = keys.map_err(|error| format!("spec.signature.publicKeys: {error}"))?;
            policies.push(keys.concat());
        }
        if policies.is_empty() {
            return Ok(());
        }
        let named = image.image.repo_digests.first();
        let digest = named.and_then(|named| Some(named.rsplit_once('@')?.1));
        let Some(digest) = digest else {
            return Err(format!(
                "image {reference} was not pulled from a registry, and signatures lie there"
            ));
        };
        let verify = |signatures: &[Signature]| {
            let checked = policies
                .iter()
                .try_for_each(|keys| signature::verify(signatures, keys, digest));
            checked.map_err(|error| format!("image {reference}: {error}"))
        };
        if let Some(kept) = self.read_kept(digest)
            && verify(&kept).is_ok()
        {
            return Ok(());
        }
        let fetched = images.signatures(reference, digest, auth).await;
        let signatures = fetched.map_err(|error| format!("signatures: {error}"))?;
        verify(&signatures)?;
        if let Err(error) = self.keep(digest, &signatures) {
            warn!(image = reference, %error, "Signatures not kept");
        }
        Ok(())
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.kept.join(format!("{}.json", digest.replace(':', "-")))
    }

    fn read_kept(&self, digest: &str) -> Option<Vec<Signature>> {
        serde_json::from_slice(&fs::read(self.path(digest)).ok()?).ok()
    }

    fn keep(&self, digest: &str, signatures: &[Signature]) -> std::io::Result<()> {
        fs::create_dir_all(&self.kept)?;
        let path = self.path(digest);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(signatures)?)?;
        fs::rename(new, path)
    }
}
