//! `registry/repository:tag@digest`. Pure.

/// Where an artifact is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) registry: String,
    pub(crate) repository: String,
    /// A tag or a digest.
    pub(crate) object: String,
}

impl Reference {
    /// The registry has to be there: there is no default one.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("reference {text:?}: {why}");
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (registry, rest) = name.split_once('/').ok_or_else(|| bad("no registry"))?;
        if !registry.contains(['.', ':']) && registry != "localhost" {
            return Err(bad("no registry: it has neither dot nor port"));
        }
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (rest, "latest"),
        };
        let is_name = |text: &str, more: &[u8]| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || more.contains(&byte);
            !text.is_empty() && text.bytes().all(known)
        };
        let is_path = repository
            .split('/')
            .all(|part| is_name(part, b"._-") && part != ".." && part != ".");
        if !is_path || !is_name(tag, b"._-") {
            return Err(bad("no name"));
        }
        let object = match digest {
            Some(digest) if digest.starts_with("sha256:") && is_name(digest, b":") => digest,
            Some(_) => return Err(bad("its digest is no sha256")),
            None => tag,
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            object: object.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_names_its_registry() {
        for (text, registry, repository, object) in [
            ("r.example/a/b:1", "r.example", "a/b", "1"),
            ("10.0.0.1:5000/a", "10.0.0.1:5000", "a", "latest"),
            ("localhost/a@sha256:00", "localhost", "a", "sha256:00"),
            ("r.example/a:1@sha256:00", "r.example", "a", "sha256:00"),
        ] {
            let found = Reference::parse(text).unwrap();
            let found = (found.registry, found.repository, found.object);
            assert_eq!(found, (registry.into(), repository.into(), object.into()));
        }
        for bad in [
            "",
            "a",
            "a/b",
            "r.example/",
            "r.example/../x:1",
            "r.example/a@md5:0",
            "r.example/a b",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
