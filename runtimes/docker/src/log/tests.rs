#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn stamp(second: u32, nano: u32) -> String {
    format!("2026-11-20T12:00:{second:02}.{nano:09}Z")
}

/// The engine's log: stream, stamp, text with its newline.
type Engine = Vec<(LogStream, String, String)>;

fn engine() -> Engine {
    use LogStream::{Stderr, Stdout};
    let line =
        |stream, second, nano, text: &str| (stream, stamp(second, nano), format!("{text}\n"));
    vec![
        line(Stdout, 1, 0, "one"),
        line(Stdout, 1, 0, "same moment"),
        // Logged later although it was said earlier: streams are stamped each on its own.
        line(Stdout, 2, 7, "two"),
        line(Stderr, 2, 5, "beside"),
        line(Stdout, 3, 0, ""),
        line(Stderr, 3, 0, "three"),
    ]
}

fn copy(log: &mut Log, engine: &Engine) {
    let mut filter = Filter::new(log.position());
    for (stream, stamp, text) in engine {
        log.append(&mut filter, *stream, format!("{stamp} {text}").as_bytes());
    }
    log.flush().unwrap();
}

fn open(path: &Path) -> Log {
    Log::open(path, LogRotation::default()).unwrap()
}

#[test]
fn copying_can_stop_anywhere_and_continues_without_loss_or_doubling() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole.log");
    copy(&mut open(&whole), &engine());
    let expected = fs::read_to_string(&whole).unwrap();
    assert_eq!(expected.lines().count(), engine().len());
    // Killed after any byte.
    for cut in 0..=expected.len() {
        let path = directory.path().join(format!("{cut}.log"));
        fs::write(&path, &expected[..cut]).unwrap();
        copy(&mut open(&path), &engine());
        assert_eq!(fs::read_to_string(&path).unwrap(), expected, "cut at {cut}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_was_rotated_away_is_not_copied_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let rotation = LogRotation {
        size_bytes_max: 60,
        files_max: 2,
    };
    let mut log = Log::open(&path, rotation).unwrap();
    let engine = engine();
    for count in 1..=engine.len() {
        copy(&mut log, &engine[..count].to_vec());
    }
    let kept = wherry_log::rotated(&path).unwrap();
    assert_eq!(kept.len(), 1);
    let before = fs::read_to_string(&path).unwrap();
    drop(log);
    let mut log = Log::open(&path, rotation).unwrap();
    copy(&mut log, &engine);
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    assert_eq!(wherry_log::rotated(&path).unwrap(), kept);
}

#[test]
fn lines_without_an_end_are_parts() {
    let first = stamp(1, 0);
    let text = format!("{first} {}{first} rest\n", "x".repeat(PART_BYTES_MAX));
    let found = entries(text.as_bytes());
    assert_eq!(found.len(), 2);
    assert!(found[0].tag == LogTag::Partial && found[0].text.len() == PART_BYTES_MAX);
    assert!(found[1].tag == LogTag::Full && found[1].text == b"rest");
    // What only looks like a stamp further on is text.
    let text = format!("{first} see {first} there\n");
    assert_eq!(entries(text.as_bytes()).len(), 1);
    assert_eq!(entries(b"no stamp\n"), []);
    assert_eq!(entries(b""), []);
}

#[test]
fn the_engine_is_asked_from_the_oldest_stream_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let mut log = open(&path);
    assert_eq!(log.position().since_seconds(), 0);
    copy(&mut log, &engine()[..4].to_vec());
    let seconds = stamp(2, 0).parse::<jiff::Timestamp>().unwrap().as_second();
    assert_eq!(log.position().since_seconds(), seconds);
}
