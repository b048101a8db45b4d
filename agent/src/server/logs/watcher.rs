//! Tells readers that a log directory has changed. One inotify instance for all of them, because a machine
//! has few, and none while nobody reads; without one, readers look every [`POLL_INTERVAL`].

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::{io::unix::AsyncFd, sync::watch};
use tracing::warn;

/// How often a reader looks where inotify cannot be had.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Watches directories for whoever asks. Clones share the instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogWatcher {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    instance: Option<Instance>,
}

#[derive(Debug)]
struct Instance {
    inotify: Arc<AsyncFd<Descriptor>>,
    directories: HashMap<WatchDescriptor, Directory>,
    task: tokio::task::AbortHandle,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A directory watched; dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    watcher: LogWatcher,
    directory: PathBuf,
    /// `None` without inotify.
    changed: Option<watch::Receiver<()>>,
}

impl LogWatcher {
    /// Watches the directory of a log file.
    pub(crate) fn watch(&self, log: &Path) -> Watch {
        let directory = log.parent().unwrap_or(Path::new("/")).to_path_buf();
        let changed = self.subscribe(&directory).inspect_err(|error| {
            warn!(directory = %directory.display(), %error, "Log directory cannot be watched and is polled");
        });
        Watch {
            watcher: self.clone(),
            directory,
            changed: changed.ok(),
        }
    }

    fn subscribe(&self, path: &Path) -> io::Result<watch::Receiver<()>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.instance.is_none() {
            shared.instance = Some(Instance::new(Arc::downgrade(&self.shared))?);
        }
        let Some(instance) = &mut shared.instance else {
            return Err(io::ErrorKind::Other.into());
        };
        let events = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        // A directory that is watched already has the same descriptor.
        let added = instance.inotify.get_ref().0.add_watch(path, events);
        let result = added.map(|descriptor| {
            let directory = || Directory {
                path: path.to_path_buf(),
                changed: watch::Sender::new(()),
            };
            instance
                .directories
                .entry(descriptor)
                .or_insert_with(directory)
                .changed
                .subscribe()
        });
        shared.drop_if_unused();
        Ok(result?)
    }

    fn release(&self, path: &Path) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = &mut shared.instance {
            instance.directories.retain(|descriptor, directory| {
                let is_used = directory.path != path || directory.changed.receiver_count() > 0;
                if !is_used {
                    // The directory may be gone, and its watch with it.
                    let _ = instance.inotify.get_ref().0.rm_watch(*descriptor);
                }
                is_used
            });
        }
        shared.drop_if_unused();
    }
}

impl Shared {
    fn drop_if_unused(&mut self) {
        if let Some(unused) = self
            .instance
            .take_if(|instance| instance.directories.is_empty())
        {
            unused.task.abort();
        }
    }
}

impl Instance {
    fn new(shared: std::sync::Weak<Mutex<Shared>>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe to call; the descriptor is owned by what is given here"
        )]
        let inotify = Arc::new(AsyncFd::new(Descriptor(inotify))?);
        let reader = inotify.clone();
        let task = tokio::spawn(async move {
            while let Ok(mut ready) = reader.readable().await {
                let events = match reader.get_ref().0.read_events() {
                    Ok(events) => events,
                    Err(Errno::EAGAIN) => {
                        ready.clear_ready();
                        continue;
                    }
                    Err(error) => return warn!(%error, "Log directories are no longer watched"),
                };
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(instance) = &shared.instance else {
                    return;
                };
                for event in events {
                    match instance.directories.get(&event.wd) {
                        Some(directory) => directory.changed.send_replace(()),
                        // Events were lost, so anything may have changed.
                        None if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) => {
                            instance
                                .directories
                                .values()
                                .for_each(|directory| directory.changed.send_replace(()));
                        }
                        None => {}
                    }
                }
            }
        });
        Ok(Self {
            inotify,
            directories: HashMap::new(),
            task: task.abort_handle(),
        })
    }
}

impl Watch {
    /// Returns when the directory has changed since the last call, or at once if it has already.
    ///
    /// # Cancel safety
    /// Dropping the future loses no change.
    pub(crate) async fn changed(&mut self) {
        match &mut self.changed {
            Some(changed) => {
                if changed.changed().await.is_err() {
                    self.changed = None;
                }
            }
            None => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.changed = None;
        self.watcher.release(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_of_one_directory_share_a_watch_and_the_last_one_ends_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = directory.path().join("0.log");
        let watcher = LogWatcher::default();
        let (mut first, mut second) = (watcher.watch(&log), watcher.watch(&log));
        std::fs::write(&log, "x").expect("space");
        tokio::join!(first.changed(), second.changed());
        let instances = || {
            watcher
                .shared
                .lock()
                .expect("not poisoned")
                .instance
                .iter()
                .map(|instance| instance.directories.len())
                .sum::<usize>()
        };
        assert_eq!(instances(), 1);
        drop(first);
        std::fs::rename(&log, directory.path().join("0.log.1")).expect("same directory");
        second.changed().await;
        drop(second);
        assert_eq!(instances(), 0);
        assert!(
            watcher
                .shared
                .lock()
                .expect("not poisoned")
                .instance
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_watched_is_polled() {
        let watcher = LogWatcher::default();
        watcher.watch(Path::new("/no/such/0.log")).changed().await;
        assert!(
            watcher
                .shared
                .lock()
                .expect("not poisoned")
                .instance
                .is_none()
        );
    }
}
