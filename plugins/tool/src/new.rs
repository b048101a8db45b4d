//! `wherry plugin new`: a plugin that compiles and passes its tests as it is.
//!
//! It begins as the example of its world (plugins/examples), beside a copy of the SDK that belongs to this program: a
//! plugin needs no registry but crates.io.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::component::World;

/// The SDK's files, by their path in it.
const SDK: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../../sdk/Cargo.toml")),
    ("src/args.rs", include_str!("../../sdk/src/args.rs")),
    ("src/bindings.rs", include_str!("../../sdk/src/bindings.rs")),
    ("src/clock.rs", include_str!("../../sdk/src/clock.rs")),
    (
        "src/container_log.rs",
        include_str!("../../sdk/src/container_log.rs"),
    ),
    ("src/exec.rs", include_str!("../../sdk/src/exec.rs")),
    ("src/files.rs", include_str!("../../sdk/src/files.rs")),
    (
        "src/filesystem.rs",
        include_str!("../../sdk/src/filesystem.rs"),
    ),
    ("src/http.rs", include_str!("../../sdk/src/http.rs")),
    ("src/lib.rs", include_str!("../../sdk/src/lib.rs")),
    ("src/log.rs", include_str!("../../sdk/src/log.rs")),
    ("src/mounter.rs", include_str!("../../sdk/src/mounter.rs")),
    (
        "src/observations.rs",
        include_str!("../../sdk/src/observations.rs"),
    ),
    ("src/pieces.rs", include_str!("../../sdk/src/pieces.rs")),
    (
        "src/populator.rs",
        include_str!("../../sdk/src/populator.rs"),
    ),
    ("src/probe.rs", include_str!("../../sdk/src/probe.rs")),
    (
        "src/provisioner.rs",
        include_str!("../../sdk/src/provisioner.rs"),
    ),
    ("src/secret.rs", include_str!("../../sdk/src/secret.rs")),
    ("src/tcp.rs", include_str!("../../sdk/src/tcp.rs")),
    ("src/volume.rs", include_str!("../../sdk/src/volume.rs")),
    ("wit/probe.wit", include_str!("../../wit/probe.wit")),
    ("wit/types.wit", include_str!("../../wit/types.wit")),
    ("wit/volume.wit", include_str!("../../wit/volume.wit")),
];

/// Where the copy is put.
const SDK_FOLDER: &str = "wherry-plugin";

/// Source and tests of a world's example.
fn example(world: World) -> (&'static str, &'static str) {
    macro_rules! example {
        ($name:literal) => {
            (
                include_str!(concat!("../../examples/", $name, "/src/lib.rs")),
                include_str!(concat!("../../examples/", $name, "/tests/", $name, ".yaml")),
            )
        };
    }
    match world {
        World::Probe => example!("probe"),
        World::Populator => example!("populator"),
        World::Mounter => example!("mounter"),
        World::Filesystem => example!("filesystem"),
    }
}

fn manifest(name: &str) -> String {
    format!(
        r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"

[lib]
crate-type = ["cdylib"]

[dependencies]
wherry-plugin = {{ path = "{SDK_FOLDER}" }}

[workspace]

[profile.release]
opt-level = "s"
lto = true
codegen-units = 1
panic = "abort"
strip = true
"#
    )
}

/// Makes the folder `<parent>/<name>`.
pub(crate) fn run(name: &str, world: World, parent: &Path) -> Result<()> {
    check_name(name)?;
    let folder = parent.join(name);
    if folder.exists() {
        bail!("{}: is there already", folder.display());
    }
    let write = |path: &str, content: &str| -> Result<()> {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(&folder);
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        fs::write(&path, content).with_context(|| path.display().to_string())
    };
    let (source, tests) = example(world);
    write("Cargo.toml", &manifest(name))?;
    write("src/lib.rs", source)?;
    write(&format!("tests/{name}.yaml"), tests)?;
    write(".gitignore", "target\n*.wasm\n")?;
    for (path, content) in SDK {
        write(&format!("{SDK_FOLDER}/{path}"), content)?;
    }
    println!("{}: a {world}", folder.display());
    for (path, what) in [
        ("src/lib.rs".to_owned(), "what it does"),
        (
            format!("tests/{name}.yaml"),
            "what it is asked and should say",
        ),
        (
            format!("{SDK_FOLDER}/"),
            "the SDK; `cargo doc --open` shows its documentation",
        ),
    ] {
        println!("  {path:<24} {what}");
    }
    println!("next: cd {} && wherry plugin test", folder.display());
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let is_good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.len() <= 63
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !is_good {
        bail!(
            "name {name:?}: lower-case letters, digits and - are meant, beginning with a letter, as for a Plugin object"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_of_the_sdk_is_complete() {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
        for folder in ["src", "wit"] {
            for entry in fs::read_dir(sdk.join(folder)).expect("the SDK") {
                let name = entry.expect("an entry").file_name();
                let path = format!("{folder}/{}", name.to_string_lossy());
                assert!(
                    SDK.iter().any(|(there, _)| *there == path),
                    "{path} is not in SDK of plugins/tool/src/new.rs"
                );
            }
        }
    }

    #[test]
    fn a_probe_and_a_populator_take_less_than_20_lines() {
        for world in [World::Probe, World::Populator] {
            let lines = example(world).0.lines().count();
            assert!(lines < 20, "the {world} has {lines} lines");
        }
    }

    #[test]
    fn nothing_is_written_over() {
        let parent = tempfile::tempdir().expect("a directory");
        run("my-probe", World::Probe, parent.path()).expect("a new plugin");
        let error = run("my-probe", World::Probe, parent.path()).expect_err("it is there");
        assert!(error.to_string().ends_with("is there already"), "{error}");
        assert!(
            parent
                .path()
                .join("my-probe/wherry-plugin/wit/types.wit")
                .is_file()
        );
        for name in ["", "My", "a/b", "-a", "a-", "../x"] {
            assert!(run(name, World::Probe, parent.path()).is_err(), "{name}");
        }
    }
}
