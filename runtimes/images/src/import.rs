//! Imports: OCI layouts (directories or archives), docker archives, and bare Wasm modules.
//!
//! An archive is not unpacked first: one pass notes where its files begin, and layers are read in
//! place.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufReader, Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use wherry_runtime_api::{Image, ImageError};

use crate::{
    disk::{self, Workspace},
    layer::{self, Incoming},
    manifest::{self, ConfigFile, DOCUMENT_BYTES_MAX, Descriptor, Document, Manifest},
    pull, reference,
    store::{Inner, Store},
    tarball::{Kind, Tarball},
    unpack::{Budget, Failure},
};

/// Entries of an archive. Two per layer and image; this is for thousands of them.
const ARCHIVE_ENTRIES_MAX: usize = 20_000;

/// Bytes of a name in an archive. Digests make them 80 long or so.
const NAME_BYTES_MAX: usize = 1024;

/// Links followed inside an archive.
const LINKS_MAX: usize = 8;

impl Store {
    /// Takes images from a file or directory: an OCI layout, an archive of one, a docker archive
    /// (each as it is or compressed), or a Wasm module or component.
    ///
    /// `names` replace the names inside, and can only be given for a single image. Repeatable.
    ///
    /// # Errors
    /// As for a pull; [`ImageError::InvalidName`] for `names` that cannot be used.
    ///
    /// # Cancel safety
    /// Dropping the future lets the import run to its end.
    pub async fn import(&self, archive: &Path, names: &[String]) -> Result<Vec<Image>, ImageError> {
        let mut tags = Vec::new();
        for name in names {
            tags.push(to_tag(name)?);
        }
        let path = archive.to_path_buf();
        self.blocking(move |inner| {
            let content = inner.lock_content()?;
            let mut candidates = Vec::new();
            let imported = Import {
                inner,
                path: &path,
                candidates: &mut candidates,
            }
            .run(&tags);
            drop(content);
            if matches!(imported, Err(ImageError::NoSpace { .. })) {
                inner.sweep(&candidates.into_iter().collect())?;
            }
            imported
        })
        .await
    }
}

/// A name in canonical form. Digests are not for the asking: they follow from the content.
fn to_tag(name: &str) -> Result<String, ImageError> {
    let parsed = reference::parse(name)?;
    match parsed.is_by_digest() {
        true => Err(ImageError::InvalidName {
            reference: name.into(),
            why: "a digest cannot be given".into(),
        }),
        false => Ok(parsed.to_string()),
    }
}

struct Import<'a> {
    inner: &'a Inner,
    path: &'a Path,
    /// What was brought into the store, for clearing it away again.
    candidates: &'a mut Vec<String>,
}

/// Where an archive's or layout's files are.
enum Files {
    Directory(PathBuf),
    Archive {
        file: Arc<File>,
        places: HashMap<String, Place>,
        _workspace: Option<Workspace>,
    },
}

#[derive(Clone, Debug)]
enum Place {
    Bytes { offset: u64, size: u64 },
    Link(String),
}

/// A part of a file, read without moving the file's own position.
struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// An entry of a docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Import<'_> {
    fn run(&mut self, tags: &[String]) -> Result<Vec<Image>, ImageError> {
        let in_context = disk::for_image(&self.path.display().to_string(), &self.inner.root);
        let files = if self.path.is_dir() {
            Files::Directory(self.path.to_path_buf())
        } else {
            let mut file = File::open(self.path).map_err(disk::at(self.path))?;
            let mut start = Vec::new();
            (&mut file)
                .take(8)
                .read_to_end(&mut start)
                .map_err(disk::at(self.path))?;
            file.rewind().map_err(disk::at(self.path))?;
            if start.starts_with(b"\0asm") {
                return self
                    .wasm(file, tags)
                    .map(|image| vec![image])
                    .map_err(in_context);
            }
            self.open_archive(file, &start).map_err(&in_context)?
        };
        let imported = if files.has("index.json") {
            self.layout(&files, tags)
        } else if files.has("manifest.json") {
            self.docker(&files, tags)
        } else {
            Err(self.corrupt("neither an OCI layout, a docker archive nor a Wasm module"))
        };
        imported.map_err(in_context)
    }

    fn corrupt(&self, why: impl Into<String>) -> ImageError {
        ImageError::Corrupt {
            reference: self.path.display().to_string(),
            why: why.into(),
        }
    }

    fn failed(&self, failure: Failure) -> ImageError {
        match failure {
            Failure::Io(what, source) => ImageError::Io { what, source },
            Failure::Corrupt(why) => self.corrupt(why),
            Failure::TooLarge(why) => ImageError::TooLarge {
                reference: self.path.display().to_string(),
                why,
            },
        }
    }

    fn open_archive(&self, mut file: File, start: &[u8]) -> Result<Files, ImageError> {
        let mut workspace = None;
        if layer::is_compressed(start) {
            let made = Workspace::create(&self.inner.tmp())?;
            let path = made.path().join("archive.tar");
            let mut plain = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(disk::at(&path))?;
            layer::decompress_file(
                &mut file,
                &mut plain,
                self.inner.config.limits.unpacked_bytes_max,
            )
            .map_err(|failure| self.failed(failure))?;
            plain.rewind().map_err(disk::at(&path))?;
            (file, workspace) = (plain, Some(made));
        }
        let file = Arc::new(file);
        let mut places = HashMap::new();
        let whole = Section {
            file: file.clone(),
            offset: 0,
            left: u64::MAX,
        };
        let mut tarball = Tarball::new(BufReader::with_capacity(64 * 1024, whole));
        while let Some(entry) = tarball
            .next()
            .map_err(|e| self.failed(Failure::from_source(e)))?
        {
            let target_bytes = match &entry.kind {
                Kind::Link(target) | Kind::Symlink(target) => target.len(),
                _ => 0,
            };
            if entry.path.len().max(target_bytes) > NAME_BYTES_MAX {
                return Err(self.corrupt(format!(
                    "name longer than {NAME_BYTES_MAX} bytes in the archive"
                )));
            }
            let Some(name) = std::str::from_utf8(&entry.path)
                .ok()
                .and_then(|name| plain_name("", name))
            else {
                continue;
            };
            let place = match entry.kind {
                Kind::Regular(None) => Place::Bytes {
                    offset: tarball.position(),
                    size: entry.size,
                },
                Kind::Link(target) => Place::Link(String::from_utf8_lossy(&target).into_owned()),
                Kind::Symlink(target) => {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    match plain_name(directory, &String::from_utf8_lossy(&target)) {
                        Some(target) => Place::Link(target),
                        None => continue,
                    }
                }
                _ => continue,
            };
            places.insert(name, place);
            if places.len() > ARCHIVE_ENTRIES_MAX {
                return Err(self.corrupt(format!(
                    "more than {ARCHIVE_ENTRIES_MAX} files in the archive"
                )));
            }
        }
        Ok(Files::Archive {
            file,
            places,
            _workspace: workspace,
        })
    }

    fn layout(&mut self, files: &Files, tags: &[String]) -> Result<Vec<Image>, ImageError> {
        let Document::Index(entries) = self.document(files, "index.json")? else {
            return Err(self.corrupt("index.json: not an index"));
        };
        // Entries of one name are one image for several platforms.
        let mut groups: Vec<(Option<String>, Vec<Descriptor>)> = Vec::new();
        for entry in entries {
            let name = [
                "io.containerd.image.name",
                "org.opencontainers.image.ref.name",
            ]
            .iter()
            .find_map(|key| entry.annotations.get(*key))
            .cloned();
            match groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, group)) => group.push(entry),
                None => groups.push((name, vec![entry])),
            }
        }
        self.check_names(groups.len(), tags)?;
        let mut images = Vec::new();
        for (name, group) in groups {
            let entry = match group.as_slice() {
                [only] => only,
                several => manifest::choose(several)
                    .ok_or_else(|| self.corrupt(manifest::no_platform(several)))?,
            };
            let mut digest = entry.digest.clone();
            let mut document = self.blob_document(files, &digest)?;
            for _ in 0..2 {
                let Document::Index(entries) = &document else {
                    break;
                };
                let chosen = manifest::choose(entries)
                    .ok_or_else(|| self.corrupt(manifest::no_platform(entries)))?;
                digest = chosen.digest.clone();
                document = self.blob_document(files, &digest)?;
            }
            let Document::Manifest(manifest) = document else {
                return Err(self.corrupt("index of indexes"));
            };
            // A bare tag ("1.0") names no repository; whole references only.
            let own = name
                .filter(|name| name.contains(['/', ':']))
                .and_then(|name| to_tag(&name).ok());
            let tags: Vec<String> = if tags.is_empty() {
                own.into_iter().collect()
            } else {
                tags.to_vec()
            };
            images.push(self.take(files, &manifest, &digest, &entry.digest, tags)?);
        }
        Ok(images)
    }

    fn check_names(&self, images: usize, tags: &[String]) -> Result<(), ImageError> {
        if images == 0 {
            return Err(self.corrupt("no image in it"));
        }
        if images > 1 && !tags.is_empty() {
            return Err(self.corrupt(format!(
                "{images} images in it, so that a name cannot be given"
            )));
        }
        Ok(())
    }

    /// Brings a layout's image into the store.
    fn take(
        &mut self,
        files: &Files,
        manifest: &Manifest,
        manifest_digest: &str,
        digest: &str,
        tags: Vec<String>,
    ) -> Result<Image, ImageError> {
        let digests = tags
            .iter()
            .filter_map(|tag| reference::parse(tag).ok())
            .map(|tag| format!("{}@{digest}", tag.name()))
            .collect();
        if let Some(module) = manifest.wasm_layer() {
            let (source, _) = self.blob(files, &module.digest)?;
            self.candidates.push(module.digest.clone());
            self.inner.take_wasm(source, Some(&module.digest))?;
            let config = ConfigFile::default();
            return self.inner.put(self.inner.describe(
                manifest,
                manifest_digest,
                config,
                tags,
                digests,
            )?);
        }
        let config = self.config(&self.blob_bytes(files, &manifest.config.digest)?)?;
        let budget = Budget::new(self.inner.config.limits);
        let pairs = pull::pair_layers(&manifest.layers, &config.diff_ids)
            .map_err(|why| self.corrupt(why))?;
        for (layer, diff_id) in pairs {
            let (source, size) = self.blob(files, &layer.digest)?;
            let diff_id = diff_id.unwrap_or_default();
            self.candidates.push(diff_id.clone());
            self.inner.take_layer(
                Incoming {
                    source,
                    size,
                    digest: Some(layer.digest),
                    diff_id,
                },
                &budget,
            )?;
        }
        self.inner.put(
            self.inner
                .describe(manifest, manifest_digest, config, tags, digests)?,
        )
    }

    fn docker(&mut self, files: &Files, tags: &[String]) -> Result<Vec<Image>, ImageError> {
        let text = self.bytes(files, "manifest.json")?;
        let entries: Vec<DockerManifest> = serde_json::from_slice(&text)
            .map_err(|e| self.corrupt(format!("manifest.json: {e}")))?;
        self.check_names(entries.len(), tags)?;
        let mut images = Vec::new();
        for entry in entries {
            let text = self.bytes(files, &entry.config)?;
            let config = self.config(&text)?;
            let layers: Vec<Descriptor> = entry
                .layers
                .iter()
                .map(|name| Descriptor {
                    digest: name.clone(),
                    ..Descriptor::default()
                })
                .collect();
            let pairs =
                pull::pair_layers(&layers, &config.diff_ids).map_err(|why| self.corrupt(why))?;
            let budget = Budget::new(self.inner.config.limits);
            for (layer, diff_id) in pairs {
                let (source, size) = self.file(files, &layer.digest)?;
                let diff_id = diff_id.unwrap_or_default();
                self.candidates.push(diff_id.clone());
                self.inner.take_layer(
                    Incoming {
                        source,
                        size,
                        digest: None,
                        diff_id,
                    },
                    &budget,
                )?;
            }
            let tags = match tags {
                [] => entry
                    .repo_tags
                    .iter()
                    .flatten()
                    .filter_map(|tag| to_tag(tag).ok())
                    .collect(),
                tags => tags.to_vec(),
            };
            let id = layer::digest_of(&text);
            let manifest = Manifest {
                config: Descriptor {
                    digest: id.clone(),
                    ..Descriptor::default()
                },
                layers,
                annotations: BTreeMap::new(),
            };
            images.push(
                self.inner.put(
                    self.inner
                        .describe(&manifest, &id, config, tags, Vec::new())?,
                )?,
            );
        }
        Ok(images)
    }

    /// A bare module becomes the artifact that pushing it would make, so that its ID is the same
    /// wherever it is imported.
    fn wasm(&mut self, file: File, tags: &[String]) -> Result<Image, ImageError> {
        let (digest, size) = self.inner.take_wasm(BufReader::new(file), None)?;
        self.candidates.push(digest.clone());
        let config = b"{}";
        let text = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.wasm.config.v0+json",
                "digest": layer::digest_of(config),
                "size": config.len(),
            },
            "layers": [{ "mediaType": "application/wasm", "digest": digest, "size": size }],
        })
        .to_string();
        let Ok(Document::Manifest(manifest)) = Document::parse(text.as_bytes()) else {
            return Err(self.corrupt("manifest made for it cannot be read"));
        };
        let stem = self
            .path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .map(|stem| stem.replace('_', "-"));
        let tags = match tags {
            [] => stem
                .and_then(|stem| to_tag(&stem.to_ascii_lowercase()).ok())
                .into_iter()
                .collect(),
            tags => tags.to_vec(),
        };
        let id = layer::digest_of(text.as_bytes());
        self.inner.put(self.inner.describe(
            &manifest,
            &id,
            ConfigFile::default(),
            tags,
            Vec::new(),
        )?)
    }

    fn config(&self, text: &[u8]) -> Result<ConfigFile, ImageError> {
        ConfigFile::parse(text).map_err(|why| self.corrupt(why))
    }

    fn document(&self, files: &Files, name: &str) -> Result<Document, ImageError> {
        Document::parse(&self.bytes(files, name)?)
            .map_err(|why| self.corrupt(format!("{name}: {why}")))
    }

    fn blob_document(&self, files: &Files, digest: &str) -> Result<Document, ImageError> {
        Document::parse(&self.blob_bytes(files, digest)?).map_err(|why| self.corrupt(why))
    }

    /// A small blob, checked.
    fn blob_bytes(&self, files: &Files, digest: &str) -> Result<Vec<u8>, ImageError> {
        let bytes = self.bytes(files, &self.blob_name(digest)?)?;
        let got = layer::digest_of(&bytes);
        if got == digest {
            Ok(bytes)
        } else {
            Err(self.corrupt(format!("digest mismatch: expected {digest}, got {got}")))
        }
    }

    /// A blob, not checked yet.
    fn blob(&self, files: &Files, digest: &str) -> Result<(Section, u64), ImageError> {
        self.file(files, &self.blob_name(digest)?)
    }

    fn blob_name(&self, digest: &str) -> Result<String, ImageError> {
        let hex = reference::digest_hex(digest)
            .ok_or_else(|| self.corrupt(format!("{digest:?} is not a sha256 digest")))?;
        Ok(format!("blobs/sha256/{hex}"))
    }

    fn bytes(&self, files: &Files, name: &str) -> Result<Vec<u8>, ImageError> {
        let (source, size) = self.file(files, name)?;
        if size > DOCUMENT_BYTES_MAX {
            return Err(self.corrupt(format!("{name}: larger than {DOCUMENT_BYTES_MAX} bytes")));
        }
        let mut bytes = Vec::new();
        source
            .take(DOCUMENT_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(disk::at(self.path))?;
        Ok(bytes)
    }

    fn file(&self, files: &Files, name: &str) -> Result<(Section, u64), ImageError> {
        match files.open(name) {
            Ok(section) => {
                let size = section.left;
                Ok((section, size))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(self.corrupt(format!("{name} is missing")))
            }
            Err(e) => Err(disk::io_error(format!("{}: {name}", self.path.display()))(
                e,
            )),
        }
    }
}

impl Files {
    fn has(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    fn open(&self, name: &str) -> io::Result<Section> {
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        match self {
            Self::Directory(root) => {
                let file = layer::open_in(root, name)?;
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(not_found());
                }
                Ok(Section {
                    file: Arc::new(file),
                    offset: 0,
                    left: metadata.len(),
                })
            }
            Self::Archive { file, places, .. } => {
                let mut name = plain_name("", name).ok_or_else(not_found)?;
                for _ in 0..LINKS_MAX {
                    match places.get(&name).ok_or_else(not_found)? {
                        Place::Bytes { offset, size } => {
                            return Ok(Section {
                                file: file.clone(),
                                offset: *offset,
                                left: *size,
                            });
                        }
                        Place::Link(target) => {
                            name = plain_name("", target).ok_or_else(not_found)?
                        }
                    }
                }
                Err(not_found())
            }
        }
    }
}

/// A path without `.` and `..`, seen from `directory`; `None` if it leads outside.
fn plain_name(directory: &str, name: &str) -> Option<String> {
    let mut kept: Vec<&str> = directory.split('/').filter(|c| !c.is_empty()).collect();
    for component in name.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(kept.pop()?),
            component => kept.push(component),
        }
    }
    Some(kept.join("/"))
}
