//! The program `wherry`. This crate is the only place that names concrete runtimes and stores.
//!
//! ```text
//!  argv[1]   stage1 | wasm-worker | wasm-compile | plugin-worker | volume-server
//!                                                  supervisors: straight into their library, before anything else
//!            up | control | agent                    built without running, then run until SIGINT or SIGTERM
//!            down | image | token | plugin | kubeconfig       done and out
//! ```

mod agent;
mod cli;
mod cluster;
mod connect;
mod control;
mod down;
mod image;
mod join;
mod kubeconfig;
mod lock;
mod network;
mod plugin_signatures;
mod plugins;
mod pod_range;
mod pulls;
mod record;
mod shutdown;
mod store;
mod token;
mod up;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    // These stay behind for as long as a pod lives: they touch as little of this program as they can.
    let mode = args.next();
    let rest = || args.collect::<Vec<OsString>>();
    match mode.as_ref().and_then(|mode| mode.to_str()) {
        Some("stage1") => return wherry_oci::stage1::main(rest()),
        Some("wasm-worker") => return wherry_wasm_engine::worker::main(rest()),
        Some("wasm-compile") => return wherry_wasm_engine::compile::main(rest()),
        Some("plugin-worker") => return wherry_plugin_worker::main(rest()),
        Some("volume-server") => return wherry_plugin_fuse::main(rest()),
        _ => {}
    }
    let cli = Cli::parse();
    log_to_stderr(&cli);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wherry: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(cli: &Cli) {
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if cli.log_json {
        logger.json().init()
    } else {
        logger.with_ansi(false).init()
    }
}

fn run(command: Command) -> Result<()> {
    share_heap();
    // One provider for everything in this process; nobody else has installed one yet.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        match command {
            Command::Up(args) => up::run(*args).await,
            Command::Down { root, purge } => down::run(&root, purge).await,
            Command::Control(args) => control::run(*args).await,
            Command::Agent(args) => agent::run(*args).await,
            Command::Image { root, command } => image::run(&root, command).await,
            Command::Token { root, token } => token::run(&root, token).await,
            Command::Plugin { command } => wherry_plugin_tool::run(command).await,
            Command::Kubeconfig { root } => control::print_kubeconfig(&root),
        }
    });
    // Blocking reads of a stream that nobody will write to again must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// glibc gives threads heaps of their own, eight for each core; what is freed in one is not there for the others.
#[expect(unsafe_code, reason = "mallopt has no safe wrapper")]
fn share_heap() {
    // SAFETY: it reads its arguments alone, and there are no other threads yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, worker_threads() as libc::c_int);
    }
}

/// Each costs memory, and a node's agent mostly waits.
fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 4))
}
