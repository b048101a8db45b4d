//! What stage 0 and stage 1 say to each other on the pod's socket, and how it is framed.
//!
//! The socket is `SOCK_SEQPACKET`: a message is one JSON value, descriptors travel beside it. A
//! client opens a connection per request, and most requests have one reply:
//!
//! | Request | Replies | Closing the connection |
//! |---|---|---|
//! | `Watch` | `Sandbox`, one `Container` each, `Present`, then one `Container` per change | ends it |
//! | `Create`, `Start` | `Container` | changes nothing |
//! | `Exec` | `Started` (with the terminal, if asked for), then `Exited` | kills the command |
//! | `Attach` | `Started` (with stdin or the terminal), then `Exited` | detaches |
//! | the others | `Done` | changes nothing |
//!
//! Any of them may be answered by `Failed`. A supervisor outlives the agent that started it, so a
//! newer agent meets older ones: every message carries the sender's [`VERSION`], unknown fields are
//! ignored, an unknown request is answered with [`FailureKind::Unsupported`], and nothing that has
//! been released changes its meaning.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wherry_runtime_api::{ContainerState, LogRotation};

/// The version of the protocol this build speaks.
pub(crate) const VERSION: u32 = 1;

/// The longest message either side takes. A command line for exec may be long.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Descriptors in one message: stdin, stdout and stderr.
const FDS_MAX: usize = 4;

/// From stage 0 to stage 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The agent's [`VERSION`].
    pub(crate) version: u32,
    /// What is asked.
    pub(crate) op: Op,
}

/// What is asked of stage 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Op {
    /// Tell the present state and then every change.
    Watch,
    /// Make a container's namespaces and root, up to the point where the app would be executed.
    Create(CreateContainer),
    /// The same in the process namespace of another container that runs.
    CreateBeside {
        container: CreateContainer,
        target: String,
    },
    /// Execute the app of a created container.
    Start { id: String },
    /// Send a signal to the app, or to every process of the container.
    Signal { id: String, signal: i32, all: bool },
    /// Forget an exited container.
    Remove { id: String },
    /// Run a command beside the app; descriptors follow in the order stdin, stdout, stderr.
    Exec(ExecProcess),
    /// Connect to the app's streams; descriptors for stdout and stderr follow.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Set the size of the terminal (on a connection that asked to attach).
    Resize { width: u16, height: u16 },
    /// The attached client has closed its stdin (on a connection that asked to attach).
    CloseStdin,
    /// Make a TCP socket in the pod's network namespace.
    Socket { ipv6: bool },
    /// Open the container's log anew.
    ReopenLog { id: String },
    /// Kill every container, record their exits, and end.
    Shutdown,
}

/// A container to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CreateContainer {
    pub(crate) id: String,
    /// The container's directory.
    pub(crate) directory: PathBuf,
    /// The container's cgroup, relative to each hierarchy's root.
    pub(crate) cgroup: String,
    pub(crate) log_path: PathBuf,
    pub(crate) log_rotation: LogRotation,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    /// It has a process namespace of its own (else the pod's or the node's).
    pub(crate) own_pid_namespace: bool,
}

/// A command to run beside the app.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecProcess {
    pub(crate) id: String,
    pub(crate) args: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// From stage 1 to stage 0.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Response {
    /// The supervisor's [`VERSION`].
    pub(crate) version: u32,
    /// What is answered.
    pub(crate) reply: Reply,
}

/// What stage 1 answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Sandbox { pid: i32 },
    Container(ContainerRecord),
    Present,
    Started { pid: i32 },
    Exited { exit_code: i32 },
    Done,
    Failed { kind: FailureKind, message: String },
}

/// What the caller can do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    NotFound,
    InvalidArgument,
    FailedPrecondition,
    ResourceExhausted,
    /// The executable is not there.
    CommandNotFound,
    /// The executable cannot be executed.
    CommandNotExecutable,
    Unsupported,
    Internal,
}

/// A container as its supervisor knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) pid: Option<i32>,
    pub(crate) state: ContainerState,
    /// What could not be set as asked.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
}

/// From stage 2 to stage 1, before it executes the app.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Stage2Message {
    /// Everything is set up; waiting to be told to go on. The terminal comes beside it.
    Ready {
        identity: Identity,
        warnings: Vec<String>,
    },
    /// It did not work out.
    Failed { kind: FailureKind, message: String },
}

/// Who a container's processes run as, once names are looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Sends one message. Does not wait where the socket does not block.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message; `None` once the other side has closed.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let Some((bytes, fds)) = receive_bytes(socket)? else {
        return Ok(None);
    };
    Ok(Some((serde_json::from_slice(&bytes)?, fds)))
}

/// Receives one message as it came; `None` once the other side has closed.
pub(crate) fn receive_bytes(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let (_, length) = rustix::net::recv(
        &socket,
        &mut [0u8; 0][..],
        RecvFlags::PEEK | RecvFlags::TRUNC,
    )?;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut bytes = vec![0; length.max(1)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            fds.extend(rights);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(message.bytes);
    Ok(Some((bytes, fds)))
}
