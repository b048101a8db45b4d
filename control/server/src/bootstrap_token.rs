//! Bootstrap tokens: what a host shows that is no node yet.
//!
//! `<id>.<secret>`, kept as the Secret `bootstrap-token-<id>` of type `bootstrap.kubernetes.io/token` in `kube-system`,
//! in the form kubeadm gives them. Whoever shows one is `system:bootstrap:<id>`, may ask for a node's certificate and
//! nothing else.

use jiff::Timestamp;
use serde_json::Value;
use wherry_api::meta;

use crate::{App, UserInfo, stored};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;
const GROUP: &str = "system:bootstrappers";
/// Longest name of a group below [`GROUP`].
const EXTRA_GROUP_CHARS_MAX: usize = 256;

/// The two halves of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BootstrapToken<'a> {
    id: &'a str,
    secret: &'a str,
}

impl<'a> BootstrapToken<'a> {
    /// Reads a token, if it has the form of one.
    pub(crate) fn parse(token: &'a str) -> Option<Self> {
        let (id, secret) = token.split_once('.')?;
        let is_word = |text: &str, len: usize| {
            text.len() == len
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        (is_word(id, ID_LEN) && is_word(secret, SECRET_LEN)).then_some(Self { id, secret })
    }

    /// Finds the token's user.
    ///
    /// # Errors
    /// Why nobody is let in with it; for the log, not for whoever asks.
    pub(crate) async fn user(self, app: &App) -> Result<UserInfo, String> {
        let resource = wherry_api::find("", "v1", "secrets").ok_or("secrets are not served")?;
        let name = format!("bootstrap-token-{}", self.id);
        let key = stored::key(resource, NAMESPACE, &name);
        let (found, _) = app
            .store
            .get(&key)
            .await
            .map_err(|error| error.to_string())?;
        let found = found.ok_or_else(|| format!("there is no Secret {NAMESPACE}/{name}"))?;
        self.user_by(&stored::decode(&found), Timestamp::now())
            .map_err(|why| format!("Secret {NAMESPACE}/{name}: {why}"))
    }

    fn user_by(self, secret: &Value, now: Timestamp) -> Result<UserInfo, String> {
        if secret["type"] != TYPE {
            return Err(format!("is not of type {TYPE}"));
        }
        if meta::is_deleting(secret) {
            return Err("is being deleted".into());
        }
        let field = |name: &str| -> String {
            use base64::{Engine, engine::general_purpose::STANDARD};
            let encoded = secret["data"][name].as_str().unwrap_or_default();
            let bytes = STANDARD.decode(encoded).unwrap_or_default();
            String::from_utf8(bytes).unwrap_or_default()
        };
        if field("token-id") != self.id {
            return Err("token-id is another".into());
        }
        if !is_same(field("token-secret").as_bytes(), self.secret.as_bytes()) {
            return Err("token-secret is another".into());
        }
        let expiration = field("expiration");
        if !expiration.is_empty() {
            let until: Timestamp = expiration
                .parse()
                .map_err(|_| format!("expiration {expiration:?} is no time"))?;
            if until <= now {
                return Err(format!("expired at {expiration}"));
            }
        }
        if field("usage-bootstrap-authentication") != "true" {
            return Err("is not for authentication".into());
        }
        let extra = field("auth-extra-groups");
        let extra: Vec<&str> = extra.split(',').filter(|group| !group.is_empty()).collect();
        if let Some(bad) = extra.iter().find(|group| !is_extra_group(group)) {
            return Err(format!("group {bad:?} is not below {GROUP}"));
        }
        let groups: Vec<&str> = std::iter::once(GROUP).chain(extra).collect();
        Ok(UserInfo::new(
            format!("system:bootstrap:{}", self.id),
            &groups,
        ))
    }
}

/// As Kubernetes' pattern has it: `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`.
fn is_extra_group(group: &str) -> bool {
    let Some(name) = group.strip_prefix("system:bootstrappers:") else {
        return false;
    };
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=EXTRA_GROUP_CHARS_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| is_alphanumeric(byte) || matches!(byte, b':' | b'-'))
        && name.bytes().last().is_some_and(is_alphanumeric)
}

/// Compares in a time that does not tell how much of a guess was right.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0 && a.len() == b.len()
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde_json::json;

    use super::*;

    fn secret(changes: &[(&str, &str)]) -> Value {
        let mut secret = json!({ "type": TYPE, "metadata": {}, "data": {} });
        let usual = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("expiration", "2026-01-02T00:00:00Z"),
            ("usage-bootstrap-authentication", "true"),
            (
                "auth-extra-groups",
                "system:bootstrappers:wherry:default-node-token",
            ),
        ];
        for (name, value) in usual.iter().chain(changes) {
            secret["data"][*name] = STANDARD.encode(value).into();
        }
        secret
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_for_what_it_is_for() {
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let user = token.user_by(&secret(&[]), now).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            [
                GROUP,
                "system:bootstrappers:wherry:default-node-token",
                "system:authenticated"
            ]
        );
        assert!(token.user_by(&secret(&[("expiration", "")]), now).is_ok());
        for (name, value, trouble) in [
            (
                "token-secret",
                "0123456789abcdee",
                "token-secret is another",
            ),
            (
                "token-secret",
                "0123456789abcdef0",
                "token-secret is another",
            ),
            ("token-id", "abcdee", "token-id is another"),
            (
                "expiration",
                "2026-01-01T00:00:00Z",
                "expired at 2026-01-01T00:00:00Z",
            ),
            ("expiration", "soon", "expiration \"soon\" is no time"),
            (
                "usage-bootstrap-authentication",
                "false",
                "is not for authentication",
            ),
            (
                "auth-extra-groups",
                "system:masters",
                "group \"system:masters\" is not below system:bootstrappers",
            ),
            (
                "auth-extra-groups",
                "system:bootstrappers:x-",
                "group \"system:bootstrappers:x-\" is not below system:bootstrappers",
            ),
        ] {
            let found = token.user_by(&secret(&[(name, value)]), now);
            assert_eq!(found.unwrap_err(), trouble, "{name}={value}");
        }
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert!(token.user_by(&other, now).is_err());
    }

    #[test]
    fn only_the_form_of_a_token_is_one() {
        for text in [
            "",
            "abcdef",
            "abcdef.0123",
            "ABCDEF.0123456789abcdef",
            "a.b.c",
            "abcdef.0123456789abcdeg ",
        ] {
            assert!(BootstrapToken::parse(text).is_none(), "{text:?}");
        }
    }
}
