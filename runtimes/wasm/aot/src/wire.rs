//! Frames on a Unix stream socket, with file descriptors beside them.
//!
//! ```text
//!  length of payload: u32 LE │ number of descriptors: u8 │ payload: JSON
//! ```
//! Descriptors travel with the first bytes of their frame, and a receiver takes them in order.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixStream};

/// Largest payload accepted; an environment of several MiB fits.
const PAYLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Descriptors in one frame: a module, a log and preopens.
pub const DESCRIPTORS_MAX: usize = 128;
const HEADER_BYTES: usize = 5;
const READ_BYTES: usize = 16 * 1024;

fn encode(message: &impl Serialize, descriptors: usize) -> io::Result<Vec<u8>> {
    let mut frame = Vec::new();
    append(&mut frame, message, descriptors)?;
    Ok(frame)
}

/// A frame behind others.
fn append(frames: &mut Vec<u8>, message: &impl Serialize, descriptors: usize) -> io::Result<()> {
    if descriptors > DESCRIPTORS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one frame",
        ));
    }
    let begin = frames.len();
    frames.extend_from_slice(&[0; HEADER_BYTES]);
    serde_json::to_writer(&mut *frames, message)?;
    let frame = &mut frames[begin..];
    let length = frame.len() - HEADER_BYTES;
    if length > PAYLOAD_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "message too long for one frame",
        ));
    }
    frame[..4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    frame[4] = u8::try_from(descriptors).unwrap_or(u8::MAX);
    Ok(())
}

fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one frame",
        ));
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// What has arrived and is not yet a whole frame.
#[derive(Default)]
struct Arrived {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Arrived {
    /// Reads once; 0 is the end of the stream.
    fn receive_some(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; READ_BYTES];
        let read = rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.bytes.extend_from_slice(&buffer[..read.bytes]);
        Ok(read.bytes)
    }

    fn take_frame<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(header) = self.bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let descriptors = usize::from(header[4]);
        if length > PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
        }
        let end = HEADER_BYTES + length;
        if self.bytes.len() < end {
            return Ok(None);
        }
        if self.descriptors.len() < descriptors {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "frame without its descriptors",
            ));
        }
        let message = serde_json::from_slice(&self.bytes[HEADER_BYTES..end])?;
        self.bytes.drain(..end);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        Ok(Some((
            message,
            self.descriptors.drain(..descriptors).collect(),
        )))
    }
}

/// The sending half of a connection. Calls from several tasks take turns.
pub struct Sender {
    stream: Arc<UnixStream>,
    /// Whether a dropped call left half a frame.
    is_broken: tokio::sync::Mutex<bool>,
}

/// The receiving half of a connection.
pub struct Receiver {
    stream: Arc<UnixStream>,
    arrived: Arrived,
}

/// Splits a connection.
pub fn split(stream: UnixStream) -> (Sender, Receiver) {
    let stream = Arc::new(stream);
    (
        Sender {
            stream: stream.clone(),
            is_broken: tokio::sync::Mutex::new(false),
        },
        Receiver {
            stream,
            arrived: Arrived::default(),
        },
    )
}

impl Sender {
    /// Sends one message.
    ///
    /// # Cancel safety
    /// A call dropped halfway leaves half a frame; the next one then closes the connection.
    pub async fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let frame = encode(message, descriptors.len())?;
        self.write(&frame, descriptors).await
    }

    /// Sends messages without descriptors, all at once: the other end is woken once for them.
    ///
    /// # Cancel safety
    /// As [`Self::send`].
    pub async fn send_all<'a, T: Serialize + 'a>(
        &self,
        messages: impl IntoIterator<Item = &'a T>,
    ) -> io::Result<()> {
        let mut frames = Vec::new();
        for message in messages {
            append(&mut frames, message, 0)?;
        }
        self.write(&frames, &[]).await
    }

    async fn write(&self, frames: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut is_broken = self.is_broken.lock().await;
        if *is_broken {
            let _ = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Both);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        *is_broken = true;
        let mut sent = 0;
        while sent < frames.len() {
            let with = if sent == 0 { descriptors } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || {
                    send_some(self.stream.as_fd(), &frames[sent..], with)
                })
                .await?;
        }
        *is_broken = false;
        Ok(())
    }
}

impl Receiver {
    /// Receives one message; `None` when the other end is gone.
    ///
    /// # Cancel safety
    /// Safe: what has arrived is kept.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            if let Some(frame) = self.arrived.take_frame()? {
                return Ok(Some(frame));
            }
            let Self { stream, arrived } = self;
            if stream
                .async_io(Interest::READABLE, || arrived.receive_some(stream.as_fd()))
                .await?
                == 0
            {
                return Ok(None);
            }
        }
    }
}

/// Sends one message on a blocking socket.
pub fn send_blocking(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let frame = encode(message, descriptors.len())?;
    let mut sent = 0;
    while sent < frame.len() {
        let with = if sent == 0 { descriptors } else { &[] };
        match send_some(socket, &frame[sent..], with) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives one message on a blocking socket on which no second one follows; `None` when the
/// other end is gone.
pub fn receive_blocking<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut arrived = Arrived::default();
    loop {
        if let Some(frame) = arrived.take_frame()? {
            return Ok(Some(frame));
        }
        match arrived.receive_some(socket) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[tokio::test]
    async fn a_frame_larger_than_the_socket_buffer_arrives_with_its_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let (sender, _keep) = split(a);
        let (_other, mut receiver) = split(b);
        let long = "x".repeat(3_000_000);
        let (mut read, write) = std::io::pipe().unwrap();
        let send = tokio::spawn({
            let long = long.clone();
            async move {
                sender.send(&"first", &[]).await.unwrap();
                sender.send(&long, &[write.as_fd()]).await.unwrap();
            }
        });
        let (first, none): (String, _) = receiver.receive().await.unwrap().unwrap();
        assert_eq!((first.as_str(), none.len()), ("first", 0));
        let (second, mut descriptors): (String, _) = receiver.receive().await.unwrap().unwrap();
        assert_eq!(second, long);
        send.await.unwrap();
        std::fs::File::from(descriptors.remove(0))
            .write_all(b"hi")
            .unwrap();
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
    }

    #[tokio::test]
    async fn messages_that_are_sent_at_once_arrive_one_by_one() {
        let (a, b) = UnixStream::pair().unwrap();
        let (sender, _keep) = split(a);
        let (_other, mut receiver) = split(b);
        sender.send_all(&["one", "two"]).await.unwrap();
        sender.send_all::<&str>([]).await.unwrap();
        sender.send(&"three", &[]).await.unwrap();
        for expected in ["one", "two", "three"] {
            let (message, _) = receiver.receive::<String>().await.unwrap().unwrap();
            assert_eq!(message, expected);
        }
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let (_other, mut receiver) = split(b);
        a.try_write(&[0xff, 0xff, 0xff, 0xff, 0]).unwrap();
        assert!(receiver.receive::<String>().await.is_err());
    }

    #[test]
    fn the_end_of_the_stream_is_no_message() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        send_blocking(a.as_fd(), &1u32, &[]).unwrap();
        assert_eq!(receive_blocking::<u32>(b.as_fd()).unwrap().unwrap().0, 1);
        drop(a);
        assert!(receive_blocking::<u32>(b.as_fd()).unwrap().is_none());
    }
}
