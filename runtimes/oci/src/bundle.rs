//! A container's directory: what stage 0 writes there, and stage 1 and 2 read or add.
//!
//! ```text
//! <root>/oci/sandboxes/<id>/sandbox.json      what the sandbox was asked to be
//! <root>/oci/containers/<id>/container.json   what the runtime needs to know of the container
//!                            config.json      OCI runtime spec
//!                            bundle.json      what the OCI spec has no word for
//!                            upper/ work/     writable layer
//!                            rootfs/          where stage 2 mounts it, in its own mount namespace
//!                            start.json       written by stage 1 when the app has been executed
//!                            exit.json        written by stage 1 when the app has exited
//! <root>/oci/seccomp/<hash>.bpf               compiled filters
//! <root>/oci/trash/<id>                       being deleted
//! <run>/oci/pods/<sandbox>/lock               held by stage 1 as long as it lives
//!                          sock               stage 1 listens here
//!                          log                stage 1's own standard error
//! ```
//!
//! A directory whose name begins with `.` is being filled; `rename` makes it count. Files are written
//! to a temporary name and renamed. Nothing here is synced: after a power cut no container of this
//! runtime is alive, whatever its directory says.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wherry_runtime_api::{
    ContainerId, LogRotation, PodSandboxConfig, PodSandboxId, PodUid, UserNamespace,
};

/// Where everything of this runtime is.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    root: PathBuf,
    run: PathBuf,
}

impl Paths {
    pub(crate) fn new(root: &Path, run: &Path) -> Self {
        Self {
            root: root.join("oci"),
            run: run.join("oci/pods"),
        }
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        for directory in [
            &self.sandboxes(),
            &self.containers(),
            &self.seccomp(),
            &self.trash(),
            &self.run,
        ] {
            fs::create_dir_all(directory)?;
        }
        // Other people's environment variables and file systems are below.
        for directory in [&self.root, &self.run] {
            fs::set_permissions(
                directory,
                std::os::unix::fs::PermissionsExt::from_mode(0o700),
            )?;
        }
        Ok(())
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &PodSandboxId) -> PathBuf {
        self.sandboxes().join(id)
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id)
    }

    pub(crate) fn seccomp(&self) -> PathBuf {
        self.root.join("seccomp")
    }

    /// Where something may be tried out; emptied with the trash.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.trash()
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(crate) fn pods(&self) -> &Path {
        &self.run
    }

    pub(crate) fn pod(&self, id: &PodSandboxId) -> PathBuf {
        self.run.join(id)
    }
}

/// `sandbox.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxFile {
    pub(crate) id: PodSandboxId,
    pub(crate) config: PodSandboxConfig,
    pub(crate) created_at: SystemTime,
}

/// `container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerFile {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: PodSandboxId,
    pub(crate) pod: PodUid,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) created_at: SystemTime,
    pub(crate) cgroup: String,
    pub(crate) log_path: PathBuf,
    pub(crate) log_rotation: LogRotation,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    pub(crate) own_pid_namespace: bool,
    /// The container whose process namespace it joins.
    #[serde(default)]
    pub(crate) pid_target: Option<ContainerId>,
    pub(crate) stop_signal: i32,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) annotations: Vec<(String, String)>,
    pub(crate) warnings: Vec<String>,
}

/// `bundle.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Bundle {
    /// The image's layers, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// The user as the image has it, if the pod does not replace it.
    pub(crate) user: Option<String>,
    pub(crate) run_as_user: Option<u32>,
    pub(crate) run_as_group: Option<u32>,
    pub(crate) supplemental_groups: Vec<u32>,
    /// Compiled system call filter.
    pub(crate) seccomp: Option<PathBuf>,
    pub(crate) cgroup: String,
    /// `/dev/shm` is the pod's.
    pub(crate) pod_shm: bool,
    /// Directories that the image declares as volumes and the pod mounts nothing at.
    #[serde(default)]
    pub(crate) image_volumes: Vec<PathBuf>,
    /// The pod's user namespace.
    #[serde(default)]
    pub(crate) user_namespace: Option<UserNamespace>,
}

/// `start.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StartFile {
    pub(crate) started_at: SystemTime,
}

/// Reads a JSON file; `None` if it is not there.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {error}", path.display()),
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", path.display()),
        )),
    }
}

/// Writes a JSON file whole or not at all.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_bytes(path, &serde_json::to_vec(value)?)
}

/// Writes a file whole or not at all.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&temporary, path).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}
