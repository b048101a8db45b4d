#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, time::UNIX_EPOCH};

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
    let mut cutter = LineCutter::default();
    for chunk in chunks {
        log.append(LogStream::Stdout, &mut cutter, chunk, UNIX_EPOCH);
    }
    log.finish(LogStream::Stdout, &mut cutter, UNIX_EPOCH);
    text(&path)
}

#[test]
fn a_line_without_an_end_is_a_part() {
    assert_eq!(
        logged(&[b"one\nta", b"il"]),
        ["stdout F one", "stdout P tail"]
    );
}

#[test]
fn a_log_that_was_there_is_carried_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    for word in [b"one\n", b"two\n"] {
        let mut log = Log::open(&path, LogRotation::default()).unwrap();
        log.append(
            LogStream::Stderr,
            &mut LineCutter::default(),
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
            LogStream::Stdout,
            &mut LineCutter::default(),
            format!("{number}\n").as_bytes(),
            SystemTime::now(),
        );
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert_eq!(text(&path).last().unwrap(), "stdout F 19");
}
