//! Plugins in registries: pushed as Wasm OCI artifacts, looked at, and their signatures.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use oci_distribution::{
    Client, Reference, RegistryOperation,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor},
    secrets::RegistryAuth,
};
use serde_json::{Value, json};
use wherry_images::signature::{self, Signature, digest_of};

use crate::component::Description;

/// Of an artifact's config: what is in the component, for those who choose before they pull.
pub(crate) const CONFIG_MEDIA_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// Of its only layer.
pub(crate) const WASM_MEDIA_TYPE: &str = "application/wasm";

/// Of a layer: the file that it is, without which `oras pull` leaves it out.
const TITLE: &str = "org.opencontainers.image.title";

/// How a registry is reached.
#[derive(Args, Clone, Debug, Default)]
pub struct RegistryArgs {
    /// Speak plain HTTP. Registries on this machine are, unless an authority is named.
    #[arg(long)]
    plain_http: bool,
    /// An authority to trust besides the system's, PEM.
    #[arg(long, value_name = "FILE")]
    registry_ca: Option<PathBuf>,
    /// Who to be; the password is read from WHERRY_REGISTRY_PASSWORD. Otherwise ~/.docker/config.json is asked.
    #[arg(long)]
    username: Option<String>,
}

/// A registry's repository.
pub(crate) struct Repository {
    client: Client,
    auth: RegistryAuth,
    pub(crate) reference: Reference,
}

/// What a reference names.
pub(crate) struct Artifact {
    pub(crate) digest: String,
    pub(crate) wasm: Vec<u8>,
}

impl Repository {
    pub(crate) fn open(reference: &str, args: &RegistryArgs) -> Result<Self> {
        let reference: Reference = reference
            .parse()
            .with_context(|| format!("reference {reference}"))?;
        let registry = reference.resolve_registry().to_owned();
        let is_plain = args.plain_http || (is_loopback(&registry) && args.registry_ca.is_none());
        let mut config = ClientConfig {
            protocol: match is_plain {
                true => ClientProtocol::Http,
                false => ClientProtocol::Https,
            },
            ..ClientConfig::default()
        };
        if let Some(path) = &args.registry_ca {
            let data = std::fs::read(path).with_context(|| path.display().to_string())?;
            config.extra_root_certificates.push(Certificate {
                encoding: CertificateEncoding::Pem,
                data,
            });
        }
        Ok(Self {
            client: Client::try_from(config).context("HTTP client")?,
            auth: auth(&registry, args)?,
            reference,
        })
    }

    fn named(&self, tag: &str) -> Reference {
        let (registry, repository) = (self.reference.registry(), self.reference.repository());
        Reference::with_tag(registry.into(), repository.into(), tag.into())
    }

    /// The repository's name with its registry.
    pub(crate) fn name(&self) -> String {
        format!(
            "{}/{}",
            self.reference.registry(),
            self.reference.repository()
        )
    }

    /// A manifest as it is, and its digest.
    async fn manifest(&self, reference: &Reference) -> Result<(Value, String)> {
        let accepted = [OCI_IMAGE_MEDIA_TYPE];
        let pulled = self
            .client
            .pull_manifest_raw(reference, &self.auth, &accepted)
            .await;
        let (bytes, _) = pulled.with_context(|| format!("pull {reference}"))?;
        let manifest = serde_json::from_slice(&bytes);
        let manifest = manifest.with_context(|| format!("manifest of {reference}"))?;
        Ok((manifest, digest_of(&bytes)))
    }

    async fn blob(&self, descriptor: &Value) -> Result<Vec<u8>> {
        let descriptor: OciDescriptor =
            serde_json::from_value(descriptor.clone()).context("descriptor")?;
        let mut bytes = Vec::new();
        self.client
            .pull_blob(&self.reference, &descriptor, &mut bytes)
            .await
            .with_context(|| format!("pull {} of {}", descriptor.digest, self.reference))?;
        let found = digest_of(&bytes);
        if found != descriptor.digest {
            bail!("pull {}: its digest is {found}", descriptor.digest);
        }
        Ok(bytes)
    }

    /// The component that the reference names.
    pub(crate) async fn pull(&self) -> Result<Artifact> {
        let (manifest, digest) = self.manifest(&self.reference).await?;
        let layers = manifest["layers"].as_array();
        let layer = layers
            .into_iter()
            .flatten()
            .find(|layer| layer["mediaType"] == WASM_MEDIA_TYPE)
            .with_context(|| format!("{} has no layer {WASM_MEDIA_TYPE}", self.reference))?;
        let wasm = self.blob(layer).await?;
        Ok(Artifact { digest, wasm })
    }

    /// The digest that the reference names.
    pub(crate) async fn digest(&self) -> Result<String> {
        Ok(self.manifest(&self.reference).await?.1)
    }

    async fn push_document(
        &self,
        reference: &Reference,
        config: (&str, Vec<u8>),
        layer: (&str, Vec<u8>, Value),
        more: Value,
    ) -> Result<String> {
        self.client
            .auth(reference, &self.auth, RegistryOperation::Push)
            .await
            .with_context(|| format!("log in to {}", reference.resolve_registry()))?;
        let descriptor = |media_type: &str, bytes: &[u8]| {
            json!({
                "mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len(),
            })
        };
        let config_descriptor = descriptor(config.0, &config.1);
        let mut layer_descriptor = descriptor(layer.0, &layer.1);
        if !layer.2.is_null() {
            layer_descriptor["annotations"] = layer.2;
        }
        for bytes in [config.1, layer.1] {
            let digest = digest_of(&bytes);
            self.client
                .push_blob(reference, bytes, &digest)
                .await
                .with_context(|| format!("push {digest} to {reference}"))?;
        }
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_IMAGE_MEDIA_TYPE,
            "config": config_descriptor,
            "layers": [layer_descriptor],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            manifest[key] = value.clone();
        }
        let bytes = serde_json::to_vec(&manifest)?;
        let digest = digest_of(&bytes);
        self.client
            .push_manifest_raw(reference, bytes, OCI_IMAGE_MEDIA_TYPE.parse()?)
            .await
            .with_context(|| format!("push {reference}"))?;
        Ok(digest)
    }

    /// Pushes a component under the reference's tag; answers the artifact's digest.
    pub(crate) async fn push(&self, wasm: Vec<u8>, created: &str) -> Result<String> {
        if self.reference.tag().is_none() {
            bail!("{} has no tag to push to", self.reference);
        }
        let description = Description::read(&wasm)?;
        let config = config(&description, &digest_of(&wasm), created);
        let name = self.reference.repository().rsplit('/').next();
        let title = format!("{}.wasm", name.unwrap_or_default());
        self.push_document(
            &self.reference,
            (CONFIG_MEDIA_TYPE, serde_json::to_vec(&config)?),
            (WASM_MEDIA_TYPE, wasm, json!({TITLE: title})),
            json!({"annotations": {"org.opencontainers.image.created": created}}),
        )
        .await
    }

    /// Adds a signature of a digest to those that are there.
    pub(crate) async fn push_signature(&self, digest: &str, signed: &Signature) -> Result<()> {
        let reference = self.named(&signature::tag(digest));
        let document = digest_of(&signed.payload);
        // cosign wants an image's config; this is the emptiest.
        let config = json!({
            "architecture": "", "os": "", "config": {}, "created": "0001-01-01T00:00:00Z",
            "rootfs": {"type": "layers", "diff_ids": [document]},
            "history": [{"created": "0001-01-01T00:00:00Z"}],
        });
        let annotations = json!({signature::ANNOTATION: STANDARD.encode(&signed.signature)});
        let others = match self.manifest(&reference).await {
            Ok((manifest, _)) => manifest["layers"].as_array().cloned().unwrap_or_default(),
            // None yet. A registry that cannot be reached will say so again.
            Err(_) => Vec::new(),
        };
        let descriptor = json!({
            "mediaType": signature::MEDIA_TYPE, "digest": document,
            "size": signed.payload.len(), "annotations": annotations,
        });
        let mut layers = others;
        layers.push(descriptor);
        self.push_document(
            &reference,
            (
                "application/vnd.oci.image.config.v1+json",
                serde_json::to_vec(&config)?,
            ),
            (signature::MEDIA_TYPE, signed.payload.clone(), Value::Null),
            json!({"layers": layers}),
        )
        .await?;
        Ok(())
    }

    /// The signatures of a digest.
    pub(crate) async fn signatures(&self, digest: &str) -> Result<Vec<Signature>> {
        let (manifest, _) = self.manifest(&self.named(&signature::tag(digest))).await?;
        let mut signatures = Vec::new();
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let signed = layer["annotations"][signature::ANNOTATION].as_str();
            if let Some(signed) = signed
                && layer["mediaType"] == signature::MEDIA_TYPE
            {
                signatures.push(Signature {
                    payload: self.blob(layer).await?,
                    signature: STANDARD.decode(signed).context("signature")?,
                });
            }
        }
        Ok(signatures)
    }
}

/// The config of a Wasm OCI artifact.
fn config(description: &Description, layer: &str, created: &str) -> Value {
    json!({
        "created": created,
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [layer],
        "component": {
            "exports": description.exports,
            "imports": description.imports,
        },
    })
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => registry.rsplit_once(':').map_or(registry, |(host, _)| host),
    };
    let ip = host.parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

fn auth(registry: &str, args: &RegistryArgs) -> Result<RegistryAuth> {
    if let Some(username) = &args.username {
        let password =
            std::env::var("WHERRY_REGISTRY_PASSWORD").context("WHERRY_REGISTRY_PASSWORD")?;
        return Ok(RegistryAuth::Basic(username.clone(), password));
    }
    let home = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".docker")));
    let Some(text) = home.and_then(|home| std::fs::read(home.join("config.json")).ok()) else {
        return Ok(RegistryAuth::Anonymous);
    };
    let config: Value = serde_json::from_slice(&text).context("docker's config.json")?;
    let Some(coded) = config["auths"][registry]["auth"].as_str() else {
        return Ok(RegistryAuth::Anonymous);
    };
    let pair = STANDARD.decode(coded).context("docker's config.json")?;
    let pair = String::from_utf8(pair).context("docker's config.json")?;
    match pair.split_once(':') {
        Some((username, password)) => Ok(RegistryAuth::Basic(username.into(), password.into())),
        None => bail!("docker's config.json: no user:password for {registry}"),
    }
}
