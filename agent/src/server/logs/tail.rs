//! Where the last lines of a log begin, found from the end without reading the rest.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::line::{HEADER_BYTES_MAX, LogLine, LogStream};

/// Bytes read at once.
const BLOCK_BYTES: usize = 64 * 1024;

/// A search for the last lines of a log, through its files from the newest to the oldest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailSearch {
    stream: Option<LogStream>,
    /// Lines of the app still to be found; one in several parts is one.
    missing: u64,
    has_seen_line: bool,
}

impl TailSearch {
    pub(crate) fn new(lines: u64, stream: Option<LogStream>) -> Self {
        Self {
            stream,
            missing: lines,
            has_seen_line: false,
        }
    }

    /// Searches the first `length` bytes of a file, which is the one before the file searched last.
    /// Answers where to begin; `None` if that is in a file before this one. Blocking.
    pub(crate) fn search(&mut self, file: &File, length: u64) -> io::Result<Option<u64>> {
        if self.missing == 0 && !self.has_seen_line {
            return Ok(Some(length));
        }
        let mut lines = Backwards::new(file, length);
        let mut behind = length;
        while let Some(start) = lines.next()? {
            if let Some(line) = LogLine::parse(lines.header(start))
                && self.stream.is_none_or(|stream| stream == line.stream)
            {
                // A part at the very end is of a line that is still being written.
                let is_end = !line.is_partial || !self.has_seen_line;
                self.has_seen_line = true;
                if is_end && self.missing == 0 {
                    return Ok(Some(behind));
                }
                self.missing -= u64::from(is_end);
            }
            behind = start;
        }
        Ok(None)
    }
}

/// The lines of a file from the last to the first, by where they start.
struct Backwards<'f> {
    file: &'f File,
    /// Where the buffer is in the file.
    position: u64,
    buffer: Vec<u8>,
    /// Up to here in the buffer no line was found yet.
    unsearched: usize,
    is_new: bool,
}

impl<'f> Backwards<'f> {
    fn new(file: &'f File, length: u64) -> Self {
        Self {
            file,
            position: length,
            buffer: Vec::new(),
            unsearched: 0,
            is_new: true,
        }
    }

    /// The next line's start.
    fn next(&mut self) -> io::Result<Option<u64>> {
        loop {
            let unsearched = &self.buffer[..self.unsearched];
            if let Some(at) = unsearched.iter().rposition(|byte| *byte == b'\n') {
                self.unsearched = at;
                return Ok(Some(self.position + at as u64 + 1));
            }
            if self.position == 0 {
                let is_first = self.unsearched > 0;
                self.unsearched = 0;
                return Ok(is_first.then_some(0));
            }
            self.read_before()?;
        }
    }

    /// Replaces the buffer by the block before it, and keeps what may be the end of a header.
    fn read_before(&mut self) -> io::Result<()> {
        let length = self.position.min(BLOCK_BYTES as u64);
        self.position -= length;
        let mut block = vec![0; usize::try_from(length).unwrap_or(BLOCK_BYTES)];
        self.file.read_exact_at(&mut block, self.position)?;
        self.unsearched = block.len();
        if self.is_new && block.last() == Some(&b'\n') {
            // It ends the last line and begins none.
            self.unsearched -= 1;
        }
        self.is_new = false;
        self.buffer.truncate(HEADER_BYTES_MAX);
        block.append(&mut self.buffer);
        self.buffer = block;
        Ok(())
    }

    /// The beginning of the line that [`Backwards::next`] answered last.
    fn header(&self, start: u64) -> &[u8] {
        let from = usize::try_from(start - self.position).unwrap_or(self.buffer.len());
        let rest = self.buffer.get(from..).unwrap_or_default();
        let rest = &rest[..rest.len().min(HEADER_BYTES_MAX)];
        rest.split(|byte| *byte == b'\n').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(text).expect("space");
        file
    }

    fn line(tag: char, content: &str) -> String {
        format!("2026-11-20T12:00:00Z stdout {tag} {content}\n")
    }

    fn search(text: &str, lines: u64) -> Option<&str> {
        let at = TailSearch::new(lines, None)
            .search(&file(text.as_bytes()), text.len() as u64)
            .expect("readable");
        at.map(|at| &text[usize::try_from(at).expect("short")..])
    }

    #[test]
    fn lines_in_parts_count_once() {
        let (a, b1, b2, c) = (
            line('F', "a"),
            line('P', "b1"),
            line('F', "b2"),
            line('F', "c"),
        );
        let text = format!("{a}{b1}{b2}{c}");
        assert_eq!(search(&text, 0), Some(""));
        assert_eq!(search(&text, 1), Some(c.as_str()));
        assert_eq!(search(&text, 2), Some(format!("{b1}{b2}{c}").as_str()));
        assert_eq!(search(&text, 3), None);
        assert_eq!(search("", 3), None);
    }

    #[test]
    fn a_line_still_being_written_counts() {
        let (a, b) = (line('F', "a"), line('P', "b"));
        assert_eq!(search(&format!("{a}{b}"), 1), Some(b.as_str()));
    }

    #[test]
    fn the_search_goes_on_in_the_file_before() {
        let older = format!("{}{}", line('F', "1"), line('F', "2"));
        let newer = format!("{}{}", line('F', "3"), line('F', "4"));
        let mut search = TailSearch::new(3, None);
        assert_eq!(
            search
                .search(&file(newer.as_bytes()), newer.len() as u64)
                .expect("readable"),
            None
        );
        let at = search
            .search(&file(older.as_bytes()), older.len() as u64)
            .expect("readable");
        assert_eq!(at, Some(line('F', "1").len() as u64));
    }

    #[test]
    fn every_count_agrees_with_counting_from_the_front() {
        // Lengths put line starts and headers on every side of block boundaries.
        let lines: Vec<String> = (0..400)
            .map(|number| line('F', &"x".repeat(number * 37 % 1500)))
            .collect();
        let text = lines.concat();
        assert!(text.len() > 4 * BLOCK_BYTES);
        let file = file(text.as_bytes());
        for count in 0..400 {
            let at = TailSearch::new(count as u64, None)
                .search(&file, text.len() as u64)
                .expect("readable");
            let expected: usize = lines[..400 - count].iter().map(String::len).sum();
            assert_eq!(at, Some(expected as u64), "last {count} lines");
        }
    }
}
