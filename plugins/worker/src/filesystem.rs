//! `wherry plugin-worker filesystem`: guests that serve file systems, each volume an instance that is kept.
//!
//! ```text
//!  volume server ── Bootstrap, Load ─▶ one component
//!                ── ToGuest ─────────▶ guest.rs    a task for each volume, its calls one after the other
//!                ◀─ FromGuest ────────   │ blocks.rs   what a call changes, until it has ended
//! ```
//! As unprivileged as a worker for calls. It ends with the server.

mod blocks;
mod convert;
mod guest;

use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use tokio::sync::mpsc;
use wasmtime::Engine;
use wherry_plugin_host::{
    filesystem::{
        frames,
        protocol::{FromGuest, GuestAnswer, Load, Operation, ToGuest},
    },
    protocol::{Bootstrap, Linked, ToAgent, VolumeCall},
};
use wherry_wasm_aot::wire;

pub(crate) use self::blocks::Kept;
use crate::{
    THREADS,
    deadlines::Deadlines,
    plugin::{self, Plugin},
    prepare,
    ticker::Ticker,
    tls::NodeRoots,
};

/// Messages to the server that wait to be written.
const MESSAGES_MAX: usize = 64;
/// Calls that wait for one volume: the server sends fewer.
const CALLS_MAX: usize = 64;

/// What a volume is told to do.
enum Job {
    Open(Box<VolumeCall>),
    Call {
        call: u64,
        operation: Operation,
        data: Vec<u8>,
    },
}

/// A volume's ends for the one who hears the server.
struct Volume {
    jobs: mpsc::Sender<Job>,
    answers: mpsc::Sender<(GuestAnswer, Vec<u8>)>,
}

/// What all volumes share.
struct Shared {
    plugin: Plugin,
    roots: Arc<NodeRoots>,
    deadlines: Arc<Deadlines>,
    ticker: Ticker,
    sender: mpsc::Sender<(FromGuest, Vec<u8>)>,
}

/// Serves until the server is gone.
pub(crate) fn run() -> io::Result<()> {
    let server = io::stdin().as_fd().try_clone_to_owned()?;
    let Some((config, _)) = wire::receive_blocking::<Bootstrap>(server.as_fd())? else {
        return Ok(());
    };
    let prepared = prepare(&config);
    let ready = match &prepared {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    wire::send_blocking(server.as_fd(), &ToAgent::Ready(ready), &[])?;
    let (engine, roots) = prepared?;
    let Some((load, descriptors)) = wire::receive_blocking::<Load>(server.as_fd())? else {
        return Ok(());
    };
    let (linked, plugin) = match link(&engine, load, &descriptors) {
        Ok((plugin, linked)) => (Ok(linked), Some(plugin)),
        Err(error) => (Err(format!("{error:#}")), None),
    };
    drop(descriptors);
    wire::send_blocking(server.as_fd(), &linked, &[])?;
    match plugin {
        Some(plugin) => serve(server, plugin, roots, engine),
        None => Ok(()),
    }
}

fn link(
    engine: &Engine,
    load: Load,
    descriptors: &[OwnedFd],
) -> wasmtime::Result<(Plugin, Linked)> {
    let directory = descriptors.first();
    let directory = directory.ok_or_else(|| wasmtime::format_err!("no file came along"))?;
    plugin::load(engine, directory, load.limits)
}

fn serve(server: OwnedFd, plugin: Plugin, roots: NodeRoots, engine: Engine) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(1)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let stream = UnixStream::from(server);
        stream.set_nonblocking(true)?;
        let (mut sender, receiver) = frames::split(tokio::net::UnixStream::from_std(stream)?);
        let (queue, mut messages) = mpsc::channel::<(FromGuest, Vec<u8>)>(MESSAGES_MAX);
        tokio::spawn(async move {
            while let Some((message, data)) = messages.recv().await {
                if sender.send(&message, &data).await.is_err() {
                    break;
                }
            }
        });
        let shared = Shared {
            plugin,
            roots: Arc::new(roots),
            deadlines: Deadlines::start(),
            ticker: Ticker::start(vec![engine])?,
            sender: queue,
        };
        // Where guests run, and not on this thread, which another one would have to wake for each message.
        let heard = tokio::spawn(hear(Arc::new(shared), receiver)).await;
        heard.unwrap_or_else(|error| Err(io::Error::other(error)))
    });
    // A guest that has not given way yet has nobody left to answer to.
    runtime.shutdown_background();
    result
}

async fn hear(shared: Arc<Shared>, mut receiver: frames::Receiver) -> io::Result<()> {
    let mut volumes = HashMap::<u64, Volume>::new();
    while let Some((message, data)) = receiver.receive::<ToGuest>().await? {
        match message {
            ToGuest::Open { volume, call } => {
                let (jobs, queue) = mpsc::channel(CALLS_MAX);
                let (answers, answered) = mpsc::channel(1);
                // There is room for the first.
                let _ = jobs.try_send(Job::Open(call));
                volumes.insert(volume, Volume { jobs, answers });
                tokio::spawn(guest::serve(Arc::clone(&shared), volume, queue, answered));
            }
            ToGuest::Call {
                volume,
                call,
                operation,
            } => {
                if let Some(volume) = volumes.get(&volume) {
                    let job = Job::Call {
                        call,
                        operation,
                        data,
                    };
                    // More than the server ever sends: the volume's instance is ended by silence.
                    let _ = volume.jobs.try_send(job);
                }
            }
            ToGuest::Answer { volume, answer } => {
                if let Some(volume) = volumes.get(&volume) {
                    // A guest asks one thing at a time: there is room.
                    let _ = volume.answers.try_send((answer, data));
                }
            }
            ToGuest::Close { volume } => {
                volumes.remove(&volume);
            }
        }
    }
    Ok(())
}
