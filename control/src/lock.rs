//! Who runs a root: a `flock` on a file that holds the process's number.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    unistd::Pid,
};

/// Held as long as the process runs the root.
pub(crate) struct RootLock {
    _file: Flock<File>,
}

const NAME: &str = "wherry.lock";

/// How long a process that was just killed may take to be gone; its lock goes last.
const LEAVING_MAX: Duration = Duration::from_secs(3);

/// How often the lock of a process that is leaving is tried.
const POLL: Duration = Duration::from_millis(20);

/// Takes the root, or says who has it.
pub(crate) async fn take(run: &Path) -> Result<RootLock> {
    fs::create_dir_all(run).with_context(|| format!("{}", run.display()))?;
    let start = Instant::now();
    let mut tried = try_lock(run)?;
    while tried.is_err() && start.elapsed() < LEAVING_MAX {
        tokio::time::sleep(POLL).await;
        tried = try_lock(run)?;
    }
    match tried {
        Ok(file) => {
            let mut file = file;
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            Ok(RootLock { _file: file })
        }
        Err(holder) => bail!(
            "{}: process {holder} runs this root already; end it, or give this one another --root",
            run.display()
        ),
    }
}

/// The process that runs the root, if one does.
///
/// # Errors
/// Also in the moment in which that process has begun and not said yet who it is.
pub(crate) fn holder(run: &Path) -> Result<Option<Pid>> {
    if !run.join(NAME).exists() {
        return Ok(None);
    }
    match try_lock(run)? {
        Ok(_) => Ok(None),
        // Who is signalled as 0 is one's own process group.
        Err(pid) if pid.as_raw() <= 0 => bail!(
            "{}: a process is only just beginning to run this root; try again",
            run.display()
        ),
        Err(pid) => Ok(Some(pid)),
    }
}

fn try_lock(run: &Path) -> Result<std::result::Result<Flock<File>, Pid>> {
    let path = run.join(NAME);
    let context = || path.display().to_string();
    let file = File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .with_context(context)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Ok(file)),
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).with_context(context)?;
            Ok(Err(Pid::from_raw(pid.trim().parse().unwrap_or(0))))
        }
        Err((_, error)) => Err(error).with_context(context),
    }
}
