//! A line of a log file in CRI's format: `<RFC 3339 time> <stdout|stderr> <P|F> <content>`. Pure.

/// Which of the app's streams wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogStream {
    /// `stdout`.
    Stdout,
    /// `stderr`.
    Stderr,
}

/// A line without its line feed, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogLine<'l> {
    /// As written.
    pub(crate) timestamp: &'l str,
    pub(crate) stream: LogStream,
    /// The app's line goes on in the next one.
    pub(crate) is_partial: bool,
    pub(crate) content: &'l [u8],
}

/// Longest thing before a line's content: time with offset, stream, tags.
pub(crate) const HEADER_BYTES_MAX: usize = 128;

impl<'l> LogLine<'l> {
    /// `None` for what is no such line.
    pub(crate) fn parse(line: &'l [u8]) -> Option<Self> {
        let (timestamp, rest) = split_space(line)?;
        let timestamp = std::str::from_utf8(timestamp).ok()?;
        // Cheap, and enough to tell a line from a piece of one.
        if timestamp.len() < "2006-01-02T15:04:05Z".len()
            || timestamp.as_bytes().get(10) != Some(&b'T')
        {
            return None;
        }
        let (stream, rest) = split_space(rest)?;
        let stream = match stream {
            b"stdout" => LogStream::Stdout,
            b"stderr" => LogStream::Stderr,
            _ => return None,
        };
        // A writer may leave out the space before an empty content.
        let (tags, content) = split_space(rest).unwrap_or((rest, &[]));
        let is_partial = match tags.split(|byte| *byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self {
            timestamp,
            stream,
            is_partial,
            content,
        })
    }
}

fn split_space(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let table: [(&[u8], LogStream, bool, &[u8]); 5] = [
            (
                b"2026-11-20T12:00:00.000000000Z stdout F hello world",
                LogStream::Stdout,
                false,
                b"hello world",
            ),
            (
                b"2026-11-20T12:00:00.1+02:00 stderr P half",
                LogStream::Stderr,
                true,
                b"half",
            ),
            (
                b"2026-11-20T12:00:00Z stdout F ",
                LogStream::Stdout,
                false,
                b"",
            ),
            (
                b"2026-11-20T12:00:00Z stdout F",
                LogStream::Stdout,
                false,
                b"",
            ),
            (
                b"2026-11-20T12:00:00Z stdout P:x:y \xff\x00 raw",
                LogStream::Stdout,
                true,
                b"\xff\x00 raw",
            ),
        ];
        for (line, stream, is_partial, content) in table {
            let parsed = LogLine::parse(line).expect("a line");
            assert_eq!(
                (parsed.stream, parsed.is_partial, parsed.content),
                (stream, is_partial, content)
            );
        }
    }

    #[test]
    fn rubbish_is_no_line() {
        for line in [
            &b""[..],
            b"hello",
            b"a b c d",
            b"2026-11-20T12:00:00Z stdin F x",
            b"2026-11-20T12:00:00Z stdout X x",
            b"0:00.000000000Z stdout F cut",
        ] {
            assert_eq!(
                LogLine::parse(line),
                None,
                "{}",
                String::from_utf8_lossy(line)
            );
        }
    }
}
