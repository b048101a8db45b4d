//! What a component is, read from its bytes without compiling it.

use std::{collections::BTreeMap, fmt};

use anyhow::{Result, bail};
use wasmparser::{ComponentTypeRef, Encoding, KnownCustom, Parser, Payload};

/// The package whose worlds plugins export.
const PACKAGE: &str = "wherry:plugin/";

/// A world of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum World {
    /// Is a container well?
    Probe,
    /// A volume whose content is written once, and perhaps again.
    Populator,
    /// A volume that the host attaches and mounts.
    Mounter,
    /// A volume whose every operation is the plugin's.
    Filesystem,
}

impl World {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Probe,
        Self::Populator,
        Self::Mounter,
        Self::Filesystem,
    ];

    /// What a Plugin object's `spec.class` says.
    pub fn class(self) -> &'static str {
        match self {
            Self::Probe => "Probe",
            Self::Populator => "Populator",
            Self::Mounter => "Mounter",
            Self::Filesystem => "Filesystem",
        }
    }

    /// The world's name in WIT.
    pub fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Populator => "populator",
            Self::Mounter => "mounter",
            Self::Filesystem => "filesystem-volume",
        }
    }

    /// The function that tells it from the others.
    pub fn function(self) -> &'static str {
        match self {
            Self::Probe => "check",
            Self::Populator => "populate",
            Self::Mounter => "mount",
            Self::Filesystem => "open",
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// Names of what it imports, as `wherry:plugin/http@0.1.0`.
    pub(crate) imports: Vec<String>,
    /// Names of what it exports.
    pub(crate) exports: Vec<String>,
    /// Languages and tools that made it, as `language: Rust`.
    pub(crate) producers: Vec<String>,
}

impl Description {
    /// Reads a component.
    ///
    /// # Errors
    /// It is none, or is cut off.
    pub(crate) fn read(wasm: &[u8]) -> Result<Self> {
        if !wasm.starts_with(b"\0asm") {
            bail!("not a Wasm binary: it does not begin with \\0asm");
        }
        let mut found = Self::default();
        let mut producers = BTreeMap::new();
        let mut depth = 0u32;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::Version {
                    encoding: Encoding::Module,
                    ..
                } if depth == 0 => bail!("a core module, and a plugin is a component"),
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        let import = import?;
                        // Names for types, which nobody has to give it.
                        if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                            found.imports.push(import.name.name.to_owned());
                        }
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        found.exports.push(export?.name.name.to_owned());
                    }
                }
                Payload::CustomSection(section) => {
                    if let KnownCustom::Producers(fields) = section.as_known() {
                        for field in fields {
                            let field = field?;
                            for value in field.values {
                                let value = value?;
                                let text =
                                    format!("{}: {} {}", field.name, value.name, value.version);
                                producers.insert(text.trim_end().to_owned(), ());
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        found.producers = producers.into_keys().collect();
        Ok(found)
    }

    /// The world it exports.
    ///
    /// # Errors
    /// None of the contract's; says what it exports instead.
    pub(crate) fn world(&self) -> Result<World> {
        let exports = |world: &World| self.exports.iter().any(|export| export == world.function());
        if let Some(world) = World::ALL.iter().copied().find(exports) {
            return Ok(world);
        }
        let found = match self.exports.as_slice() {
            [] => "nothing".to_owned(),
            all => all.join(", "),
        };
        bail!(
            "exports {found}, but no world of wherry:plugin: `check` (probe), `populate` (populator), `mount` \
             (mounter) or `open` with `wherry:plugin/filesystem` (filesystem-volume)"
        )
    }

    /// The version of the contract that it was built against; `None` where it uses none of its interfaces.
    pub(crate) fn contract_version(&self) -> Option<&str> {
        let names = self.imports.iter().chain(&self.exports);
        let mut versions = names.filter_map(|name| name.strip_prefix(PACKAGE)?.split_once('@'));
        versions.next().map(|(_, version)| version)
    }

    /// Whether it imports an interface of the contract.
    pub(crate) fn imports_interface(&self, interface: &str) -> bool {
        let names = self.imports.iter();
        names
            .filter_map(|name| name.strip_prefix(PACKAGE))
            .any(|name| name.split_once('@').map_or(name, |(name, _)| name) == interface)
    }

    /// The grants that it will ask for: a field of `spec.grants`, what it is for, and whether installing needs it.
    pub(crate) fn grants(&self) -> Vec<Grant> {
        let mut grants = Vec::new();
        let mut add = |interface: &'static str, field, reason, is_needed| {
            if self.imports_interface(interface) {
                grants.push(Grant {
                    field,
                    interface,
                    reason,
                    is_needed,
                });
            }
        };
        add("exec", "exec", "commands in the probed container", true);
        add(
            "http",
            "hosts",
            "HTTP to whatever is not the probed pod",
            false,
        );
        add(
            "tcp",
            "hosts",
            "TCP to whatever is not the probed pod",
            false,
        );
        add(
            "secret",
            "secrets",
            "Secrets of the pod's namespace, by name",
            true,
        );
        add("files", "volumes", "files on the container's volumes", true);
        add("container-log", "logs", "the container's log", true);
        add(
            "mounts",
            "mountTypes",
            "kinds of file systems it has mounted",
            true,
        );
        add("mounts", "devices", "devices it has attached", false);
        add("images", "devices", "images it makes and removes", true);
        grants
    }
}

/// A grant that a component will ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Of the Plugin's `spec.grants`.
    pub(crate) field: &'static str,
    /// Whose import asks for it.
    pub(crate) interface: &'static str,
    /// What it is for.
    pub(crate) reason: &'static str,
    /// It cannot be installed, or do anything, without. Otherwise it depends on where it connects to.
    pub(crate) is_needed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(imports: &[&str], exports: &[&str]) -> Description {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Description {
            imports: owned(imports),
            exports: owned(exports),
            producers: Vec::new(),
        }
    }

    #[test]
    fn what_is_no_plugin_is_said() {
        let said = |wasm: &[u8]| Description::read(wasm).map_err(|error| error.to_string());
        assert_eq!(
            said(b"hello"),
            Err("not a Wasm binary: it does not begin with \\0asm".into())
        );
        assert_eq!(
            said(b"\0asm\x01\0\0\0"),
            Err("a core module, and a plugin is a component".into())
        );
        let empty = Description::read(b"\0asm\x0d\0\x01\0").expect("a component");
        let why = empty.world().expect_err("no world").to_string();
        assert!(why.starts_with("exports nothing, but no world"), "{why}");
        assert!(Description::read(b"\0asm\x0d\0\x01\0\xff").is_err());
    }

    #[test]
    fn grants_follow_from_imports() {
        let plugin = of(
            &[
                "wherry:plugin/exec@0.1.0",
                "wherry:plugin/tcp@0.1.0",
                "wasi:cli/exit@0.2.6",
            ],
            &["check"],
        );
        let fields: Vec<_> = plugin.grants().iter().map(|grant| grant.field).collect();
        assert_eq!(fields, ["exec", "hosts"]);
        assert_eq!(plugin.contract_version(), Some("0.1.0"));
        assert_eq!(plugin.world().ok(), Some(World::Probe));
        assert!(
            of(&["wherry:plugin/clock@0.1.0"], &["check"])
                .grants()
                .is_empty()
        );
    }
}
