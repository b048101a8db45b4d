//! Netfilter's messages: headers, attributes, and the socket. No more than the node's network needs.

mod monitor;

pub use monitor::Monitor;

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockopt, recv,
    send, setsockopt, socket, sockopt,
};

/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const FAMILY: usize = 4;
const ATTRIBUTE: usize = 4;
/// Bits of an attribute's type that are no type.
const TYPE_MASK: u16 = 0x3fff;

/// `linux/netlink.h`: a request.
pub const NLM_F_REQUEST: u16 = 1;
/// It is to be answered.
pub const NLM_F_ACK: u16 = 4;
/// Everything there is.
pub const NLM_F_DUMP: u16 = 0x300;
/// The kind of an answer.
pub const NLMSG_ERROR: u16 = 2;
/// The kind of a dump's end.
pub const NLMSG_DONE: u16 = 3;
/// Set in the type of an attribute that holds others.
pub const NLA_F_NESTED: u16 = 0x8000;

/// The kernel fills at most this much at a time.
const RECEIVE_MAX: usize = 64 * 1024;

/// A message as it was received.
pub struct Message<'a> {
    /// What it is.
    pub kind: u16,
    /// Whose request it is about.
    pub pid: u32,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after netfilter's header.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(FAMILY..).unwrap_or_default())
    }

    /// The error number of an answer; 0 is success.
    pub fn errno(&self) -> i32 {
        let bytes = self.payload.first_chunk().copied().unwrap_or_default();
        -i32::from_ne_bytes(bytes)
    }
}

/// Messages in what was received.
pub struct Messages<'a>(
    /// What is left of it.
    pub &'a [u8],
);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let len = u32::from_ne_bytes(*self.0.first_chunk()?) as usize;
        let message = self.0.get(..len).filter(|_| len >= HEADER)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            pid: u32::from_ne_bytes([message[12], message[13], message[14], message[15]]),
            payload: &message[HEADER..],
        })
    }
}

/// Attributes by type.
#[derive(Clone, Copy)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first of a type.
    pub fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    }

    /// The attributes inside of one.
    pub fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(ATTRIBUTE..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE_MASK, value))
    }
}

/// A request with at most one attribute.
pub fn request(kind: u16, flags: u16, family: u8, attribute: Option<(u16, &[u8])>) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0];
    if let Some((kind, value)) = attribute {
        let len = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        body.extend(len.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let len = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// A socket to netfilter, in the network namespace of the thread that opens it.
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one that hears of `groups`, a set of bits.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(groups: u32, flags: SockFlag) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | flags,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self(fd))
    }

    /// Room for what comes while nobody reads; less where that is not allowed.
    pub fn set_buffer(&self, bytes: usize) {
        if setsockopt(&self.0, sockopt::RcvBufForce, &bytes).is_err() {
            // What does not fit is noticed by its loss.
            let _ = setsockopt(&self.0, sockopt::RcvBuf, &bytes);
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        send(self.0.as_raw_fd(), message, MsgFlags::empty())?;
        Ok(())
    }

    /// Takes a failure that has not been reported yet. There may be none.
    pub fn take_error(&self) {
        let _ = getsockopt(&self.0, sockopt::SocketError);
    }

    /// Reads what is there into `buffer`, in place of what it holds.
    ///
    /// # Errors
    /// `ENOBUFS`: messages were lost. `EWOULDBLOCK`: nothing is there, of a socket that does not block.
    pub fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.resize(RECEIVE_MAX, 0);
        let len = recv(self.0.as_raw_fd(), buffer, MsgFlags::empty())?;
        buffer.truncate(len);
        Ok(())
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_cut_short_ends() {
        let message = request(0x0102, NLM_F_REQUEST, 2, Some((7, b"abcde")));
        assert_eq!(message.len() % 4, 0);
        let read = Messages(&message).next().expect("one message");
        assert_eq!(read.kind, 0x0102);
        assert_eq!(read.attributes().get(7), Some(&b"abcde"[..]));
        assert_eq!(read.attributes().get(8), None);
        for end in 0..message.len() {
            let attributes = Messages(&message[..end])
                .flat_map(|message| message.attributes())
                .count();
            assert_eq!(attributes, 0, "{end} bytes");
        }
    }
}
