//! Volumes of git repositories: one commit, without its history, over smart HTTP (protocol version 2).
//!
//! | Attribute | |
//! |---|---|
//! | `repository` | its `http://` or `https://` URL |
//! | `branch`, `tag`, `commit`, `revision` | one of them, or the branch that the repository names; `revision` may be any of the three |
//! | `subdirectory` | only what is below it |
//! | `directory` | where in the volume it goes |
//! | `refreshSeconds` | asked again after; 0: never |
//!
//! The Secret's `token`, or `username` and `password`, are shown to the server; `ca.crt` holds authorities to trust.
//! Submodules are empty directories, as after a clone without `--recurse-submodules`.

mod checkout;
mod delta;
mod pack;
mod pkt;
mod remote;

use wherry_plugin::{
    log,
    populator::Populated,
    volume::{self, Error, request},
};

use crate::{checkout::Checkout, pack::Pack, remote::Remote};

const KNOWN: [&str; 9] = [
    "repository",
    "branch",
    "tag",
    "commit",
    "revision",
    "subdirectory",
    "directory",
    "refreshSeconds",
    "sizeLimit",
];

/// Which commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The branch that the repository names.
    Head,
    Branch(String),
    Tag(String),
    Commit(String),
    /// Whichever of the three it is.
    Revision(String),
}

/// Reads the attributes that say which commit; at most one is there.
fn wanted(attribute: impl Fn(&str) -> Option<String>) -> Result<Wanted, String> {
    type Make = fn(String) -> Wanted;
    let kinds: [(&str, Make); 4] = [
        ("branch", Wanted::Branch),
        ("tag", Wanted::Tag),
        ("commit", Wanted::Commit),
        ("revision", Wanted::Revision),
    ];
    let mut found = None;
    for (key, make) in kinds {
        let Some(value) = attribute(key).filter(|value| !value.is_empty()) else {
            continue;
        };
        if value.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(format!("{key} {value:?} is no name"));
        }
        if key == "commit" && !is_commit(&value) {
            return Err(format!("commit {value:?} is not 40 hexadecimal digits"));
        }
        if found.replace(make(value)).is_some() {
            return Err("branch, tag, commit and revision exclude each other".into());
        }
    }
    Ok(found.unwrap_or(Wanted::Head))
}

/// Whether a text is the name of an object.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn populate(current: Option<String>) -> volume::Result<Populated> {
    request::only(&KNOWN)?;
    let repository = request::required("repository")?;
    let wanted = wanted(request::attribute).map_err(Error::InvalidAttributes)?;
    let refresh = fetch::refresh_seconds()?;
    let mut remote = Remote::open(&repository)?;
    let commit = remote.resolve(&wanted)?;
    if current.as_deref() == Some(commit.as_str()) {
        return Ok(Populated::new(commit).refresh_after(refresh));
    }
    log::info(&format!("{repository}: fetching {commit}"));
    let bytes = remote.fetch(&commit)?;
    let damaged = |why: String| Error::Unavailable(format!("{repository}: {why}"));
    let mut pack = Pack::read(bytes).map_err(damaged)?;
    let mut checkout = Checkout {
        pack: &mut pack,
        repository: &repository,
        directory: request::attribute("directory").unwrap_or_default(),
    };
    checkout.write(
        &commit,
        &request::attribute("subdirectory").unwrap_or_default(),
    )?;
    Ok(Populated::new(commit).refresh_after(refresh))
}

wherry_plugin::populator!(populate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_one_attribute_says_which_commit() {
        let read = |pairs: &[(&str, &str)]| {
            wanted(|key| {
                let found = pairs.iter().find(|(name, _)| *name == key);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let sha = "0123456789abcdef0123456789abcdef01234567";
        for (pairs, expected) in [
            (&[][..], Wanted::Head),
            (&[("branch", "")], Wanted::Head),
            (&[("branch", "main")], Wanted::Branch("main".into())),
            (&[("tag", "v1")], Wanted::Tag("v1".into())),
            (&[("commit", sha)], Wanted::Commit(sha.into())),
            (&[("revision", "x/y")], Wanted::Revision("x/y".into())),
        ] {
            assert_eq!(read(pairs), Ok(expected));
        }
        for bad in [
            &[("branch", "a"), ("tag", "b")][..],
            &[("commit", "123")],
            &[("branch", "a b")],
            &[("revision", "a\n0000")],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
