//! `wherry plugin inspect` and `manifest`: a component for people to read, and as an object for a cluster.

use std::fmt::Write;

use anyhow::Result;

use crate::component::Description;

/// What a component is.
pub(crate) fn describe(wasm: &[u8], digest: Option<&str>) -> Result<String> {
    let description = Description::read(wasm)?;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<11}{value}");
    };
    line(
        "world",
        &match description.world() {
            Ok(world) => format!("{world}"),
            Err(why) => format!("none: {why}"),
        },
    );
    line(
        "contract",
        description
            .contract_version()
            .unwrap_or("no interface of it is used"),
    );
    line("size", &format!("{} KiB", wasm.len().div_ceil(1024)));
    if let Some(digest) = digest {
        line("digest", digest);
    }
    let (wasi, own): (Vec<_>, Vec<_>) = description
        .imports
        .iter()
        .partition(|import| import.starts_with("wasi:"));
    for import in own {
        line("imports", import);
    }
    if !wasi.is_empty() {
        line(
            "",
            &format!(
                "and {} of wasi:, which are there and find nothing",
                wasi.len()
            ),
        );
    }
    for export in &description.exports {
        line("exports", export);
    }
    for grant in description.grants() {
        let need = if grant.is_needed { "needs" } else { "may need" };
        line(
            "grants",
            &format!("{need} {}: {}", grant.field, grant.reason),
        );
    }
    for producer in &description.producers {
        line("made with", producer);
    }
    Ok(text)
}

/// The Plugin object of a component, as YAML, with the grants it needs for the operator to fill in or take out.
pub(crate) fn manifest(name: &str, image: &str, digest: &str, wasm: &[u8]) -> Result<String> {
    let description = Description::read(wasm)?;
    let world = description.world()?;
    let mut text = format!(
        "apiVersion: wherry.dev/v1alpha1\nkind: Plugin\nmetadata:\n  name: {name}\nspec:\n  image: '{image}'\n  \
         digest: {digest}\n  class: {}\n",
        world.class()
    );
    let mut grants: Vec<(&str, String, bool)> = Vec::new();
    for grant in description.grants() {
        match grants.iter_mut().find(|(field, ..)| *field == grant.field) {
            Some((_, reason, _)) => {
                let _ = write!(reason, "; {}", grant.reason);
            }
            None => grants.push((grant.field, grant.reason.to_owned(), grant.is_needed)),
        }
    }
    if !grants.is_empty() {
        text.push_str("  grants:\n");
    }
    for (field, reason, is_needed) in grants {
        let value = match (field, is_needed) {
            ("exec" | "logs" | "volumes", _) => "true",
            _ => "[]",
        };
        let _ = writeln!(text, "    {field}: {value} # {reason}");
    }
    Ok(text)
}
