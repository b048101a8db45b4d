//! pkt-lines: `<4 hexadecimal digits of length><bytes>`, and three lengths that are marks.

use std::io::{self, Read};

/// One line, or a mark.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Data(Vec<u8>),
    /// The end of a message.
    Flush,
    /// The end of a section.
    Delimiter,
    /// The end of an answer.
    End,
}

/// Reads one; the end of the stream is an error, because messages have ends of their own.
pub(crate) fn read(from: &mut dyn Read) -> io::Result<Packet> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let digits = std::str::from_utf8(&length)
        .ok()
        .and_then(|text| u16::from_str_radix(text, 16).ok());
    match digits {
        Some(0) => Ok(Packet::Flush),
        Some(1) => Ok(Packet::Delimiter),
        Some(2) => Ok(Packet::End),
        Some(length @ 4..) => {
            let mut bytes = vec![0; usize::from(length) - 4];
            from.read_exact(&mut bytes)?;
            Ok(Packet::Data(bytes))
        }
        Some(3) | None => Err(io::Error::new(io::ErrorKind::InvalidData, "no pkt-line")),
    }
}

/// Adds a line, ended as texts are.
pub(crate) fn line(into: &mut Vec<u8>, text: &str) {
    into.extend(format!("{:04x}{text}\n", text.len() + 5).into_bytes());
}

pub(crate) const FLUSH: &[u8] = b"0000";
pub(crate) const DELIMITER: &[u8] = b"0001";

/// A line's text without its end.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_marks_are_read() {
        let mut bytes = Vec::new();
        line(&mut bytes, "command=ls-refs");
        assert_eq!(bytes, b"0014command=ls-refs\n");
        bytes.extend(DELIMITER);
        bytes.extend(FLUSH);
        bytes.extend(b"0002");
        let mut from = &bytes[..];
        assert_eq!(
            read(&mut from).unwrap(),
            Packet::Data(b"command=ls-refs\n".to_vec())
        );
        assert_eq!(read(&mut from).unwrap(), Packet::Delimiter);
        assert_eq!(read(&mut from).unwrap(), Packet::Flush);
        assert_eq!(read(&mut from).unwrap(), Packet::End);
        for bad in [&b""[..], b"000", b"0003", b"zzzz", b"0009abc", b"<htm"] {
            assert!(read(&mut &bad[..]).is_err(), "{bad:?}");
        }
    }
}
