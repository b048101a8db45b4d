//! Manifests, indexes and configs: what an image says about itself.
//!
//! OCI's and Docker's documents are read alike; only the fields that matter here are.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use wherry_runtime_api::ImageKind;

/// Bytes of a manifest, index or config. Registries themselves allow 4 MiB.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// Media types asked for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

const WASM_LAYERS: [&str; 3] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
];

/// How an image wants to be run, as its config says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Command, or arguments of the entry point.
    pub cmd: Vec<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// User, as written (`1000:1000`, `nginx`).
    pub user: Option<String>,
    /// Ports it listens on, as written (`80/tcp`).
    pub exposed_ports: Vec<String>,
    /// Paths it wants a volume at.
    pub volumes: Vec<String>,
    /// Signal that asks it to exit, as written (`SIGQUIT`, `3`).
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// What a digest in a registry or layout can name.
#[derive(Debug)]
pub(crate) enum Document {
    /// One image for several platforms (or several images, in a layout).
    Index(Vec<Descriptor>),
    /// An image.
    Manifest(Manifest),
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct AnyDocument {
    #[serde(default, rename = "schemaVersion")]
    schema_version: u32,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_is_default")]
    layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
}

impl Document {
    /// Parses a manifest or an index.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let any: AnyDocument =
            serde_json::from_slice(text).map_err(|e| format!("manifest: {e}"))?;
        match any {
            AnyDocument {
                schema_version: 1, ..
            } => Err("manifest: schema version 1 is no longer supported".into()),
            AnyDocument {
                manifests: Some(manifests),
                ..
            } => Ok(Self::Index(manifests)),
            AnyDocument {
                config: Some(config),
                layers,
                annotations,
                ..
            } => Ok(Self::Manifest(Manifest {
                config,
                layers,
                annotations,
            })),
            _ => Err("manifest: neither an image nor an index".into()),
        }
    }
}

impl Manifest {
    /// The layer that is a Wasm module, if this is a Wasm artifact.
    pub(crate) fn wasm_layer(&self) -> Option<&Descriptor> {
        self.layers
            .iter()
            .find(|layer| WASM_LAYERS.contains(&layer.media_type.as_str()))
    }

    /// Which runtime the image is for, as far as can be told without its layers.
    pub(crate) fn kind(&self, config: &ConfigFile) -> ImageKind {
        if self.wasm_layer().is_some() || config.is_wasm_platform() || config.entry_wasm().is_some()
        {
            return ImageKind::Wasm;
        }
        let says_so = |all: &BTreeMap<String, String>| {
            all.get("module.wasm.image/variant")
                .is_some_and(|variant| variant.starts_with("compat"))
        };
        if says_so(&self.annotations) || says_so(&config.run.labels) {
            ImageKind::Wasm
        } else {
            ImageKind::Container
        }
    }
}

/// The platforms an index is searched for, best first.
fn rank(platform: &Platform) -> Option<u32> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    match (platform.os.as_str(), platform.architecture.as_str()) {
        // amd64 variants (`v2`, `v3`) ask for more than any machine has; the plain one comes first.
        ("linux", a) if a == architecture => match platform.variant.as_deref() {
            None | Some("" | "v1" | "v8") => Some(0),
            Some(_) => Some(4),
        },
        ("wasip2", "wasm" | "wasm32") => Some(1),
        ("wasip1" | "wasi", "wasm" | "wasm32") | ("wasi", _) => Some(2),
        (_, "wasm" | "wasm32") => Some(3),
        _ => None,
    }
}

/// Chooses from an index. One without platforms (layouts have such) is taken if it is the only one.
pub(crate) fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let ranked = manifests
        .iter()
        .filter_map(|m| Some((rank(m.platform.as_ref()?)?, m)));
    match ranked.min_by_key(|(rank, _)| *rank) {
        Some((_, manifest)) => Some(manifest),
        None => match manifests {
            [only] if only.platform.as_ref().is_none_or(|p| p.os.is_empty()) => Some(only),
            _ => None,
        },
    }
}

/// Why [`choose`] found nothing.
pub(crate) fn no_platform(manifests: &[Descriptor]) -> String {
    let mut offered: Vec<String> = manifests
        .iter()
        .filter_map(|m| m.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    offered.sort();
    offered.dedup();
    format!(
        "no match for this platform; offered: {}",
        if offered.is_empty() {
            "none".into()
        } else {
            offered.join(", ")
        }
    )
}

/// An image's config.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigFile {
    pub(crate) platform: Platform,
    pub(crate) diff_ids: Vec<String>,
    pub(crate) run: ImageConfig,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawConfigFile {
    architecture: Option<String>,
    os: Option<String>,
    rootfs: Option<RawRootFs>,
    config: Option<RawConfig>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawRootFs {
    #[serde(deserialize_with = "null_is_default")]
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawConfig {
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    working_dir: Option<String>,
    user: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    source: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(source)?.unwrap_or_default())
}

impl ConfigFile {
    /// Parses a config.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let raw: RawConfigFile =
            serde_json::from_slice(text).map_err(|e| format!("config: {e}"))?;
        let config = raw.config.unwrap_or_default();
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            platform: Platform {
                architecture: raw.architecture.unwrap_or_default(),
                os: raw.os.unwrap_or_default(),
                variant: None,
            },
            diff_ids: raw.rootfs.unwrap_or_default().diff_ids,
            run: ImageConfig {
                env: config
                    .env
                    .into_iter()
                    .map(|both| match both.split_once('=') {
                        Some((name, value)) => (name.to_string(), value.to_string()),
                        None => (both, String::new()),
                    })
                    .collect(),
                entrypoint: config.entrypoint,
                cmd: config.cmd,
                working_dir: filled(config.working_dir),
                user: filled(config.user),
                exposed_ports: config.exposed_ports.into_keys().collect(),
                volumes: config.volumes.into_keys().collect(),
                stop_signal: filled(config.stop_signal),
                labels: config.labels,
            },
        })
    }

    fn is_wasm_platform(&self) -> bool {
        matches!(self.platform.architecture.as_str(), "wasm" | "wasm32")
            || matches!(self.platform.os.as_str(), "wasi" | "wasip1" | "wasip2")
    }

    /// The first word of the command line, if it names a Wasm file.
    pub(crate) fn entry_wasm(&self) -> Option<&str> {
        self.entry().filter(|entry| entry.ends_with(".wasm"))
    }

    /// The first word of the command line.
    pub(crate) fn entry(&self) -> Option<&str> {
        self.run
            .entrypoint
            .first()
            .or(self.run.cmd.first())
            .map(String::as_str)
    }
}

/// Whether a file's first bytes are a Wasm module's or component's.
pub(crate) fn is_wasm(start: &[u8]) -> bool {
    // `\0asm`, then version and layer: 1,0 is a module; a component's layer is 1.
    matches!(
        start,
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] | [0, b'a', b's', b'm', _, 0, 1, 0, ..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        Descriptor {
            digest: format!("{os}/{architecture}{}", variant.unwrap_or("")),
            platform: Some(Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.map(String::from),
            }),
            ..Descriptor::default()
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn an_index_gives_this_machine_then_wasm() {
        let all = [
            entry("unknown", "unknown", None),
            entry("linux", "arm64", Some("v8")),
            entry("wasip1", "wasm", None),
            entry("linux", "amd64", Some("v3")),
            entry("wasip2", "wasm", None),
            entry("linux", "amd64", None),
        ];
        assert_eq!(choose(&all).unwrap().digest, "linux/amd64");
        assert_eq!(choose(&all[..5]).unwrap().digest, "wasip2/wasm");
        assert_eq!(choose(&all[..3]).unwrap().digest, "wasip1/wasm");
        assert!(choose(&all[..2]).is_none());
        assert_eq!(
            no_platform(&all[..2]),
            "no match for this platform; offered: linux/arm64"
        );
        let bare = Descriptor {
            digest: "x".into(),
            ..Descriptor::default()
        };
        assert_eq!(choose(std::slice::from_ref(&bare)).unwrap().digest, "x");
        assert!(choose(&[bare.clone(), bare]).is_none());
    }

    #[test]
    fn nulls_in_a_config_are_nothing() {
        let text =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},
            "config":{"Env":["A=b=c","D"],"Entrypoint":null,"Cmd":["/x"],"User":"","Labels":null,
            "ExposedPorts":{"80/tcp":{}},"WorkingDir":""}}"#;
        let config = ConfigFile::parse(text).unwrap();
        assert_eq!(
            config.run.env,
            [("A".into(), "b=c".into()), ("D".into(), String::new())]
        );
        assert_eq!(config.run.cmd, ["/x"]);
        assert_eq!(config.run.exposed_ports, ["80/tcp"]);
        assert_eq!((config.run.user, config.run.working_dir), (None, None));
    }

    #[test]
    fn the_kind_shows_without_layers() {
        let manifest = |media_type: &str| Manifest {
            config: Descriptor::default(),
            layers: vec![Descriptor {
                media_type: media_type.into(),
                ..Descriptor::default()
            }],
            annotations: BTreeMap::new(),
        };
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let plain = ConfigFile::default();
        for media_type in WASM_LAYERS {
            assert_eq!(manifest(media_type).kind(&plain), ImageKind::Wasm);
        }
        assert_eq!(manifest(tar).kind(&plain), ImageKind::Container);
        let mut entry = plain.clone();
        entry.run.entrypoint = vec!["/app.wasm".into()];
        assert_eq!(manifest(tar).kind(&entry), ImageKind::Wasm);
        let mut platform = plain.clone();
        platform.platform.architecture = "wasm".into();
        assert_eq!(manifest(tar).kind(&platform), ImageKind::Wasm);
        let mut annotated = manifest(tar);
        annotated
            .annotations
            .insert("module.wasm.image/variant".into(), "compat-smart".into());
        assert_eq!(annotated.kind(&plain), ImageKind::Wasm);
    }

    #[test]
    fn modules_and_components_are_told_from_other_files() {
        assert!(is_wasm(b"\0asm\x01\0\0\0"));
        assert!(is_wasm(b"\0asm\x0d\0\x01\0more"));
        assert!(!is_wasm(b"\0asm"));
        assert!(!is_wasm(b"\x7fELF\x02\x01\x01\0"));
    }
}
