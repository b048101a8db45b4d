//! `/dev/fuse`, one descriptor for each volume: where the kernel's requests come from and answers go.

use std::{io, io::IoSlice, os::fd::OwnedFd};

use nix::libc;
use rustix::io::Errno;
use tokio::io::{Interest, unix::AsyncFd};

use crate::abi::{Answer, REQUEST_BYTES_MAX};

/// The kernel's side of a volume.
pub(crate) struct Device {
    file: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Device {
    pub(crate) fn new(file: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&file, true)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe to call; the descriptor is owned by what is given here"
        )]
        let file = AsyncFd::with_interest(file, Interest::READABLE | Interest::ERROR)?;
        Ok(Self {
            file,
            buffer: vec![0; REQUEST_BYTES_MAX],
        })
    }

    /// The next request's bytes; `None` once nothing is mounted any more.
    ///
    /// # Cancel safety
    /// Safe: what has been read is answered at once.
    pub(crate) async fn read(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            // The end of the mount is told as an error.
            let interest = Interest::READABLE | Interest::ERROR;
            let mut ready = self.file.ready(interest).await?;
            let buffer = &mut self.buffer;
            let read = ready.try_io(|file| Ok(rustix::io::read(file, &mut buffer[..])?));
            match read {
                // Nothing there after all.
                Err(_) => {}
                Ok(Ok(n)) => return Ok(Some(&self.buffer[..n])),
                Ok(Err(error)) => match error.raw_os_error() {
                    Some(libc::ENODEV) => return Ok(None),
                    // A request that was taken back before it was read.
                    Some(libc::ENOENT | libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Answers a request. That nobody waits for it any more is no error.
    pub(crate) fn answer(&self, unique: u64, result: Result<&[u8], i32>) -> io::Result<()> {
        let (error, bytes) = match result {
            Ok(bytes) => (0, bytes),
            Err(error) => (error, &[][..]),
        };
        let header = Answer::header(unique, error, bytes.len());
        self.write(&[IoSlice::new(&header), IoSlice::new(bytes)])
    }

    /// Asks for what has not been answered once more.
    ///
    /// # Errors
    /// A kernel before 6.9.
    pub(crate) fn resend(&self) -> io::Result<()> {
        self.write(&[IoSlice::new(&Answer::resend())])
    }

    fn write(&self, bytes: &[IoSlice<'_>]) -> io::Result<()> {
        match rustix::io::writev(self.file.get_ref(), bytes) {
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The same descriptor, for another process.
    pub(crate) fn file(&self) -> &OwnedFd {
        self.file.get_ref()
    }
}
