//! Compiles the guests of plugins/builtin for wasm32-wasip2 and writes `builtins.rs`, which embeds them.
//!
//! The nested cargo has a target directory of its own below OUT_DIR, and nothing of this build's settings. Where
//! rustup has not installed the target, tests/tools/guest-toolchain.sh has made a sysroot for it, which is found by
//! WHERRY_GUEST_ENV (the file whose name that script prints) or in its default place.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use serde_json::Value;
use sha2::{Digest, Sha256};

const TARGET: &str = "wasm32-wasip2";
const CLASSES: [&str; 4] = ["probe", "populator", "mounter", "filesystem"];
/// Variables of this build.
const LEFT_OUT: [&str; 4] = ["CARGO", "__CARGO", "RUSTC_", "RUSTFLAGS"];
/// Of those, the ones that say where crates come from, how many jobs there are, and about the guests' own target.
const KEPT: [&str; 7] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_REGISTR",
    "CARGO_SOURCE_",
    "CARGO_TARGET_WASM32_",
];
/// What a Plugin object's spec says besides where it comes from.
const SPEC_FIELDS: [&str; 3] = ["grants", "limits", "failurePolicy"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("built-in plugins: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let plugins = here.parent().ok_or("no folder above")?;
    let builtin = plugins.join("builtin");
    watch(plugins, &builtin);
    let guest_env = guest_env()?;
    let target = out.join("guests");
    compile(&builtin, &target, &guest_env)?;
    let embedded = embed(&builtin, &target.join(TARGET).join("release"))?;
    fs::write(out.join("builtins.rs"), embedded).map_err(|error| format!("builtins.rs: {error}"))
}

/// Says what this depends on: sources, and not what somebody compiled beside them.
fn watch(plugins: &Path, builtin: &Path) {
    let mut watched = vec![plugins.join("wit"), plugins.join("sdk")];
    let entries = fs::read_dir(builtin).into_iter().flatten().flatten();
    watched.extend(entries.map(|entry| entry.path()));
    for path in watched {
        // One that is missing would mean: every time.
        if path.exists() && !path.ends_with("target") {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    for name in ["WHERRY_GUEST_ENV", "WHERRY_CACHE", "XDG_CACHE_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

/// Variables for the compiler to find the target's standard library.
fn guest_env() -> Result<BTreeMap<String, String>, String> {
    let file = env::var_os("WHERRY_GUEST_ENV").map(PathBuf::from);
    let file = file.or_else(|| Some(cache()?.join("guest-toolchain/env")));
    let text = file.and_then(|file| fs::read_to_string(file).ok());
    let variables: BTreeMap<_, _> = text
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(variable)
        .collect();
    if !variables.is_empty() || has_target() {
        return Ok(variables);
    }
    Err(format!(
        "the compiler has no standard library for {TARGET}. Where rustup reaches its server: `rustup target add \
         {TARGET}`. Elsewhere, on Debian: tests/tools/guest-toolchain.sh builds one (about two minutes, once), and \
         this build finds it"
    ))
}

fn cache() -> Option<PathBuf> {
    if let Some(cache) = env::var_os("WHERRY_CACHE") {
        return Some(cache.into());
    }
    let caches = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let caches = caches.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    Some(caches?.join("wherry"))
}

/// `export NAME="value"`.
fn variable(line: &str) -> Option<(String, String)> {
    let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
    Some((name.to_owned(), value.trim_matches('"').to_owned()))
}

fn has_target() -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let printed = Command::new(rustc).args(["--print", "sysroot"]).output();
    printed.is_ok_and(|printed| {
        let sysroot = String::from_utf8_lossy(&printed.stdout);
        Path::new(sysroot.trim())
            .join("lib/rustlib")
            .join(TARGET)
            .join("lib")
            .is_dir()
    })
}

/// Cargo as for a fresh shell: flags, wrappers and features of this build are for this build.
fn cargo(builtin: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(builtin);
    for (name, _) in env::vars_os() {
        let begins = |prefixes: &[&str]| {
            let text = name.to_string_lossy();
            prefixes.iter().any(|prefix| text.starts_with(prefix))
        };
        if begins(&LEFT_OUT) && !begins(&KEPT) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

fn compile(
    builtin: &Path,
    target: &Path,
    guest_env: &BTreeMap<String, String>,
) -> Result<(), String> {
    let status = cargo(builtin)
        .args([
            "build",
            "--quiet",
            "--release",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target)
        .envs(guest_env)
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!(
            "`cargo build --target {TARGET}` in plugins/builtin failed, see above"
        )),
    }
}

/// The packages that are plugins, with what they declare.
fn packages(builtin: &Path) -> Result<BTreeMap<String, Value>, String> {
    let output = cargo(builtin)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|error| {
        format!(
            "cargo metadata: {error}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let declared = packages.filter_map(|package| {
        let declared = package["metadata"].get("wherry")?;
        Some((package["name"].as_str()?.to_owned(), declared.clone()))
    });
    Ok(declared.collect())
}

fn embed(builtin: &Path, compiled: &Path) -> Result<String, String> {
    let mut list = String::from("&[\n");
    for (name, declared) in packages(builtin)? {
        let class = declared["class"].as_str().unwrap_or_default();
        if !CLASSES.contains(&class) {
            return Err(format!(
                "{name}: [package.metadata.wherry] class is none of {CLASSES:?}"
            ));
        }
        for (field, _) in declared.as_object().into_iter().flatten() {
            if field != "class" && !SPEC_FIELDS.contains(&field.as_str()) {
                return Err(format!(
                    "{name}: [package.metadata.wherry] {field} is none of {SPEC_FIELDS:?}"
                ));
            }
        }
        let spec: serde_json::Map<_, _> = SPEC_FIELDS
            .iter()
            .filter_map(|field| Some(((*field).to_owned(), declared.get(field)?.clone())))
            .collect();
        let spec = Value::Object(spec).to_string();
        let path = compiled.join(name.replace('-', "_")).with_extension("wasm");
        let wasm = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let digest: String = Sha256::digest(&wasm)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        list += &format!(
            "    Builtin {{ name: {name:?}, class: {class:?}, digest: \"sha256:{digest}\", spec: {spec:?}, \
             wasm: include_bytes!({path:?}) }},\n"
        );
    }
    Ok(list + "]\n")
}
