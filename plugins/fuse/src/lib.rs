//! The volume server: `wherry volume-server <socket>`, one process a node, started by the agent when the first
//! volume of a file system's plugin is mounted and gone after the last.
//!
//! ```text
//!  kernel ── /dev/fuse ──▶ volume.rs ── frames ──▶ plugin-worker filesystem   a process each plugin, which may die
//!  agent  ── socket ─────▶ server.rs    nodes.rs   whose is which number
//!                                       seen.rs    counters, what is set apart
//!                                       blocks.rs  what guests keep, in memory that every holder can open
//! ```
//! It lives through agents and workers, so that their ends are no end of a mount. Of itself the agent keeps
//! what it needs for another to go on: each volume's `/dev/fuse` and file of blocks.
//!
//! It is root without root's powers: it may start workers, which become nobody, and end them. It speaks with the
//! kernel and with agents; what guests say it takes as data, and checks.

mod abi;
mod blocks;
mod device;
mod nodes;
mod seen;
mod server;
mod volume;
mod worker;

use std::{
    ffi::OsString,
    io,
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
};

use caps::{CapSet, Capability};

use crate::server::Server;

/// What is left of root: starting workers, which need to become nobody in an empty root, and ending them.
const KEPT: [Capability; 4] = [
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a server; takes the path of its socket.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wherry volume-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<OsString>) -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, "no socket is named");
    let socket = PathBuf::from(args.into_iter().next().ok_or_else(missing)?);
    // Fails only where we lead a session already.
    let _ = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    give_up_powers().map_err(io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(Server::run(&socket))
}

fn give_up_powers() -> Result<(), caps::errors::CapsError> {
    for capability in caps::all() {
        if !KEPT.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability)? {
            // Without CAP_SETPCAP there is less to give up.
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
    }
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept = KEPT
        .into_iter()
        .filter(|one| permitted.contains(one))
        .collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::clear(None, CapSet::Inheritable)
}
