//! Volumes whose every operation is a plugin's, the agent's side: mounts FUSE, has the volume server serve it, and
//! keeps what another server needs should that one end.
//!
//! ```text
//!  publish    mount FUSE on the volume's directory ─▶ Serve, with the descriptors ─▶ the guest has opened it
//!  restore    List: the server has outlived the agent, which takes its own descriptors again
//!  server ended while we follow it    another one is started and told to go on where that one was
//!  plugin installed anew    Replace: its volumes move, calls under way finished
//! ```
//! What the guest says goes to the kernel through the server; nothing of it comes here.

pub(crate) mod counted;
pub mod frames;
mod mount;
pub mod protocol;
mod server;
mod size;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rustix::fs::MemfdFlags;
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{
    PluginHost, VolumeError, World,
    agency::Agency,
    cgroup,
    host::Installed,
    named::NamedHosts,
    populate::NoContainer,
    protocol::{Answer, Ask, Fault, VolumeCall},
    volume::{VolumeFailure, VolumeMounts, VolumeRequest},
};

pub(crate) use self::mount::{is_mounted, unmount};
use self::{
    protocol::{Component, FromServer, Hello, News, Served, Status, ToServer},
    server::Server,
};

/// Bytes that a volume's guest may keep with the host, where the volume does not say less.
pub const BLOCKS_BYTES_MAX: u64 = 256 << 20;
/// From a request's arrival until it is answered with EIO, whatever becomes of workers meanwhile.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The reason of news that are lines of a plugin's log, which nobody but the operator reads.
pub const LOGGED: &str = "PluginLog";
/// News that wait for whoever listens.
const NEWS_MAX: usize = 64;
/// Wait before a server that ended is replaced again.
const BACKOFF: Duration = Duration::from_secs(1);
/// Between looks at what the server has counted.
const COUNT_PERIOD: Duration = Duration::from_secs(5);
/// Memory of the server, and of a worker without its instances: code, threads, what is on its way.
const PROCESS_BYTES: u64 = 128 << 20;
/// Memory that a volume takes besides its blocks and its instance: their index and journal, and requests on their way.
const VOLUME_BYTES: u64 = 64 << 20;

/// What a guest that serves a file system asks of the node.
pub async fn answer(ask: Ask, plugin: &Component, call: &VolumeCall, left: Duration) -> Answer {
    let named = match plugin.grants.named_hosts {
        true => NamedHosts::of(&call.attributes),
        false => NamedHosts::default(),
    };
    let agency = Agency {
        grants: &plugin.grants,
        named,
        exec: &NoContainer,
        progress: &|_, _| {},
        checks: None,
    };
    agency.answer(ask, left).await
}

/// A volume that is mounted, with what serving it takes.
struct Held {
    served: Served,
    device: OwnedFd,
    directory: OwnedFd,
    blocks: OwnedFd,
}

impl Held {
    fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [
            self.device.as_fd(),
            self.directory.as_fd(),
            self.blocks.as_fd(),
        ]
    }
}

/// The node's file systems that plugins serve.
pub struct FilesystemVolumes {
    host: Arc<PluginHost>,
    server: Server,
    held: Mutex<HashMap<String, Arc<Held>>>,
    /// One publication, undoing or change of a plugin at a time: they are rare and quick.
    turn: tokio::sync::Mutex<()>,
    news: broadcast::Sender<News>,
    request_timeout: Duration,
    following: Mutex<Option<AbortOnDropHandle<()>>>,
    /// Whether what a server before has is known here.
    restored: tokio::sync::OnceCell<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn id(target: &Path) -> String {
    target.to_string_lossy().into_owned()
}

impl FilesystemVolumes {
    /// `socket` is where the volume server listens; it is started by the first volume.
    pub fn new(host: Arc<PluginHost>, socket: PathBuf, request_timeout: Duration) -> Arc<Self> {
        let config = &host.config;
        let hello = Hello {
            exe: config.exe.clone(),
            jail: config.jail.clone(),
            uid: config.uid,
            gid: config.gid,
        };
        let server = Server::new(socket, hello, config.volumes_cgroup.clone());
        Arc::new(Self {
            host,
            server,
            held: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            news: broadcast::channel(NEWS_MAX).0,
            request_timeout,
            following: Mutex::default(),
            restored: tokio::sync::OnceCell::new(),
        })
    }

    /// How the volumes are that the server serves.
    pub async fn volumes(&self) -> Vec<Status> {
        let listed = self.server.list().await.unwrap_or_default();
        listed.into_iter().map(|(status, _)| status).collect()
    }

    /// Asks the server what it has counted, for [`PluginHost::stats`] and [`PluginHost::metrics`]. Done now and then
    /// while there are volumes.
    pub async fn count(&self) {
        if let Ok((pid, plugins)) = self.server.count().await {
            lock(&self.host.counted).take(pid, plugins);
        }
    }

    async fn keep_counting(&self) {
        loop {
            tokio::time::sleep(COUNT_PERIOD).await;
            self.count().await;
        }
    }

    /// Bounds the memory of the server and its workers by what these volumes may take, and one more.
    fn limit(&self, more: Option<&Served>) {
        let Some(group) = &self.host.config.volumes_cgroup else {
            return;
        };
        let held: Vec<_> = lock(&self.held).values().cloned().collect();
        let served = || held.iter().map(|held| &held.served).chain(more);
        let workers: HashSet<_> = served().map(|served| &served.plugin.name).collect();
        let volumes = served().map(|served| {
            let instance = served.plugin.limits.memory_bytes_max;
            VOLUME_BYTES + served.blocks_bytes_max.saturating_add(instance)
        });
        // Twice the workers: those of another version start before the old ones end.
        let processes = (1 + 2 * workers.len() as u64) * PROCESS_BYTES;
        let bytes = volumes.fold(processes, u64::saturating_add);
        cgroup::limit(group, bytes, cgroup::VOLUMES_PIDS_MAX);
    }

    fn component(&self, plugin: &Installed) -> io::Result<(Component, OwnedFd)> {
        let directory = File::open(&plugin.directory)?;
        let component = Component {
            name: plugin.spec.name.clone(),
            digest: format!("{} {}", plugin.spec.digest, plugin.directory.display()),
            grants: plugin.spec.grants.clone(),
            limits: plugin.spec.limits,
        };
        Ok((component, directory.into()))
    }

    /// Follows the server and the plugins for as long as this lives.
    fn follow(self: &Arc<Self>) {
        let mut following = lock(&self.following);
        if following.is_some() {
            return;
        }
        let weak = Arc::downgrade(self);
        let mut plugins = self.host.changes();
        let task = tokio::spawn(async move {
            loop {
                let Some(this) = weak.upgrade() else { return };
                if lock(&this.held).is_empty() {
                    // Nothing to follow until the next volume.
                    lock(&this.following).take().map(AbortOnDropHandle::detach);
                    return;
                }
                let ended = tokio::select! {
                    ended = this.server.follow(|news| this.hear(news)) => ended,
                    changed = plugins.changed() => {
                        if changed.is_ok() {
                            this.replace().await;
                        }
                        continue;
                    }
                    () = this.keep_counting() => continue,
                };
                this.go_on(ended).await;
                drop(this);
                tokio::time::sleep(BACKOFF).await;
            }
        });
        *following = Some(AbortOnDropHandle::new(task));
    }

    fn hear(&self, news: News) {
        if news.reason == LOGGED {
            return info!(volume = %news.id, "{}", news.message);
        }
        warn!(volume = %news.id, reason = %news.reason, "Plugin volume: {}", news.message);
        // Nobody need listen.
        let _ = self.news.send(news);
    }

    /// The server has ended: another one takes what is held.
    async fn go_on(&self, ended: io::Result<()>) {
        let _turn = self.turn.lock().await;
        // A volume that was published meanwhile has started the next server already; two instances of one volume
        // would know nothing of each other's files.
        let listed = self.server.list().await.unwrap_or_default();
        let served: HashSet<_> = listed
            .into_iter()
            .map(|(status, _)| status.volume.id)
            .collect();
        let held: Vec<_> = {
            let mut held = lock(&self.held);
            // Unmounted by somebody else, as the removal of a pod's directory does.
            held.retain(|id, _| mount::is_mounted(Path::new(id)).unwrap_or(false));
            let lost = held.iter().filter(|(id, _)| !served.contains(*id));
            lost.map(|(_, held)| Arc::clone(held)).collect()
        };
        if held.is_empty() {
            return;
        }
        warn!(error = ?ended.err(), volumes = held.len(), "Volume server ended");
        for one in held {
            let id = one.served.id.clone();
            if let Err(error) = self.serve(&one, true).await {
                warn!(volume = %id, %error, "Volume not served again");
            } else {
                let message = "the volume server ended and was started again".into();
                let reason = "VolumeServerRestarted".into();
                self.hear(News {
                    id,
                    reason,
                    message,
                });
            }
        }
    }

    /// Has volumes served by what is installed now.
    async fn replace(&self) {
        let _turn = self.turn.lock().await;
        let mut by_plugin = HashMap::<String, Vec<Arc<Held>>>::new();
        for held in lock(&self.held).values() {
            let name = held.served.plugin.name.clone();
            by_plugin.entry(name).or_default().push(Arc::clone(held));
        }
        for (name, volumes) in by_plugin {
            let Ok(plugin) = self.host.volume_plugin(&name, World::Filesystem).await else {
                // Removed: what is mounted goes on.
                continue;
            };
            let Ok((component, directory)) = self.component(&plugin) else {
                continue;
            };
            if volumes.iter().all(|held| held.served.plugin == component) {
                continue;
            }
            match self.server.replace(&component, directory.as_fd()).await {
                Ok(moved) => info!(plugin = %name, volumes = moved, "Plugin of volumes replaced"),
                Err(error) => {
                    warn!(plugin = %name, %error, "Plugin of volumes not replaced");
                    continue;
                }
            }
            for held in volumes {
                let renewed = || {
                    io::Result::Ok(Held {
                        served: Served {
                            plugin: component.clone(),
                            ..held.served.clone()
                        },
                        device: held.device.try_clone()?,
                        directory: directory.try_clone()?,
                        blocks: held.blocks.try_clone()?,
                    })
                };
                if let Ok(renewed) = renewed() {
                    let id = renewed.served.id.clone();
                    lock(&self.held).insert(id, Arc::new(renewed));
                }
            }
        }
    }

    async fn serve(&self, held: &Held, is_resumed: bool) -> Result<protocol::Opened, VolumeError> {
        let message = ToServer::Serve {
            volume: Box::new(held.served.clone()),
            is_resumed,
        };
        match self.server.ask(&message, &held.descriptors()).await {
            Ok(FromServer::Serving { result }) => result,
            Ok(_) => Err(VolumeError::Other("volume server: no answer".into())),
            Err(error) => Err(VolumeError::Unavailable(format!("volume server: {error}"))),
        }
    }

    /// Takes what a server has that an agent before had it serve.
    async fn find_again(self: &Arc<Self>) {
        let listed = {
            let _turn = self.turn.lock().await;
            let Ok(listed) = self.server.list().await else {
                return;
            };
            for (status, descriptors) in &listed {
                let Ok([device, directory, blocks]) = descriptors
                    .iter()
                    .map(OwnedFd::try_clone)
                    .collect::<io::Result<Vec<_>>>()
                    .and_then(|all| {
                        <[OwnedFd; 3]>::try_from(all).map_err(|_| io::ErrorKind::InvalidData.into())
                    })
                else {
                    continue;
                };
                let held = Held {
                    served: status.volume.clone(),
                    device,
                    directory,
                    blocks,
                };
                lock(&self.held).insert(status.volume.id.clone(), Arc::new(held));
            }
            listed.len()
        };
        if listed > 0 {
            info!(volumes = listed, "Plugin volumes found again");
            self.limit(None);
            self.follow();
            self.replace().await;
        }
    }

    fn is_held(&self, id: &str) -> bool {
        lock(&self.held).contains_key(id)
    }
}

#[async_trait]
impl VolumeMounts for Arc<FilesystemVolumes> {
    fn world(&self) -> World {
        World::Filesystem
    }

    fn news(&self) -> Option<broadcast::Receiver<News>> {
        Some(self.news.subscribe())
    }

    async fn publish(&self, request: &VolumeRequest, target: &Path) -> Result<(), VolumeFailure> {
        self.restore().await;
        let failed = |fault: Fault| VolumeFailure::Failed {
            plugin: request.plugin.clone(),
            fault,
        };
        let io = |error: io::Error| VolumeFailure::io(target, error);
        let plugin = self
            .host
            .volume_plugin(&request.plugin, World::Filesystem)
            .await?;
        if let Some(option) = request.mount_options.first() {
            let why = format!("mountOptions: {option}: a plugin's file system has none");
            return Err(failed(Fault::Volume(VolumeError::InvalidAttributes(why))));
        }
        let _turn = self.turn.lock().await;
        let id = id(target);
        if mount::is_mounted(target).map_err(io)? {
            if self.is_held(&id) {
                return Ok(());
            }
            // Made by an agent that was killed before it was served.
            mount::unmount(target).map_err(io)?;
        }
        let (component, directory) = self.component(&plugin).map_err(io)?;
        let limits = crate::protocol::StagingLimits::default();
        let config = plugin.spec.config.get("maxSize");
        let blocks_bytes_max = size::of_blocks(request, config.map(String::as_str))
            .map_err(|why| failed(Fault::Volume(VolumeError::InvalidAttributes(why))))?;
        let blocks = rustix::fs::memfd_create("wherry-blocks", MemfdFlags::CLOEXEC);
        let device = mount::mount(target, &request.plugin, request.is_read_only).map_err(io)?;
        let held = Held {
            served: Served {
                id: id.clone(),
                plugin: component,
                call: request.volume_call(&plugin, None, limits),
                blocks_bytes_max,
                request_timeout: self.request_timeout,
            },
            device,
            directory,
            blocks: blocks.map_err(|error| io(error.into()))?,
        };
        self.limit(Some(&held.served));
        let opened = match self.serve(&held, false).await {
            Ok(opened) => opened,
            Err(error) => {
                let _ = mount::unmount(target);
                self.limit(None);
                return Err(failed(Fault::Volume(error)));
            }
        };
        lock(&self.held).insert(id, Arc::new(held));
        self.follow();
        mount::read_ahead(target);
        let dressed = match (opened.is_read_only, request.fs_group) {
            (true, _) => mount::make_read_only(target),
            (false, Some(group)) if !request.is_read_only => {
                let target = target.to_owned();
                // The guest is asked, and answers when it likes.
                let given = tokio::task::spawn_blocking(move || mount::give(&target, group));
                given.await.unwrap_or_else(|error| Err(error.into()))
            }
            (false, _) => Ok(()),
        };
        dressed.map_err(io)
    }

    async fn unpublish(&self, target: &Path) -> Result<(), VolumeFailure> {
        self.restore().await;
        let _turn = self.turn.lock().await;
        let id = id(target);
        if lock(&self.held).remove(&id).is_none() {
            return Ok(());
        }
        mount::unmount(target).map_err(|error| VolumeFailure::io(target, error))?;
        if let Err(error) = self.server.close(&id).await {
            // It sees by itself that nothing is mounted any more.
            warn!(volume = %id, %error, "Volume server not told of a volume's end");
        }
        // It may be the last, with which the server ends.
        self.count().await;
        self.limit(None);
        Ok(())
    }

    async fn restore(&self) {
        self.restored.get_or_init(|| self.find_again()).await;
    }
}
