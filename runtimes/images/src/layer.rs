//! A layer's way into the store: decompressed, counted, hashed twice and unpacked in one pass.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use sha2::{Digest, Sha256};
use wherry_runtime_api::ImageError;

use crate::{
    disk, manifest,
    record::{self, LayerRecord},
    store::Inner,
    tarball::Tarball,
    unpack::{self, Budget, Failure, OverLimit},
};

/// Below this a layer may be compressed as well as it likes.
const RATIO_FREE_BYTES: u64 = 256 << 20;

/// Hashes what passes.
pub(crate) struct Hashing<R> {
    source: R,
    hash: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(source: R, bytes_max: u64) -> Self {
        Self {
            source,
            hash: Sha256::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// `sha256:…` of everything, reading what is left first.
    pub(crate) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(to_digest(self.hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        if self.bytes > self.bytes_max {
            let over = OverLimit(format!(
                "layer has more than {} bytes when decompressed",
                self.bytes_max
            ));
            return Err(io::Error::other(over));
        }
        Ok(read)
    }
}

/// `sha256:…` of what a hash was fed.
pub(crate) fn to_digest(hash: Sha256) -> String {
    use std::fmt::Write;
    hash.finalize()
        .iter()
        .fold("sha256:".to_string(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// `sha256:…` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    to_digest(Sha256::new_with_prefix(bytes))
}

enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The bytes tell better than media types, which builders get wrong.
fn compression(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame, or a skippable one in front of it.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Reads a stream that may be compressed.
fn decompress<'a>(source: &'a mut (dyn BufRead + 'a)) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression(source.fill_buf()?) {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
        Compression::None => Box::new(source),
    })
}

/// Decompresses a whole file into another; for archives that must be seekable.
pub(crate) fn decompress_file(
    from: &mut File,
    to: &mut File,
    bytes_max: u64,
) -> Result<(), Failure> {
    let mut buffered = BufReader::with_capacity(64 * 1024, from);
    let source = decompress(&mut buffered).map_err(Failure::from_source)?;
    let mut source = Hashing::new(source, bytes_max);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = source.read(&mut buffer).map_err(Failure::from_source)?;
        if read == 0 {
            return Ok(());
        }
        io::Write::write_all(to, &buffer[..read])
            .map_err(|e| Failure::Io("decompress archive".into(), e))?;
    }
}

/// Whether a file's start says that it is compressed.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    !matches!(compression(start), Compression::None)
}

/// A layer to be taken in.
pub(crate) struct Incoming<R> {
    /// Its bytes, compressed or not.
    pub(crate) source: R,
    /// How many there are.
    pub(crate) size: u64,
    /// What they hash to, if that is promised.
    pub(crate) digest: Option<String>,
    /// What they hash to when decompressed.
    pub(crate) diff_id: String,
}

fn failed(failure: Failure) -> ImageError {
    // The caller knows the image, and puts it in.
    let reference = String::new();
    match failure {
        Failure::Corrupt(why) => ImageError::Corrupt { reference, why },
        Failure::TooLarge(why) => ImageError::TooLarge { reference, why },
        Failure::Io(what, source) => ImageError::Io { what, source },
    }
}

fn mismatch(what: &str, expected: &str, got: &str) -> ImageError {
    ImageError::Corrupt {
        reference: String::new(),
        why: format!("{what} digest mismatch: expected {expected}, got {got}"),
    }
}

impl Inner {
    /// Unpacks a layer, verifies it and puts it into the store. There already: only its record.
    ///
    /// Nothing is left of one that fails. Errors lack the image's name ([`disk::for_image`]).
    pub(crate) fn take_layer<R: Read>(
        &self,
        layer: Incoming<R>,
        budget: &Budget,
    ) -> Result<LayerRecord, ImageError> {
        if let Some(record) = self.layer(&layer.diff_id)? {
            return Ok(record);
        }
        let target = self.layer_path(&layer.diff_id)?;
        let workspace = disk::Workspace::create(&self.tmp())?;
        let made = workspace.path().join("layer");
        let root = made.join("fs");
        fs::create_dir_all(&root).map_err(disk::at(&root))?;
        // Archives may leave the root out; the container's users must get through whatever our umask.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).map_err(disk::at(&root))?;

        let mut compressed =
            BufReader::with_capacity(64 * 1024, Hashing::new(layer.source, u64::MAX));
        let source = |e| failed(Failure::from_source(e));
        let plain_bytes_max = RATIO_FREE_BYTES
            .max(layer.size.saturating_mul(budget.limits().ratio_max))
            .max(layer.size);
        let unpacked = (|| {
            let plain = decompress(&mut compressed).map_err(Failure::from_source)?;
            let mut tarball = Tarball::new(Hashing::new(plain, plain_bytes_max));
            let unpacked = unpack::unpack(&mut tarball, &root, budget)?;
            let diff_id = tarball
                .into_inner()
                .finish()
                .map_err(Failure::from_source)?;
            Ok((unpacked, diff_id))
        })();
        // A stream that is damaged is first of all not what its digest says.
        if matches!(unpacked, Ok(_) | Err(Failure::Corrupt(_))) {
            io::copy(&mut compressed, &mut io::sink()).map_err(source)?;
            let digest = compressed.into_inner().finish().map_err(source)?;
            if let Some(expected) = &layer.digest
                && digest != *expected
            {
                return Err(mismatch("layer", expected, &digest));
            }
        }
        let (unpacked, diff_id) = unpacked.map_err(failed)?;
        if diff_id != layer.diff_id {
            return Err(mismatch("unpacked layer", &layer.diff_id, &diff_id));
        }

        let record = LayerRecord {
            size_bytes: unpacked.size_bytes,
            entries: unpacked.entries,
            boot_id: disk::boot_id(),
        };
        record::write(&made.join("layer.json"), &record, false)?;
        match fs::rename(&made, &target) {
            // Somebody else was faster; theirs has the same content.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                Ok(record)
            }
            Err(e) => Err(disk::at(&target)(e)),
            Ok(()) => Ok(record),
        }
    }

    /// Copies a Wasm module into the store and verifies it; answers its digest and size.
    ///
    /// Errors lack the image's name.
    pub(crate) fn take_wasm(
        &self,
        source: impl Read,
        digest: Option<&str>,
    ) -> Result<(String, u64), ImageError> {
        let corrupt = |why: String| ImageError::Corrupt {
            reference: String::new(),
            why,
        };
        let workspace = disk::Workspace::create(&self.tmp())?;
        let made = workspace.path().join("module");
        let mut file = File::create_new(&made).map_err(disk::at(&made))?;
        let mut source = Hashing::new(source, self.config.limits.wasm_bytes_max);
        let mut start = Vec::new();
        source
            .by_ref()
            .take(8)
            .read_to_end(&mut start)
            .map_err(|e| failed(Failure::from_source(e)))?;
        let mut buffer = vec![0; 128 * 1024];
        let mut size = start.len() as u64;
        io::Write::write_all(&mut file, &start).map_err(disk::at(&made))?;
        loop {
            let read = source
                .read(&mut buffer)
                .map_err(|e| failed(Failure::from_source(e)))?;
            if read == 0 {
                break;
            }
            size += read as u64;
            io::Write::write_all(&mut file, &buffer[..read]).map_err(disk::at(&made))?;
        }
        let got = source
            .finish()
            .map_err(|e| failed(Failure::from_source(e)))?;
        if let Some(expected) = digest
            && got != expected
        {
            return Err(mismatch("module", expected, &got));
        }
        if !manifest::is_wasm(&start) {
            return Err(corrupt(
                "not a Wasm module or component (magic number)".into(),
            ));
        }
        let target = self.blob_path(&got)?;
        fs::rename(&made, &target).map_err(disk::at(&target))?;
        Ok((got, size))
    }
}

/// Opens a path of a layer without leaving it; symbolic links are followed inside.
pub(crate) fn open_in(root: &Path, path: &str) -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
    let root = openat(
        CWD,
        root,
        OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(openat2(
        &root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?
    .into())
}
