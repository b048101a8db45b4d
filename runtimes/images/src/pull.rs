//! Pulls: from a reference to an image in the store.
//!
//! ```text
//!  resolve: hosts × credentials, until one answers with a manifest for this platform
//!  fetch:   each layer into partial/<digest>, going on where an earlier attempt broke off
//!  take:    verify and unpack (layer.rs)
//!  put:     the image's record, last
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, future::try_join_all};
use rustix::fs::{FlockOperation, flock};
use tokio::io::{AsyncWriteExt, BufWriter};
use wherry_runtime_api::{
    Image, ImageError, ImageKind, PullProgress, PullProgressSender, RegistryAuth,
};

use crate::{
    disk,
    layer::{self, Incoming},
    manifest::{self, ConfigFile, Descriptor, Document, Manifest},
    record::{ImageRecord, WasmFile},
    reference::{self, Reference},
    registry::{Http, Repository, Trouble, backoff, chain},
    store::{Inner, Store},
    unpack::Budget,
};

/// Attempts at one blob altogether, however much progress each makes.
const ATTEMPTS_MAX: u32 = 100;

/// How long a download waits for one that was given up to let go of the file.
const HANDOVER: Duration = Duration::from_secs(1);

/// An image in a registry.
struct Resolved {
    repository: Repository,
    /// What the reference named: an index, or the manifest itself.
    digest: String,
    manifest: Manifest,
    manifest_digest: String,
    config: ConfigFile,
}

impl Store {
    pub(crate) async fn kind_of(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
    ) -> Result<ImageKind, ImageError> {
        let name = reference.to_string();
        if let Some(record) = self.blocking(move |inner| inner.find(&name)).await? {
            return Ok(record.kind);
        }
        let parsed = reference::parse(reference)?;
        let found = self
            .resolve(&parsed, auth)
            .await
            .map_err(|trouble| trouble.of(reference))?;
        Ok(found.manifest.kind(&found.config))
    }

    pub(crate) async fn pull(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        progress: Option<PullProgressSender>,
    ) -> Result<Image, ImageError> {
        let parsed = reference::parse(reference)?;
        let content = self.blocking(|inner| inner.lock_content()).await?;
        let pulled = self.pull_content(reference, &parsed, auth, progress).await;
        drop(content);
        if let Err((ImageError::NoSpace { .. }, candidates)) = &pulled {
            let candidates = candidates.iter().cloned().collect();
            self.blocking(move |inner| inner.sweep(&candidates)).await?;
        }
        pulled.map_err(|(error, _)| error)
    }

    /// Pulls; on failure also names the content that may be in the store now.
    async fn pull_content(
        &self,
        reference: &str,
        parsed: &Reference,
        auth: &[RegistryAuth],
        progress: Option<PullProgressSender>,
    ) -> Result<Image, (ImageError, Vec<String>)> {
        let found = self
            .resolve(parsed, auth)
            .await
            .map_err(|trouble| (trouble.of(reference), Vec::new()))?;
        let corrupt = |why: String| Trouble::Corrupt(why).of(reference);
        let image_layers = match found.manifest.wasm_layer() {
            Some(module) => vec![(module.clone(), None)],
            None => {
                let (layers, diff_ids) = (&found.manifest.layers, &found.config.diff_ids);
                pair_layers(layers, diff_ids).map_err(|why| (corrupt(why), Vec::new()))?
            }
        };
        let candidates: Vec<String> = image_layers
            .iter()
            .map(|(layer, id)| id.clone().unwrap_or(layer.digest.clone()))
            .collect();
        let fetched = self.fetch(reference, &found, &image_layers, progress).await;
        let finish = match fetched {
            Ok(()) => self.finish(reference, parsed, found).await,
            Err(e) => Err(e),
        };
        finish.map_err(|e| (e, candidates))
    }

    async fn resolve(
        &self,
        parsed: &Reference,
        auth: &[RegistryAuth],
    ) -> Result<Resolved, Trouble> {
        self.ask(parsed, auth, |repository| resolve_in(repository, parsed))
            .await
    }

    /// Asks mirrors and the registry, with each credential, until one answers.
    pub(crate) async fn ask<T, F: Future<Output = Result<T, Trouble>>>(
        &self,
        parsed: &Reference,
        auth: &[RegistryAuth],
        question: impl Fn(Repository) -> F,
    ) -> Result<T, Trouble> {
        let registries = &self.inner.config.registries;
        let http = self
            .inner
            .http
            .get_or_try_init(async || Http::build(registries))
            .await
            .map_err(Trouble::Unavailable)?;
        let mut worst: Option<Trouble> = None;
        for host in http.hosts(parsed) {
            // What a mirror said matters no more once the next is asked.
            worst = None;
            let credentials = auth
                .iter()
                .filter(|_| host.mirrored.is_none())
                .cloned()
                .map(Some)
                .chain([None]);
            for credential in credentials {
                let attempt = async {
                    let repository = http.repository(&host, parsed, credential).await?;
                    question(repository).await
                };
                match attempt.await {
                    Ok(found) => return Ok(found),
                    Err(trouble) => {
                        tracing::debug!(host = host.address, image = %parsed, ?trouble, "Image not resolved");
                        let is_hopeless =
                            matches!(trouble, Trouble::Unavailable(_) | Trouble::Corrupt(_));
                        if worst
                            .as_ref()
                            .is_none_or(|worst| trouble.weight() > worst.weight())
                        {
                            worst = Some(trouble);
                        }
                        if is_hopeless {
                            break;
                        }
                    }
                }
            }
        }
        Err(worst.expect("there is at least the registry itself, asked anonymously"))
    }

    /// Brings every layer into the store, some at a time.
    async fn fetch(
        &self,
        reference: &str,
        found: &Resolved,
        layers: &[(Descriptor, Option<String>)],
        progress: Option<PullProgressSender>,
    ) -> Result<(), ImageError> {
        let report = |change: &dyn Fn(&mut PullProgress)| {
            if let Some(progress) = &progress {
                progress.send_modify(|state| change(state));
            }
        };
        let total = layers.iter().map(|(layer, _)| layer.size).sum();
        report(&|state| {
            *state = PullProgress {
                layers_total: layers.len() as u32,
                bytes_total: total,
                ..PullProgress::default()
            };
        });
        let budget = Arc::new(Budget::new(self.inner.config.limits));
        let in_context = disk::for_image(reference, &self.inner.root);
        let one = async |(descriptor, diff_id): &(Descriptor, Option<String>)| {
            let mut got = 0;
            let on_bytes = |now: u64| {
                report(&|state| state.bytes_done = state.bytes_done + now - got);
                got = now;
            };
            self.fetch_layer(
                reference,
                found,
                descriptor,
                diff_id.as_deref(),
                &budget,
                on_bytes,
            )
            .await?;
            report(&|state| {
                state.layers_done += 1;
                state.bytes_done = state.bytes_done + descriptor.size - got;
            });
            Ok::<_, ImageError>(())
        };
        let done = try_join_all(layers.iter().map(one)).await;
        if let Err(ImageError::Io { source, .. }) = &done
            && disk::is_no_space(source)
        {
            for (layer, _) in layers {
                if let Some(hex) = reference::digest_hex(&layer.digest) {
                    disk::remove_tree(&self.inner.root.join("partial").join(hex))?;
                }
            }
        }
        done.map(drop).map_err(in_context)
    }

    async fn fetch_layer(
        &self,
        reference: &str,
        found: &Resolved,
        descriptor: &Descriptor,
        diff_id: Option<&str>,
        budget: &Arc<Budget>,
        mut on_bytes: impl FnMut(u64),
    ) -> Result<(), ImageError> {
        let corrupt = |why: String| Trouble::Corrupt(why).of(reference);
        let key = diff_id.unwrap_or(&descriptor.digest).to_string();
        let hex = reference::digest_hex(&descriptor.digest).ok_or_else(|| {
            corrupt(format!(
                "layer digest {:?} is not a sha256 digest",
                descriptor.digest
            ))
        })?;
        let is_here = |key: String| {
            let is_layer = diff_id.is_some();
            self.blocking(move |inner| match is_layer {
                true => Ok(inner.layer(&key)?.is_some()),
                false => Ok(inner.blob_path(&key)?.is_file()),
            })
        };
        let alone = Arc::new(self.inner.under_way(&key).lock_owned().await);
        if is_here(key.clone()).await? {
            return Ok(());
        }
        let slot = self
            .inner
            .slots
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let slot = Arc::new(slot);

        let path = self.inner.root.join("partial").join(hex);
        // A digest mismatch after a resumed download may be the fault of what was there: once more.
        for is_last in [false, true] {
            let download = Partial::open(&path).await.map_err(disk::at(&path))?;
            let was_resumed = download
                .download(&found.repository, descriptor, &mut on_bytes)
                .await
                .map_err(|e| match e {
                    FetchError::Trouble(trouble) => trouble.of(reference),
                    FetchError::Disk(error) => disk::at(&path)(error),
                })?;
            let source = File::open(&path).map_err(disk::at(&path))?;
            let (descriptor, diff_id, budget) = (
                descriptor.clone(),
                diff_id.map(String::from),
                budget.clone(),
            );
            let held = (alone.clone(), slot.clone());
            let taken = self
                .blocking(move |inner| {
                    // Kept until the work ends, even if nobody waits for it any more.
                    let _held = held;
                    match diff_id {
                        Some(diff_id) => {
                            let digest = Some(descriptor.digest);
                            let layer = Incoming {
                                source,
                                size: descriptor.size,
                                digest,
                                diff_id,
                            };
                            inner.take_layer(layer, &budget).map(drop)
                        }
                        None => inner.take_wasm(source, Some(&descriptor.digest)).map(drop),
                    }
                })
                .await;
            match taken {
                Err(ImageError::Corrupt { .. }) if was_resumed && !is_last => {
                    fs::remove_file(&path).map_err(disk::at(&path))?;
                    on_bytes(0);
                }
                taken => {
                    disk::remove_tree(&path)?;
                    return taken;
                }
            }
        }
        unreachable!("the last round returns")
    }

    /// Everything is here: makes the image.
    async fn finish(
        &self,
        reference: &str,
        parsed: &Reference,
        found: Resolved,
    ) -> Result<Image, ImageError> {
        let name = parsed.name();
        let mut digests = vec![format!("{name}@{}", found.digest)];
        if found.manifest_digest != found.digest {
            digests.push(format!("{name}@{}", found.manifest_digest));
        }
        let tags = if !parsed.is_by_digest() {
            vec![parsed.to_string()]
        } else {
            Vec::new()
        };
        let in_context = disk::for_image(reference, &self.inner.root);
        let Resolved {
            manifest,
            manifest_digest,
            config,
            ..
        } = found;
        self.blocking(move |inner| {
            let record = inner.describe(&manifest, &manifest_digest, config, tags, digests)?;
            inner.put(record)
        })
        .await
        .map_err(in_context)
    }
}

async fn resolve_in(repository: Repository, parsed: &Reference) -> Result<Resolved, Trouble> {
    let wanted = parsed.version();
    let (text, digest) = repository.manifest(wanted).await?;
    let mut document = Document::parse(&text).map_err(Trouble::Corrupt)?;
    let mut manifest_digest = digest.clone();
    // An index may name another one; deeper than that nobody nests.
    for _ in 0..2 {
        let Document::Index(entries) = &document else {
            break;
        };
        let chosen = manifest::choose(entries)
            .ok_or_else(|| Trouble::Corrupt(manifest::no_platform(entries)))?;
        let (text, digest) = repository.manifest(&chosen.digest).await?;
        document = Document::parse(&text).map_err(Trouble::Corrupt)?;
        manifest_digest = digest;
    }
    let Document::Manifest(manifest) = document else {
        return Err(Trouble::Corrupt("index of indexes".into()));
    };
    let config_digest = &manifest.config.digest;
    if reference::digest_hex(config_digest).is_none() {
        return Err(Trouble::Corrupt(format!(
            "config digest {config_digest:?} is not a sha256 digest"
        )));
    }
    let config = match manifest.wasm_layer() {
        // An artifact's config says nothing about how to run it, and need not even be JSON.
        Some(_) => ConfigFile::default(),
        None => ConfigFile::parse(&repository.small_blob(config_digest).await?)
            .map_err(Trouble::Corrupt)?,
    };
    Ok(Resolved {
        repository,
        digest,
        manifest,
        manifest_digest,
        config,
    })
}

/// Layers with their diff IDs, lowest first. Of a layer that occurs twice the upper one stays:
/// what it brings lies above all between, and overlayfs refuses a directory twice.
pub(crate) fn pair_layers(
    layers: &[Descriptor],
    diff_ids: &[String],
) -> Result<Vec<(Descriptor, Option<String>)>, String> {
    if layers.len() != diff_ids.len() {
        return Err(format!(
            "manifest has {} layers, config {}",
            layers.len(),
            diff_ids.len()
        ));
    }
    if let Some(wrong) = diff_ids
        .iter()
        .find(|id| reference::digest_hex(id).is_none())
    {
        return Err(format!("diff ID {wrong:?} is not a sha256 digest"));
    }
    let mut seen = std::collections::HashSet::new();
    let mut pairs: Vec<_> = layers
        .iter()
        .zip(diff_ids)
        .rev()
        .filter(|(_, id)| seen.insert(*id))
        .map(|(layer, id)| (layer.clone(), Some(id.clone())))
        .collect();
    pairs.reverse();
    Ok(pairs)
}

impl Inner {
    /// The record of an image whose content is here.
    pub(crate) fn describe(
        &self,
        manifest: &Manifest,
        manifest_digest: &str,
        config: ConfigFile,
        tags: Vec<String>,
        digests: Vec<String>,
    ) -> Result<ImageRecord, ImageError> {
        let mut record = ImageRecord {
            id: manifest.config.digest.clone(),
            tags,
            digests,
            kind: manifest.kind(&config),
            config: config.run.clone(),
            layers: Vec::new(),
            wasm: None,
            size_bytes: 0,
            added_at: SystemTime::now(),
        };
        if let Some(module) = manifest.wasm_layer() {
            let path = self.blob_path(&module.digest)?;
            record.id = manifest_digest.to_string();
            record.size_bytes = fs::metadata(&path).map_err(disk::at(&path))?.len();
            record.wasm = Some(WasmFile::Blob(module.digest.clone()));
            return Ok(record);
        }
        let corrupt = |why: String| ImageError::Corrupt {
            reference: String::new(),
            why,
        };
        let pairs = pair_layers(&manifest.layers, &config.diff_ids).map_err(corrupt)?;
        record.layers = pairs
            .into_iter()
            .filter_map(|(_, diff_id)| diff_id)
            .collect();
        for diff_id in &record.layers {
            let layer = self
                .layer(diff_id)?
                .ok_or_else(|| corrupt(format!("layer {diff_id} vanished")))?;
            record.size_bytes += layer.size_bytes;
        }
        if record.kind == ImageKind::Wasm {
            record.wasm = self.find_wasm(&record.layers, &config)?;
            if record.wasm.is_none() {
                // A file may be called .wasm without being one.
                if config.entry_wasm().is_none() {
                    return Err(corrupt(
                        "meant for Wasm, but its entry point is no Wasm module".into(),
                    ));
                }
                record.kind = ImageKind::Container;
            }
        }
        Ok(record)
    }

    /// The module an image's entry point names: in the uppermost layer that has the file.
    fn find_wasm(
        &self,
        layers: &[String],
        config: &ConfigFile,
    ) -> Result<Option<WasmFile>, ImageError> {
        let Some(entry) = config.entry() else {
            return Ok(None);
        };
        let path = Path::new("/")
            .join(config.run.working_dir.as_deref().unwrap_or(""))
            .join(entry);
        let Some(path) = path.to_str() else {
            return Ok(None);
        };
        for diff_id in layers.iter().rev() {
            let root = self.layer_path(diff_id)?.join("fs");
            let Ok(mut file) = layer::open_in(&root, path) else {
                continue;
            };
            let mut start = [0; 8];
            let is_wasm = file.metadata().is_ok_and(|m| m.is_file())
                && io::Read::read_exact(&mut file, &mut start).is_ok()
                && manifest::is_wasm(&start);
            // Where the links led; the file's own place has none.
            let real = fs::read_link(format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&file)
            ));
            let real_root = fs::canonicalize(&root).map_err(disk::at(&root))?;
            return Ok(
                match real.as_deref().map(|real| real.strip_prefix(&real_root)) {
                    Ok(Ok(inside)) if is_wasm => inside
                        .to_str()
                        .map(|inside| WasmFile::Layer(diff_id.clone(), inside.to_string())),
                    _ => None,
                },
            );
        }
        Ok(None)
    }
}

enum FetchError {
    Trouble(Trouble),
    Disk(io::Error),
}

/// A download's file, locked for as long as it is written.
struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    async fn open(path: &Path) -> io::Result<Self> {
        let deadline = tokio::time::Instant::now() + HANDOVER;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Locked, but perhaps after whoever had it before removed it.
                Ok(()) if disk::is_at(&file, path) => {
                    return Ok(Self {
                        file,
                        path: path.to_path_buf(),
                    });
                }
                Ok(()) => {}
                // Another process is at it; its work would be shared, but not waited for for ever.
                Err(_) if tokio::time::Instant::now() > deadline => fs::remove_file(path)?,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Fetches what is missing; answers whether something was there before.
    async fn download(
        self,
        repository: &Repository,
        descriptor: &Descriptor,
        on_bytes: &mut impl FnMut(u64),
    ) -> Result<bool, FetchError> {
        let size = descriptor.size;
        let mut have = self.file.metadata().map_err(FetchError::Disk)?.len();
        if have > size {
            self.file.set_len(0).map_err(FetchError::Disk)?;
            have = 0;
        }
        let was_resumed = have > 0;
        let mut file = BufWriter::with_capacity(256 * 1024, tokio::fs::File::from_std(self.file));
        let mut failures = 0;
        let mut attempts = 0;
        on_bytes(have);
        while have < size {
            let before = have;
            let broke = match repository.blob(&descriptor.digest, have).await {
                Ok(blob) => {
                    if blob.offset != have {
                        // The registry began elsewhere: at the start, as those do that cannot resume.
                        if blob.offset != 0 {
                            let why = format!(
                                "registry answered from byte {} instead of {have}",
                                blob.offset
                            );
                            return Err(FetchError::Trouble(Trouble::Unavailable(why)));
                        }
                        file.get_ref().set_len(0).await.map_err(FetchError::Disk)?;
                        have = 0;
                    }
                    let mut body = blob.response.bytes_stream();
                    loop {
                        match body.next().await {
                            None => {
                                break Trouble::Unavailable(
                                    "registry closed the connection too early".into(),
                                );
                            }
                            Some(Err(e)) => break Trouble::Unavailable(chain(&e)),
                            Some(Ok(chunk)) => {
                                have += chunk.len() as u64;
                                if have > size {
                                    let why = format!(
                                        "layer {} is longer than {size} bytes",
                                        descriptor.digest
                                    );
                                    disk::remove_tree(&self.path).ok();
                                    return Err(FetchError::Trouble(Trouble::Corrupt(why)));
                                }
                                file.write_all(&chunk).await.map_err(FetchError::Disk)?;
                                on_bytes(have);
                            }
                        }
                        if have == size {
                            break Trouble::NotFound;
                        }
                    }
                }
                Err(trouble @ (Trouble::Unavailable(_) | Trouble::Corrupt(_))) => trouble,
                Err(trouble) => return Err(FetchError::Trouble(trouble)),
            };
            file.flush().await.map_err(FetchError::Disk)?;
            if have == size {
                break;
            }
            attempts += 1;
            failures = if have > before { 0 } else { failures + 1 };
            if failures > repository.resume_max || attempts > ATTEMPTS_MAX {
                return Err(FetchError::Trouble(broke));
            }
            tracing::debug!(
                blob = descriptor.digest,
                have,
                size,
                ?broke,
                "Download goes on"
            );
            tokio::time::sleep(backoff(failures)).await;
        }
        Ok(was_resumed)
    }
}
