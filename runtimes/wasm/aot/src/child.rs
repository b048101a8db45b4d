//! Starting the program itself again, in one of its inner modes, with a socket as stdin.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::Path,
    process::Stdio,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
};

use crate::wire;

/// Starts `exe mode args…`. The child is reaped when it ends, whether or not anybody waits; it is
/// not killed with us.
pub fn spawn(
    exe: &Path,
    args: &[&str],
    stderr: Option<OwnedFd>,
) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    let mut command = Command::new(exe);
    command
        .args(args)
        .env_clear()
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(stderr.map_or_else(Stdio::null, Stdio::from))
        .current_dir("/");
    let child = command.spawn()?;
    ours.set_nonblocking(true)?;
    Ok((child, UnixStream::from_std(ours)?))
}

/// Asks a child one thing and waits for its answer.
pub async fn ask<T: DeserializeOwned>(
    socket: UnixStream,
    question: &impl Serialize,
    descriptors: &[std::os::fd::BorrowedFd<'_>],
    timeout: Duration,
) -> io::Result<T> {
    let (sender, mut receiver) = wire::split(socket);
    let asked = async {
        sender.send(question, descriptors).await?;
        receiver.receive().await
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(Ok(Some((answer, _)))) => Ok(answer),
        Ok(Ok(None)) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it ended without an answer",
        )),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer after {timeout:?}"),
        )),
    }
}
