//! `WWW-Authenticate`. Pure.

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password.
    Basic,
    /// A token of somebody's.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// `None`: nothing that is understood.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        let mut rest = rest.trim();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            let value = Some(value.to_owned());
            match key
                .trim()
                .trim_start_matches(',')
                .trim()
                .to_ascii_lowercase()
                .as_str()
            {
                "realm" => realm = value,
                "service" => service = value,
                "scope" => scope = value,
                _ => {}
            }
            rest = next.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_or_not_understood() {
        let text =
            r#"Bearer realm="https://auth/token?x=1",service="r",scope="repository:a:pull,push""#;
        let bearer = |scope: Option<&str>| Challenge::Bearer {
            realm: "https://auth/token?x=1".into(),
            service: Some("r".into()),
            scope: scope.map(str::to_owned),
        };
        assert_eq!(
            Challenge::parse(text),
            Some(bearer(Some("repository:a:pull,push")))
        );
        let text = r#"bearer service=r, realm="https://auth/token?x=1""#;
        assert_eq!(Challenge::parse(text), Some(bearer(None)));
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer x=y"), None);
        assert_eq!(Challenge::parse("Bearer realm=\"x"), None);
    }
}
