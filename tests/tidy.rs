//! Checks on the tree itself, so that what README.md says is absent stays absent.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use serde_json::Value;

fn top() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("tests/ is below the top")
        .to_owned()
}

/// Crate → what it depends on outside of tests.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(top())
        .output()
        .expect("cargo starts");
    let metadata: Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"]
        .as_array()
        .expect("metadata lists packages");
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().into_iter().flatten();
            (
                name(package),
                all.filter(|dependency| dependency["kind"] != "dev")
                    .map(name)
                    .collect(),
            )
        })
        .collect()
}

/// Files that git would commit.
fn files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(top())
        .output()
        .expect("git starts");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn dependencies_point_the_way_the_folders_say() {
    let dependencies = dependencies();
    let kubernetes: &[&str] = &["k8s-openapi", "kube"];
    for (crates, banned, instead) in [
        (
            &[
                "wherry-agent",
                "wherry-network",
                "wherry-volumes",
                "wherry-streaming",
                "wherry-services",
                "wherry-dns",
            ][..],
            &[
                "bollard",
                "libcontainer",
                "wasmtime",
                "wherry-docker",
                "wherry-images",
                "wherry-oci",
                "wherry-wasm",
            ][..],
            "the agent knows runtimes by runtimes/api alone; name concrete ones in control/src",
        ),
        (
            &[
                "wherry-runtime-api",
                "wherry-cgroup",
                "wherry-images",
                "wherry-log",
                "wherry-docker",
                "wherry-oci",
                "wherry-wasm",
                "wherry-wasm-engine",
            ],
            kubernetes,
            "runtimes never see a Kubernetes object; translate in agent/src/pod/translate.rs",
        ),
        (
            &["wherry-wasm", "wherry-wasm-aot", "wherry-plugin-host"],
            &["wasmtime", "wherry-wasm-engine"],
            "the agent's side of Wasm does not link the engine",
        ),
        (
            &[
                "wherry-plugin-host",
                "wherry-plugin-worker",
                "wherry-plugin-fuse",
            ],
            &["wherry-wasm"],
            "plugins and the Wasm runtime share runtimes/wasm/aot and know nothing of each other",
        ),
        (
            &["wherry-controllers"],
            &["wherry-store", "wherry-server"],
            "controllers are clients of a Kubernetes API, whichever it is",
        ),
        (&["wherry-store"], kubernetes, "the store keeps bytes"),
        (
            &["wherry-api", "wherry-runtime-api"],
            &["axum", "hyper", "nix", "rustix"],
            "this crate does no I/O",
        ),
    ] {
        for name in crates {
            let found = dependencies
                .get(*name)
                .unwrap_or_else(|| panic!("there is no crate {name}"));
            for bad in banned {
                assert!(
                    !found.iter().any(|dependency| dependency == bad),
                    "{name} depends on {bad}: {instead}"
                );
            }
        }
    }
}

#[test]
fn the_top_of_the_tree_holds_what_the_readme_maps_and_no_more() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "agent",
        "runtimes",
        "plugins",
        "control",
        "tests",
        "docs",
    ];
    for file in files() {
        let first = file.split('/').next().unwrap_or_default();
        let named =
            known.contains(&first) || ["README.md", "LICENSE", "CHANGELOG.md"].contains(&first);
        assert!(
            named || first.starts_with('.'),
            "{file}: put it in one of the folders that README.md maps"
        );
    }
}

#[test]
fn every_guest_is_run_by_a_test() {
    let tests: String = files()
        .iter()
        .filter(|file| file.ends_with(".rs") && !file.starts_with("tests/guests/"))
        .filter_map(|file| fs::read_to_string(top().join(file)).ok())
        .collect();
    for entry in fs::read_dir(top().join("tests/guests"))
        .expect("tests/guests is there")
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().join("Cargo.toml").exists() {
            let artifact = name.replace('-', "_");
            let used = [&name, &artifact]
                .iter()
                .any(|name| tests.contains(&format!("\"{name}\"")));
            assert!(
                used,
                "tests/guests/{name} is used by no test: write one or remove it"
            );
        }
    }
}

#[test]
fn long_files_say_what_they_are_for() {
    const LINES_MAX: usize = 60;
    for file in files()
        .iter()
        .filter(|file| file.ends_with(".rs") && !file.ends_with("tests.rs"))
    {
        let Ok(text) = fs::read_to_string(top().join(file)) else {
            continue;
        };
        let opens = text.starts_with("//!") || text.starts_with("#!");
        assert!(
            opens || text.lines().count() <= LINES_MAX,
            "{file}: open with `//!`: what it is for, what it leaves to others"
        );
    }
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let home = concat!("/ro", "ot/");
    let work = concat!("/wo", "rk/");
    for file in files().iter().filter(|file| !file.ends_with(".lock")) {
        let Ok(text) = fs::read_to_string(top().join(file)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            // A container's own home directory is no path of this machine.
            let personal = line.contains(work) || line.contains(home) && line.contains(".cargo");
            assert!(
                !personal,
                "{file}:{}: a path of one machine: {line}",
                number + 1
            );
        }
    }
}

#[test]
fn nothing_unfinished_is_left_standing() {
    let words = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    for file in files()
        .iter()
        .filter(|file| file.ends_with(".rs") || file.ends_with(".sh"))
    {
        let Ok(text) = fs::read_to_string(top().join(file)) else {
            continue;
        };
        for word in words {
            assert!(
                !text.contains(word),
                "{file}: {word}: finish it, or file what is missing"
            );
        }
    }
}
