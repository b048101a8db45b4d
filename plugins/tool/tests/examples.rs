//! The examples are compiled, and do what their scripts say.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use wherry_plugin_tool::{PluginCommand, RegistryArgs, ScriptArgs, World, run};

fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn scripts(plugin: &Path, script: PathBuf) -> ScriptArgs {
    ScriptArgs {
        plugin: Some(plugin.to_owned()),
        memory: 16,
        filter: String::new(),
        scripts: vec![script],
    }
}

async fn build(folder: PathBuf, is_small: bool, output: &Path) {
    let build = PluginCommand::Build {
        folder,
        small: is_small,
        output: Some(output.to_owned()),
    };
    run(build).await.expect("it compiles");
}

#[tokio::test]
async fn every_example_does_what_its_script_says() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["probe", "populator", "mounter", "filesystem"] {
        let folder = plugins().join("examples").join(name);
        let component = directory.path().join(format!("{name}.wasm"));
        build(folder.clone(), false, &component).await;
        let script = folder.join(format!("tests/{name}.yaml"));
        let tested = run(PluginCommand::Test(scripts(&component, script))).await;
        tested.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let inspect = PluginCommand::Inspect {
            component: component.display().to_string(),
            registry: RegistryArgs::default(),
        };
        run(inspect).await.expect("it can be looked at");
    }
}

/// Compiled by a script of the tests', which does nothing when nothing has changed.
#[tokio::test]
async fn the_same_probe_in_c_and_in_python_does_the_same() {
    let script = plugins().join("../tests/tools/plugin-examples.sh");
    let made = Command::new(script).stderr(Stdio::inherit()).output();
    let made = made.expect("the script starts");
    assert!(made.status.success(), "plugin-examples.sh: {}", made.status);
    let folder = String::from_utf8(made.stdout).expect("a path");
    for (language, memory) in [("c", 16), ("python", 64)] {
        let component = Path::new(folder.trim()).join(format!("probe-{language}.wasm"));
        let mut scripts = scripts(
            &component,
            plugins().join("examples/probe/tests/probe.yaml"),
        );
        scripts.memory = memory;
        let tested = run(PluginCommand::Test(scripts)).await;
        tested.unwrap_or_else(|error| panic!("{language}: {error:#}"));
    }
}

#[tokio::test]
async fn a_script_that_is_wrong_fails() {
    let directory = tempfile::tempdir().expect("a directory");
    let component = directory.path().join("probe.wasm");
    build(plugins().join("examples/probe"), false, &component).await;
    for (script, cases) in [
        // Another result, a call too few, a call too many, other arguments.
        (
            "cases:\n- name: a\n  arguments: [--port=x]\n  expect: {ok: {}}\n",
            "1 of 1",
        ),
        ("cases:\n- name: a\n  expect: {ok: {}}\n", "1 of 1"),
        (
            "cases:\n- name: a\n  arguments: [--port=x]\n  calls: [{tcp.connection.open: []}]\n  expect: {err: {}}\n",
            "1 of 1",
        ),
        (
            "cases:\n- name: a\n  calls: [{tcp.connection.open: [x, 1]}]\n  expect: {ok: {}}\n",
            "1 of 1",
        ),
    ] {
        let path = directory.path().join("script.yaml");
        std::fs::write(&path, script).expect("a file");
        let failed = run(PluginCommand::Test(scripts(&component, path))).await;
        let failed = failed.expect_err(script).to_string();
        assert_eq!(failed, format!("{cases} cases failed"));
    }
}

#[tokio::test]
async fn a_new_plugin_compiles_and_passes_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = std::env::current_dir().expect("a directory");
    std::env::set_current_dir(directory.path()).expect("it is there");
    let new = PluginCommand::New {
        name: "my-probe".into(),
        world: World::Probe,
    };
    run(new).await.expect("a folder");
    std::env::set_current_dir(home).expect("it is still there");
    let component = directory.path().join("my-probe.wasm");
    build(directory.path().join("my-probe"), false, &component).await;
    let script = directory.path().join("my-probe/tests/my-probe.yaml");
    let tested = run(PluginCommand::Test(scripts(&component, script))).await;
    tested.expect("its tests pass");
}
