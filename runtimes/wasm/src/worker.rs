//! Workers as the agent sees them: started, found again, ended.
//!
//! ```text
//! <run>/wasm/workers/<id>/lock      held by the worker for as long as it lives
//! <run>/wasm/workers/<id>/sock      where it listens
//! <run>/wasm/workers/<id>/worker.json
//! <run>/wasm/workers/<id>/jail/     its root: nothing
//! <run>/wasm/workers/<id>/stderr    what it has to say when it dies
//! <root>/wasm/exits/<id>            exits nobody has acknowledged, one line of JSON each
//! ```
//! Whether a worker lives is asked of its lock, never of a process ID.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::{fs::OpenOptionsExt, fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use wherry_runtime_api::{ContainerId, RuntimeError};

use crate::{
    Config, cgroup, child,
    client::Client,
    protocol::{Bootstrap, ExitRecord, PROTOCOL_VERSION, Ready},
    record::{remove_directory, write_json},
};

/// A worker builds its engine before it answers: tens of milliseconds, more on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// An exit record is a line of a few hundred bytes; past this a file is not ours.
const EXITS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A dead process leaves its cgroups within milliseconds; one that does not is found at the next start.
const CGROUP_TRIES_MAX: u32 = 100;
const CGROUP_PAUSE: Duration = Duration::from_millis(10);

/// Where distributions keep the bundle of certificate authorities.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whose containers a worker holds, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum WorkerKey {
    /// Those of a tenant on the node's network.
    Tenant {
        namespace: String,
        host_network: bool,
        /// Of workers that knew one resolver configuration for all they held; now 0.
        #[serde(default)]
        resolver: u64,
    },
    /// Those of one pod.
    Pod { sandbox: String },
}

#[derive(Serialize, Deserialize)]
struct WorkerFile {
    key: WorkerKey,
    /// The cgroup its own is in, where that is not the runtime's.
    #[serde(default)]
    cgroup_parent: Option<String>,
}

impl WorkerFile {
    /// Of a worker that was made no further than its directory.
    fn nobodys() -> Self {
        Self {
            key: WorkerKey::Pod {
                sandbox: String::new(),
            },
            cgroup_parent: None,
        }
    }
}

/// A worker.
pub(crate) struct Worker {
    pub(crate) id: String,
    pub(crate) key: WorkerKey,
    pub(crate) directory: PathBuf,
    exits: PathBuf,
    cgroup_parent: String,
    /// Container records that name it.
    pub(crate) assigned: AtomicUsize,
    client: Mutex<Option<Arc<Client>>>,
}

/// What a new worker needs to know.
pub(crate) struct NewWorker<'a> {
    pub(crate) key: WorkerKey,
    pub(crate) network_namespace: Option<&'a Path>,
    /// The pod's cgroup, for a worker that holds one pod's containers.
    pub(crate) cgroup_parent: Option<&'a str>,
}

impl Worker {
    fn new(config: &Config, id: &str, key: WorkerKey, cgroup_parent: Option<&str>) -> Self {
        Self {
            cgroup_parent: cgroup_parent.unwrap_or(&config.cgroup_root).to_owned(),
            id: id.to_owned(),
            key,
            directory: workers_directory(config).join(id),
            exits: exits_directory(config).join(id),
            assigned: AtomicUsize::new(0),
            client: Mutex::new(None),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    pub(crate) fn set_client(&self, client: Option<Arc<Client>>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// The connection, if there is one now.
    pub(crate) fn client(&self) -> Result<Arc<Client>, RuntimeError> {
        let client = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        client.filter(|client| !client.is_closed()).ok_or_else(|| {
            RuntimeError::Unavailable(format!("wasm worker {}: not connected", self.id))
        })
    }

    /// Whether its process lives.
    pub(crate) fn is_alive(&self) -> bool {
        let Ok(lock) = File::open(self.directory.join("lock")) else {
            return false;
        };
        flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
    }

    /// Has the kernel weigh it as its containers together (cgroup v1's `cpu.shares`).
    pub(crate) fn weigh(&self, cpu_shares: u64) {
        cgroup::weigh(&self.cgroup_parent, &self.id, cpu_shares);
    }

    /// Whether the kernel killed it for want of memory: its own limit, its pod's or the node's.
    pub(crate) fn was_oom_killed(&self) -> bool {
        cgroup::oom_kills(&self.cgroup_parent, &self.id) > 0
    }

    /// Exits it recorded and nobody acknowledged.
    pub(crate) fn exits(&self) -> Vec<ExitRecord> {
        read_exits(&self.exits)
    }

    /// Removes what a dead worker leaves.
    pub(crate) async fn clear_away(&self) -> io::Result<()> {
        let mut tries = CGROUP_TRIES_MAX;
        while !cgroup::remove(&self.cgroup_parent, &self.id) && tries > 0 {
            tokio::time::sleep(CGROUP_PAUSE).await;
            tries -= 1;
        }
        match std::fs::remove_file(&self.exits) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        remove_directory(&self.directory)
    }

    /// Starts a worker that holds no container yet, and answers once it listens.
    pub(crate) async fn start(
        config: &Config,
        new: NewWorker<'_>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let worker = Arc::new(Self::new(config, &id, new.key.clone(), new.cgroup_parent));
        let started = worker.start_process(config, &new).await;
        if started.is_err() {
            let _ = worker.clear_away().await;
        }
        started.map(|()| worker)
    }

    async fn start_process(
        &self,
        config: &Config,
        new: &NewWorker<'_>,
    ) -> Result<(), RuntimeError> {
        let failed = |what: &str| RuntimeError::io(format!("wasm worker {}: {what}", self.id));
        let jail = self.directory.join("jail");
        std::fs::create_dir_all(&jail).map_err(failed("directory"))?;
        std::fs::set_permissions(&self.directory, Permissions::from_mode(0o711))
            .map_err(failed("directory"))?;
        write_json(
            &self.directory.join("worker.json"),
            &WorkerFile {
                key: new.key.clone(),
                cgroup_parent: new.cgroup_parent.map(str::to_owned),
            },
        )
        .map_err(failed("file"))?;
        let lock = File::create(self.directory.join("lock")).map_err(failed("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed("lock")(error.into()))?;
        let listener = UnixListener::bind(self.socket()).map_err(failed("socket"))?;
        // Only root may talk to it.
        std::fs::set_permissions(self.socket(), Permissions::from_mode(0o600))
            .map_err(failed("socket"))?;
        let append = |path: &Path| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(path)
        };
        let exits = append(&self.exits).map_err(failed("exit file"))?;
        let stderr = append(&self.directory.join("stderr")).map_err(failed("stderr"))?;
        let network_namespace = match new.network_namespace {
            Some(path) => Some(File::open(path).map_err(failed("network namespace"))?),
            None => None,
        };
        let authorities = AUTHORITIES.iter().find_map(|path| File::open(path).ok());
        let cgroup_procs = cgroup::make(&self.cgroup_parent, &self.id);
        let bootstrap = Bootstrap {
            protocol: PROTOCOL_VERSION,
            worker: self.id.clone(),
            uid: config.worker_uid,
            gid: config.worker_gid,
            jail,
            cgroup_procs,
            has_network_namespace: network_namespace.is_some(),
            has_authorities: authorities.is_some(),
            instances_max: config.instances_per_worker_max,
        };
        let unavailable = |error: io::Error| {
            RuntimeError::Unavailable(format!("wasm worker {}: {error}", self.id))
        };
        let (mut process, socket) =
            child::spawn(&config.exe, &["wasm-worker"], Some(stderr.into()))
                .map_err(unavailable)?;
        let mut descriptors = vec![listener.as_fd(), lock.as_fd(), exits.as_fd()];
        descriptors.extend(network_namespace.as_ref().map(AsFd::as_fd));
        descriptors.extend(authorities.as_ref().map(AsFd::as_fd));
        let ready: Result<Ready, _> =
            child::ask(socket, &bootstrap, &descriptors, START_TIMEOUT).await;
        match ready {
            Ok(Ready { error: None, .. }) => Ok(()),
            Ok(Ready {
                error: Some(error), ..
            }) => {
                let _ = process.wait().await;
                Err(RuntimeError::Internal(format!(
                    "wasm worker {}: {error}",
                    self.id
                )))
            }
            Err(error) => {
                let _ = process.kill().await;
                let said =
                    std::fs::read_to_string(self.directory.join("stderr")).unwrap_or_default();
                let said = said.lines().last().unwrap_or_default();
                Err(RuntimeError::Unavailable(format!(
                    "wasm worker {}: {error}: {said}",
                    self.id
                )))
            }
        }
    }

    /// Every worker an earlier agent left, dead or alive.
    pub(crate) fn find_all(config: &Config) -> io::Result<Vec<Arc<Self>>> {
        let mut workers = Vec::new();
        std::fs::create_dir_all(workers_directory(config))?;
        std::fs::create_dir_all(exits_directory(config))?;
        for entry in std::fs::read_dir(workers_directory(config))? {
            let entry = entry?;
            let Ok(id) = entry.file_name().into_string() else {
                continue;
            };
            let file = std::fs::read(entry.path().join("worker.json"))
                .and_then(|bytes| Ok(serde_json::from_slice::<WorkerFile>(&bytes)?));
            let file = file.unwrap_or_else(|_| WorkerFile::nobodys());
            let parent = file.cgroup_parent.as_deref();
            workers.push(Arc::new(Self::new(config, &id, file.key, parent)));
        }
        // After a reboot only the exits are left.
        for entry in std::fs::read_dir(exits_directory(config))? {
            let Ok(id) = entry?.file_name().into_string() else {
                continue;
            };
            if !workers.iter().any(|worker| worker.id == id) {
                let key = WorkerFile::nobodys().key;
                workers.push(Arc::new(Self::new(config, &id, key, None)));
            }
        }
        Ok(workers)
    }

    pub(crate) fn assign(&self) {
        self.assigned.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether it holds nothing any more.
    pub(crate) fn unassign(&self) -> bool {
        self.assigned.fetch_sub(1, Ordering::SeqCst) == 1
    }

    pub(crate) fn is_unused(&self) -> bool {
        self.assigned.load(Ordering::SeqCst) == 0
    }
}

fn workers_directory(config: &Config) -> PathBuf {
    config.run.join("wasm/workers")
}

fn exits_directory(config: &Config) -> PathBuf {
    config.root.join("wasm/exits")
}

/// Lines that are not whole (the machine lost power) are passed over.
fn read_exits(path: &Path) -> Vec<ExitRecord> {
    let is_ours = std::fs::symlink_metadata(path)
        .is_ok_and(|file| file.is_file() && file.len() <= EXITS_BYTES_MAX);
    let text = if is_ours {
        std::fs::read(path).unwrap_or_default()
    } else {
        Vec::new()
    };
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect()
}

/// How a container ended whose worker died without a record of it.
pub(crate) fn lost_with_its_worker(
    id: &ContainerId,
    started_at: Option<std::time::SystemTime>,
    oom_killed: bool,
) -> wherry_runtime_api::ContainerExit {
    tracing::warn!(container = %id, oom_killed, "Wasm worker is gone without a record of the container's exit");
    let message = if oom_killed {
        "the kernel killed the wasm worker that held the container: a cgroup around it is out of memory"
    } else {
        "the wasm worker that held the container is gone"
    };
    wherry_runtime_api::ContainerExit {
        started_at,
        finished_at: std::time::SystemTime::now(),
        exit_code: 137,
        signal: Some(9),
        oom_killed,
        message: Some(message.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_of_the_exit_file_does_not_cost_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exits");
        let exit = lost_with_its_worker(&ContainerId::new("a"), None, false);
        let line = serde_json::to_string(&ExitRecord {
            id: "a".into(),
            exit,
        })
        .unwrap();
        std::fs::write(&path, format!("{line}\n{}", &line[..20])).unwrap();
        let records = read_exits(&path);
        assert_eq!(
            records
                .iter()
                .map(|record| record.id.as_str())
                .collect::<Vec<_>>(),
            ["a"]
        );
    }
}
