//! Logs in CRI's format.

use tokio::io::AsyncWriteExt;

use super::{Fixture, Program, support::*};
use crate::*;

pub(super) async fn output_is_logged_in_cri_format(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "log").await;
    let config = fixture.container_config(&sandbox, "main", Program::Print { exit_code: 0 });
    let id = start(fixture, &sandbox, &config).await;
    exit(&runtime, &id).await;
    let lines = log_lines(&config.log_path);
    for (stream, text) in [("stdout", "out"), ("stderr", "err")] {
        let expected = (stream.to_owned(), "F".to_owned(), text.to_owned());
        assert!(
            lines.contains(&expected),
            "{expected:?} is not in {lines:?}"
        );
    }
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_line_without_an_end_is_marked(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "unfinished").await;
    let config = fixture.container_config(&sandbox, "main", Program::Unfinished);
    let id = start(fixture, &sandbox, &config).await;
    exit(&runtime, &id).await;
    let expected = ["stdout", "P", "unfinished"].map(str::to_owned).into();
    assert_eq!(log_lines(&config.log_path), [expected]);
    remove(fixture, &sandbox).await;
}

pub(super) async fn no_line_is_lost_or_doubled(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "lines").await;
    let config = fixture.container_config(&sandbox, "main", Program::Lines { count: 20_000 });
    let id = start(fixture, &sandbox, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    let lines = log_lines(&config.log_path);
    assert_eq!(lines.len(), 20_000);
    for (index, (stream, tag, text)) in lines.iter().enumerate() {
        assert_eq!(
            (stream.as_str(), tag.as_str(), text.as_str()),
            ("stdout", "F", (index + 1).to_string().as_str())
        );
    }
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_log_is_rotated_at_its_size(fixture: &dyn Fixture) {
    const SIZE: u64 = 64 * 1024;
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "rotate").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::Lines { count: 10_000 });
    config.log_rotation = LogRotation {
        size_bytes_max: SIZE,
        files_max: 3,
    };
    let id = start(fixture, &sandbox, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    let name = |path: &std::path::Path| path.file_name().map(std::ffi::OsStr::to_owned);
    let own = name(&config.log_path).unwrap_or_default();
    let directory = config.log_path.parent().expect("a log is in a directory");
    let files: Vec<_> = std::fs::read_dir(directory)
        .expect("the log's directory is there")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            name(path)
                .is_some_and(|name| name.as_encoded_bytes().starts_with(own.as_encoded_bytes()))
        })
        .collect();
    assert!((2..=3).contains(&files.len()), "{files:?}");
    for file in &files {
        let length = std::fs::metadata(file).map_or(0, |found| found.len());
        // A line that is being written ends in the file it began in.
        assert!(length <= SIZE + 64 * 1024, "{}: {length}", file.display());
    }
    let last = log_lines(&config.log_path).pop();
    assert_eq!(last.map(|(_, _, text)| text), Some("10000".to_owned()));
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_log_that_was_moved_is_opened_anew(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "reopen").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::CopyStdin);
    config.stdin = true;
    config.stdin_once = false;
    let id = start(fixture, &sandbox, &config).await;
    let request = AttachRequest {
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let mut session = ok(runtime.attach(&id, &request).await);
    let mut stdin = session.stdin.take().expect("stdin was asked for");
    let said = async |text: &str| {
        eventually(text, async || {
            let lines = log_lines(&config.log_path);
            lines.iter().any(|(_, _, line)| line == text).then_some(())
        })
        .await;
    };
    stdin.write_all(b"one\n").await.expect("stdin takes it");
    said("one").await;
    let old = config.log_path.with_extension("old");
    std::fs::rename(&config.log_path, &old).expect("a log can be moved");
    ok(runtime.reopen_container_log(&id).await);
    stdin.write_all(b"two\n").await.expect("stdin takes it");
    said("two").await;
    let texts = |path| -> Vec<String> {
        log_lines(path)
            .into_iter()
            .map(|(_, _, text)| text)
            .collect()
    };
    assert_eq!(texts(&old), ["one"]);
    assert_eq!(texts(&config.log_path), ["two"]);
    remove(fixture, &sandbox).await;
}
