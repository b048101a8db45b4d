//! `wherry wasm-compile`: compiles one module and exits, so that neither the agent nor a worker
//! pays for the compiler's memory, and a module that upsets the compiler upsets nobody else.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use nix::sys::resource::{Resource, setrlimit};
use wherry_wasm_aot::{
    protocol::{CompileReply, CompileRequest, ModuleKind, Purpose},
    wire,
};

use crate::{
    bootstrap,
    engine::{self, Engines},
};

/// Largest module compiled; past it compiling takes gigabytes.
const MODULE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Memory of a compiler, bytes.
const COMPILER_BYTES_MAX: u64 = 4 << 30;

/// Compiles one module; takes no arguments.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wherry wasm-compile: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    bootstrap::leave_session();
    let stdin = io::stdin();
    let Some((request, descriptors)) = wire::receive_blocking::<CompileRequest>(stdin.as_fd())?
    else {
        return Ok(());
    };
    bootstrap::give_up_privileges(&request.jail, request.uid, request.gid, &[])?;
    // A module made to upset the compiler fails to compile, and does not take the node's memory.
    let _ = setrlimit(
        Resource::RLIMIT_DATA,
        COMPILER_BYTES_MAX,
        COMPILER_BYTES_MAX,
    );
    let engines = Engines::new().map_err(|error| io::Error::other(format!("engine: {error:#}")))?;
    let result = if request.has_files {
        compile(&engines, descriptors, request.purpose).map(Some)
    } else {
        Ok(None)
    };
    wire::send_blocking(
        stdin.as_fd(),
        &CompileReply {
            engine: engines.name(),
            result,
        },
        &[],
    )
}

fn compile(
    engines: &Engines,
    descriptors: Vec<OwnedFd>,
    purpose: Purpose,
) -> Result<ModuleKind, String> {
    let mut descriptors = descriptors.into_iter().map(File::from);
    let (Some(input), Some(mut output)) = (descriptors.next(), descriptors.next()) else {
        return Err("request without its descriptors".into());
    };
    let mut wasm = Vec::new();
    input
        .take(MODULE_BYTES_MAX + 1)
        .read_to_end(&mut wasm)
        .map_err(|error| format!("read: {error}"))?;
    if wasm.len() as u64 > MODULE_BYTES_MAX {
        return Err(format!("larger than {} MiB", MODULE_BYTES_MAX >> 20));
    }
    let (kind, code) = match purpose {
        Purpose::Container => engine::compile(engines, &wasm),
        Purpose::Plugin => engine::compile_plugin(engines, &wasm),
    }
    .map_err(|error| format!("{error:#}"))?;
    output
        .write_all(&code)
        .map_err(|error| format!("write compiled code: {error}"))?;
    Ok(kind)
}
