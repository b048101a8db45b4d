//! A volume's instance: opened, called, and gone with the first call that it does not survive.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::timeout};
use wasmtime::Store;
use wherry_plugin_host::{
    ProbeTarget,
    filesystem::protocol::{
        CallEnded, CallFault, DATA_BYTES_MAX, ENTRIES_MAX, FromGuest, GuestAnswer, Opened,
        Operation, Reply,
    },
    protocol::{self, Fault, VolumeCall},
};

use super::{Job, Kept, Shared, convert};
use crate::{
    bindings::filesystem::FilesystemVolume,
    call::{Exceeded, Metered, fault},
    limits::Limiter,
    plugin::Pre,
    populate::{self, Volume},
    state::State,
};

type Said = Result<Reply, wherry_plugin_host::filesystem::protocol::Errno>;

struct Guest {
    store: Store<State>,
    instance: FilesystemVolume,
}

/// Does a volume's jobs, in order, until there are no more.
pub(super) async fn serve(
    shared: Arc<Shared>,
    volume: u64,
    mut jobs: mpsc::Receiver<Job>,
    answers: mpsc::Receiver<(GuestAnswer, Vec<u8>)>,
) {
    let mut answers = Some(answers);
    let mut guest = None;
    while let Some(job) = jobs.recv().await {
        let _ticking = shared.ticker.tick();
        let (call, ended, data) = match job {
            Job::Open(request) => {
                let (ended, opened) = match answers.take() {
                    Some(answers) => open(&shared, volume, *request, answers).await,
                    None => return,
                };
                guest = opened;
                (0, ended.0, ended.1)
            }
            Job::Call {
                call,
                operation,
                data,
            } => match &mut guest {
                Some(there) => {
                    let (ended, bytes) = there.call(&shared, operation, data).await;
                    if ended.result.is_err() {
                        guest = None;
                    }
                    (call, ended, bytes)
                }
                None => (call, CallEnded::without(CallFault::NotBegun), Vec::new()),
            },
        };
        let ended = FromGuest::Ended {
            volume,
            call,
            ended: Box::new(ended),
        };
        if shared.sender.send((ended, data)).await.is_err() {
            return;
        }
    }
}

async fn open(
    shared: &Shared,
    volume: u64,
    request: VolumeCall,
    answers: mpsc::Receiver<(GuestAnswer, Vec<u8>)>,
) -> ((CallEnded, Vec<u8>), Option<Guest>) {
    let Pre::Filesystem(pre) = &shared.plugin.pre else {
        let fault = Fault::Other("it is no file system".into());
        let ended = CallEnded::without(CallFault::Fault(fault));
        return ((ended, Vec::new()), None);
    };
    let limits = shared.plugin.limits;
    let mut state = State::new(
        ProbeTarget::default(),
        limits.wall_time_max,
        Limiter::new(limits.memory_bytes_max),
        (Arc::clone(&shared.roots), Arc::clone(&shared.deadlines)),
        // What any plugin asks goes the way of the questions about blocks.
        None,
    );
    state.volume = Some(Volume::new(request, None));
    state.kept = Some(Kept::new(volume, shared.sender.clone(), answers));
    let mut store = Store::new(&shared.plugin.engine, state);
    store.limiter(|state| &mut state.limiter);
    store.epoch_deadline_async_yield_and_update(1);
    store.set_epoch_deadline(1);
    let begun_at = Instant::now();
    let (result, cpu_time) = {
        let begun = async {
            let instance = pre.instantiate_async(&mut store).await?;
            let said = instance.call_open(&mut store).await?;
            Ok((instance, said))
        };
        metered(shared, begun).await
    };
    let (result, instance) = match result {
        Ok((instance, Ok(opened))) => {
            let opened = Opened {
                nodes_are_kept: opened.nodes_are_kept,
                is_read_only: opened.is_read_only,
            };
            (Ok(Ok(Reply::Opened(Ok(opened)))), Some(instance))
        }
        Ok((_, Err(error))) => (Err(CallFault::Fault(populate::declared(error))), None),
        Err(fault) => (Err(CallFault::Fault(fault)), None),
    };
    let spent = (begun_at.elapsed(), cpu_time);
    let ended = finish(&mut store, result, spent, Vec::new());
    (ended, instance.map(|instance| Guest { store, instance }))
}

/// Runs a guest within the limits of one call.
async fn metered<T>(
    shared: &Shared,
    guest: impl Future<Output = wasmtime::Result<T>> + Send,
) -> (Result<T, Fault>, Duration) {
    let limits = shared.plugin.limits;
    let mut metered = Metered::new(guest, limits.cpu_time_max);
    let result = match timeout(limits.wall_time_max, &mut metered).await {
        Ok(Ok(Ok(said))) => Ok(said),
        Ok(Ok(Err(error))) => Err(fault(&error, limits)),
        Ok(Err(Exceeded)) => Err(Fault::CpuTimeExceeded {
            max: limits.cpu_time_max,
        }),
        Err(_) => Err(Fault::TimedOut {
            after: limits.wall_time_max,
        }),
    };
    (result, metered.spent())
}

/// What a call leaves behind, with the time it took and the CPU time of it. What it changed goes where it answered well, and is forgotten otherwise.
fn finish(
    store: &mut Store<State>,
    result: Result<Said, CallFault>,
    (took, cpu_time): (Duration, Duration),
    mut data: Vec<u8>,
) -> (CallEnded, Vec<u8>) {
    let state = store.data_mut();
    let (changes, written) = state.kept.as_mut().map(Kept::take).unwrap_or_default();
    let is_good = matches!(result, Ok(Ok(_)));
    match is_good {
        true if data.is_empty() => data = written,
        true => data.extend_from_slice(&written),
        false => {}
    }
    let (log, denied) = (std::mem::take(&mut state.log), state.denied.take());
    state.log_dropped = 0;
    let ended = CallEnded {
        result,
        changes: if is_good { changes } else { Vec::new() },
        log,
        denied: denied.map(protocol::cut),
        cpu_time,
        took,
        memory_bytes: state.limiter.bytes(),
    };
    (ended, data)
}

impl Guest {
    async fn call(
        &mut self,
        shared: &Shared,
        operation: Operation,
        data: Vec<u8>,
    ) -> (CallEnded, Vec<u8>) {
        let Self { store, instance } = self;
        store.data_mut().renew(shared.plugin.limits.wall_time_max);
        let begun = Instant::now();
        let mut read = Vec::new();
        let (result, cpu_time) = {
            let said = make(store, instance, operation, &data, &mut read);
            metered(shared, said).await
        };
        if !matches!(result, Ok(Ok(Reply::Read(_)))) {
            read.clear();
        }
        let spent = (begun.elapsed(), cpu_time);
        finish(store, result.map_err(CallFault::Fault), spent, read)
    }
}

/// Makes a call; what was read is put in `read`.
async fn make(
    store: &mut Store<State>,
    instance: &FilesystemVolume,
    operation: Operation,
    data: &[u8],
    read: &mut Vec<u8>,
) -> wasmtime::Result<Said> {
    use Operation as O;
    let guest = instance.wherry_plugin_filesystem();
    let attributes = |said| Reply::Attributes(convert::attributes(said));
    let done = |()| Reply::Done;
    let said = match operation {
        O::Lookup { parent, name } => {
            let said = guest.call_find(store, parent, &name).await?;
            said.map(attributes)
        }
        O::Stat { node } => guest.call_stat(store, node).await?.map(attributes),
        O::Change { node, changes } => {
            let changes = convert::changes(changes);
            guest
                .call_change(store, node, changes)
                .await?
                .map(attributes)
        }
        O::ReadDirectory {
            node,
            offset,
            count,
        } => {
            let count = count.min(ENTRIES_MAX);
            let said = guest
                .call_read_directory(store, node, offset, count)
                .await?;
            said.map(|mut entries| {
                entries.truncate(count as usize);
                Reply::Entries(entries.into_iter().map(convert::entry).collect())
            })
        }
        O::Read {
            node,
            offset,
            length,
        } => {
            let said = guest.call_read(store, node, offset, length).await?;
            said.map(|bytes| {
                // One byte more than can be asked for tells the server that it was too much.
                let most = DATA_BYTES_MAX as usize + 1;
                *read = bytes;
                read.truncate(most);
                Reply::Read(u32::try_from(read.len()).unwrap_or(0))
            })
        }
        O::ReadLink { node } => guest.call_read_link(store, node).await?.map(Reply::Link),
        O::Write { node, offset } => guest.call_write(store, node, offset, data).await?.map(done),
        O::Create {
            parent,
            name,
            kind,
            creation,
        } => {
            let (kind, creation) = (convert::kind(kind), convert::creation(creation));
            let said = guest
                .call_create(store, parent, &name, kind, creation)
                .await?;
            said.map(attributes)
        }
        O::CreateLink {
            parent,
            name,
            to,
            creation,
        } => {
            let creation = convert::creation(creation);
            let said = guest
                .call_create_link(store, parent, &name, &to, creation)
                .await?;
            said.map(attributes)
        }
        O::Remove { parent, name } => guest.call_remove(store, parent, &name).await?.map(done),
        O::Rename {
            parent,
            name,
            new_parent,
            new_name,
            replace,
        } => {
            let said = guest
                .call_rename(store, parent, &name, new_parent, &new_name, replace)
                .await?;
            said.map(done)
        }
        O::Forget { node } => {
            guest.call_forget(store, node).await?;
            Ok(Reply::Done)
        }
        O::Sync { node } => guest.call_sync(store, node).await?.map(done),
        O::Space => {
            let said = guest.call_space(store).await?;
            said.map(|room| Reply::Room(room.bytes, room.bytes_free))
        }
    };
    Ok(said.map_err(convert::errno))
}
