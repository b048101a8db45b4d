//! ServiceAccount tokens: JWTs signed with the server's own key, bound to an account and, mostly, to a pod.

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Who issues the tokens, and whom they are for unless something else is asked for.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Kubernetes' default and shortest: an hour, ten minutes.
pub(crate) const EXPIRATION_SECONDS_DEFAULT: i64 = 3_600;
pub(crate) const EXPIRATION_SECONDS_MIN: i64 = 600;
pub(crate) const EXPIRATION_SECONDS_MAX: i64 = 1 << 32;

/// Why a token is no good.
#[derive(Debug, Error)]
pub(crate) enum TokenError {
    /// It is not signed with this server's key, or is none.
    #[error("invalid bearer token: {0}")]
    Invalid(#[from] jsonwebtoken::errors::Error),
    /// It is for somebody else.
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
}

/// An object a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The claim of Kubernetes' own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KubernetesClaim {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Bound>,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) iss: String,
    pub(crate) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) kubernetes: KubernetesClaim,
    pub(crate) nbf: i64,
    pub(crate) sub: String,
}

impl Claims {
    pub(crate) fn new(
        kubernetes: KubernetesClaim,
        audiences: Vec<String>,
        now: Timestamp,
        seconds: i64,
    ) -> Self {
        let now = now.as_second();
        let sub = format!(
            "system:serviceaccount:{}:{}",
            kubernetes.namespace, kubernetes.serviceaccount.name
        );
        Self {
            aud: if audiences.is_empty() {
                vec![ISSUER.to_owned()]
            } else {
                audiences
            },
            exp: now + seconds,
            iat: now,
            iss: ISSUER.to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes,
            nbf: now,
            sub,
        }
    }
}

/// Signs and checks.
pub(crate) struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

impl Tokens {
    pub(crate) fn new(key: &KeyPair) -> Result<Self, TokenError> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        validation.validate_nbf = true;
        // Audiences are the caller's to check: a TokenReview brings its own.
        validation.validate_aud = false;
        validation.leeway = 10;
        Ok(Self {
            encoding: EncodingKey::from_ec_pem(key.serialize_pem().as_bytes())?,
            decoding: DecodingKey::from_ec_pem(key.public_key_pem().as_bytes())?,
            validation,
        })
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        Ok(jsonwebtoken::encode(
            &Header::new(Algorithm::ES256),
            claims,
            &self.encoding,
        )?)
    }

    /// What a token says, if it is signed here, not expired, and for one of `audiences`.
    pub(crate) fn verify(&self, token: &str, audiences: &[String]) -> Result<Claims, TokenError> {
        let claims =
            jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation)?.claims;
        if !claims
            .aud
            .iter()
            .any(|audience| audiences.contains(audience))
        {
            return Err(TokenError::Audience(claims.aud, audiences.to_vec()));
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> KubernetesClaim {
        let bound = |name: &str| Bound {
            name: name.into(),
            uid: format!("uid-of-{name}"),
        };
        KubernetesClaim {
            namespace: "ns".into(),
            serviceaccount: bound("default"),
            pod: Some(bound("web")),
            node: None,
            secret: None,
        }
    }

    #[test]
    fn a_token_is_good_for_its_time_its_audience_and_its_key() {
        let tokens = Tokens::new(&KeyPair::generate().unwrap()).unwrap();
        let now = Timestamp::now();
        let claims = Claims::new(claim(), Vec::new(), now, 600);
        let token = tokens.sign(&claims).unwrap();
        let own = vec![ISSUER.to_owned()];
        assert_eq!(tokens.verify(&token, &own).unwrap(), claims);
        assert_eq!(claims.sub, "system:serviceaccount:ns:default");
        assert!(matches!(
            tokens.verify(&token, &["vault".into()]),
            Err(TokenError::Audience(..))
        ));
        assert!(
            Tokens::new(&KeyPair::generate().unwrap())
                .unwrap()
                .verify(&token, &own)
                .is_err()
        );
        let earlier = now - jiff::SignedDuration::from_secs(3_600);
        let expired = tokens
            .sign(&Claims::new(claim(), Vec::new(), earlier, 600))
            .unwrap();
        assert!(tokens.verify(&expired, &own).is_err());
    }
}
