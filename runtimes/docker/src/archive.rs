//! Docker archives: what `docker load` takes. Made of an OCI layout where that is what there is.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Manifests and configs are far smaller; more is no image.
const DOCUMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why an archive cannot be made.
#[derive(Debug, Error)]
pub(crate) enum ArchiveError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    /// It is no image.
    #[error("{path}: {why}")]
    Invalid { path: String, why: String },
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path = path.display().to_string();
    move |source| ArchiveError::Io { path, source }
}

/// An image small enough to be held in memory.
pub(crate) struct ArchiveImage {
    pub(crate) names: Vec<String>,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Layer>,
}

/// A layer as it is uncompressed.
pub(crate) struct Layer {
    pub(crate) diff_id: String,
    pub(crate) tar: Vec<u8>,
}

/// The machine in OCI's words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An archive of files with a mode each. Everything else about them is fixed, so the bytes are as well.
pub(crate) fn tar(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        // Writing to memory does not fail, and our names are short.
        let _ = append(&mut builder, name, content.len() as u64, *mode, *content);
    }
    builder.into_inner().unwrap_or_default()
}

fn append(
    builder: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    mode: u32,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    builder.append_data(&mut header, name, content)
}

fn hex(digest: &str) -> &str {
    digest.split_once(':').map_or(digest, |(_, hex)| hex)
}

/// An archive of whole images.
pub(crate) fn docker_archive(images: &[ArchiveImage]) -> Vec<u8> {
    let manifest: Vec<_> = images
        .iter()
        .map(|image| {
            let layers: Vec<_> = image
                .layers
                .iter()
                .map(|layer| format!("{}.tar", hex(&layer.diff_id)))
                .collect();
            json!({
                "Config": format!("{:x}.json", Sha256::digest(&image.config)),
                "RepoTags": image.names,
                "Layers": layers,
            })
        })
        .collect();
    let manifest = json!(manifest).to_string();
    let mut files: Vec<(String, &[u8])> = Vec::new();
    for image in images {
        files.push((
            format!("{:x}.json", Sha256::digest(&image.config)),
            &image.config,
        ));
        for layer in &image.layers {
            files.push((format!("{}.tar", hex(&layer.diff_id)), &layer.tar));
        }
    }
    files.push(("manifest.json".to_owned(), manifest.as_bytes()));
    let files: Vec<_> = files
        .iter()
        .map(|(name, content)| (name.as_str(), *content, 0o644))
        .collect();
    tar(&files)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// What `docker load` is to be given for a file or directory that holds images.
pub(crate) enum Source {
    /// This file as it is.
    AsIs(PathBuf),
    /// An archive that was made of it.
    Made(tempfile::TempDir),
}

impl Source {
    /// The archive.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::AsIs(path) => path.clone(),
            Self::Made(directory) => directory.path().join("archive.tar"),
        }
    }
}

/// Finds out what a path holds, and makes an archive of it if the engine cannot take it as it is.
pub(crate) fn prepare(path: &Path) -> Result<Source, ArchiveError> {
    let work = || tempfile::tempdir().map_err(named(path));
    if path.is_dir() {
        let made = work()?;
        convert(path, &made.path().join("archive.tar"))?;
        return Ok(Source::Made(made));
    }
    let holds = entries(path)?;
    // Newer docker archives are OCI layouts as well; the engine reads the part that it knows.
    if holds.is_none_or(|is_layout| !is_layout) {
        return Ok(Source::AsIs(path.to_owned()));
    }
    let made = work()?;
    let layout = made.path().join("layout");
    let file = File::open(path).map_err(named(path))?;
    tar::Archive::new(file)
        .unpack(&layout)
        .map_err(named(path))?;
    convert(&layout, &made.path().join("archive.tar"))?;
    fs::remove_dir_all(&layout).map_err(named(&layout))?;
    Ok(Source::Made(made))
}

/// Whether an archive is an OCI layout and nothing that the engine knows; `None` if it is no plain archive.
fn entries(path: &Path) -> Result<Option<bool>, ArchiveError> {
    let file = File::open(path).map_err(named(path))?;
    let mut archive = tar::Archive::new(file);
    let Ok(entries) = archive.entries() else {
        return Ok(None);
    };
    let (mut has_manifest, mut has_index) = (false, false);
    for entry in entries {
        let Ok(entry) = entry else { return Ok(None) };
        let name = entry.path().unwrap_or_default().into_owned();
        let name = name.strip_prefix(".").unwrap_or(&name);
        has_manifest |= name == Path::new("manifest.json");
        has_index |= name == Path::new("index.json");
    }
    Ok(Some(has_index && !has_manifest))
}

/// Writes a docker archive of an OCI layout.
fn convert(layout: &Path, out: &Path) -> Result<(), ArchiveError> {
    let index: Document = document(&layout.join("index.json"))?;
    let mut builder = tar::Builder::new(File::create(out).map_err(named(out))?);
    let mut manifests = Vec::new();
    for descriptor in &index.manifests {
        let name = descriptor
            .annotations
            .get("io.containerd.image.name")
            .or_else(|| {
                descriptor
                    .annotations
                    .get("org.opencontainers.image.ref.name")
            })
            .filter(|name| name.contains([':', '/']));
        manifests.push(convert_image(layout, descriptor, name, &mut builder)?);
    }
    let manifest = json!(manifests).to_string();
    append(
        &mut builder,
        "manifest.json",
        manifest.len() as u64,
        0o644,
        manifest.as_bytes(),
    )
    .and_then(|()| builder.into_inner()?.sync_data())
    .map_err(named(out))
}

fn convert_image(
    layout: &Path,
    descriptor: &Descriptor,
    name: Option<&String>,
    builder: &mut tar::Builder<File>,
) -> Result<serde_json::Value, ArchiveError> {
    let mut manifest: Document = document(&blob(layout, &descriptor.digest)?)?;
    if !manifest.manifests.is_empty() {
        let ours = |wanted: &&Descriptor| {
            wanted
                .platform
                .as_ref()
                .is_some_and(|p| p.os == "linux" && p.architecture == architecture())
        };
        let chosen = manifest
            .manifests
            .iter()
            .find(ours)
            .or_else(|| {
                manifest
                    .manifests
                    .iter()
                    .find(|other| other.platform.is_none())
            })
            .ok_or_else(|| ArchiveError::Invalid {
                path: layout.display().to_string(),
                why: format!("no image for linux/{}", architecture()),
            })?;
        manifest = document(&blob(layout, &chosen.digest)?)?;
    }
    let config = manifest.config.ok_or_else(|| ArchiveError::Invalid {
        path: layout.display().to_string(),
        why: "a manifest without config".to_owned(),
    })?;
    let mut add = |digest: &str, extension: &str| -> Result<String, ArchiveError> {
        let path = blob(layout, digest)?;
        let name = format!("{}.{extension}", hex(digest));
        let file = File::open(&path).map_err(named(&path))?;
        let size = file.metadata().map_err(named(&path))?.len();
        append(builder, &name, size, 0o644, file).map_err(named(&path))?;
        Ok(name)
    };
    let config = add(&config.digest, "json")?;
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        layers.push(add(&layer.digest, "tar")?);
    }
    Ok(json!({
        "Config": config,
        "RepoTags": name.into_iter().collect::<Vec<_>>(),
        "Layers": layers,
    }))
}

fn document<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, ArchiveError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut text))
        .map_err(named(path))?;
    serde_json::from_slice(&text).map_err(|error| ArchiveError::Invalid {
        path: path.display().to_string(),
        why: error.to_string(),
    })
}

fn blob(layout: &Path, digest: &str) -> Result<PathBuf, ArchiveError> {
    match digest.split_once(':') {
        Some((algorithm, hex))
            if !hex.is_empty()
                && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
                && algorithm.bytes().all(|byte| byte.is_ascii_alphanumeric()) =>
        {
            Ok(layout.join("blobs").join(algorithm).join(hex))
        }
        _ => Err(ArchiveError::Invalid {
            path: layout.display().to_string(),
            why: format!("digest {digest} is none"),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn write_blob(layout: &Path, content: &[u8]) -> String {
        let hex = format!("{:x}", Sha256::digest(content));
        let directory = layout.join("blobs/sha256");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(&hex), content).unwrap();
        format!("sha256:{hex}")
    }

    fn names(archive: &Path) -> Vec<String> {
        let mut archive = tar::Archive::new(File::open(archive).unwrap());
        archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect()
    }

    #[test]
    fn a_layout_becomes_an_archive_that_holds_its_config_and_layers() {
        let layout = tempfile::tempdir().unwrap();
        let config = write_blob(layout.path(), b"{}");
        let layer = write_blob(layout.path(), b"layer");
        let manifest = json!({"config": {"digest": config}, "layers": [{"digest": layer}]});
        let manifest = write_blob(layout.path(), manifest.to_string().as_bytes());
        let index = json!({"manifests": [{"digest": manifest}]}).to_string();
        fs::write(layout.path().join("index.json"), index).unwrap();
        let source = prepare(layout.path()).unwrap();
        let expected = [
            format!("{}.json", hex(&config)),
            format!("{}.tar", hex(&layer)),
            "manifest.json".to_owned(),
        ];
        assert_eq!(names(&source.path()), expected);
    }

    #[test]
    fn a_digest_that_leads_out_of_the_layout_is_refused() {
        for digest in ["sha256:../../etc/passwd", "sha256:", "../x:00", "plain"] {
            assert!(blob(Path::new("/layout"), digest).is_err(), "{digest}");
        }
    }

    #[test]
    fn a_docker_archive_is_taken_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        fs::write(&path, docker_archive(&[])).unwrap();
        assert!(matches!(prepare(&path).unwrap(), Source::AsIs(same) if same == path));
    }
}
