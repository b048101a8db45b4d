//! The last lines of a container's log, for its probes. Blocking.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use crate::server::LogLine;

/// Bytes of all lines together.
const BYTES_MAX: usize = 64 << 10;
/// What is read from the end of each file: the lines, with what stands before each.
const WINDOW_BYTES: u64 = 256 << 10;

/// At most so many lines, oldest first, from the live file and those that were rotated.
pub(super) fn tail(path: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut files = wherry_log::rotated(path)?;
    files.push(path.to_owned());
    let (mut found, mut room) = (VecDeque::new(), BYTES_MAX);
    for file in files.iter().rev() {
        for mut line in entries(&window(file)?).into_iter().rev() {
            // The last one is worth having even where it does not fit.
            if found.len() == lines || (line.len() > room && !found.is_empty()) {
                return Ok(found.into());
            }
            line.truncate(line.floor_char_boundary(room));
            room -= line.len();
            found.push_front(line);
        }
    }
    Ok(found.into())
}

/// The end of a file, from the beginning of a line. A file that is not there is empty.
fn window(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // One byte more tells whether a line begins there.
    let from = file.metadata()?.len().saturating_sub(WINDOW_BYTES + 1);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(WINDOW_BYTES + 1).read_to_end(&mut bytes)?;
    if from > 0 {
        let begin = bytes.iter().position(|byte| *byte == b'\n');
        bytes.drain(..begin.map_or(bytes.len(), |end| end + 1));
    }
    Ok(bytes)
}

/// The app's lines, those in several parts put together.
fn entries(bytes: &[u8]) -> Vec<String> {
    let (mut entries, mut parts) = (Vec::new(), Vec::new());
    let mut goes_on = false;
    for line in bytes
        .split(|byte| *byte == b'\n')
        .filter_map(LogLine::parse)
    {
        parts.extend_from_slice(line.content);
        goes_on = line.is_partial;
        if !goes_on {
            entries.push(String::from_utf8_lossy(&parts).into_owned());
            parts.clear();
        }
    }
    if goes_on {
        entries.push(String::from_utf8_lossy(&parts).into_owned());
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(tag: char, content: &str) -> String {
        format!("2026-11-20T12:00:00Z stdout {tag} {content}\n")
    }

    #[test]
    fn the_last_lines_are_found_over_parts_and_rotations() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        assert_eq!(tail(&path, 3).expect("no file"), Vec::<String>::new());
        let older = dir.path().join("0.log.20261120-120000");
        fs::write(older, format!("{}{}", line('F', "1"), line('F', "2"))).expect("writable");
        let newer = [
            line('P', "3"),
            line('F', "a"),
            line('F', ""),
            line('P', "5"),
        ];
        fs::write(&path, newer.concat()).expect("writable");
        for (lines, expected) in [
            (0, &[][..]),
            (1, &["5"]),
            (3, &["3a", "", "5"]),
            (4, &["2", "3a", "", "5"]),
            (9, &["1", "2", "3a", "", "5"]),
        ] {
            assert_eq!(tail(&path, lines).expect("readable"), expected, "{lines}");
        }
    }

    #[test]
    fn no_more_is_read_or_told_than_fits() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        // Parts of 16 KiB, as runtimes cut them; of characters that no limit falls between.
        let part = "ä".repeat(8 << 10);
        let long = format!("{}{}", line('P', &part).repeat(6), line('F', "end"));
        fs::write(&path, format!("{}{long}", line('F', "before"))).expect("writable");
        let told = tail(&path, 5).expect("readable");
        assert_eq!(told.len(), 1);
        assert_eq!(told[0], "ä".repeat(BYTES_MAX / 2));
        // What is too long for the rest is not begun.
        fs::write(&path, format!("{long}{}", line('F', "after"))).expect("writable");
        assert_eq!(tail(&path, 5).expect("readable"), ["after"]);
        // The window begins within a line, which is left out.
        let lines: Vec<String> = (0..40)
            .map(|n| format!("{n}{}", "x".repeat(9000)))
            .collect();
        let text: String = lines.iter().map(|content| line('F', content)).collect();
        assert!(text.len() as u64 > WINDOW_BYTES);
        fs::write(&path, text).expect("writable");
        let told = tail(&path, 100).expect("readable");
        assert_eq!(told, lines[lines.len() - told.len()..]);
        assert_eq!(told.len(), BYTES_MAX / 9002);
    }
}
