//! Which versions of the contract a plugin may have been built against. Pure.
//!
//! Up to its own version this node has every function that there is. Wasmtime links interfaces of one minor version (of
//! one patch version, before 1.0) to one another, whatever the numbers after it: a plugin that is too new would be
//! linked as long as it happens to use nothing new, and would answer for it in the middle of a call.

/// The package of the contract, as interfaces of it are named.
const PACKAGE: &str = "wherry:plugin/";
/// What plugins/wit is.
const OURS: Version = Version(0, 1, 2);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| number.parse().ok());
        let version = Self(numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(version)
    }

    /// Whether what was built against it finds what it expects in ours.
    fn is_in(self, ours: Self) -> bool {
        let is_of_ours = match ours.0 {
            0 => (self.0, self.1) == (0, ours.1),
            major => self.0 == major,
        };
        is_of_ours && self <= ours
    }
}

/// Looks at the names of all that a component imports and exports.
///
/// # Errors
/// What it was built against is not here.
pub(crate) fn check<'a>(names: impl Iterator<Item = &'a String>) -> wasmtime::Result<()> {
    for name in names {
        let Some((_, text)) = name
            .strip_prefix(PACKAGE)
            .and_then(|name| name.split_once('@'))
        else {
            continue;
        };
        match Version::parse(text) {
            Some(version) if version.is_in(OURS) => {}
            Some(version) if version > OURS => wasmtime::bail!(
                "it was built against wherry:plugin@{version}, and this node has {OURS}: update the node, or build it \
                 against {OURS} ({name})"
            ),
            _ => wasmtime::bail!(
                "it was built against wherry:plugin@{text}, which this node does not know any more: build it against \
                 {OURS} ({name})"
            ),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_the_version_of_the_contract() {
        let wit = include_str!("../../wit/types.wit");
        assert!(wit.contains(&format!("\npackage wherry:plugin@{OURS};\n")));
    }

    #[test]
    fn older_versions_are_linked_and_newer_ones_refused_in_words() {
        let said = |name: &str| check([name.to_owned()].iter()).map_err(|error| error.to_string());
        for fine in [
            "wherry:plugin/log@0.1.0",
            "wherry:plugin/log@0.1.1",
            "wherry:plugin/log@0.1.2",
            "wasi:cli/exit@0.2.6",
            "check",
        ] {
            assert_eq!(said(fine), Ok(()), "{fine}");
        }
        for (name, why) in [
            (
                "wherry:plugin/log@0.1.3",
                "this node has 0.1.2: update the node",
            ),
            (
                "wherry:plugin/log@0.2.0",
                "this node has 0.1.2: update the node",
            ),
            (
                "wherry:plugin/log@1.0.0",
                "this node has 0.1.2: update the node",
            ),
            ("wherry:plugin/log@0.0.9", "does not know any more"),
            ("wherry:plugin/log@0.1.0-rc", "does not know any more"),
        ] {
            let refused = said(name).expect_err(name);
            assert!(refused.contains(why), "{name}: {refused}");
        }
        let (one, two) = (Version(1, 4, 0), Version(1, 2, 7));
        assert!(two.is_in(one) && !one.is_in(two) && !OURS.is_in(one));
    }
}
