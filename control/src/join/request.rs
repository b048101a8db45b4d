//! A certificate, asked for with a CertificateSigningRequest.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
    runtime::wait::await_condition,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use thiserror::Error;
use tokio::time::timeout;
use wherry_server::pki::Identity;

/// For a decision: somebody may have to make it. The kubelet's value.
const DECISION_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// For the server to take the request.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    node: String,
    /// Of a serving certificate.
    ips: Vec<IpAddr>,
    is_serving: bool,
}

impl Wanted {
    /// What the agent shows to the API server.
    pub(crate) fn client(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            ips: Vec::new(),
            is_serving: false,
        }
    }

    /// What the agent's HTTPS server shows.
    pub(crate) fn serving(node: &str, ip: IpAddr) -> Self {
        Self {
            node: node.to_owned(),
            ips: vec![ip],
            is_serving: true,
        }
    }

    fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, "system:nodes");
        subject.push(DnType::CommonName, format!("system:node:{}", self.node));
        params.distinguished_name = subject;
        if self.is_serving {
            let name = self.node.as_str().try_into()?;
            params.subject_alt_names.push(SanType::DnsName(name));
            let ips = self.ips.iter().map(|ip| SanType::IpAddress(*ip));
            params.subject_alt_names.extend(ips);
        }
        Ok(params)
    }
}

/// A certificate was not given.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// A key or a request could not be made.
    #[error("certificate request: {0}")]
    Make(#[from] rcgen::Error),
    /// The server does not know who asks.
    #[error("certificate request: unauthorized")]
    Unauthorized,
    /// The server refused, or could not be reached.
    #[error("certificate request: {0}")]
    Api(#[source] kube::Error),
    /// Nobody decided.
    #[error("certificate request {name}: no decision within {} s; `kubectl certificate approve {name}` approves it", after.as_secs())]
    Undecided {
        /// The request.
        name: String,
        /// How long was waited.
        after: Duration,
    },
    /// Somebody said no, or the signer could not sign.
    #[error("certificate request {name}: {type_}: {message}")]
    Refused {
        /// The request.
        name: String,
        /// `Denied` or `Failed`.
        type_: String,
        /// Why.
        message: String,
    },
    /// The server took the request and the news of it stopped.
    #[error("certificate request {name}: {why}")]
    Lost {
        /// The request.
        name: String,
        /// What happened.
        why: String,
    },
}

impl AskError {
    /// Trying again changes nothing.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Api(kube::Error::Api(status)) => {
                (400..500).contains(&status.code) && status.code != 429
            }
            Self::Api(_) | Self::Lost { .. } => false,
            Self::Make(_) | Self::Unauthorized | Self::Undecided { .. } | Self::Refused { .. } => {
                true
            }
        }
    }
}

/// Makes a key, asks for its certificate and waits for it.
pub(crate) async fn ask(client: &Client, wanted: &Wanted) -> Result<Identity, AskError> {
    let key = KeyPair::generate()?;
    let pem = wanted.params()?.serialize_request(&key)?.pem()?;
    let (signer, purpose) = if wanted.is_serving {
        ("kubernetes.io/kubelet-serving", "server auth")
    } else {
        ("kubernetes.io/kube-apiserver-client-kubelet", "client auth")
    };
    let request = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("node-csr-".into()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), purpose.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let created = timeout(CREATE_TIMEOUT, api.create(&PostParams::default(), &request)).await;
    let created = match created {
        Ok(Ok(created)) => created,
        Ok(Err(kube::Error::Api(status))) if status.code == 401 => {
            return Err(AskError::Unauthorized);
        }
        Ok(Err(error)) => return Err(AskError::Api(error)),
        Err(_) => {
            return Err(AskError::Lost {
                name: String::new(),
                why: format!("no answer within {} s", CREATE_TIMEOUT.as_secs()),
            });
        }
    };
    let name = created.name_any();
    let decided = |request: Option<&CertificateSigningRequest>| {
        request.is_none_or(|request| outcome(request).is_some())
    };
    let decided = timeout(DECISION_TIMEOUT, await_condition(api, &name, decided)).await;
    let request = match decided {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) => {
            let why = "somebody deleted it".to_owned();
            return Err(AskError::Lost { name, why });
        }
        Ok(Err(error)) => {
            let why = error.to_string();
            return Err(AskError::Lost { name, why });
        }
        Err(_) => {
            return Err(AskError::Undecided {
                name,
                after: DECISION_TIMEOUT,
            });
        }
    };
    match outcome(&request) {
        Some(Ok(cert_pem)) => Ok(Identity {
            cert_pem,
            key_pem: key.serialize_pem(),
        }),
        Some(Err((type_, message))) => Err(AskError::Refused {
            name,
            type_,
            message,
        }),
        None => Err(AskError::Lost {
            name,
            why: "it is not decided after all".into(),
        }),
    }
}

/// The certificate, or the condition that says why there is none.
fn outcome(request: &CertificateSigningRequest) -> Option<Result<String, (String, String)>> {
    let status = request.status.as_ref()?;
    if let Some(certificate) = status.certificate.as_ref().filter(|pem| !pem.0.is_empty()) {
        return Some(Ok(String::from_utf8_lossy(&certificate.0).into_owned()));
    }
    let mut conditions = status.conditions.iter().flatten();
    let refusal =
        conditions.find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"))?;
    Some(Err((
        refusal.type_.clone(),
        refusal.message.clone().unwrap_or_default(),
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_ends_with_a_certificate_or_a_reason() {
        let outcome = |status: serde_json::Value| {
            let request = json!({ "metadata": {}, "spec": { "request": "", "signerName": "x/y" }, "status": status });
            outcome(&serde_json::from_value(request).unwrap())
        };
        let condition = |type_: &str| json!({ "conditions": [{ "type": type_, "status": "True", "message": "why" }] });
        assert_eq!(outcome(json!({})), None);
        assert_eq!(outcome(condition("Approved")), None);
        assert_eq!(
            outcome(json!({ "certificate": "UEVN" })),
            Some(Ok("PEM".into()))
        );
        for type_ in ["Denied", "Failed"] {
            assert_eq!(
                outcome(condition(type_)),
                Some(Err((type_.into(), "why".into())))
            );
        }
    }
}
