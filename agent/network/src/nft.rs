//! Talking to nftables through its own program.

use std::{io, process::Stdio};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::NetworkError;

/// A transaction that was carried out.
#[derive(Debug)]
pub struct Done {
    /// The process that did it, as the kernel names it to those who watch its tables.
    pub pid: u32,
    /// What it printed.
    pub output: String,
}

/// Carries out a script in one transaction: all of it, or nothing.
///
/// # Errors
/// [`NetworkError::Nft`]: the program is not there, or the kernel refuses.
pub async fn run(script: &str) -> Result<Done, NetworkError> {
    nft(&["-f", "-"], script).await
}

/// Lists what is named by `what`, as JSON.
///
/// # Errors
/// As for [`run`]; also if it is not there.
pub async fn list(what: &[&str]) -> Result<Value, NetworkError> {
    let done = nft(&[&["-j", "-a", "list"], what].concat(), "").await?;
    serde_json::from_str(&done.output)
        .map_err(|error| NetworkError::Nft(format!("list {}: {error}", what.join(" "))))
}

async fn nft(args: &[&str], script: &str) -> Result<Done, NetworkError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            NetworkError::Nft("not found; install the package nftables".into())
        }
        _ => NetworkError::Nft(error.to_string()),
    };
    let mut command = Command::new("nft");
    // Debian keeps it where the PATH of a plain user does not look.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let pid = child.id().unwrap_or_default();
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(Done {
            pid,
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
        });
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(NetworkError::Nft(
        stderr
            .trim()
            .lines()
            .next()
            .unwrap_or("failed without a word")
            .to_owned(),
    ))
}
