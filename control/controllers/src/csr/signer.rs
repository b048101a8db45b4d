//! The authority that signs: certificates as a signer gives them, whatever else was asked for.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::rules::{Asked, Signer};
use crate::ClusterSigning;

/// How far a certificate's beginning lies back, for clocks that are behind: this share of its validity…
const BACKDATE_SHARE: u32 = 20;
/// … and at most so much.
const BACKDATE_MAX: Duration = Duration::from_secs(5 * 60);

/// A certificate authority with its key.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    not_after: i64,
    validity: Duration,
}

impl Authority {
    pub(super) fn new(signing: &ClusterSigning) -> Result<Self, String> {
        let key =
            KeyPair::from_pem(&signing.key_pem).map_err(|error| format!("its key: {error}"))?;
        let issuer = Issuer::from_ca_cert_pem(&signing.cert_pem, key)
            .map_err(|error| format!("its certificate: {error}"))?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(signing.cert_pem.as_bytes())
            .map_err(|error| format!("its certificate: {error}"))?;
        let (_, cert) = X509Certificate::from_der(&pem.contents)
            .map_err(|error| format!("its certificate: {error}"))?;
        Ok(Self {
            issuer,
            not_after: cert.validity().not_after.timestamp(),
            validity: signing.duration,
        })
    }

    /// Signs what [`Signer::check`] has let through; `seconds` is how long it was asked to be valid.
    pub(super) fn sign(
        &self,
        signer: Signer,
        asked: Asked,
        seconds: Option<i32>,
        now: Timestamp,
    ) -> Result<String, String> {
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        for organization in &asked.organizations {
            subject.push(DnType::OrganizationName, organization.as_str());
        }
        subject.push(DnType::CommonName, asked.common_name.as_str());
        params.distinguished_name = subject;
        if signer.is_serving() {
            for name in &asked.dns_names {
                let name = name
                    .as_str()
                    .try_into()
                    .map_err(|_| format!("{name:?} is no DNS name"))?;
                params.subject_alt_names.push(SanType::DnsName(name));
            }
            let ips = asked.ips.iter().map(|ip| SanType::IpAddress(*ip));
            params.subject_alt_names.extend(ips);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![if signer.is_serving() {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        }];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from(serial()));
        let asked_for = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let validity = asked_for.map_or(self.validity, |seconds| {
            self.validity.min(Duration::from_secs(seconds))
        });
        let backdate = (validity / BACKDATE_SHARE).min(BACKDATE_MAX);
        let second = |seconds: i64| {
            let seconds = u64::try_from(seconds).unwrap_or_default();
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
        };
        let now = now.as_second();
        let length = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let until = now.saturating_add(length(validity)).min(self.not_after);
        if until <= now {
            return Err("the authority's own certificate has expired".into());
        }
        params.not_before = second(now - length(backdate));
        params.not_after = second(until);
        let mut request = asked.params;
        request.params = params;
        let cert = request
            .signed_by(&self.issuer)
            .map_err(|error| format!("signing: {error}"))?;
        Ok(cert.pem())
    }
}

/// 127 random bits, positive (RFC 5280, section 4.1.2.2).
fn serial() -> Vec<u8> {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    bytes.to_vec()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, IsCa};
    use x509_parser::extensions::GeneralName;

    use super::{super::rules::request, *};

    fn authority(duration: Duration) -> (Authority, String) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert_pem = params.self_signed(&key).unwrap().pem();
        let signing = ClusterSigning {
            cert_pem: cert_pem.clone(),
            key_pem: key.serialize_pem(),
            duration,
        };
        (Authority::new(&signing).unwrap(), cert_pem)
    }

    #[test]
    fn a_certificate_holds_what_its_signer_gives_and_ends_with_its_authority() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let year = Duration::from_secs(365 * 24 * 3600);
        let (authority, ca) = authority(year);
        let sign = |signer, seconds, now| {
            let asked =
                Asked::read(&request("system:node:a/system:nodes", &["a", "10.0.0.1"])).unwrap();
            authority.sign(signer, asked, seconds, now)
        };
        for (signer, names) in [(Signer::NodeServing, 2), (Signer::NodeClient, 0)] {
            let pem = sign(signer, Some(3600), now).unwrap();
            let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let cert = pem.parse_x509().unwrap();
            let (_, ca) = x509_parser::pem::parse_x509_pem(ca.as_bytes()).unwrap();
            let ca = ca.parse_x509().unwrap();
            cert.verify_signature(Some(ca.public_key())).unwrap();
            assert!(!cert.is_ca());
            let found = cert.subject_alternative_name().unwrap();
            let found: &[GeneralName<'_>] = found
                .as_ref()
                .map_or(&[], |found| &found.value.general_names);
            assert_eq!(found.len(), names);
            let usage = cert.extended_key_usage().unwrap().unwrap().value;
            assert_eq!(
                (usage.server_auth, usage.client_auth),
                (names > 0, names == 0)
            );
            assert_eq!(
                cert.validity().not_after.timestamp(),
                now.as_second() + 3600
            );
            assert_eq!(
                cert.validity().not_before.timestamp(),
                now.as_second() - 180
            );
        }
        let late: Timestamp = "2029-12-01T00:00:00Z".parse().unwrap();
        let pem = sign(Signer::NodeClient, None, late).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let end: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(
            pem.parse_x509().unwrap().validity().not_after.timestamp(),
            end.as_second()
        );
        assert!(sign(Signer::NodeClient, None, end).is_err());
    }
}
