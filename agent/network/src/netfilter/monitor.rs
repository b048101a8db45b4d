//! Hears when somebody else takes something out of a table of nftables.

use std::io;

use nix::{errno::Errno, sys::socket::SockFlag};
use tokio::io::unix::AsyncFd;

use super::{Messages, Socket};

/// `NFNLGRP_NFTABLES`, as a bit.
const GROUP: u32 = 1 << 6;
const SUBSYSTEM: u16 = 10;
/// Of `linux/netfilter/nf_tables.h`: table, chain, rule, set and element deleted.
const DELETIONS: [u16; 5] = [2, 5, 8, 11, 14];
/// The table's name, in messages of every kind.
const TABLE: u16 = 1;
/// Thousands of elements may change in one transaction.
const BUFFER: usize = 4 << 20;

/// Listens to changes of nftables in the network namespace it was made in.
pub struct Monitor {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Listens from now on.
    ///
    /// # Errors
    /// The kernel's.
    #[expect(
        deprecated,
        reason = "its replacement is unsafe for descriptors that change; this one never does"
    )]
    pub fn open() -> io::Result<Self> {
        let socket = Socket::open(GROUP, SockFlag::SOCK_NONBLOCK)?;
        socket.set_buffer(BUFFER);
        Ok(Self {
            socket: AsyncFd::new(socket)?,
            buffer: Vec::new(),
        })
    }

    /// Waits until a process that is none of `own` has deleted something of one of `tables`, or news
    /// were lost.
    ///
    /// # Cancel safety
    /// News that have been read and do not matter are gone; others are not.
    pub async fn foreign_deletion(&mut self, tables: &[&str], own: impl Fn(u32) -> bool) {
        loop {
            let Ok(mut ready) = self.socket.readable().await else {
                return std::future::pending().await;
            };
            let buffer = &mut self.buffer;
            match ready.try_io(|socket| socket.get_ref().receive(buffer)) {
                Ok(Ok(())) if matters(buffer, tables, &own) => return,
                Ok(Ok(())) | Err(_) => {}
                // Lost. What it was is not known, so that it has to be thought the worst of.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return,
                Ok(Err(_)) => return std::future::pending().await,
            }
        }
    }

    /// Forgets what has been lost, if anything was: for the one who caused it.
    pub fn forget_losses(&mut self) {
        self.socket.get_ref().take_error();
    }
}

fn matters(buffer: &[u8], tables: &[&str], own: impl Fn(u32) -> bool) -> bool {
    Messages(buffer)
        .filter(|message| message.kind >> 8 == SUBSYSTEM)
        .filter(|message| DELETIONS.contains(&(message.kind & 0xff)) && !own(message.pid))
        .any(|message| {
            let name = message.attributes().get(TABLE).unwrap_or_default();
            tables
                .iter()
                .any(|table| name.strip_suffix(&[0]) == Some(table.as_bytes()))
        })
}
