#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, UNIX_EPOCH};

use super::*;

/// What one stream says, as tags and texts.
fn cut(chunks: &[&[u8]]) -> Vec<(char, String)> {
    let mut cutter = LineCutter::default();
    let mut cut = Vec::new();
    let mut each = |tag, text: &[u8]| {
        let tag = match tag {
            LogTag::Full => 'F',
            LogTag::Partial => 'P',
        };
        cut.push((tag, String::from_utf8(text.to_vec()).unwrap()));
    };
    for chunk in chunks {
        cutter.cut(chunk, &mut each);
    }
    cutter.finish(&mut each);
    cutter.finish(|_, _| panic!("it ends once"));
    cut
}

fn entry(tag: char, text: &str) -> (char, String) {
    (tag, text.to_owned())
}

#[test]
fn timestamps_are_rfc_3339_in_utc_with_nine_digits() {
    for (seconds, nanos, expected) in [
        (0, 0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
        (1_709_251_199, 999_999_999, "2024-02-29T23:59:59.999999999Z"),
        (1_795_176_000, 120_000_000, "2026-11-20T12:00:00.120000000Z"),
        (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
    ] {
        let stamp = timestamp(UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(stamp, expected);
        assert_eq!(stamp.len(), TIMESTAMP_BYTES);
    }
}

#[test]
fn an_entry_names_time_stream_and_whether_the_line_ends() {
    let mut entries = Vec::new();
    push_entry(&mut entries, "T", LogStream::Stdout, LogTag::Full, b"a b");
    push_entry(&mut entries, "T", LogStream::Stderr, LogTag::Partial, b"");
    assert_eq!(entries, b"T stdout F a b\nT stderr P \n");
}

#[test]
fn lines_are_whole_however_they_arrive() {
    let said = b"one\ntwo\n\nthree\nta";
    let whole = cut(&[said]);
    let expected = [
        entry('F', "one"),
        entry('F', "two"),
        entry('F', ""),
        entry('F', "three"),
        entry('P', "ta"),
    ];
    assert_eq!(whole, expected);
    for length in 1..said.len() {
        assert_eq!(cut(&said.chunks(length).collect::<Vec<_>>()), whole);
    }
}

#[test]
fn a_line_of_exactly_the_limit_is_whole_and_a_longer_one_is_in_parts() {
    let line = |length| [vec![b'x'; length], b"\n".to_vec()].concat();
    for (length, expected) in [
        (PART_BYTES_MAX, vec![('F', PART_BYTES_MAX)]),
        (PART_BYTES_MAX + 1, vec![('P', PART_BYTES_MAX), ('F', 1)]),
        (
            2 * PART_BYTES_MAX + 5,
            vec![('P', PART_BYTES_MAX), ('P', PART_BYTES_MAX), ('F', 5)],
        ),
    ] {
        let line = line(length);
        for chunk in [line.len(), 1000, PART_BYTES_MAX - 1] {
            let parts = cut(&line.chunks(chunk).collect::<Vec<_>>());
            let lengths: Vec<_> = parts.iter().map(|(tag, text)| (*tag, text.len())).collect();
            assert_eq!(lengths, expected, "{length} bytes in pieces of {chunk}");
        }
    }
}

#[test]
fn rotating_keeps_the_newest_and_touches_no_other_file() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("0.log");
    for other in ["10.log", "0.log.tmp", "00.log.1"] {
        fs::write(directory.path().join(other), "another's").unwrap();
    }
    for (files_max, kept) in [(3, vec!["3", "4"]), (1, vec![]), (0, vec![])] {
        for n in 0..5 {
            fs::write(&log, format!("{n}")).unwrap();
            rotate(&log, files_max).unwrap();
            assert!(!log.exists());
        }
        let texts: Vec<_> = rotated(&log)
            .unwrap()
            .iter()
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        assert_eq!(texts, kept);
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
}

#[test]
fn rotated_files_are_one_logs_oldest_first() {
    let directory = tempfile::tempdir().unwrap();
    for name in [
        "1.log",
        "1.log.20261120-1",
        "11.log.20261120-1",
        "1.log.tmp",
        "0.log.20261120-1",
        "1.log.20261119-9",
    ] {
        fs::write(directory.path().join(name), "").unwrap();
    }
    let names: Vec<_> = rotated(&directory.path().join("1.log"))
        .unwrap()
        .iter()
        .map(|path| path.file_name().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["1.log.20261119-9", "1.log.20261120-1"]);
    assert!(rotated(Path::new("/no/such/0.log")).unwrap().is_empty());
}
