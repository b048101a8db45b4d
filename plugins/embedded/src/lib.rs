//! The built-in plugins, compiled from plugins/builtin by this crate's build script, as bytes in the program.
//!
//! What a plugin may do and use is in its Cargo.toml (`[package.metadata.wherry]`) in the words of a Plugin object's
//! spec, and comes along as JSON. Installing and calling them is the plugin host's.

/// A built-in plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// What probes and volumes call it by: the name of its package.
    pub name: &'static str,
    /// `probe`, `populator`, `mounter` or `filesystem`.
    pub class: &'static str,
    /// Names the component's content: `sha256:` and 64 hex digits.
    pub digest: &'static str,
    /// A JSON object with those of `grants`, `limits` and `failurePolicy` that the plugin declares.
    pub spec: &'static str,
    /// The component.
    pub wasm: &'static [u8],
}

/// All built-in plugins, in the order of their names.
pub const ALL: &[Builtin] = include!(concat!(env!("OUT_DIR"), "/builtins.rs"));

/// The built-in plugin of a name.
pub fn find(name: &str) -> Option<&'static Builtin> {
    let at = ALL.binary_search_by(|builtin| builtin.name.cmp(name));
    at.ok().map(|at| &ALL[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_is_a_component_and_found_by_its_name() {
        assert!(!ALL.is_empty());
        for builtin in ALL {
            assert_eq!(find(builtin.name), Some(builtin));
            assert_eq!(&builtin.wasm[..8], b"\0asm\x0d\0\x01\0", "{}", builtin.name);
            assert_eq!(builtin.digest.len(), "sha256:".len() + 64);
            assert!(builtin.spec.starts_with('{'), "{}", builtin.spec);
        }
        assert_eq!(find("no-such-plugin"), None);
    }
}
