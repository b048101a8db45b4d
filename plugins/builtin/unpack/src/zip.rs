//! zip: by its table of contents. Stored and deflated entries; no encryption, no parts, no zip64.

use std::io;

use miniz_oxide::inflate::decompress_to_vec_with_limit;

use crate::{Place, Tree, gzip::Crc, invalid};

const END: &[u8] = b"PK\x05\x06";
const ENTRY: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
/// Bytes of one entry, inflated.
const FILE_BYTES_MAX: usize = 128 << 20;

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn slice(&self, at: usize, length: usize) -> io::Result<&'a [u8]> {
        let end = at.checked_add(length);
        let slice = end.and_then(|end| self.0.get(at..end));
        slice.ok_or_else(|| invalid("damaged zip: it ends early"))
    }

    fn u16(&self, at: usize) -> io::Result<usize> {
        let bytes = self.slice(at, 2)?;
        Ok(usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))
    }

    fn u32(&self, at: usize) -> io::Result<usize> {
        let bytes = self.slice(at, 4)?;
        let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(value as usize)
    }
}

/// Writes what is in an archive to a tree.
pub(crate) fn unpack(archive: &[u8], place: &Place, tree: &mut dyn Tree) -> io::Result<()> {
    let bytes = Bytes(archive);
    let from = archive.len().saturating_sub(END_BYTES_MAX);
    let end = archive[from..]
        .windows(END.len())
        .rposition(|window| window == END);
    let end = from + end.ok_or_else(|| invalid("damaged zip: it has no table of contents"))?;
    let count = bytes.u16(end + 10)?;
    let mut at = bytes.u32(end + 16)?;
    if count == 0xffff || at == 0xffff_ffff {
        return Err(invalid("a zip64 archive, which is not read here"));
    }
    for _ in 0..count {
        if bytes.slice(at, 4)? != ENTRY {
            return Err(invalid("damaged zip: its table of contents is none"));
        }
        let (name, extra, comment) = (
            bytes.u16(at + 28)?,
            bytes.u16(at + 30)?,
            bytes.u16(at + 32)?,
        );
        entry(&bytes, at, name, place, tree)?;
        at += 46 + name + extra + comment;
    }
    Ok(())
}

/// The end record with the longest comment.
const END_BYTES_MAX: usize = 22 + 0xffff;

fn entry(
    bytes: &Bytes<'_>,
    at: usize,
    name_length: usize,
    place: &Place,
    tree: &mut dyn Tree,
) -> io::Result<()> {
    let name = bytes.slice(at + 46, name_length)?;
    let name = std::str::from_utf8(name).map_err(|_| invalid("a name that is no UTF-8"))?;
    let Some(to) = place.of(name)? else {
        return Ok(());
    };
    if name.ends_with('/') {
        return tree.directory(&to);
    }
    let (flags, method) = (bytes.u16(at + 8)?, bytes.u16(at + 10)?);
    if flags & 1 != 0 {
        return Err(invalid(format!("{name:?} is encrypted")));
    }
    let (crc, packed, plain) = (
        bytes.u32(at + 16)?,
        bytes.u32(at + 20)?,
        bytes.u32(at + 24)?,
    );
    let local = bytes.u32(at + 42)?;
    if bytes.slice(local, 4)? != LOCAL {
        return Err(invalid(format!(
            "damaged zip: {name:?} is not where it should be"
        )));
    }
    let from = local + 30 + bytes.u16(local + 26)? + bytes.u16(local + 28)?;
    let packed = bytes.slice(from, packed)?;
    let inflated;
    let content = match method {
        0 => packed,
        8 if plain > FILE_BYTES_MAX => {
            return Err(invalid(format!(
                "{name:?} has more than {FILE_BYTES_MAX} bytes"
            )));
        }
        8 => {
            inflated = decompress_to_vec_with_limit(packed, plain)
                .map_err(|_| invalid(format!("damaged zip: {name:?}")))?;
            &inflated[..]
        }
        other => return Err(invalid(format!("{name:?} is packed by method {other}"))),
    };
    let mut sum = Crc::default();
    sum.add(content);
    if sum.value() as usize != crc || content.len() != plain {
        return Err(invalid(format!(
            "damaged zip: the checksum of {name:?} is another"
        )));
    }
    // The upper half is Unix' mode, where the archive was made by Unix.
    let mode = match bytes.u16(at + 4)? >> 8 {
        3 => bytes.u32(at + 38)? >> 16,
        _ => 0,
    };
    match mode & 0o170_000 {
        0o120_000 => {
            let link =
                std::str::from_utf8(content).map_err(|_| invalid("a link that is no UTF-8"))?;
            tree.link(&to, link)
        }
        _ => tree.file(&to, mode & 0o111 != 0, &mut &content[..]),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::tree::tests::Map;

    /// An archive as Python makes it.
    fn made() -> Vec<u8> {
        let script = "import zipfile,sys,io\nb=io.BytesIO()\nz=zipfile.ZipFile(b,'w',zipfile.ZIP_DEFLATED)\n\
            z.writestr('top/a.txt','hello '*100)\nz.mkdir('top/d') if hasattr(z,'mkdir') else z.writestr('top/d/','')\n\
            i=zipfile.ZipInfo('top/run');i.create_system=3;i.external_attr=0o100755<<16;z.writestr(i,'run')\n\
            i=zipfile.ZipInfo('top/l');i.create_system=3;i.external_attr=0o120777<<16;z.writestr(i,'a.txt')\n\
            z.close()\nsys.stdout.buffer.write(b.getvalue())";
        let output = Command::new("python3")
            .args(["-c", script])
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn read(bytes: &[u8]) -> io::Result<Map> {
        let mut map = Map::default();
        crate::unpack(bytes, &Place::default(), &mut map)?;
        Ok(map)
    }

    #[test]
    fn an_archive_is_read_by_its_table_of_contents() {
        let found = read(&made()).unwrap().0;
        assert_eq!(found["top/a.txt"], "hello ".repeat(100));
        assert_eq!(found["top/run"], "*run");
        assert_eq!(found["top/l"], "-> a.txt");
        assert_eq!(found["top/d"], "/");
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let good = made();
        assert!(read(&good[..good.len() / 2]).is_err());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _ = read(&bad);
        }
    }
}
