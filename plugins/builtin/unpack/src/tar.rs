//! tar: ustar with GNU's and pax's long names. Devices and pipes are refused, other people's inventions skipped.

use std::io::{self, Read};

use crate::{Place, Tree, invalid};

const BLOCK: usize = 512;
/// Bytes of a long name or of pax's fields.
const META_BYTES_MAX: u64 = 1 << 20;

/// What a header's predecessors say about it.
#[derive(Default)]
struct Ahead {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

/// Writes what is in an archive to a tree, to the end that the archive marks.
pub(crate) fn unpack(archive: &mut dyn Read, place: &Place, tree: &mut dyn Tree) -> io::Result<()> {
    let mut ahead = Ahead::default();
    let mut global = Ahead::default();
    let mut block = [0; BLOCK];
    loop {
        if !read_block(archive, &mut block)? {
            return Ok(());
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        check_sum(&block)?;
        let kind = block[156];
        let mut size = number(&block[124..136])?;
        if !matches!(kind, b'L' | b'K' | b'x' | b'g') {
            size = ahead.size.or(global.size).unwrap_or(size);
        }
        let mut content = (&mut *archive).take(size);
        match kind {
            b'L' => ahead.path = Some(long(&mut content)?),
            b'K' => ahead.link = Some(long(&mut content)?),
            b'x' => pax(&meta(&mut content)?, &mut ahead)?,
            b'g' => pax(&meta(&mut content)?, &mut global)?,
            _ => {
                let said = std::mem::take(&mut ahead);
                let path = match said.path {
                    Some(path) => path,
                    None => name(&block)?,
                };
                let link = match said.link {
                    Some(link) => link,
                    None => text(&block[157..257])?,
                };
                entry(kind, &block, &path, &link, &mut content, place, tree)?;
            }
        }
        // What nobody wanted, and the padding.
        io::copy(&mut content, &mut io::sink())?;
        if content.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        io::copy(&mut (&mut *archive).take(padding), &mut io::sink())?;
    }
}

fn entry(
    kind: u8,
    header: &[u8; BLOCK],
    path: &str,
    link: &str,
    content: &mut dyn Read,
    place: &Place,
    tree: &mut dyn Tree,
) -> io::Result<()> {
    let Some(to) = place.of(path)? else {
        return Ok(());
    };
    match kind {
        // An old tar's directory is a file whose name ends so.
        b'0' | 0 | b'7' if path.ends_with('/') => tree.directory(&to),
        b'0' | 0 | b'7' => {
            let mode = number(&header[100..108])?;
            tree.file(&to, mode & 0o111 != 0, content)
        }
        b'1' => Err(invalid(format!(
            "{path:?} is a hard link, which a volume does not take"
        ))),
        b'2' => tree.link(&to, link),
        b'3' | b'4' | b'6' => Err(invalid(format!(
            "{path:?} is a device or pipe, which a volume does not take"
        ))),
        b'5' => tree.directory(&to),
        _ => Ok(()),
    }
}

/// Reads a block; `false` at the end. Half a block is an error.
fn read_block(archive: &mut dyn Read, block: &mut [u8; BLOCK]) -> io::Result<bool> {
    let mut length = 0;
    while length < BLOCK {
        match archive.read(&mut block[length..])? {
            0 if length == 0 => return Ok(false),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => length += read,
        }
    }
    Ok(true)
}

fn check_sum(block: &[u8; BLOCK]) -> io::Result<()> {
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| match (148..156).contains(&at) {
            true => u64::from(b' '),
            false => u64::from(*byte),
        })
        .sum();
    if number(&block[148..156])? != sum {
        return Err(invalid("damaged tar: a header's checksum is another"));
    }
    Ok(())
}

/// Octal, or GNU's binary.
fn number(field: &[u8]) -> io::Result<u64> {
    let bad = || invalid("damaged tar: a number is none");
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        let mut value = u64::from(first & 0x3f);
        for byte in rest {
            value = value.checked_mul(256).ok_or_else(bad)? | u64::from(*byte);
        }
        return Ok(value);
    }
    let digits = field.split(|byte| *byte == 0).next().unwrap_or_default();
    let digits = std::str::from_utf8(digits).map_err(|_| bad())?.trim();
    match digits {
        "" => Ok(0),
        digits => u64::from_str_radix(digits, 8).map_err(|_| bad()),
    }
}

fn text(field: &[u8]) -> io::Result<String> {
    let bytes = field.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8(bytes.to_vec());
    text.map_err(|error| invalid(format!("a name that is no UTF-8: {:?}", error.into_bytes())))
}

fn name(block: &[u8; BLOCK]) -> io::Result<String> {
    let name = text(&block[..100])?;
    if &block[257..262] != b"ustar" || &block[257..265] == b"ustar  \0" {
        return Ok(name);
    }
    let prefix = text(&block[345..500])?;
    Ok(match prefix.is_empty() {
        true => name,
        false => format!("{prefix}/{name}"),
    })
}

fn meta(content: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    content.take(META_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > META_BYTES_MAX {
        true => Err(invalid("a name or header of more than 1 MiB")),
        false => Ok(bytes),
    }
}

fn long(content: &mut dyn Read) -> io::Result<String> {
    text(&meta(content)?)
}

/// Fields `<length> <key>=<value>\n`.
fn pax(mut fields: &[u8], into: &mut Ahead) -> io::Result<()> {
    let bad = || invalid("damaged tar: pax fields are none");
    while !fields.is_empty() {
        let space = fields
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(bad)?;
        let length = std::str::from_utf8(&fields[..space])
            .ok()
            .and_then(|n| n.parse::<usize>().ok());
        let length = length.ok_or_else(bad)?;
        let field = fields
            .get(space + 1..length.saturating_sub(1))
            .ok_or_else(bad)?;
        let equals = field
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(bad)?;
        let (key, value) = (&field[..equals], &field[equals + 1..]);
        let value = || String::from_utf8(value.to_vec()).map_err(|_| bad());
        match key {
            b"path" => into.path = Some(value()?),
            b"linkpath" => into.link = Some(value()?),
            b"size" => into.size = Some(value()?.parse().map_err(|_| bad())?),
            _ => {}
        }
        fields = fields.get(length..).ok_or_else(bad)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::tree::tests::Map;

    fn read(bytes: &[u8], place: &Place) -> io::Result<Vec<(String, String)>> {
        let mut map = Map::default();
        crate::unpack(bytes, place, &mut map)?;
        Ok(map.0.into_iter().collect())
    }

    /// An archive as the system's tar makes it.
    fn made(format: &str, gzip: bool) -> Vec<u8> {
        let script = "d=$(mktemp -d) && cd $d && mkdir -p top/d top/$(printf 'long%.0s' $(seq 40))/$(printf 'name%.0s' $(seq 40)) \
            && echo -n hi > top/d/file && echo -n run > top/run && chmod +x top/run && ln -s d/file top/link \
            && echo -n x > top/$(printf 'long%.0s' $(seq 40))/$(printf 'name%.0s' $(seq 40))/f \
            && tar --format=$0 $1 -cf - --sort=name top && rm -r $d";
        let output = Command::new("sh")
            .args(["-c", script, format, if gzip { "-z" } else { "--owner=0" }])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    }

    #[test]
    fn archives_of_the_systems_tar_are_read() {
        let long = format!("{}/{}", "long".repeat(40), "name".repeat(40));
        for (format, gzip) in [("gnu", false), ("pax", true), ("posix", false)] {
            let place = Place {
                strip_components: 1,
                ..Place::default()
            };
            let found = read(&made(format, gzip), &place).unwrap();
            let get = |path: &str| {
                let found = found.iter().find(|(name, _)| name == path);
                found.map(|(_, content)| content.as_str())
            };
            assert_eq!(get("d/file"), Some("hi"), "{format}");
            assert_eq!(get("run"), Some("*run"), "{format}");
            assert_eq!(get("link"), Some("-> d/file"), "{format}");
            assert_eq!(get(&format!("{long}/f")), Some("x"), "{format}");
            assert_eq!(get("top"), None);
        }
    }

    #[test]
    fn damage_anywhere_is_an_error_and_never_a_panic() {
        let good = made("gnu", false);
        assert!(read(&good[..700], &Place::default()).is_err(), "cut short");
        for at in (0..1024).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            let _ = read(&bad, &Place::default());
        }
        assert!(
            read(b"hello", &Place::default())
                .unwrap_err()
                .to_string()
                .contains("neither")
        );
        let mut name = good.clone();
        name[0..9].copy_from_slice(b"../../etc");
        let sum: u64 = name[..512]
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u64::from(*byte)
                }
            })
            .sum();
        name[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(
            read(&name, &Place::default())
                .unwrap_err()
                .to_string()
                .contains("leads out")
        );
    }
}
