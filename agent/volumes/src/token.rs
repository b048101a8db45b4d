//! When a projected ServiceAccount token is due for another. Pure.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Deserialize;

/// A token is renewed once this much of its life is over (`pkg/kubelet/token`: at 80 %).
const RENEW_AT_PERCENT: i64 = 80;

/// A token is renewed at this age however long it may live (`pkg/kubelet/token`: `maxTTL`).
const AGE_SECONDS_MAX: i64 = 24 * 60 * 60;

#[derive(Deserialize)]
struct Claims {
    iat: i64,
    exp: i64,
}

/// Life and use of a token that is in the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    /// Good for longer.
    Fresh,
    /// Still good, and due for another.
    Due,
    /// No good: expired, or its times cannot be read.
    Expired,
}

/// Judges a token by the times in its own claims, so that nothing has to be remembered over an
/// agent's restart.
pub(crate) fn validity(token: &[u8], now: Timestamp) -> Validity {
    let Some(claims) = claims(token) else {
        return Validity::Expired;
    };
    let now = now.as_second();
    let age = now.saturating_sub(claims.iat);
    let lifetime = claims.exp.saturating_sub(claims.iat);
    if now >= claims.exp {
        Validity::Expired
    } else if age >= AGE_SECONDS_MAX
        || age.saturating_mul(100) >= lifetime.saturating_mul(RENEW_AT_PERCENT)
    {
        Validity::Due
    } else {
        Validity::Fresh
    }
}

/// When a token is to be renewed; `None` if its times cannot be read.
pub(crate) fn renewal(token: &[u8]) -> Option<Timestamp> {
    let claims = claims(token)?;
    let lifetime = claims.exp.saturating_sub(claims.iat);
    // Rounded up, so that it is due by then.
    let share = (lifetime.saturating_mul(RENEW_AT_PERCENT).saturating_add(99)).div_euclid(100);
    let at = claims.iat.saturating_add(share.min(AGE_SECONDS_MAX));
    Timestamp::from_second(at).ok()
}

fn claims(token: &[u8]) -> Option<Claims> {
    let payload = token.split(|byte| *byte == b'.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn token(iat: i64, exp: i64) -> String {
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"iat":{iat},"exp":{exp},"sub":"x"}}"#));
        format!("e30.{claims}.sig")
    }

    #[test]
    fn a_token_is_due_at_four_fifths_of_its_life_or_a_day() {
        let day = AGE_SECONDS_MAX;
        for (iat, exp, now, want) in [
            (1000, 2000, 1000, Validity::Fresh),
            (1000, 2000, 1799, Validity::Fresh),
            (1000, 2000, 1800, Validity::Due),
            (1000, 2000, 1999, Validity::Due),
            (1000, 2000, 2000, Validity::Expired),
            (0, 100 * day, day - 1, Validity::Fresh),
            (0, 100 * day, day, Validity::Due),
        ] {
            let now = Timestamp::from_second(now).unwrap();
            assert_eq!(
                validity(token(iat, exp).as_bytes(), now),
                want,
                "{iat} {exp} {now}"
            );
        }
    }

    #[test]
    fn a_token_is_due_at_its_renewal_and_not_before() {
        for (iat, exp) in [
            (1000, 2000),
            (1000, 1001),
            (7, 3614),
            (0, 100 * AGE_SECONDS_MAX),
        ] {
            let token = token(iat, exp);
            let at = renewal(token.as_bytes()).unwrap();
            let before = Timestamp::from_second(at.as_second() - 1).unwrap();
            assert_ne!(
                validity(token.as_bytes(), at),
                Validity::Fresh,
                "{iat} {exp}"
            );
            assert_eq!(
                validity(token.as_bytes(), before),
                Validity::Fresh,
                "{iat} {exp}"
            );
        }
        assert_eq!(renewal(b"a.b.c"), None);
    }

    #[test]
    fn what_is_no_token_has_expired() {
        for text in ["", "a.b", "a.b.c", "...", "e30.e30.x"] {
            assert_eq!(
                validity(text.as_bytes(), Timestamp::UNIX_EPOCH),
                Validity::Expired,
                "{text:?}"
            );
        }
    }
}
