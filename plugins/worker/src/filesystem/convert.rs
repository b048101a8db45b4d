//! The contract's words and the server's, one for one.

use std::time::Duration;

use wherry_plugin_host::filesystem::protocol;

use crate::bindings::{
    filesystem::exports::wherry::plugin::filesystem::{
        Attributes, Changes, Creation, Entry, Errno, Kind,
    },
    wherry::plugin::types::Datetime,
};

/// Seconds of the last moment that a file can have.
const SECONDS_MAX: u64 = i64::MAX as u64;

fn since_epoch(moment: Datetime) -> Duration {
    let nanoseconds = moment.nanoseconds.min(999_999_999);
    Duration::new(moment.seconds.min(SECONDS_MAX), nanoseconds)
}

pub(crate) fn attributes(attributes: Attributes) -> protocol::Attributes {
    protocol::Attributes {
        node: attributes.node,
        kind: match attributes.kind {
            Kind::File => protocol::Kind::File,
            Kind::Directory => protocol::Kind::Directory,
            Kind::Link => protocol::Kind::Link,
        },
        size: attributes.size,
        mode: attributes.mode,
        owner: attributes.owner,
        group: attributes.group,
        modified: since_epoch(attributes.modified),
        valid: Duration::from_millis(attributes.valid_milliseconds.into()),
    }
}

pub(crate) fn entry(entry: Entry) -> protocol::Entry {
    protocol::Entry {
        name: entry.name,
        next: entry.next,
        attributes: attributes(entry.attributes),
    }
}

pub(crate) fn errno(errno: Errno) -> protocol::Errno {
    use protocol::Errno as E;
    match errno {
        Errno::NotFound => E::NotFound,
        Errno::Exists => E::Exists,
        Errno::NotDirectory => E::NotDirectory,
        Errno::IsDirectory => E::IsDirectory,
        Errno::NotEmpty => E::NotEmpty,
        Errno::Access => E::Access,
        Errno::ReadOnly => E::ReadOnly,
        Errno::NoSpace => E::NoSpace,
        Errno::TooLarge => E::TooLarge,
        Errno::Unsupported => E::Unsupported,
        Errno::Stale => E::Stale,
        Errno::Invalid => E::Invalid,
        Errno::Io => E::Io,
    }
}

pub(crate) fn kind(kind: protocol::Kind) -> Kind {
    match kind {
        protocol::Kind::File => Kind::File,
        protocol::Kind::Directory => Kind::Directory,
        protocol::Kind::Link => Kind::Link,
    }
}

pub(crate) fn creation(creation: protocol::Creation) -> Creation {
    Creation {
        mode: creation.mode,
        owner: creation.owner,
        group: creation.group,
    }
}

pub(crate) fn changes(changes: protocol::Changes) -> Changes {
    Changes {
        size: changes.size,
        mode: changes.mode,
        owner: changes.owner,
        group: changes.group,
        modified: changes.modified.map(|moment| Datetime {
            seconds: moment.as_secs(),
            nanoseconds: moment.subsec_nanos(),
        }),
    }
}
