//! `wherry plugin build`: cargo, with the right target and what it needs.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Has a standard library with WASI, which plugins find empty.
const WASI: &str = "wasm32-wasip2";
/// Has none: smaller components.
const PLAIN: &str = "wasm32-unknown-unknown";

/// Compiles the plugin whose Cargo.toml is in a folder; answers where the component is.
pub(crate) fn run(folder: &Path, is_small: bool) -> Result<PathBuf> {
    if !folder.join("Cargo.toml").is_file() {
        bail!(
            "{}: no Cargo.toml there, so no plugin's folder: `wherry plugin new` makes one",
            folder.display()
        );
    }
    let target = if is_small { PLAIN } else { WASI };
    let environment = guest_environment();
    if environment.is_empty() && !has_target(target) {
        bail!(
            "the compiler has no standard library for {target}. Where rustup reaches its server: `rustup target add \
             {target}`. Elsewhere, on Debian: tests/tools/guest-toolchain.sh in Wherry's sources builds one"
        );
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(folder)
        .args(["build", "--release", "--target", target])
        .arg("--message-format=json-render-diagnostics")
        // They would reach the guest in place of its own flags.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .envs(environment)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if is_small {
        // Makes a component of the module, as it does for the other target.
        let flags = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS";
        let before = env::var(flags).unwrap_or_default();
        cargo.env(flags, format!("{before} -Clinker=wasm-component-ld"));
    }
    let output = cargo.output();
    let output = output.context("cargo, which comes with Rust (https://rustup.rs)")?;
    if !output.status.success() {
        bail!("cargo build: {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    artifact(&text).with_context(|| {
        format!(
            "cargo made no .wasm file: {} needs `[lib] crate-type = [\"cdylib\"]`",
            folder.join("Cargo.toml").display()
        )
    })
}

/// The last component that cargo says it made: dependencies come first.
fn artifact(messages: &str) -> Option<PathBuf> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let files = messages.filter(|message| message["reason"] == "compiler-artifact");
    let files =
        files.flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default());
    let mut files = files.filter_map(|file| Some(PathBuf::from(file.as_str()?)));
    files.rfind(|file| file.extension().is_some_and(|end| end == "wasm"))
}

/// Variables for the compiler to find a standard library that tests/tools/guest-toolchain.sh has made.
fn guest_environment() -> BTreeMap<String, String> {
    let cache = || {
        if let Some(cache) = env::var_os("WHERRY_CACHE") {
            return Some(PathBuf::from(cache));
        }
        let caches = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let caches = caches.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
        Some(caches.join("wherry"))
    };
    let file = env::var_os("WHERRY_GUEST_ENV").map(PathBuf::from);
    let file = file.or_else(|| Some(cache()?.join("guest-toolchain/env")));
    let text = file.and_then(|file| fs::read_to_string(file).ok());
    let lines = text.iter().flat_map(|text| text.lines());
    let variables = lines.filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    variables
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

fn has_target(target: &str) -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let printed = Command::new(rustc).args(["--print", "sysroot"]).output();
    printed.is_ok_and(|printed| {
        let sysroot = String::from_utf8_lossy(&printed.stdout);
        let lib = Path::new(sysroot.trim()).join("lib/rustlib").join(target);
        lib.join("lib").is_dir()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_no_plugins_is_said() {
        let empty = tempfile::tempdir().expect("a directory");
        let said = run(empty.path(), false).expect_err("nothing is there");
        assert!(said.to_string().contains("no Cargo.toml there"), "{said}");
    }

    #[test]
    fn the_component_is_what_cargo_says_last() {
        let messages = r#"{"reason":"compiler-artifact","filenames":["/t/libwherry_plugin.rlib"]}
{"reason":"build-script-executed"}
not json
{"reason":"compiler-artifact","filenames":["/t/my_probe.wasm","/t/my_probe.d"]}
{"reason":"build-finished","success":true}"#;
        assert_eq!(artifact(messages), Some("/t/my_probe.wasm".into()));
        assert_eq!(artifact(""), None);
    }
}
