//! Archives: tar, gzip and zip, read as they come and written below a volume.
//!
//! ```text
//!  bytes ─▶ gunzip (if they are gzip) ─▶ tar ─┐
//!        └▶ zip (read whole)                  ├─▶ Tree: directories, files, links ─▶ the volume, or a test's map
//! ```

mod gzip;
mod tar;
mod tree;
mod zip;

use std::io::{self, BufRead, BufReader, Read};

pub use tree::{Place, Tree, Volume};

/// Bytes of a zip archive, which is read whole: its table of contents is at its end.
const ZIP_BYTES_MAX: u64 = 128 << 20;

/// What an archive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// tar, plain or with gzip around it.
    Tar,
    /// zip.
    Zip,
}

/// The format that the first bytes tell.
pub fn sniff(beginning: &[u8]) -> Option<Format> {
    match beginning {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Format::Zip),
        [0x1f, 0x8b, ..] => Some(Format::Tar),
        _ if beginning.get(257..262) == Some(b"ustar") => Some(Format::Tar),
        _ => None,
    }
}

/// Writes an archive's content to a tree, reading to its end.
///
/// # Errors
/// It is none, is damaged, ends early, or the tree does not take it.
pub fn unpack(archive: impl Read, place: &Place, tree: &mut dyn Tree) -> io::Result<()> {
    let mut archive = BufReader::with_capacity(64 << 10, archive);
    // Enough for a tar header, if there is that much.
    let beginning = archive.fill_buf()?;
    let beginning: Vec<u8> = match beginning.len() {
        0..512 => {
            let mut bytes = Vec::new();
            (&mut archive).take(512).read_to_end(&mut bytes)?;
            bytes
        }
        _ => beginning[..512].to_vec(),
    };
    let consumed = match archive.buffer().starts_with(&beginning) {
        true => &[][..],
        false => &beginning[..],
    };
    let mut whole = consumed.chain(&mut archive);
    match sniff(&beginning) {
        Some(Format::Zip) => {
            let mut bytes = Vec::new();
            (&mut whole)
                .take(ZIP_BYTES_MAX + 1)
                .read_to_end(&mut bytes)?;
            if bytes.len() as u64 > ZIP_BYTES_MAX {
                return Err(invalid(format!(
                    "a zip archive of more than {ZIP_BYTES_MAX} bytes"
                )));
            }
            zip::unpack(&bytes, place, tree)
        }
        Some(Format::Tar) if beginning.starts_with(&[0x1f, 0x8b]) => {
            let mut plain = gzip::Gunzip::new(&mut whole);
            tar::unpack(&mut plain, place, tree)?;
            // To its end, where its checksum is; and what comes after it, which digests count.
            io::copy(&mut plain, &mut io::sink())?;
            io::copy(&mut whole, &mut io::sink()).map(drop)
        }
        Some(Format::Tar) => {
            tar::unpack(&mut whole, place, tree)?;
            io::copy(&mut whole, &mut io::sink()).map(drop)
        }
        None => Err(invalid("neither tar, tar.gz nor zip")),
    }
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}
