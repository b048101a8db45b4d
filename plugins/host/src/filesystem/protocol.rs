//! What the volume server says to the agent, and to the workers that run file systems' guests.
//!
//! ```text
//!  agent                        volume server                              worker (plugin-worker filesystem)
//!  ToServer   ─ wherry_wasm_aot::wire ▶      Bootstrap, Load ─ wire ─▶
//!             ◀── FromServer ───         ToGuest  ── frames ─▶             one instance for each volume
//!                                        FromGuest ◀─ frames ──
//! ```
//! The server outlives agents and is older than the newest: fields are only added, each with a default.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Grants, Limits, PluginStats,
    protocol::{Answer, Ask, Fault, LogLevel, VolumeCall, VolumeError},
};

/// Most bytes of one read or write.
pub const DATA_BYTES_MAX: u32 = 128 << 10;
/// Most bytes of a block.
pub const BLOCK_BYTES_MAX: u32 = 128 << 10;
/// Most bytes of blocks changed by one call.
pub const CHANGED_BYTES_MAX: usize = 4 << 20;
/// Numbers of blocks in one answer.
pub const LISTED_MAX: usize = 4096;
/// Entries of a directory in one answer.
pub const ENTRIES_MAX: u32 = 1024;

/// A volume as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Names the volume on the node.
    pub id: String,
    /// What serves it.
    pub plugin: Component,
    /// What it is asked to be.
    pub call: VolumeCall,
    /// Bytes that it may keep in blocks.
    pub blocks_bytes_max: u64,
    /// From a request's arrival until it is answered with EIO.
    pub request_timeout: Duration,
}

/// A plugin as the server knows it; its compiled file's directory comes along as a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// The Plugin's name.
    pub name: String,
    /// Names what runs: the component's digest and the file it was compiled into.
    pub digest: String,
    /// What it may do.
    pub grants: Grants,
    /// What each call may use.
    pub limits: Limits,
}

/// How workers are started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The program, which has the mode `plugin-worker`: the agent's own, so that it matches what the agent compiled.
    pub exe: PathBuf,
    /// Empty directory that becomes their root.
    pub jail: PathBuf,
    /// User that they become.
    pub uid: u32,
    /// Group that they become.
    pub gid: u32,
}

/// From the agent. Each is answered by one [`FromServer`], in order; what takes time has a connection of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToServer {
    /// First of all. Answered by [`FromServer::Welcome`].
    Hello(Hello),
    /// Asks for news, and for nothing more on this connection.
    Follow,
    /// Serves a volume. Along come `/dev/fuse`, mounted; the plugin's directory; and the file of blocks, which may hold
    /// some. Answered by [`FromServer::Serving`].
    Serve {
        /// The volume.
        volume: Box<Served>,
        /// Another server has served it: there is no greeting from the kernel, and requests that it had are asked for
        /// again.
        is_resumed: bool,
    },
    /// Ends a volume, whose mount is gone. Answered by [`FromServer::Closed`].
    Close {
        /// Which.
        id: String,
    },
    /// Serves a plugin's volumes by another component, whose directory comes along. Answered by
    /// [`FromServer::Replaced`].
    Replace {
        /// The component.
        plugin: Component,
    },
    /// Asks for all volumes. Answered by a [`FromServer::Volume`] each and [`FromServer::End`].
    List,
    /// Asks what has been counted. Answered by [`FromServer::Counted`]; an older server ends the connection.
    Count,
}

/// From the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromServer {
    /// To [`ToServer::Hello`].
    Welcome {
        /// The server's process.
        pid: u32,
    },
    /// To [`ToServer::Serve`].
    Serving {
        /// What the guest said when it was opened.
        result: Result<Opened, VolumeError>,
    },
    /// To [`ToServer::Close`]; it need not have been there.
    Closed,
    /// To [`ToServer::Replace`].
    Replaced {
        /// Volumes that are moved.
        volumes: u32,
    },
    /// A volume. Along come `/dev/fuse`, the plugin's directory and the file of blocks.
    Volume(Box<Status>),
    /// There are no more.
    End,
    /// To [`ToServer::Count`].
    Counted {
        /// The server's process, since whose start it was counted.
        pid: u32,
        /// By the Plugin's name, of volumes that are gone as well.
        plugins: BTreeMap<String, PluginStats>,
    },
    /// Something that people should know. Comes at any time and answers nothing.
    News(News),
}

/// What a volume's guest said of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Nodes mean the same to every instance.
    pub nodes_are_kept: bool,
    /// Nothing can be written.
    pub is_read_only: bool,
}

/// A volume and what was counted of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The volume.
    pub volume: Served,
    /// Requests of the kernel.
    pub requests: u64,
    /// Of those, answered by EIO because the guest could not.
    pub failed: u64,
    /// Instances after the first.
    pub reopened: u64,
    /// Process of the worker that serves it.
    pub worker: Option<u32>,
}

/// Something that people should know about a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// Which volume.
    pub id: String,
    /// For the event, in one word.
    pub reason: String,
    /// For the event.
    pub message: String,
}

/// What a worker is told first, with the directory of the compiled file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Load {
    /// What each call may use.
    pub limits: Limits,
}

/// To the guests of a worker. Data travels behind the message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToGuest {
    /// Makes an instance for a volume and opens it; answered as call 0.
    Open {
        /// Names it on this connection.
        volume: u64,
        /// What it is asked to be.
        call: Box<VolumeCall>,
    },
    /// A call; they are made in order.
    Call {
        /// Which volume.
        volume: u64,
        /// Names the call, counted from 1 since the volume was opened.
        call: u64,
        /// What to do. The bytes of a write are the data.
        operation: Operation,
    },
    /// Answers what a volume's guest asked. Bytes read are the data.
    Answer {
        /// Which volume.
        volume: u64,
        /// To what it asked.
        answer: GuestAnswer,
    },
    /// Drops a volume's instance.
    Close {
        /// Which.
        volume: u64,
    },
}

/// From the guests of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromGuest {
    /// A guest asks; one question at a time.
    Ask {
        /// Which volume.
        volume: u64,
        /// For what.
        ask: GuestAsk,
    },
    /// A call has ended. The data is what was read, and behind it what is written to blocks.
    Ended {
        /// Which volume.
        volume: u64,
        /// Which call.
        call: u64,
        /// How.
        ended: Box<CallEnded>,
    },
}

/// What a guest asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum GuestAsk {
    /// What any plugin asks.
    Agent(Ask),
    /// Bytes of a block.
    Read {
        /// Which block.
        block: u64,
        /// From here on.
        offset: u32,
        /// So many.
        length: u32,
    },
    /// Whether there is room for these changes.
    Fits(Vec<BlockChange>),
    /// Blocks that are not empty.
    List {
        /// From this one on.
        first: u64,
    },
    /// What there is room for.
    Space,
}

/// To a [`GuestAsk`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum GuestAnswer {
    /// To [`GuestAsk::Agent`].
    Agent(Answer),
    /// To [`GuestAsk::Read`]: the data.
    Read,
    /// To [`GuestAsk::Fits`].
    Fits(bool),
    /// To [`GuestAsk::List`].
    Listed(Vec<u64>),
    /// To [`GuestAsk::Space`].
    Space {
        /// Bytes that may be kept.
        max: u64,
        /// Bytes that are.
        used: u64,
    },
}

/// A change of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockChange {
    /// Writes the next `length` bytes of the data.
    Write {
        /// Which block.
        block: u64,
        /// Where.
        offset: u32,
        /// How many.
        length: u32,
    },
    /// Cuts to a length.
    Truncate {
        /// Which block.
        block: u64,
        /// Bytes that stay.
        length: u32,
    },
}

/// How a call ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CallEnded {
    /// What the guest answered, or what came between.
    pub result: Result<Result<Reply, Errno>, CallFault>,
    /// To be kept, if there is a result. Where the guest answered an error they are empty.
    pub changes: Vec<BlockChange>,
    /// Lines for the log.
    pub log: Vec<(LogLevel, String)>,
    /// What was asked for and is not granted.
    pub denied: Option<String>,
    /// CPU time of the guest's own code.
    pub cpu_time: Duration,
    /// From the call's beginning to its end.
    #[serde(default)]
    pub took: Duration,
    /// Memory of the instance.
    #[serde(default)]
    pub memory_bytes: u64,
}

impl CallEnded {
    /// An end of a call that did nothing.
    pub fn without(fault: CallFault) -> Self {
        Self {
            result: Err(fault),
            changes: Vec::new(),
            log: Vec::new(),
            denied: None,
            cpu_time: Duration::ZERO,
            took: Duration::ZERO,
            memory_bytes: 0,
        }
    }
}

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallFault {
    /// There is no instance any more: the call was not begun.
    NotBegun,
    /// The instance is gone, with all that it did in this call.
    Fault(Fault),
}

/// An operation. Nodes are the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the WIT interface documents them")]
pub enum Operation {
    Lookup {
        parent: u64,
        name: String,
    },
    Stat {
        node: u64,
    },
    Change {
        node: u64,
        changes: Changes,
    },
    ReadDirectory {
        node: u64,
        offset: u64,
        count: u32,
    },
    Read {
        node: u64,
        offset: u64,
        length: u32,
    },
    ReadLink {
        node: u64,
    },
    Write {
        node: u64,
        offset: u64,
    },
    Create {
        parent: u64,
        name: String,
        kind: Kind,
        creation: Creation,
    },
    CreateLink {
        parent: u64,
        name: String,
        to: String,
        creation: Creation,
    },
    Remove {
        parent: u64,
        name: String,
    },
    Rename {
        parent: u64,
        name: String,
        new_parent: u64,
        new_name: String,
        replace: bool,
    },
    Forget {
        node: u64,
    },
    Sync {
        node: u64,
    },
    Space,
}

impl Operation {
    /// Whether it changes what a volume holds.
    pub fn writes(&self) -> bool {
        match self {
            Self::Change { .. }
            | Self::Write { .. }
            | Self::Create { .. }
            | Self::CreateLink { .. }
            | Self::Remove { .. }
            | Self::Rename { .. } => true,
            Self::Lookup { .. }
            | Self::Stat { .. }
            | Self::ReadDirectory { .. }
            | Self::Read { .. }
            | Self::ReadLink { .. }
            | Self::Forget { .. }
            | Self::Sync { .. }
            | Self::Space => false,
        }
    }
}

/// What a guest answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is open.
    Opened(Result<Opened, VolumeError>),
    /// What a node is like.
    Attributes(Attributes),
    /// Of a directory.
    Entries(Vec<Entry>),
    /// So many bytes of the data were read.
    Read(u32),
    /// Where a link leads.
    Link(String),
    /// Nothing to be said.
    Done,
    /// What there is room for: bytes, and bytes that are free.
    Room(u64, u64),
}

/// What a node is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the WIT interface documents them")]
pub struct Attributes {
    pub node: u64,
    pub kind: Kind,
    pub size: u64,
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    pub modified: Duration,
    pub valid: Duration,
}

/// What kind a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the WIT interface documents them")]
pub enum Kind {
    File,
    Directory,
    Link,
}

/// What a node is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the WIT interface documents them")]
pub struct Creation {
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
}

/// What of a node is to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the WIT interface documents them")]
pub struct Changes {
    pub size: Option<u64>,
    pub mode: Option<u32>,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub modified: Option<Duration>,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the WIT interface documents them")]
pub struct Entry {
    pub name: String,
    pub next: u64,
    pub attributes: Attributes,
}

/// As errno says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the WIT interface documents them")]
pub enum Errno {
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    Access,
    ReadOnly,
    NoSpace,
    TooLarge,
    Unsupported,
    Stale,
    Invalid,
    Io,
}
