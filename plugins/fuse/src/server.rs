//! The server's other side: agents, which come and go, ask for volumes to be served.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, broadcast, mpsc, oneshot},
    time::sleep,
};
use wherry_plugin_host::{
    PluginStats, VolumeError,
    filesystem::protocol::{Component, FromServer, Hello, News, Opened, Served, Status, ToServer},
};
use wherry_wasm_aot::wire;

use crate::{
    blocks::Blocks,
    device::Device,
    lock,
    seen::Seen,
    volume::{Command, Counted, End, Volume},
    worker::Plugin,
};

/// A server without volumes ends after so long.
const IDLE: Duration = Duration::from_secs(2);
/// News that are kept for an agent that is not there.
const NEWS_MAX: usize = 64;
/// Commands that wait for a volume.
const COMMANDS_MAX: usize = 8;

struct Known {
    served: Served,
    plugin: Arc<Plugin>,
    commands: mpsc::Sender<Command>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct State {
    hello: Option<Hello>,
    /// By name: those that volumes are served by, and what replaces them.
    plugins: HashMap<String, Arc<Plugin>>,
    volumes: HashMap<String, Known>,
    /// What was counted of volumes that are gone, by plugin.
    ended: BTreeMap<String, PluginStats>,
    /// Nobody has heard of these yet.
    news: VecDeque<News>,
}

impl State {
    /// What has been counted of each plugin.
    fn counted(&self) -> BTreeMap<String, PluginStats> {
        let mut counted = self.ended.clone();
        for known in self.volumes.values() {
            let of_plugin = counted.entry(known.served.plugin.name.clone()).or_default();
            of_plugin.merge(&lock(&known.seen).stats());
        }
        counted
    }

    /// A volume is gone. Calls of its that are still under way are not counted.
    fn take_leave(&mut self, known: &Known) {
        let mut stats = lock(&known.seen).stats();
        stats.set_apart = 0;
        let ended = self.ended.entry(known.served.plugin.name.clone());
        ended.or_default().merge(&stats);
    }
}

/// The volumes and who asks for them.
pub(crate) struct Server {
    state: Mutex<State>,
    news: broadcast::Sender<News>,
    /// Something has come or gone.
    changed: Notify,
}

impl Server {
    /// Serves agents on a socket until there is nothing to serve.
    pub(crate) async fn run(path: &Path) -> io::Result<()> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        let server = Arc::new(Self {
            state: Mutex::default(),
            news: broadcast::channel(NEWS_MAX).0,
            changed: Notify::new(),
        });
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    let server = Arc::clone(&server);
                    tokio::spawn(async move {
                        // What is wrong with a connection its other end finds out by itself.
                        let _ = server.talk(stream).await;
                        server.changed.notify_one();
                    });
                }
                () = server.changed.notified() => {}
                () = sleep(IDLE), if server.is_idle() => {
                    let _ = std::fs::remove_file(path);
                    return Ok(());
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        lock(&self.state).volumes.is_empty()
    }

    async fn talk(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let (sender, mut receiver) = wire::split(stream);
        while let Some((message, descriptors)) = receiver.receive::<ToServer>().await? {
            match message {
                ToServer::Hello(hello) => {
                    lock(&self.state).hello = Some(hello);
                    let pid = std::process::id();
                    sender.send(&FromServer::Welcome { pid }, &[]).await?;
                }
                ToServer::Follow => return self.follow(sender, receiver).await,
                ToServer::Serve { volume, is_resumed } => {
                    let result = self.serve(*volume, is_resumed, descriptors).await;
                    sender.send(&FromServer::Serving { result }, &[]).await?;
                }
                ToServer::Close { id } => {
                    let known = {
                        let mut state = lock(&self.state);
                        let known = state.volumes.remove(&id);
                        known.iter().for_each(|known| state.take_leave(known));
                        known
                    };
                    if let Some(known) = known {
                        let _ = known.commands.send(Command::Close).await;
                    }
                    self.tidy();
                    sender.send(&FromServer::Closed, &[]).await?;
                }
                ToServer::Replace { plugin } => {
                    let volumes = self.replace(plugin, descriptors).await;
                    sender.send(&FromServer::Replaced { volumes }, &[]).await?;
                }
                ToServer::Count => {
                    let plugins = lock(&self.state).counted();
                    let pid = std::process::id();
                    let counted = FromServer::Counted { pid, plugins };
                    sender.send(&counted, &[]).await?;
                }
                ToServer::List => self.list(&sender).await?,
            }
        }
        Ok(())
    }

    async fn follow(&self, sender: wire::Sender, mut receiver: wire::Receiver) -> io::Result<()> {
        let (mut news, waiting) = {
            let mut state = lock(&self.state);
            (self.news.subscribe(), std::mem::take(&mut state.news))
        };
        for news in waiting {
            sender.send(&FromServer::News(news), &[]).await?;
        }
        loop {
            tokio::select! {
                news = news.recv() => match news {
                    Ok(news) => sender.send(&FromServer::News(news), &[]).await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                // Says nothing more; its end is what is waited for.
                message = receiver.receive::<ToServer>() => {
                    if message?.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn tell(&self, news: News) {
        if let Err(broadcast::error::SendError(news)) = self.news.send(news) {
            let mut state = lock(&self.state);
            if state.news.len() >= NEWS_MAX {
                state.news.pop_front();
            }
            state.news.push_back(news);
        }
    }

    /// The plugin that a volume is served by: the one of that name and digest that is there, or a new one.
    fn plugin(
        &self,
        component: &Component,
        directory: OwnedFd,
    ) -> Result<Arc<Plugin>, VolumeError> {
        let mut state = lock(&self.state);
        let Some(hello) = state.hello.clone() else {
            return Err(VolumeError::Other(
                "nobody said how to start a worker".into(),
            ));
        };
        if let Some(plugin) = state.plugins.get(&component.name)
            && plugin.component() == component
            && *plugin.hello() == hello
        {
            return Ok(Arc::clone(plugin));
        }
        let plugin = Arc::new(Plugin::new(hello, component.clone(), directory));
        state
            .plugins
            .insert(component.name.clone(), Arc::clone(&plugin));
        Ok(plugin)
    }

    async fn serve(
        self: &Arc<Self>,
        served: Served,
        is_resumed: bool,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Opened, VolumeError> {
        let other = |error: io::Error| VolumeError::Other(format!("volume server: {error}"));
        let Ok([device, directory, blocks]) = <[OwnedFd; 3]>::try_from(descriptors) else {
            return Err(VolumeError::Other("descriptors are missing".into()));
        };
        let id = served.id.clone();
        let plugin = self.plugin(&served.plugin, directory)?;
        let device = Device::new(device).map_err(other)?;
        let blocks = Blocks::open(File::from(blocks), served.blocks_bytes_max).map_err(other)?;
        let teller = Arc::clone(self);
        let name = id.clone();
        let tell = move |reason: &str, message: String| {
            teller.tell(News {
                id: name.clone(),
                reason: reason.to_owned(),
                message,
            });
        };
        let (first, opened) = oneshot::channel();
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let volume = Volume::new(
            served.clone(),
            device,
            blocks,
            Arc::clone(&plugin),
            is_resumed,
            Box::new(tell),
            first,
        );
        {
            let mut state = lock(&self.state);
            let known = Known {
                served,
                plugin,
                commands: commands.clone(),
                seen: volume.seen(),
            };
            // Its descriptors say that one there by that name is of a mount that is gone.
            let before = state.volumes.insert(id.clone(), known);
            before.iter().for_each(|known| state.take_leave(known));
        }
        self.changed.notify_one();
        let server = Arc::clone(self);
        tokio::spawn(async move {
            let _: End = volume.run(receiver).await;
            let mut state = lock(&server.state);
            let is_it = |known: &mut Known| known.commands.same_channel(&commands);
            let known = match state.volumes.get_mut(&id).is_some_and(is_it) {
                true => state.volumes.remove(&id),
                false => None,
            };
            known.iter().for_each(|known| state.take_leave(known));
            drop(state);
            server.tidy();
        });
        let lost = |_| Err(VolumeError::Other("nothing is mounted any more".into()));
        opened.await.unwrap_or_else(lost)
    }

    /// Drops plugins that serve nothing.
    fn tidy(&self) {
        let mut state = lock(&self.state);
        let State {
            plugins, volumes, ..
        } = &mut *state;
        plugins.retain(|_, plugin| {
            volumes
                .values()
                .any(|volume| Arc::ptr_eq(&volume.plugin, plugin))
        });
        drop(state);
        self.changed.notify_one();
    }

    async fn replace(&self, component: Component, mut descriptors: Vec<OwnedFd>) -> u32 {
        let concerned = lock(&self.state)
            .volumes
            .values()
            .any(|known| known.served.plugin.name == component.name);
        let Some(directory) = descriptors.pop().filter(|_| concerned) else {
            return 0;
        };
        let Ok(plugin) = self.plugin(&component, directory) else {
            return 0;
        };
        let mut moved = Vec::new();
        for known in lock(&self.state).volumes.values_mut() {
            if known.served.plugin.name == component.name && !Arc::ptr_eq(&known.plugin, &plugin) {
                known.served.plugin = component.clone();
                known.plugin = Arc::clone(&plugin);
                moved.push(known.commands.clone());
            }
        }
        for commands in &moved {
            let _ = commands.send(Command::Replace(Arc::clone(&plugin))).await;
        }
        u32::try_from(moved.len()).unwrap_or(u32::MAX)
    }

    async fn list(&self, sender: &wire::Sender) -> io::Result<()> {
        let volumes: Vec<_> = lock(&self.state)
            .volumes
            .values()
            .map(|known| {
                let Known {
                    served,
                    plugin,
                    commands,
                    ..
                } = known;
                (served.clone(), Arc::clone(plugin), commands.clone())
            })
            .collect();
        for (served, plugin, commands) in volumes {
            let (asker, answer) = oneshot::channel();
            let asked = commands.send(Command::Status(asker)).await;
            let (Ok(()), Ok(counted)) = (asked, answer.await) else {
                continue;
            };
            let Counted {
                requests,
                failed,
                reopened,
                worker,
                device,
                blocks,
            } = counted;
            let (Ok(device), Ok(blocks)) = (device, blocks) else {
                continue;
            };
            let status = Status {
                volume: served,
                requests,
                failed,
                reopened,
                worker,
            };
            let descriptors = [device.as_fd(), plugin.directory().as_fd(), blocks.as_fd()];
            let message = FromServer::Volume(Box::new(status));
            sender.send(&message, &descriptors).await?;
        }
        sender.send(&FromServer::End, &[]).await
    }
}
