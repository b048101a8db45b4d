//! A joined node's credentials on disk.
//!
//! ```text
//! <root>/agent/kubeconfig            server, authority, client certificate and key: one file, so that one rename
//!                                    replaces all of it; kubectl reads it too
//! <root>/agent/kubelet-server.pem    serving certificate and key
//! ```

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use wherry_server::pki::{self, Identity};
use x509_parser::{extensions::GeneralName, prelude::*};

/// How a node reaches its API server, and as whom.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) server: String,
    pub(crate) ca_pem: String,
    pub(crate) identity: Identity,
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

impl Validity {
    /// Four fifths of the way.
    pub(crate) fn renew_at(self) -> Timestamp {
        let life = self.until.as_second() - self.from.as_second();
        Timestamp::from_second(self.from.as_second() + life * 4 / 5).unwrap_or(self.until)
    }

    pub(crate) fn of(cert_pem: &str) -> Result<Self> {
        with_certificate(cert_pem, |cert| {
            let time = |time: ASN1Time| Timestamp::from_second(time.timestamp());
            Ok(Self {
                from: time(cert.validity().not_before)?,
                until: time(cert.validity().not_after)?,
            })
        })
    }
}

fn with_certificate<T>(
    pem: &str,
    read: impl FnOnce(&X509Certificate<'_>) -> Result<T>,
) -> Result<T> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).context("certificate")?;
    let (_, cert) = X509Certificate::from_der(&der).context("certificate")?;
    read(&cert)
}

impl Credentials {
    pub(crate) fn validity(&self) -> Result<Validity> {
        Validity::of(&self.identity.cert_pem)
    }

    /// The user that the certificate stands for; empty if it stands for none.
    pub(crate) fn user(&self) -> String {
        let read = with_certificate(&self.identity.cert_pem, |cert| {
            let name = cert.subject().iter_common_name().next();
            Ok(name
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned())
        });
        read.unwrap_or_default()
    }

    /// In the form that Kubernetes' clients read.
    pub(crate) fn kubeconfig(&self) -> String {
        pki::kubeconfig(&self.server, &self.ca_pem, &self.user(), &self.identity)
    }

    fn parse(text: &str) -> Option<Self> {
        let config: Value = serde_saphyr::from_str(text).ok()?;
        let field = |pointer: &str| config.pointer(pointer).and_then(Value::as_str);
        let decoded =
            |pointer: &str| String::from_utf8(STANDARD.decode(field(pointer)?).ok()?).ok();
        Some(Self {
            server: field("/clusters/0/cluster/server")?.to_owned(),
            ca_pem: decoded("/clusters/0/cluster/certificate-authority-data")?,
            identity: Identity {
                cert_pem: decoded("/users/0/user/client-certificate-data")?,
                key_pem: decoded("/users/0/user/client-key-data")?,
            },
        })
    }
}

/// Where the credentials are.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("kubeconfig")
}

fn serving_path(dir: &Path) -> PathBuf {
    dir.join("kubelet-server.pem")
}

fn read_file(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Reads the credentials; `None` where there are none.
pub(crate) fn read(dir: &Path) -> Result<Option<Credentials>> {
    let path = path(dir);
    let Some(text) = read_file(&path)? else {
        return Ok(None);
    };
    let parsed = Credentials::parse(&text);
    let why = || {
        format!(
            "{}: not what was written here; move it away and join anew",
            path.display()
        )
    };
    parsed.with_context(why).map(Some)
}

/// Writes the credentials, for root alone.
pub(crate) fn write(dir: &Path, credentials: &Credentials) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    pki::write_file(&path(dir), credentials.kubeconfig().as_bytes(), 0o600)?;
    Ok(())
}

/// Reads the serving certificate, if it is there and serves under these names.
pub(crate) fn read_serving(dir: &Path, node: &str, ip: IpAddr) -> Result<Option<Identity>> {
    let text = read_file(&serving_path(dir))?;
    let identity = text.as_deref().and_then(Identity::parse);
    Ok(identity.filter(|identity| serves(&identity.cert_pem, node, ip).unwrap_or(false)))
}

/// Writes the serving certificate.
pub(crate) fn write_serving(dir: &Path, identity: &Identity) -> Result<()> {
    let text = format!("{}{}", identity.cert_pem, identity.key_pem);
    pki::write_file(&serving_path(dir), text.as_bytes(), 0o600)?;
    Ok(())
}

fn serves(cert_pem: &str, node: &str, ip: IpAddr) -> Result<bool> {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    with_certificate(cert_pem, |cert| {
        let found = cert.subject_alternative_name().context("names")?;
        let names = found
            .map(|found| found.value.general_names.as_slice())
            .unwrap_or_default();
        let has_name = names
            .iter()
            .any(|name| matches!(name, GeneralName::DNSName(found) if *found == node));
        let has_ip = names
            .iter()
            .any(|name| matches!(name, GeneralName::IPAddress(found) if *found == octets));
        Ok(has_name && has_ip)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

    use super::*;

    fn identity() -> Identity {
        let mut params =
            CertificateParams::new(vec!["a".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:a");
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 1, 11);
        let key = KeyPair::generate().unwrap();
        Identity {
            cert_pem: params.self_signed(&key).unwrap().pem(),
            key_pem: key.serialize_pem(),
        }
    }

    #[test]
    fn credentials_are_read_back_by_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("agent");
        assert!(read(&dir).unwrap().is_none());
        let credentials = Credentials {
            server: "https://10.0.0.1:6443".into(),
            ca_pem: "CA".into(),
            identity: identity(),
        };
        write(&dir, &credentials).unwrap();
        let found = read(&dir).unwrap().unwrap();
        assert_eq!(found.server, credentials.server);
        assert_eq!(found.ca_pem, credentials.ca_pem);
        assert_eq!(found.identity, credentials.identity);
        assert_eq!(found.user(), "system:node:a");
        let mode = fs::metadata(path(&dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(path(&dir), "x").unwrap();
        assert!(read(&dir).unwrap_err().to_string().contains("join anew"));
    }

    #[test]
    fn a_serving_certificate_is_for_its_names_alone() {
        let dir = tempfile::tempdir().unwrap();
        write_serving(dir.path(), &identity()).unwrap();
        for (node, ip, expected) in [
            ("a", "10.0.0.1", true),
            ("b", "10.0.0.1", false),
            ("a", "10.0.0.2", false),
        ] {
            let found = read_serving(dir.path(), node, ip.parse().unwrap()).unwrap();
            assert_eq!(found.is_some(), expected, "{node} {ip}");
        }
    }

    #[test]
    fn certificates_are_renewed_at_four_fifths_of_their_life() {
        let validity = Validity::of(&identity().cert_pem).unwrap();
        assert_eq!(validity.renew_at().to_string(), "2026-01-09T00:00:00Z");
    }
}
