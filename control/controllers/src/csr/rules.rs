//! What each signer signs, and what needs no person to approve it. Pure.

use std::net::IpAddr;

use k8s_openapi::api::{certificates::v1::CertificateSigningRequestSpec, core::v1::Node};
use rcgen::{CertificateSigningRequestParams, SanType};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

#[cfg(test)]
pub(super) use self::tests::request;

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// Who signs, by `spec.signerName`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signer {
    /// `kubernetes.io/kube-apiserver-client`: people and programs. A person approves.
    ApiClient,
    /// `kubernetes.io/kube-apiserver-client-kubelet`: what an agent shows to the API server.
    NodeClient,
    /// `kubernetes.io/kubelet-serving`: what an agent shows to its own clients.
    NodeServing,
}

/// A request, read.
pub(super) struct Asked {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) dns_names: Vec<String>,
    pub(super) ips: Vec<IpAddr>,
    /// Mail addresses, URIs and others.
    has_other_names: bool,
    /// Has parts that a certificate made here could not hold.
    has_other_subject: bool,
    pub(super) params: CertificateSigningRequestParams,
}

/// What becomes of a request that nobody has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A person decides.
    Leave,
    /// Not yet, for this reason.
    Wait(String),
    /// Yes, with this message.
    Approve(&'static str),
    /// Yes, if whoever asks may create this subresource.
    Review {
        /// Of `certificatesigningrequests`.
        subresource: &'static str,
        /// The message.
        message: &'static str,
    },
}

impl Asked {
    /// Reads a PEM request and checks that it is signed by its own key.
    pub(super) fn read(pem: &[u8]) -> Result<Self, String> {
        let pem = std::str::from_utf8(pem).map_err(|_| "the request is not PEM")?;
        let params = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|error| format!("the request cannot be used: {error}"))?;
        let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .map_err(|_| "the request is not PEM")?;
        let (_, parsed) = X509CertificationRequest::from_der(&der.contents)
            .map_err(|_| "the request is not PKCS#10")?;
        let subject = &parsed.certification_request_info.subject;
        let texts =
            |values: Vec<Option<String>>| -> Vec<String> { values.into_iter().flatten().collect() };
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            value.as_str().ok().map(str::to_owned)
        };
        let common_names = texts(subject.iter_common_name().map(text).collect());
        let organizations = texts(subject.iter_organization().map(text).collect());
        let known = common_names.len() + organizations.len();
        let mut asked = Self {
            has_other_subject: subject.iter_attributes().count() != known
                || common_names.len() != 1
                || organizations.len() > 1,
            common_name: common_names.into_iter().next().unwrap_or_default(),
            organizations,
            dns_names: Vec::new(),
            ips: Vec::new(),
            has_other_names: false,
            params,
        };
        for name in &asked.params.params.subject_alt_names {
            match name {
                SanType::DnsName(name) => asked.dns_names.push(name.to_string()),
                SanType::IpAddress(ip) => asked.ips.push(*ip),
                _ => asked.has_other_names = true,
            }
        }
        Ok(asked)
    }

    /// The node whose certificate this would be.
    pub(super) fn node_name(&self) -> Option<&str> {
        self.common_name.strip_prefix(NODE_PREFIX)
    }
}

impl Signer {
    pub(super) fn of(name: &str) -> Option<Self> {
        match name {
            "kubernetes.io/kube-apiserver-client" => Some(Self::ApiClient),
            "kubernetes.io/kube-apiserver-client-kubelet" => Some(Self::NodeClient),
            "kubernetes.io/kubelet-serving" => Some(Self::NodeServing),
            _ => None,
        }
    }

    /// Shown by a server.
    pub(super) fn is_serving(self) -> bool {
        self == Self::NodeServing
    }

    /// Whether the request is one that this signer signs.
    pub(super) fn check(self, asked: &Asked, usages: &[String]) -> Result<(), String> {
        if asked.common_name.is_empty() {
            return Err("the subject has no common name".into());
        }
        if asked.has_other_subject {
            return Err("the subject must be one common name and at most one organization".into());
        }
        let purpose = if self.is_serving() {
            "server auth"
        } else {
            "client auth"
        };
        let mut needed = vec![purpose];
        if self != Self::ApiClient {
            needed.push("digital signature");
        }
        let is_known = |usage: &String| {
            needed.contains(&usage.as_str())
                || ["digital signature", "key encipherment"].contains(&usage.as_str())
        };
        if let Some(other) = usages.iter().find(|usage| !is_known(usage)) {
            return Err(format!("usage {other:?} is not for this signer"));
        }
        if let Some(missing) = needed
            .iter()
            .find(|needed| !usages.iter().any(|usage| usage == *needed))
        {
            return Err(format!("usage {missing:?} is missing"));
        }
        if self == Self::ApiClient {
            if asked
                .organizations
                .iter()
                .any(|group| group == "system:masters")
            {
                return Err("the organization must not be system:masters".into());
            }
            return Ok(());
        }
        if asked.organizations != [NODES] {
            return Err(format!("the organization must be {NODES}"));
        }
        if asked.node_name().is_none_or(str::is_empty) {
            return Err(format!("the common name must begin with {NODE_PREFIX}"));
        }
        let has_names = !asked.dns_names.is_empty() || !asked.ips.is_empty();
        match self {
            _ if asked.has_other_names => Err("names must be DNS names and addresses".into()),
            Self::NodeServing if !has_names => {
                Err("at least one DNS name or address is needed".into())
            }
            Self::NodeClient if has_names => {
                Err("a client's certificate has no DNS names and addresses".into())
            }
            _ => Ok(()),
        }
    }
}

/// About a client's certificate that has passed [`Signer::check`].
pub(super) fn client(
    signer: Signer,
    asked: &Asked,
    spec: &CertificateSigningRequestSpec,
) -> Verdict {
    if signer != Signer::NodeClient {
        return Verdict::Leave;
    }
    if spec.username.as_deref() == Some(asked.common_name.as_str()) {
        return Verdict::Review {
            subresource: "selfnodeclient",
            message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
        };
    }
    Verdict::Review {
        subresource: "nodeclient",
        message: "Auto approving kubelet client certificate after SubjectAccessReview.",
    }
}

/// About a serving certificate that has passed [`Signer::check`]; `node` is the Node of its name.
pub(super) fn serving(
    asked: &Asked,
    spec: &CertificateSigningRequestSpec,
    node: Option<&Node>,
) -> Verdict {
    if spec.username.as_deref() != Some(asked.common_name.as_str()) {
        return Verdict::Leave;
    }
    let Some(node) = node else {
        return Verdict::Wait(format!(
            "there is no node {}",
            asked.node_name().unwrap_or_default()
        ));
    };
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref());
    let addresses = addresses.unwrap_or_default();
    let has_ip = |ip: &&IpAddr| {
        let mut of_ips = addresses
            .iter()
            .filter(|address| address.type_.ends_with("IP"));
        of_ips.any(|address| address.address.parse() == Ok(**ip))
    };
    let has_name = |name: &&String| {
        let mut of_names = addresses
            .iter()
            .filter(|address| !address.type_.ends_with("IP"));
        of_names.any(|address| address.address == **name)
    };
    if let Some(ip) = asked.ips.iter().find(|ip| !has_ip(ip)) {
        return Verdict::Wait(format!("{ip} is not an address of the node"));
    }
    if let Some(name) = asked.dns_names.iter().find(|name| !has_name(name)) {
        return Verdict::Wait(format!("{name} is not a name of the node"));
    }
    Verdict::Approve("Auto approving kubelet serving certificate: its names are the node's.")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};
    use serde_json::json;

    use super::*;

    /// A request for a subject `CN/O` and alternative names.
    pub(in crate::csr) fn request(subject: &str, names: &[&str]) -> Vec<u8> {
        let (common_name, organization) = subject.split_once('/').unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        params
            .serialize_request(&key)
            .unwrap()
            .pem()
            .unwrap()
            .into_bytes()
    }

    fn words(usages: &[&str]) -> Vec<String> {
        usages.iter().map(ToString::to_string).collect()
    }

    const CLIENT: &[&str] = &["client auth", "digital signature"];
    const SERVER: &[&str] = &["server auth", "digital signature"];

    #[test]
    fn each_signer_signs_its_own() {
        use Signer::{ApiClient, NodeClient, NodeServing};
        for (signer, subject, names, usages, trouble) in [
            (
                NodeClient,
                "system:node:a/system:nodes",
                &[][..],
                CLIENT,
                "",
            ),
            (
                NodeClient,
                "system:node:a/system:nodes",
                &[],
                &["client auth", "digital signature", "key encipherment"],
                "",
            ),
            (
                NodeClient,
                "a/system:nodes",
                &[],
                CLIENT,
                "the common name must begin with system:node:",
            ),
            (
                NodeClient,
                "system:node:/system:nodes",
                &[],
                CLIENT,
                "the common name must begin with system:node:",
            ),
            (
                NodeClient,
                "system:node:a/system:masters",
                &[],
                CLIENT,
                "the organization must be system:nodes",
            ),
            (
                NodeClient,
                "system:node:a/system:nodes",
                &["a"],
                CLIENT,
                "a client's certificate has no DNS names and addresses",
            ),
            (
                NodeClient,
                "system:node:a/system:nodes",
                &[],
                SERVER,
                "usage \"server auth\" is not for this signer",
            ),
            (
                NodeClient,
                "system:node:a/system:nodes",
                &[],
                &["client auth"],
                "usage \"digital signature\" is missing",
            ),
            (
                NodeServing,
                "system:node:a/system:nodes",
                &["a", "10.0.0.1"],
                SERVER,
                "",
            ),
            (
                NodeServing,
                "system:node:a/system:nodes",
                &[],
                SERVER,
                "at least one DNS name or address is needed",
            ),
            (
                NodeServing,
                "system:node:a/system:nodes",
                &["a"],
                CLIENT,
                "usage \"client auth\" is not for this signer",
            ),
            (ApiClient, "jane/dev", &[], &["client auth"], ""),
            (
                ApiClient,
                "jane/system:masters",
                &[],
                &["client auth"],
                "the organization must not be system:masters",
            ),
            (
                ApiClient,
                "jane/dev",
                &[],
                &["client auth", "cert sign"],
                "usage \"cert sign\" is not for this signer",
            ),
        ] {
            let asked = Asked::read(&request(subject, names)).unwrap();
            let found = signer.check(&asked, &words(usages));
            assert_eq!(
                found.err().unwrap_or_default(),
                trouble,
                "{signer:?} {subject} {names:?}"
            );
        }
    }

    #[test]
    fn what_is_no_request_is_said_to_be_none() {
        for pem in [
            "",
            "x",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ] {
            assert!(Asked::read(pem.as_bytes()).is_err(), "{pem:?}");
        }
    }

    fn spec(username: &str) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            username: Some(username.into()),
            ..CertificateSigningRequestSpec::default()
        }
    }

    #[test]
    fn a_node_asks_for_itself_and_a_token_for_any() {
        let asked = Asked::read(&request("system:node:a/system:nodes", &[])).unwrap();
        let subresource = |signer, username| match client(signer, &asked, &spec(username)) {
            Verdict::Review { subresource, .. } => subresource,
            _ => "",
        };
        assert_eq!(
            subresource(Signer::NodeClient, "system:node:a"),
            "selfnodeclient"
        );
        assert_eq!(
            subresource(Signer::NodeClient, "system:bootstrap:abcdef"),
            "nodeclient"
        );
        assert_eq!(
            subresource(Signer::NodeClient, "system:node:b"),
            "nodeclient"
        );
        assert_eq!(subresource(Signer::ApiClient, "jane"), "");
    }

    #[test]
    fn a_node_serves_under_its_own_names_alone() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "a" },
            "status": { "addresses": [
                { "type": "InternalIP", "address": "10.0.0.1" },
                { "type": "Hostname", "address": "a" },
            ] },
        }))
        .unwrap();
        let verdict = |names: &[&str], username: &str, node: Option<&Node>| {
            let asked = Asked::read(&request("system:node:a/system:nodes", names)).unwrap();
            serving(&asked, &spec(username), node)
        };
        let own = "system:node:a";
        assert!(matches!(
            verdict(&["a", "10.0.0.1"], own, Some(&node)),
            Verdict::Approve(_)
        ));
        assert_eq!(
            verdict(&["a", "10.0.0.2"], own, Some(&node)),
            Verdict::Wait("10.0.0.2 is not an address of the node".into())
        );
        assert_eq!(
            verdict(&["b"], own, Some(&node)),
            Verdict::Wait("b is not a name of the node".into())
        );
        assert_eq!(
            verdict(&["a"], own, None),
            Verdict::Wait("there is no node a".into())
        );
        assert_eq!(
            verdict(&["a"], "system:node:b", Some(&node)),
            Verdict::Leave
        );
        assert_eq!(
            verdict(&["a"], "system:bootstrap:abcdef", Some(&node)),
            Verdict::Leave
        );
    }
}
