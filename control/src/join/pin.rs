//! The cluster's authority, known by the hash of its public key alone.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, OtherError,
    RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

/// For a connection and for a handshake, each.
const TIMEOUT: Duration = Duration::from_secs(10);

/// SHA-256 of an authority's SubjectPublicKeyInfo, `sha256:<hex>` as kubeadm writes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pin([u8; 32]);

impl Pin {
    /// Of a certificate, DER.
    pub(crate) fn of(certificate: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        Some(Self(Sha256::digest(parsed.public_key().raw).into()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is no hash.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not sha256: and 64 hexadecimal digits")]
pub(crate) struct NoPin(String);

impl FromStr for Pin {
    type Err = NoPin;

    fn from_str(text: &str) -> Result<Self, NoPin> {
        let read = || {
            let digits = text.strip_prefix("sha256:")?;
            if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            let mut hash = [0; 32];
            for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
                *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
            }
            Some(Self(hash))
        };
        read().ok_or_else(|| NoPin(text.to_owned()))
    }
}

/// A certificate as PEM.
pub(crate) fn to_pem(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in encoded.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

/// The authority could not be had.
#[derive(Debug, Error)]
pub(crate) enum PinError {
    /// No address of a server.
    #[error("{0}: must be https://address[:port]")]
    Address(String),
    /// Nobody answers, or not in time. It may come.
    #[error("{server}: {why}")]
    Connect {
        /// Which.
        server: String,
        /// What happened.
        why: String,
    },
    /// Somebody answers who does not have the authority.
    #[error(
        "{server}: shows no authority with the hash given; those it shows: {}. It is another cluster's server, or \
         somebody is between it and this host",
        list(shown)
    )]
    Other {
        /// Which.
        server: String,
        /// What was shown.
        shown: Vec<Pin>,
    },
    /// It has the authority and is called something else, or its certificate has expired.
    #[error("{server}: {why}")]
    Certificate {
        /// Which.
        server: String,
        /// What is wrong.
        why: String,
    },
}

impl PinError {
    /// Trying again changes nothing.
    pub(crate) fn is_lasting(&self) -> bool {
        !matches!(self, Self::Connect { .. })
    }
}

fn list(pins: &[Pin]) -> String {
    let pins: Vec<String> = pins.iter().map(Pin::to_string).collect();
    if pins.is_empty() {
        "none".to_owned()
    } else {
        pins.join(", ")
    }
}

/// Believes a server whose chain leads to an authority with one of the hashes.
#[derive(Debug)]
struct Verifier {
    pins: Vec<Pin>,
    provider: Arc<CryptoProvider>,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    shown: Vec<Pin>,
    authority: Option<CertificateDer<'static>>,
}

#[derive(Debug, Error)]
#[error("no pinned authority")]
struct NotPinned;

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.shown = intermediates
            .iter()
            .filter_map(|cert| Pin::of(cert))
            .collect();
        let is_pinned =
            |cert: &&CertificateDer<'_>| Pin::of(cert).is_some_and(|pin| self.pins.contains(&pin));
        let other = |error: Box<dyn std::error::Error + Send + Sync>| {
            TlsError::InvalidCertificate(CertificateError::Other(OtherError(error.into())))
        };
        let authority = intermediates
            .iter()
            .find(is_pinned)
            .ok_or_else(|| other(Box::new(NotPinned)))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| other(Box::new(error)))?;
        let verified = verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        found.authority = Some(authority.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A host without a battery begins in 1970, and every certificate is yet to come.
fn clock(why: &CertificateError) -> String {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    match why {
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
            let now = jiff::Timestamp::now().round(jiff::Unit::Second);
            let now = now.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            format!("; the clock of this host says {now}: is that right?")
        }
        _ => String::new(),
    }
}

/// Shakes hands with the server and gives its authority's certificate, which has one of the hashes and has signed what
/// the server shows.
pub(crate) async fn authority(server: &str, pins: &[Pin]) -> Result<Vec<u8>, PinError> {
    let address = || PinError::Address(server.to_owned());
    let uri: http::Uri = server.parse().map_err(|_| address())?;
    if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
        return Err(address());
    }
    let host = uri
        .host()
        .ok_or_else(address)?
        .trim_matches(['[', ']'])
        .to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| address())?;
    let port = uri.port_u16().unwrap_or(443);
    let connect = |why: String| PinError::Connect {
        server: server.to_owned(),
        why,
    };
    let tcp = timeout(TIMEOUT, TcpStream::connect((host, port)))
        .await
        .map_err(|_| connect(format!("no answer within {} s", TIMEOUT.as_secs())))?
        .map_err(|error| connect(error.to_string()))?;
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Verifier {
        pins: pins.to_vec(),
        provider: provider.clone(),
        found: Mutex::default(),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| connect(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    let shaken = timeout(
        TIMEOUT,
        TlsConnector::from(Arc::new(config)).connect(name, tcp),
    )
    .await;
    let mut found = verifier
        .found
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    match shaken {
        Err(_) => Err(connect(format!(
            "no TLS handshake within {} s",
            TIMEOUT.as_secs()
        ))),
        Ok(Ok(_)) => match found.authority.take() {
            Some(authority) => Ok(authority.to_vec()),
            None => Err(connect("showed no certificate".into())),
        },
        Ok(Err(error)) => {
            let inner = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<TlsError>());
            match inner {
                Some(TlsError::InvalidCertificate(CertificateError::Other(_))) => {
                    Err(PinError::Other {
                        server: server.to_owned(),
                        shown: std::mem::take(&mut found.shown),
                    })
                }
                Some(TlsError::InvalidCertificate(why)) => Err(PinError::Certificate {
                    server: server.to_owned(),
                    why: format!("its certificate cannot be trusted: {why}{}", clock(why)),
                }),
                _ => Err(connect(error.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::{
        ServerConfig,
        pki_types::{PrivateKeyDer, pem::PemObject},
    };
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    struct Ca {
        issuer: Issuer<'static, KeyPair>,
        der: CertificateDer<'static>,
    }

    fn ca() -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Ca {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    /// A server with a leaf of `issuer` for `name`, that shows `shown` behind it.
    async fn server(issuer: &Ca, name: &str, shown: &Ca) -> String {
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        server_of(issuer, leaf, shown).await
    }

    async fn server_of(issuer: &Ca, leaf: CertificateParams, shown: &Ca) -> String {
        let key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&key, &issuer.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf, shown.der.clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((tcp, _)) = listener.accept().await {
                let _ = acceptor.accept(tcp).await;
            }
        });
        format!("https://{address}")
    }

    #[tokio::test]
    async fn only_the_pinned_authority_is_believed_and_only_for_what_it_signed() {
        let (own, other) = (ca(), ca());
        let pin = Pin::of(&own.der).unwrap();
        let right = server(&own, "127.0.0.1", &own).await;
        assert_eq!(authority(&right, &[pin]).await.unwrap(), own.der.to_vec());
        let pem = to_pem(&own.der);
        assert_eq!(
            CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(),
            own.der
        );

        let foreign = server(&other, "127.0.0.1", &other).await;
        let error = authority(&foreign, &[pin]).await.unwrap_err();
        let shown = Pin::of(&other.der).unwrap().to_string();
        assert!(
            matches!(&error, PinError::Other { .. }) && error.to_string().contains(&shown),
            "{error}"
        );

        // Somebody who shows the right authority and has nothing signed by it.
        let liar = server(&other, "127.0.0.1", &own).await;
        let error = authority(&liar, &[pin]).await.unwrap_err();
        assert!(matches!(error, PinError::Certificate { .. }), "{error}");
        let elsewhere = server(&own, "192.0.2.1", &own).await;
        let error = authority(&elsewhere, &[pin]).await.unwrap_err();
        assert!(matches!(error, PinError::Certificate { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_that_is_yet_to_come_makes_one_look_at_the_clock() {
        let own = ca();
        let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        leaf.not_before = rcgen::date_time_ymd(3000, 1, 1);
        let early = server_of(&own, leaf, &own).await;
        let error = authority(&early, &[Pin::of(&own.der).unwrap()]).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("the clock of this host says 2"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_is_away_may_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = authority(&format!("https://{address}"), &[])
            .await
            .unwrap_err();
        assert!(!error.is_lasting(), "{error}");
        for text in [
            "",
            "10.0.0.1:6443",
            "http://10.0.0.1:6443",
            "https://10.0.0.1:6443/x",
        ] {
            assert!(
                authority(text, &[]).await.unwrap_err().is_lasting(),
                "{text}"
            );
        }
    }

    #[test]
    fn hashes_are_read_as_they_are_written() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<Pin>().unwrap().to_string(), text);
        for text in [
            "",
            "sha256:",
            "sha256:zz",
            &format!("sha1:{}", "0a".repeat(32)),
            &"0a".repeat(32),
        ] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
    }
}
