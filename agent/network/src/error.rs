//! What can go wrong with the pod network.

use std::{io, net::IpAddr};

use thiserror::Error;

use crate::Cidr;

/// Failure of a [`crate::PodNetwork`] call.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The configuration cannot work. Retrying does not help until it changes.
    #[error("{0}")]
    InvalidConfig(String),
    /// Every address is reserved. Retry when pods have gone, or take a larger range.
    #[error("no address is free in pod CIDR {0}")]
    Exhausted(Cidr),
    /// Something of the node's own is in the way: an interface of that name, a route, an address.
    #[error("{0}")]
    Conflict(String),
    /// The pod's network namespace cannot be entered; it may be gone.
    #[error("network namespace {path}: {source}")]
    Namespace {
        /// As the caller gave it.
        path: String,
        /// The trouble.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change. Retry with back-off.
    #[error("{what}: {source}")]
    Netlink {
        /// The thing before the trouble.
        what: String,
        /// The trouble.
        #[source]
        source: io::Error,
    },
    /// `nft` is not there or refused the table. Retry with back-off.
    #[error("nft: {0}")]
    Nft(String),
    /// A plugin's network is not configured, or a plugin failed. Retry with back-off.
    #[error("cni: {0}")]
    Cni(String),
    /// Anything else of the disk or the kernel. Retry with back-off.
    #[error("{what}: {source}")]
    Io {
        /// The thing before the trouble.
        what: String,
        /// The trouble.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// Gives an I/O error its subject.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Gives a netlink error its subject.
    pub(crate) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |error| Self::Netlink {
            what,
            source: to_io(error),
        }
    }

    /// The CIDR has no place for an address that is on disk.
    pub(crate) fn outside(address: IpAddr, cidr: &Cidr) -> Self {
        Self::InvalidConfig(format!("address {address} is outside of pod CIDR {cidr}"))
    }
}

/// The error number the kernel answered, with its text.
pub(crate) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
