//! `wherry wasm-worker`: started by the agent as root with a socket as stdin, on which it learns
//! what to become ([`wherry_wasm::protocol::Bootstrap`]).
//!
//! It lives until the agent asks it to end: nothing it needs belongs to the agent. Its lock is held
//! by the descriptor it was given, so whoever can take the lock knows it is gone.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    sync::Arc,
};

use caps::Capability;
use wherry_wasm::{
    USER_NAMESPACE_ARGUMENT,
    protocol::{Bootstrap, PROTOCOL_VERSION, Ready},
};
use wherry_wasm_aot::wire;

use crate::{
    bootstrap,
    engine::Engines,
    log::LogWriter,
    sched::Pool,
    seccomp,
    serve::{Exits, Worker},
    tls::NodeRoots,
};

/// Guest threads: more than a few would only take turns on the same cores.
const GUEST_THREADS_MAX: usize = 4;
const GUEST_THREADS_MIN: usize = 2;
/// Threads for the guests' file operations, which block; they go when there is nothing to do.
const BLOCKING_THREADS_MAX: usize = 16;

/// Runs a worker; `args` are those after `wasm-worker`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let result = match args.first().and_then(|arg| arg.to_str()) {
        None => run(),
        Some(USER_NAMESPACE_ARGUMENT) => bootstrap::hold_user_namespace(),
        Some(other) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("unknown argument {other}"),
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wherry wasm-worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn missing(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("bootstrap without {what}"),
    )
}

fn run() -> io::Result<()> {
    bootstrap::leave_session();
    let agent = io::stdin().as_fd().try_clone_to_owned()?;
    let Some((config, descriptors)) = wire::receive_blocking::<Bootstrap>(agent.as_fd())? else {
        // The agent was killed before it said what to do: nothing has been done.
        return Ok(());
    };
    let prepared = prepare(&config, descriptors);
    let ready = match &prepared {
        Ok(prepared) => Ready {
            error: None,
            engine: prepared.engines.name(),
        },
        Err(error) => Ready {
            error: Some(error.to_string()),
            engine: String::new(),
        },
    };
    // An agent that is gone by now finds us by our lock.
    let _ = wire::send_blocking(agent.as_fd(), &ready, &[]);
    drop(agent);
    prepared?.run(&config)
}

struct Prepared {
    listener: std::os::unix::net::UnixListener,
    _lock: OwnedFd,
    exits: OwnedFd,
    authorities: Option<OwnedFd>,
    engines: Arc<Engines>,
}

fn prepare(config: &Bootstrap, descriptors: Vec<OwnedFd>) -> io::Result<Prepared> {
    if config.protocol != PROTOCOL_VERSION {
        let message = format!(
            "agent speaks protocol {}, this worker {PROTOCOL_VERSION}",
            config.protocol
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut descriptors = descriptors.into_iter();
    let listener = std::os::unix::net::UnixListener::from(
        descriptors.next().ok_or_else(|| missing("listener"))?,
    );
    let lock = descriptors.next().ok_or_else(|| missing("lock"))?;
    let exits = descriptors.next().ok_or_else(|| missing("exit file"))?;
    if config.has_network_namespace {
        let namespace = descriptors
            .next()
            .ok_or_else(|| missing("network namespace"))?;
        bootstrap::enter_network_namespace(&namespace)?;
    }
    let authorities = match config.has_authorities {
        true => Some(descriptors.next().ok_or_else(|| missing("authorities"))?),
        false => None,
    };
    bootstrap::enter_cgroups(&config.cgroup_procs);
    bootstrap::give_up_privileges(
        &config.jail,
        config.uid,
        config.gid,
        &[Capability::CAP_NET_BIND_SERVICE],
    )?;
    let engines = Engines::new().map_err(|error| io::Error::other(format!("engine: {error:#}")))?;
    seccomp::install().map_err(|error| io::Error::other(format!("seccomp: {error}")))?;
    listener.set_nonblocking(true)?;
    Ok(Prepared {
        listener,
        _lock: lock,
        exits,
        authorities,
        engines: Arc::new(engines),
    })
}

impl Prepared {
    fn run(self, config: &Bootstrap) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("control")
            .enable_all()
            .build()?;
        let threads = std::thread::available_parallelism().map_or(GUEST_THREADS_MIN, |n| {
            n.get().clamp(GUEST_THREADS_MIN, GUEST_THREADS_MAX)
        });
        let engines = self.engines.clone();
        let pool = Pool::start(threads, runtime.handle(), move || engines.increment_epoch())?;
        let log = LogWriter::start()?;
        let exits = Exits::new(self.exits.into());
        let worker = Worker::new(
            self.engines,
            pool,
            log,
            exits,
            config.instances_max as usize,
            NodeRoots::new(self.authorities),
        );
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(self.listener)?;
            worker.serve(listener).await;
            io::Result::Ok(())
        })?;
        // Guest threads have no end of their own; there is nothing left on them.
        std::process::exit(0)
    }
}
