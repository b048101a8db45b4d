//! gzip (RFC 1952): several members in a row are one stream, as `cat a.gz b.gz` makes them.

use std::io::{self, Read};

use miniz_oxide::{
    DataFormat, MZFlush, MZStatus,
    inflate::stream::{InflateState, inflate},
};

use crate::invalid;

const BUFFER_BYTES: usize = 64 << 10;
/// Longest name, comment or extra field of a header.
const FIELD_BYTES_MAX: usize = 64 << 10;

/// Reads what is compressed.
pub(crate) struct Gunzip<R> {
    inner: R,
    state: Box<InflateState>,
    buffer: Vec<u8>,
    /// What of the buffer has not been inflated yet.
    unread: std::ops::Range<usize>,
    phase: Phase,
    crc: Crc,
    length: u32,
}

#[derive(PartialEq)]
enum Phase {
    Header,
    Content,
    End,
}

impl<R: Read> Gunzip<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            state: InflateState::new_boxed(DataFormat::Raw),
            buffer: vec![0; BUFFER_BYTES],
            unread: 0..0,
            phase: Phase::Header,
            crc: Crc::default(),
            length: 0,
        }
    }

    /// Fills the buffer if it is empty; whether there is anything.
    fn fill(&mut self) -> io::Result<bool> {
        if self.unread.is_empty() {
            let length = self.inner.read(&mut self.buffer)?;
            self.unread = 0..length;
        }
        Ok(!self.unread.is_empty())
    }

    fn byte(&mut self) -> io::Result<u8> {
        if !self.fill()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let byte = self.buffer[self.unread.start];
        self.unread.start += 1;
        Ok(byte)
    }

    fn number(&mut self) -> io::Result<u32> {
        let bytes = [self.byte()?, self.byte()?, self.byte()?, self.byte()?];
        Ok(u32::from_le_bytes(bytes))
    }

    fn header(&mut self) -> io::Result<()> {
        if [self.byte()?, self.byte()?, self.byte()?] != [0x1f, 0x8b, 8] {
            return Err(invalid("not gzip"));
        }
        let flags = self.byte()?;
        for _ in 0..6 {
            self.byte()?;
        }
        if flags & 4 != 0 {
            let length = u16::from_le_bytes([self.byte()?, self.byte()?]);
            for _ in 0..length {
                self.byte()?;
            }
        }
        for flag in [8, 16] {
            let mut left = FIELD_BYTES_MAX;
            while flags & flag != 0 && self.byte()? != 0 {
                left = left
                    .checked_sub(1)
                    .ok_or_else(|| invalid("a gzip header without end"))?;
            }
        }
        if flags & 2 != 0 {
            self.byte()?;
            self.byte()?;
        }
        *self.state = InflateState::new(DataFormat::Raw);
        (self.crc, self.length) = (Crc::default(), 0);
        self.phase = Phase::Content;
        Ok(())
    }

    fn trailer(&mut self) -> io::Result<()> {
        let (crc, length) = (self.number()?, self.number()?);
        if crc != self.crc.value() || length != self.length {
            return Err(invalid("damaged gzip: its checksum is another"));
        }
        // Zeros after the end are padding of tapes.
        self.phase = Phase::End;
        while self.fill()? {
            match self.buffer[self.unread.start] {
                0 => self.unread.start += 1,
                _ => {
                    self.phase = Phase::Header;
                    break;
                }
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !out.is_empty() {
            match self.phase {
                Phase::End => return Ok(0),
                Phase::Header => self.header()?,
                Phase::Content => {
                    let has_more = self.fill()?;
                    let input = &self.buffer[self.unread.clone()];
                    let done = inflate(&mut self.state, input, out, MZFlush::None);
                    self.unread.start += done.bytes_consumed;
                    let written = &out[..done.bytes_written];
                    self.crc.add(written);
                    self.length = self.length.wrapping_add(written.len() as u32);
                    match done.status {
                        Ok(MZStatus::StreamEnd) => self.trailer()?,
                        Ok(_) => {}
                        Err(miniz_oxide::MZError::Buf) if has_more => {}
                        Err(miniz_oxide::MZError::Buf) => {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        Err(error) => return Err(invalid(format!("damaged gzip: {error:?}"))),
                    }
                    if done.bytes_written > 0 {
                        return Ok(done.bytes_written);
                    }
                    if !has_more && self.phase == Phase::Content {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
        Ok(0)
    }
}

/// CRC-32 as gzip and zip have it.
pub(crate) struct Crc(u32);

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut value = at as u32;
        let mut bit = 0;
        while bit < 8 {
            value = match value & 1 {
                0 => value >> 1,
                _ => 0xedb8_8320 ^ (value >> 1),
            };
            bit += 1;
        }
        table[at] = value;
        at += 1;
    }
    table
};

impl Default for Crc {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = TABLE[((self.0 ^ u32::from(*byte)) & 0xff) as usize] ^ (self.0 >> 8);
        }
    }

    pub(crate) fn value(&self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use miniz_oxide::deflate::compress_to_vec;

    use super::*;

    pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut crc = Crc::default();
        crc.add(plain);
        let mut bytes = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
        bytes.extend(b"name\0");
        bytes.extend(compress_to_vec(plain, 6));
        bytes.extend(crc.value().to_le_bytes());
        bytes.extend((plain.len() as u32).to_le_bytes());
        bytes
    }

    fn gunzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Gunzip::new(bytes).read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn what_was_compressed_is_read_again() {
        let mut crc = Crc::default();
        crc.add(b"123456789");
        assert_eq!(crc.value(), 0xcbf4_3926);
        let large: Vec<u8> = (0..500_000u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        assert_eq!(gunzip(&gzip(&large)).unwrap(), large);
        assert_eq!(gunzip(&gzip(b"")).unwrap(), b"");
        let two = [gzip(b"one "), gzip(b"two"), vec![0; 9]].concat();
        assert_eq!(gunzip(&two).unwrap(), b"one two");
    }

    #[test]
    fn what_is_damaged_or_cut_is_said() {
        let good = gzip(&[7; 1000]);
        for length in 0..good.len() {
            assert!(gunzip(&good[..length]).is_err(), "{length}");
        }
        let mut bad = good.clone();
        let crc = bad.len() - 8;
        bad[crc] ^= 1;
        assert!(gunzip(&bad).unwrap_err().to_string().contains("checksum"));
        assert!(gunzip(b"plain text").is_err());
    }
}
