//! The store: which images are here, who uses them, and what may go.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use wherry_runtime_api::{
    FsUsage, Image, ImageError, ImageKind, ImageService, PullProgressSender, RegistryAuth,
};

use crate::{
    ImageConfig, StoreConfig, disk,
    disk::{Lock, Workspace},
    record::{self, ImageRecord, LayerRecord, WasmFile},
    reference,
    registry::Http,
};

/// Number of the layout on disk.
const VERSION: &str = "1";

/// The content store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.inner.root)
            .finish_non_exhaustive()
    }
}

/// An image, ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// As the agent sees it.
    pub image: Image,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Unpacked layers, lowest first, ready as overlayfs lower directories. Read-only for callers.
    pub layers: Vec<PathBuf>,
    /// The Wasm module or component. Its digest was verified; that it validates was not.
    pub wasm: Option<PathBuf>,
    /// The module's own digest (`sha256:…`) where it is a blob of its own, else the image's ID with
    /// its path: names the content, for caches.
    pub wasm_key: Option<String>,
}

pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) config: StoreConfig,
    /// Bounds fetching and unpacking, over all pulls.
    pub(crate) slots: Arc<Semaphore>,
    /// One lock per layer under way: who comes second waits, and then finds it there.
    under_way: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Made at the first pull: a node that never pulls need not load certificates.
    pub(crate) http: tokio::sync::OnceCell<Http>,
}

impl Store {
    /// Opens the store at `root`, making it if need be, and clears away what earlier processes left
    /// half done.
    ///
    /// # Errors
    /// A layout that this version does not know is refused. Records of images that cannot be read
    /// or whose layers are missing are set aside (`*.broken`) with a warning; the image can be
    /// pulled again.
    pub fn open(root: &Path, config: StoreConfig) -> Result<Self, ImageError> {
        for directory in [
            "images", "layers", "blobs", "partial", "leases", "mounts", "tmp",
        ] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(disk::at(&path))?;
        }
        // Layers hold set-uid programs of other people.
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(disk::at(root))?;
        check_version(root)?;
        let inner = Inner {
            root: root.to_path_buf(),
            slots: Arc::new(Semaphore::new(config.parallel_layers.max(1))),
            config,
            under_way: Mutex::default(),
            http: tokio::sync::OnceCell::new(),
        };
        inner.repair()?;
        inner.sweep(&HashSet::new())?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The image that an ID (`sha256:…`) or a reference names, if it is here.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`] for what cannot be a reference.
    pub fn image(&self, id_or_reference: &str) -> Result<Option<StoredImage>, ImageError> {
        self.inner
            .find(id_or_reference)?
            .map(|record| self.inner.stored(record))
            .transpose()
    }

    /// Notes that `holder` (safe as a file name: a container's ID) uses an image, so that it is not
    /// removed. Kept on disk until [`Store::release`]; repeatable.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] if the image is not here (any more).
    pub fn lease(&self, id_or_reference: &str, holder: &str) -> Result<(), ImageError> {
        let path = self.inner.lease_path(holder)?;
        let _index = self.inner.lock_index()?;
        let Some(record) = self.inner.find(id_or_reference)? else {
            return Err(ImageError::NotFound {
                reference: id_or_reference.into(),
            });
        };
        if fs::read_link(&path).is_ok_and(|target| target.as_os_str() == record.id.as_str()) {
            return Ok(());
        }
        disk::remove_tree(&path)?;
        std::os::unix::fs::symlink(&record.id, &path).map_err(disk::at(&path))
    }

    /// Takes a lease back. Gone already: `Ok`.
    pub fn release(&self, holder: &str) -> Result<(), ImageError> {
        disk::remove_tree(&self.inner.lease_path(holder)?)
    }

    /// Who uses what: (holder, image ID). For clearing away leases of holders that are gone.
    pub fn leases(&self) -> Result<Vec<(String, String)>, ImageError> {
        self.inner.leases()
    }

    /// Runs blocking work of the store off the async threads.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(done) => done,
            Err(e) => match e.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(e) => Err(disk::io_error("image store")(io::Error::other(e))),
            },
        }
    }
}

#[async_trait]
impl ImageService for Store {
    async fn image_status(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let reference = reference.to_string();
        self.blocking(move |inner| Ok(inner.find(&reference)?.map(|record| record.to_image())))
            .await
    }

    async fn resolve_kind(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
    ) -> Result<ImageKind, ImageError> {
        self.kind_of(reference, auth).await
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        progress: Option<PullProgressSender>,
    ) -> Result<Image, ImageError> {
        self.pull(reference, auth, progress).await
    }

    async fn list_images(&self) -> Result<Vec<Image>, ImageError> {
        self.blocking(|inner| {
            let mut images: Vec<Image> =
                inner.records()?.iter().map(ImageRecord::to_image).collect();
            images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
            Ok(images)
        })
        .await
    }

    async fn mount_image(&self, id: &str, target: &Path) -> Result<(), ImageError> {
        let (id, target) = (id.to_string(), target.to_owned());
        self.blocking(move |inner| inner.mount_image(&id, &target))
            .await
    }

    async fn unmount_image(&self, target: &Path) -> Result<(), ImageError> {
        let target = target.to_owned();
        self.blocking(move |inner| inner.unmount_image(&target))
            .await
    }

    async fn remove_image(&self, id: &str) -> Result<(), ImageError> {
        let id = id.to_string();
        self.blocking(move |inner| inner.remove(&id)).await
    }

    async fn fs_info(&self) -> Result<FsUsage, ImageError> {
        self.blocking(Inner::usage).await
    }
}

fn check_version(root: &Path) -> Result<(), ImageError> {
    let path = root.join("version");
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == VERSION => Ok(()),
        Ok(found) => Err(disk::at(&path)(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "layout {:?} was written by another version of wherry (this one knows {VERSION}): run that version, or \
                 move the directory away and pull the images again",
                found.trim()
            ),
        ))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            disk::write_whole(&path, VERSION.as_bytes(), true)
        }
        Err(e) => Err(disk::at(&path)(e)),
    }
}

impl Inner {
    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Where a layer is or will be.
    pub(crate) fn layer_path(&self, diff_id: &str) -> Result<PathBuf, ImageError> {
        Ok(self.root.join("layers").join(hex(diff_id)?))
    }

    /// Where a blob is or will be.
    pub(crate) fn blob_path(&self, digest: &str) -> Result<PathBuf, ImageError> {
        Ok(self.root.join("blobs").join(hex(digest)?))
    }

    fn record_path(&self, id: &str) -> Result<PathBuf, ImageError> {
        Ok(self.root.join("images").join(format!("{}.json", hex(id)?)))
    }

    fn lease_path(&self, holder: &str) -> Result<PathBuf, ImageError> {
        if holder.is_empty()
            || holder.starts_with('.')
            || holder.contains(['/', '\0'])
            || holder.len() > 255
        {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not usable as a file name");
            return Err(disk::io_error(format!("lease holder {holder:?}"))(error));
        }
        Ok(self.root.join("leases").join(holder))
    }

    /// Held while several files change together, briefly.
    pub(crate) fn lock_index(&self) -> Result<Lock, ImageError> {
        Lock::exclusive(&self.root.join("index.lock"))
    }

    /// Held while content is in the store that no image names yet.
    pub(crate) fn lock_content(&self) -> Result<Lock, ImageError> {
        Lock::shared(&self.root.join("content.lock"))
    }

    /// The lock of a layer or module under way in this process.
    pub(crate) fn under_way(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = all.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        all.insert(digest.into(), Arc::downgrade(&lock));
        lock
    }

    /// A layer's record, if it is here.
    pub(crate) fn layer(&self, diff_id: &str) -> Result<Option<LayerRecord>, ImageError> {
        record::read(&self.layer_path(diff_id)?.join("layer.json"))
    }

    /// Every image that can be read.
    pub(crate) fn records(&self) -> Result<Vec<ImageRecord>, ImageError> {
        let directory = self.root.join("images");
        let mut records = Vec::new();
        for name in disk::names(&directory)? {
            if !name.ends_with(".json") {
                continue;
            }
            match record::read(&directory.join(&name)) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(%error, "image record cannot be read"),
            }
        }
        Ok(records)
    }

    /// The image of an ID or a reference.
    pub(crate) fn find(&self, id_or_reference: &str) -> Result<Option<ImageRecord>, ImageError> {
        let bare = id_or_reference
            .strip_prefix("sha256:")
            .unwrap_or(id_or_reference);
        if reference::is_hex_digest(bare) {
            let digest = format!("sha256:{}", bare.to_ascii_lowercase());
            if let Some(record) = record::read(&self.record_path(&digest)?)? {
                return Ok(Some(record));
            }
            let ending = format!("@{digest}");
            return Ok(self
                .records()?
                .into_iter()
                .find(|r| r.digests.iter().any(|d| d.ends_with(&ending))));
        }
        let name = reference::parse(id_or_reference)?.to_string();
        let named = self
            .records()?
            .into_iter()
            .filter(|r| r.tags.contains(&name) || r.digests.contains(&name));
        Ok(named.max_by_key(|record| record.added_at))
    }

    fn stored(&self, record: ImageRecord) -> Result<StoredImage, ImageError> {
        let image = record.to_image();
        let layers = record
            .layers
            .iter()
            .map(|id| Ok(self.layer_path(id)?.join("fs")))
            .collect::<Result<_, ImageError>>()?;
        let (wasm, wasm_key) = match &record.wasm {
            None => (None, None),
            Some(WasmFile::Blob(digest)) => (Some(self.blob_path(digest)?), Some(digest.clone())),
            Some(WasmFile::Layer(diff_id, path)) => (
                Some(self.layer_path(diff_id)?.join("fs").join(path)),
                Some(format!("{diff_id}/{path}")),
            ),
        };
        Ok(StoredImage {
            image,
            config: record.config,
            layers,
            wasm,
            wasm_key,
        })
    }

    /// Makes an image present, once all it names is. Names that it takes over leave the image that
    /// had them.
    pub(crate) fn put(&self, mut record: ImageRecord) -> Result<Image, ImageError> {
        let path = self.record_path(&record.id)?;
        let read = || record::read::<ImageRecord>(&path).unwrap_or_default();
        let is_synced = read()
            .is_some_and(|b| (b.layers, b.wasm) == (record.layers.clone(), record.wasm.clone()));
        if self.config.is_durable && !is_synced {
            disk::sync_file_system(&self.root)?;
        }
        let _index = self.lock_index()?;
        let before = read();
        if let Some(before) = &before {
            let keep = |all: &mut Vec<String>, more: &[String]| {
                all.extend(
                    more.iter()
                        .filter(|name| !all.contains(name))
                        .cloned()
                        .collect::<Vec<_>>(),
                );
            };
            keep(&mut record.tags, &before.tags);
            keep(&mut record.digests, &before.digests);
        }
        let losers: Vec<ImageRecord> = self
            .records()?
            .into_iter()
            .filter(|other| record::tags_lost(other, &record))
            .collect();
        // No change, no write.
        let is_known = before.is_some_and(|before| {
            let mut same = record.clone();
            same.added_at = before.added_at;
            let sorted = |mut record: ImageRecord| {
                record.tags.sort();
                record.digests.sort();
                record
            };
            sorted(before) == sorted(same)
        });
        if !is_known || !losers.is_empty() {
            record::write(&path, &record, self.config.is_durable)?;
        }
        for mut loser in losers {
            loser.tags.retain(|tag| !record.tags.contains(tag));
            record::write(
                &self.record_path(&loser.id)?,
                &loser,
                self.config.is_durable,
            )?;
        }
        Ok(record.to_image())
    }

    fn leases(&self) -> Result<Vec<(String, String)>, ImageError> {
        let directory = self.root.join("leases");
        let mut leases = Vec::new();
        for holder in disk::names(&directory)? {
            if let Ok(target) = fs::read_link(directory.join(&holder))
                && let Some(id) = target.to_str()
            {
                leases.push((holder, id.to_string()));
            }
        }
        Ok(leases)
    }

    fn remove(&self, id_or_reference: &str) -> Result<(), ImageError> {
        let gone: HashSet<String> = {
            let _index = self.lock_index()?;
            let Some(record) = self.find(id_or_reference)? else {
                return Ok(());
            };
            let is_leased = self.leases()?.iter().any(|(_, id)| *id == record.id);
            if is_leased || self.is_image_mounted(&record.id)? {
                return Err(ImageError::InUse(id_or_reference.into()));
            }
            disk::remove_tree(&self.record_path(&record.id)?)?;
            content(&record).collect()
        };
        self.sweep(&gone)
    }

    /// Removes content that no image names: what is in `candidates`, what is old, and what a power
    /// cut may have damaged. Does nothing while content is on its way in; the next sweep does it.
    pub(crate) fn sweep(&self, candidates: &HashSet<String>) -> Result<(), ImageError> {
        Workspace::sweep(&self.tmp())?;
        let rubbish = Workspace::create(&self.tmp())?;
        {
            let Some(_alone) = Lock::try_exclusive(&self.root.join("content.lock"))? else {
                return Ok(());
            };
            let named: HashSet<String> = self.records()?.iter().flat_map(content).collect();
            let boot_id = disk::boot_id();
            let is_old =
                |path: &Path| disk::age(path).is_some_and(|age| age > self.config.leftover_age_max);
            for kind in ["layers", "blobs"] {
                let directory = self.root.join(kind);
                for name in disk::names(&directory)? {
                    let path = directory.join(&name);
                    let digest = format!("sha256:{name}");
                    if named.contains(&digest) {
                        continue;
                    }
                    let is_sound = match kind {
                        "layers" => matches!(
                            record::read::<LayerRecord>(&path.join("layer.json")),
                            Ok(Some(layer)) if layer.boot_id == boot_id
                        ),
                        // Nothing tells whether it was written out; it is one small download.
                        _ => false,
                    };
                    if candidates.contains(&digest) || !is_sound || is_old(&path) {
                        let aside = rubbish.path().join(format!("{kind}-{name}"));
                        fs::rename(&path, &aside).map_err(disk::at(&path))?;
                    }
                }
            }
            let partial = self.root.join("partial");
            for name in disk::names(&partial)? {
                let path = partial.join(name);
                if is_old(&path) {
                    disk::remove_tree(&path)?;
                }
            }
        }
        // The trees themselves go without holding anybody up.
        disk::remove_tree(rubbish.path())
    }

    /// Sets records aside that are of no use.
    fn repair(&self) -> Result<(), ImageError> {
        let _index = self.lock_index()?;
        let directory = self.root.join("images");
        for name in disk::names(&directory)? {
            let path = directory.join(&name);
            if name.starts_with(".new-") {
                disk::remove_tree(&path)?;
            }
            if !name.ends_with(".json") {
                continue;
            }
            let trouble = match record::read::<ImageRecord>(&path) {
                Ok(None) => continue,
                Ok(Some(record)) => match self.missing(&record)? {
                    None => continue,
                    Some(missing) => format!("{missing} is missing"),
                },
                Err(error) => error.to_string(),
            };
            let aside = path.with_extension("json.broken");
            tracing::warn!(record = %path.display(), aside = %aside.display(), trouble, "Image set aside; pull it again");
            fs::rename(&path, &aside).map_err(disk::at(&path))?;
        }
        Ok(())
    }

    /// What an image names and the store has not.
    fn missing(&self, record: &ImageRecord) -> Result<Option<String>, ImageError> {
        for diff_id in &record.layers {
            if !matches!(self.layer(diff_id), Ok(Some(_))) {
                return Ok(Some(format!("layer {diff_id}")));
            }
        }
        match &record.wasm {
            Some(WasmFile::Blob(digest)) if !self.blob_path(digest)?.is_file() => {
                Ok(Some(format!("module {digest}")))
            }
            _ => Ok(None),
        }
    }

    fn usage(&self) -> Result<FsUsage, ImageError> {
        let mut usage = FsUsage::default();
        let layers = self.root.join("layers");
        for name in disk::names(&layers)? {
            if let Ok(Some(layer)) =
                record::read::<LayerRecord>(&layers.join(name).join("layer.json"))
            {
                usage.used_bytes += layer.size_bytes;
                usage.inodes_used += layer.entries + 3;
            }
        }
        for kind in ["blobs", "partial", "images"] {
            let directory = self.root.join(kind);
            for name in disk::names(&directory)? {
                if let Ok(file) = fs::symlink_metadata(directory.join(name)) {
                    usage.used_bytes += file.len();
                    usage.inodes_used += 1;
                }
            }
        }
        let whole = rustix::fs::statvfs(&self.root).map_err(|e| disk::at(&self.root)(e.into()))?;
        // Blocks kept for root are nobody's to fill.
        usage.capacity_bytes = (whole.f_blocks - whole.f_bfree + whole.f_bavail) * whole.f_frsize;
        usage.available_bytes = whole.f_bavail * whole.f_frsize;
        Ok(usage)
    }
}

/// Digests of the layers and blobs that an image names.
fn content(record: &ImageRecord) -> impl Iterator<Item = String> + use<> {
    let mut all = record.layers.clone();
    if let Some(WasmFile::Blob(digest)) = &record.wasm {
        all.push(digest.clone());
    }
    all.into_iter()
}

fn hex(digest: &str) -> Result<&str, ImageError> {
    reference::digest_hex(digest).ok_or_else(|| ImageError::Corrupt {
        reference: String::new(),
        why: format!("{digest:?} is not a sha256 digest"),
    })
}
