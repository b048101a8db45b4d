//! Makes OCI layouts from directories, for machines without an image builder.
//!
//! The same content gives the same bytes: entries are sorted, times are one given time, and owners
//! are as on disk.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::{ffi::OsStrExt, fs::FileTypeExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use wherry_runtime_api::ImageError;

use crate::{ImageConfig, disk, layer};

/// What [`pack`] makes of a directory.
#[derive(Clone, Debug, Default)]
pub struct PackConfig {
    /// How the image wants to be run.
    pub run: ImageConfig,
    /// Architecture, as OCI spells it; empty is this machine's.
    pub architecture: String,
    /// Operating system; empty is `linux`.
    pub os: String,
    /// Its name in the layout, which an import takes over (`docker.io/library/hello:1`).
    pub name: Option<String>,
    /// Every file's time, in seconds since 1970.
    pub mtime: u64,
    /// 0 to 9; gzip's usual is 6.
    pub compression: u32,
}

/// Packs a root file system into an OCI layout at `out` with one layer; answers the image's ID.
///
/// `out` is made, and must hold no other layout. Sockets are left out.
///
/// # Errors
/// [`ImageError::Io`], with the path.
pub fn pack(rootfs: &Path, config: &PackConfig, out: &Path) -> Result<String, ImageError> {
    let blobs = out.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(disk::at(&blobs))?;

    let mut scratch = tempfile::NamedTempFile::new_in(&blobs).map_err(disk::at(&blobs))?;
    let compressed = HashingWriter::new(BufWriter::new(scratch.as_file_mut()));
    let encoder = GzEncoder::new(compressed, Compression::new(config.compression.min(9)));
    let mut tar = Builder::new(HashingWriter::new(encoder));
    Packer {
        links: HashMap::new(),
        mtime: config.mtime,
        rootfs,
    }
    .add_tree(&mut tar)?;
    let finish = || -> io::Result<_> {
        let (encoder, diff_id, _) = tar.into_inner()?.finish();
        let (mut file, digest, size) = encoder.finish()?.finish();
        file.flush()?;
        Ok((diff_id, digest, size))
    };
    let (diff_id, digest, size) = finish().map_err(disk::at(&blobs))?;
    fs::set_permissions(
        scratch.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .map_err(disk::at(&blobs))?;
    scratch
        .persist(blob_path(&blobs, &digest))
        .map_err(|e| disk::at(&blobs)(e.error))?;

    let architecture = match (config.architecture.as_str(), std::env::consts::ARCH) {
        ("", "x86_64") => "amd64",
        ("", "aarch64") => "arm64",
        ("", other) => other,
        (given, _) => given,
    };
    let os = if config.os.is_empty() {
        "linux"
    } else {
        &config.os
    };
    let (config_digest, config_size) = write_json(
        &blobs,
        &json!({
            "architecture": architecture,
            "os": os,
            "config": run_config(&config.run),
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        }),
    )?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let (manifest_digest, manifest_size) = write_json(
        &blobs,
        &json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config_digest, config_size),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &digest, size)],
        }),
    )?;
    let mut entry = descriptor(manifest_type, &manifest_digest, manifest_size);
    entry["platform"] = json!({ "architecture": architecture, "os": os });
    if let Some(name) = &config.name {
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    disk::write_whole(
        &out.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        false,
    )?;
    disk::write_whole(&out.join("index.json"), index.to_string().as_bytes(), false)?;
    Ok(config_digest)
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

fn blob_path(blobs: &Path, digest: &str) -> PathBuf {
    blobs.join(digest.trim_start_matches("sha256:"))
}

fn write_json(blobs: &Path, value: &Value) -> Result<(String, u64), ImageError> {
    let text = value.to_string();
    let digest = layer::digest_of(text.as_bytes());
    disk::write_whole(&blob_path(blobs, &digest), text.as_bytes(), false)?;
    Ok((digest, text.len() as u64))
}

fn run_config(run: &ImageConfig) -> Value {
    let set = |names: &[String]| {
        names
            .iter()
            .map(|name| (name.clone(), json!({})))
            .collect::<serde_json::Map<_, _>>()
    };
    let mut config = serde_json::Map::new();
    let mut add = |key: &str, value: Value| {
        let is_empty = match &value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        if !is_empty {
            config.insert(key.into(), value);
        }
    };
    add(
        "Env",
        run.env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
    );
    add("Entrypoint", json!(run.entrypoint));
    add("Cmd", json!(run.cmd));
    add("WorkingDir", json!(run.working_dir));
    add("User", json!(run.user));
    add("ExposedPorts", set(&run.exposed_ports).into());
    add("Volumes", set(&run.volumes).into());
    add("StopSignal", json!(run.stop_signal));
    add("Labels", json!(run.labels));
    config.into()
}

struct Packer<'a> {
    /// First name of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    mtime: u64,
    rootfs: &'a Path,
}

impl Packer<'_> {
    fn add_tree<W: Write>(&mut self, tar: &mut Builder<W>) -> Result<(), ImageError> {
        let mut waiting = vec![self.rootfs.to_path_buf()];
        // Depth first, names in order; a directory comes before what is in it.
        while let Some(path) = waiting.pop() {
            let metadata = fs::symlink_metadata(&path).map_err(disk::at(&path))?;
            self.add(tar, &path, &metadata).map_err(disk::at(&path))?;
            if metadata.is_dir() {
                let mut children: Vec<PathBuf> = fs::read_dir(&path)
                    .and_then(|entries| {
                        entries
                            .map(|entry| entry.map(|entry| entry.path()))
                            .collect()
                    })
                    .map_err(disk::at(&path))?;
                children.sort_by(|a, b| b.cmp(a));
                waiting.extend(children);
            }
        }
        Ok(())
    }

    fn add<W: Write>(
        &mut self,
        tar: &mut Builder<W>,
        path: &Path,
        metadata: &fs::Metadata,
    ) -> io::Result<()> {
        let name = path.strip_prefix(self.rootfs).map_err(io::Error::other)?;
        if name.as_os_str().is_empty() {
            return Ok(());
        }
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        self.add_xattrs(tar, path)?;
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(self.mtime);
        header.set_size(0);
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            return tar.append_link(&mut header, name, fs::read_link(path)?);
        }
        if kind.is_file() && metadata.nlink() > 1 {
            if let Some(first) = self.links.get(&(metadata.dev(), metadata.ino())) {
                header.set_entry_type(EntryType::Link);
                return tar.append_link(&mut header, name, first);
            }
            self.links
                .insert((metadata.dev(), metadata.ino()), name.to_path_buf());
        }
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.len());
            return tar.append_data(&mut header, name, File::open(path)?);
        }
        if kind.is_char_device() || kind.is_block_device() {
            header.set_entry_type(if kind.is_char_device() {
                EntryType::Char
            } else {
                EntryType::Block
            });
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        } else if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
        } else {
            header.set_entry_type(EntryType::Directory);
        }
        tar.append_data(&mut header, name, io::empty())
    }

    fn add_xattrs<W: Write>(&self, tar: &mut Builder<W>, path: &Path) -> io::Result<()> {
        let mut names = vec![0; 64 * 1024];
        let length = match rustix::fs::llistxattr(path, &mut names[..]) {
            Ok(length) => length,
            Err(rustix::io::Errno::NOTSUP) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let mut kept = Vec::new();
        for name in names[..length].split(|b| *b == 0) {
            if name != b"security.capability" && !name.starts_with(b"user.") {
                continue;
            }
            let mut value = vec![0; 64 * 1024];
            let length =
                rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..])?;
            value.truncate(length);
            kept.push((
                format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)),
                value,
            ));
        }
        kept.sort();
        if kept.is_empty() {
            return Ok(());
        }
        tar.append_pax_extensions(
            kept.iter()
                .map(|(name, value)| (name.as_str(), value.as_slice())),
        )
    }
}

/// Hashes and counts what passes.
struct HashingWriter<W> {
    target: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    fn new(target: W) -> Self {
        Self {
            target,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    fn finish(self) -> (W, String, u64) {
        (self.target, layer::to_digest(self.hash), self.bytes)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.target.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}
