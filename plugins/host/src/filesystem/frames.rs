//! Messages with data behind them, on a Unix stream socket: JSON is no way to carry what a file holds.
//!
//! ```text
//!  length of message: u32 LE │ length of data: u32 LE │ message: JSON │ data
//! ```

use std::io::{self, IoSlice};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Longest message: the entries of a directory, with names of 255 bytes.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Most data: what was read, and what is written to blocks.
const FRAME_DATA_BYTES_MAX: usize = 8 << 20;
/// What is read at once: a few messages. Data that is longer goes straight to where it is wanted.
const BUFFER_BYTES: usize = 16 << 10;
/// A message's buffer that is kept for the next.
const FRAME_BYTES_KEPT: usize = 64 << 10;

/// The sending half of a connection.
pub struct Sender {
    stream: OwnedWriteHalf,
    frame: Vec<u8>,
}

/// The receiving half of a connection.
pub struct Receiver {
    stream: BufReader<OwnedReadHalf>,
}

/// Splits a connection.
pub fn split(stream: UnixStream) -> (Sender, Receiver) {
    let (read, write) = stream.into_split();
    (
        Sender {
            stream: write,
            frame: Vec::new(),
        },
        Receiver {
            stream: BufReader::with_capacity(BUFFER_BYTES, read),
        },
    )
}

impl Sender {
    /// Sends a message.
    ///
    /// # Cancel safety
    /// A call that is dropped leaves half a frame: the connection cannot be used any more.
    ///
    /// # Errors
    /// The other side is gone, or the message is longer than any may be.
    pub async fn send(&mut self, message: &impl Serialize, data: &[u8]) -> io::Result<()> {
        self.frame.clear();
        self.frame.extend_from_slice(&[0; 8]);
        serde_json::to_writer(&mut self.frame, message)?;
        let length = self.frame.len() - 8;
        if length > MESSAGE_BYTES_MAX || data.len() > FRAME_DATA_BYTES_MAX {
            let why = "message too long for one frame";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let lengths = [length, data.len()].map(|length| u32::try_from(length).unwrap_or(u32::MAX));
        self.frame[..4].copy_from_slice(&lengths[0].to_le_bytes());
        self.frame[4..8].copy_from_slice(&lengths[1].to_le_bytes());
        // One system call and one wake-up of the other side.
        let mut parts = [IoSlice::new(&self.frame), IoSlice::new(data)];
        let mut parts = &mut parts[..];
        while !parts.is_empty() {
            match self.stream.write_vectored(parts).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                // Takes away what is empty, too.
                sent => IoSlice::advance_slices(&mut parts, sent),
            }
        }
        if self.frame.capacity() > FRAME_BYTES_KEPT {
            self.frame = Vec::new();
        }
        Ok(())
    }
}

impl Receiver {
    /// Receives a message; `None` when the other side is gone.
    ///
    /// # Cancel safety
    /// None: a call that is dropped may leave half a frame.
    ///
    /// # Errors
    /// What arrived is no message.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<u8>)>> {
        let mut lengths = [0; 8];
        match self.stream.read_exact(&mut lengths).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
        let [a, b, c, d, e, f, g, h] = lengths;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let data = u32::from_le_bytes([e, f, g, h]) as usize;
        if length > MESSAGE_BYTES_MAX || data > FRAME_DATA_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
        }
        let mut message = vec![0; length];
        self.stream.read_exact(&mut message).await?;
        let mut bytes = vec![0; data];
        self.stream.read_exact(&mut bytes).await?;
        Ok(Some((serde_json::from_slice(&message)?, bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn data_arrives_behind_its_message() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut sender, _keep) = split(a);
        let (_other, mut receiver) = split(b);
        let data: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        let expected = data.clone();
        let send = tokio::spawn(async move {
            sender.send(&("first", 1), b"").await.unwrap();
            sender.send(&("second", 2), &data).await.unwrap();
        });
        let first: ((String, u32), _) = receiver.receive().await.unwrap().unwrap();
        assert_eq!(first, (("first".into(), 1), Vec::new()));
        let second: ((String, u32), _) = receiver.receive().await.unwrap().unwrap();
        assert_eq!(second, (("second".into(), 2), expected));
        send.await.unwrap();
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let (_other, mut receiver) = split(b);
        a.try_write(&[2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).unwrap();
        assert!(receiver.receive::<String>().await.is_err());
    }
}
