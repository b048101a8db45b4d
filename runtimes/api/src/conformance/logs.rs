//! Logs in CRI's format.

use super::{Fixture, Program, support::*};

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
