//! The inside of the plugin worker: `wherry plugin-worker`, started by the agent as root with a socket
//! as stdin.
//!
//! ```text
//!  agent ── protocol ──▶ serve.rs ── one task per call ──▶ call.rs    a fresh instance or a kept one, metered
//!                           │                                │ state.rs   what the guest imports
//!                           ▼                                ├ http.rs, http1.rs, tcp.rs   connections from the node
//!                           │                                ├ populate.rs   volumes, and the directory they are written to
//!                        plugin.rs   linked components       └ confine.rs   to the pod, or where the agent says
//! ```
//!
//! It is an unprivileged user in an empty root, under the Wasm worker's seccomp filter, in the node's
//! network namespace. It connects to the probed pod's own address; for every other address, and for
//! every act on a container, it asks the agent, which knows the grants. It ends with the agent.

mod accept_any;
mod asks;
mod bindings;
mod call;
mod confine;
mod contract;
mod deadlines;
mod filesystem;
mod heavy;
mod http;
mod http1;
mod kept;
mod limits;
mod mounter;
mod plugin;
mod populate;
mod provision;
mod serve;
mod state;
mod tcp;
mod ticker;
mod tls;

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    process::ExitCode,
    sync::Arc,
};

use wasmtime::Engine;
use wherry_plugin_host::protocol::{Bootstrap, ToAgent};
use wherry_wasm_aot::wire;
use wherry_wasm_engine::plugin as sandbox;

use crate::{serve::Worker, tls::NodeRoots};

/// Where distributions keep the authorities that a node trusts.
const AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// Calls about volumes run on these, as they may compute for minutes. Checks begin where messages arrive, as handing one
/// to another thread costs more than the check, and go on here when they compute for long (heavy.rs). Guests give way to
/// one another at every tick on either.
const THREADS: usize = 2;

/// Runs a worker: for calls, or with the argument `filesystem` for file systems.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let result = match args.first().is_some_and(|arg| arg == "filesystem") {
        true => filesystem::run(),
        false => run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wherry plugin-worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    sandbox::leave_session();
    let agent = io::stdin().as_fd().try_clone_to_owned()?;
    let Some((config, _)) = wire::receive_blocking::<Bootstrap>(agent.as_fd())? else {
        // The agent was killed before it said what to do: nothing has been done.
        return Ok(());
    };
    let prepared = prepare(&config);
    let ready = match &prepared {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    wire::send_blocking(agent.as_fd(), &ToAgent::Ready(ready), &[])?;
    let (engine, roots) = prepared?;
    // A machine that cannot have it is slower and no worse.
    let engines = sandbox::pooled_engine().into_iter().chain([engine]);
    serve(agent, engines.collect(), roots)
}

fn prepare(config: &Bootstrap) -> io::Result<(Engine, NodeRoots)> {
    let roots = AUTHORITIES.iter().find_map(|path| File::open(path).ok());
    sandbox::open_page_map();
    sandbox::give_up_privileges(&config.jail, config.uid, config.gid, &[])?;
    let engine =
        sandbox::engine().map_err(|error| io::Error::other(format!("engine: {error:#}")))?;
    sandbox::install_seccomp_filter()
        .map_err(|error| io::Error::other(format!("seccomp: {error}")))?;
    Ok((engine, NodeRoots::new(roots)))
}

fn serve(agent: OwnedFd, engines: Vec<Engine>, roots: NodeRoots) -> io::Result<()> {
    let volumes = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(1)
        .enable_all()
        .build()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let stream = UnixStream::from(agent);
        stream.set_nonblocking(true)?;
        let (sender, receiver) = wire::split(tokio::net::UnixStream::from_std(stream)?);
        let worker = Worker::start(engines, Arc::new(roots), sender, volumes.handle().clone())?;
        worker.serve(receiver).await
    });
    // A guest that has not given way yet has nobody left to answer to.
    runtime.shutdown_background();
    volumes.shutdown_background();
    result
}
