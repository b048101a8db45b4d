#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn text(path: &Path) -> Vec<String> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| line.split_once(' ').unwrap().1.to_owned())
        .collect()
}

fn logged(chunks: &[&[u8]]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let mut log = Log::open(&path, LogRotation::default()).unwrap();
    let mut partial = PartialLine::default();
    for chunk in chunks {
        log.append(Source::Stdout, &mut partial, chunk, UNIX_EPOCH);
    }
    log.finish(Source::Stdout, &mut partial, UNIX_EPOCH);
    text(&path)
}

#[test]
fn times_are_rfc_3339_in_utc() {
    for (seconds, nanos, expected) in [
        (0, 0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
        (1_709_251_199, 999_999_999, "2024-02-29T23:59:59.999999999Z"),
        (1_795_176_000, 0, "2026-11-20T12:00:00.000000000Z"),
        (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
    ] {
        let time = UNIX_EPOCH + Duration::new(seconds, nanos);
        assert_eq!(String::from_utf8(timestamp(time)).unwrap(), expected);
    }
}

#[test]
fn lines_are_whole_however_they_arrive() {
    let whole = logged(&[b"one\ntwo\n\nthree\n"]);
    assert_eq!(
        whole,
        [
            "stdout F one",
            "stdout F two",
            "stdout F ",
            "stdout F three"
        ]
    );
    let bytes: Vec<[u8; 1]> = b"one\ntwo\n\nthree\n".iter().map(|byte| [*byte]).collect();
    let single: Vec<&[u8]> = bytes.iter().map(|byte| byte.as_slice()).collect();
    assert_eq!(logged(&single), whole);
}

#[test]
fn a_line_without_an_end_is_a_part() {
    assert_eq!(
        logged(&[b"one\nta", b"il"]),
        ["stdout F one", "stdout P tail"]
    );
}

#[test]
fn a_line_of_exactly_the_limit_is_whole_and_a_longer_one_is_not() {
    let exact = [vec![b'x'; LINE_BYTES_MAX], b"\n".to_vec()].concat();
    assert_eq!(logged(&[&exact]).len(), 1);
    let split: Vec<&[u8]> = exact.chunks(1000).collect();
    assert_eq!(logged(&split).len(), 1);
    let longer = [vec![b'x'; LINE_BYTES_MAX + 1], b"\n".to_vec()].concat();
    let lines = logged(&[&longer]);
    assert!(
        lines[0].starts_with("stdout P x") && lines[1] == "stdout F x",
        "{}",
        lines.len()
    );
}

#[test]
fn a_log_that_was_there_is_carried_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    for word in [b"one\n", b"two\n"] {
        let mut log = Log::open(&path, LogRotation::default()).unwrap();
        log.append(
            Source::Stderr,
            &mut PartialLine::default(),
            word,
            UNIX_EPOCH,
        );
    }
    assert_eq!(text(&path), ["stderr F one", "stderr F two"]);
}

#[test]
fn one_file_only_is_kept_where_one_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let mut log = Log::open(
        &path,
        LogRotation {
            size_bytes_max: 100,
            files_max: 1,
        },
    )
    .unwrap();
    for number in 0..20 {
        log.append(
            Source::Stdout,
            &mut PartialLine::default(),
            format!("{number}\n").as_bytes(),
            SystemTime::now(),
        );
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert_eq!(text(&path).last().unwrap(), "stdout F 19");
}
