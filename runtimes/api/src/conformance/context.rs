//! What an app finds when it begins: arguments, environment, working directory.

use super::{Fixture, Program, support::*};

pub(super) async fn arguments_and_environment_reach_the_app(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "context").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::Context);
    let args = ["one", "two words", "", "grüße", "$HOME", "a=b"];
    config.args.extend(args.map(str::to_owned));
    let env = [
        ("FIRST", "1"),
        ("SECOND", "a=b, \"c\" $FIRST"),
        ("EMPTY", ""),
    ];
    config
        .env
        .extend(env.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let id = start(fixture, &sandbox, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    let lines = log_lines(&config.log_path);
    let given: Vec<&str> = lines
        .iter()
        .filter_map(|(_, _, text)| text.strip_prefix("arg="))
        .collect();
    assert_eq!(given, args);
    for (name, value) in env {
        let line = format!("env={name}={value}");
        let found = lines.iter().filter(|(_, _, text)| *text == line).count();
        assert_eq!(found, 1, "{line} in {lines:?}");
    }
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_working_directory_is_made_and_entered(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "cwd").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::Context);
    config.working_dir = Some("/made/here".to_owned());
    let id = start(fixture, &sandbox, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    let lines = log_lines(&config.log_path);
    assert!(
        lines.iter().any(|(_, _, text)| text == "cwd=/made/here"),
        "{lines:?}"
    );
    remove(fixture, &sandbox).await;
}
