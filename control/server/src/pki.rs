//! Certificates and keys: one CA made at first start, and leaves that are renewed when they near their end.
//!
//! ```text
//! <dir>/ca.pem                    the CA's certificate and key; never made again while it is there
//! <dir>/ca.crt                    the certificate alone, for people to copy
//! <dir>/apiserver.pem             serving certificate and key
//! <dir>/apiserver-kubelet.pem     client certificate and key, towards kubelets
//! <dir>/admin.pem                 client certificate and key of kubernetes-admin
//! <dir>/service-account.key       signs ServiceAccount tokens (ES256)
//! ```
//!
//! A certificate and its key share a file, so that one rename replaces both.

use std::{
    io::Write,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;

/// How long the CA is valid.
const CA_YEARS: i64 = 10;
/// How long a leaf is valid, in days: a machine may be off for months and still be reached.
const LEAF_DAYS: i64 = 365;
/// A leaf with less than this left is made again at start.
const RENEW_BEFORE_DAYS: i64 = 120;

/// Failure to make or read the keys.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The CA's file does not hold a certificate and a key. It is not replaced: every client trusts it.
    #[error("{}: not a certificate authority: {reason}; restore it from a backup, or move the directory away to start anew", path.display())]
    Authority {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key or certificate could not be made.
    #[error("certificate {name}: {reason}")]
    Make {
        /// For what.
        name: String,
        /// Why.
        reason: String,
    },
}

/// A certificate chain with its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The leaf's certificate.
    pub cert_pem: String,
    /// Its key, PKCS#8.
    pub key_pem: String,
}

impl Identity {
    /// Reads a certificate chain with its key behind it, as [`Pki`] writes them to one file.
    pub fn parse(text: &str) -> Option<Self> {
        let key_start = text.find("-----BEGIN PRIVATE KEY-----")?;
        let cert_start = text.find("-----BEGIN CERTIFICATE-----")?;
        (cert_start < key_start).then(|| Self {
            cert_pem: text[cert_start..key_start].to_owned(),
            key_pem: text[key_start..].to_owned(),
        })
    }

    /// For rustls.
    ///
    /// # Errors
    /// The PEM is not what it should be.
    pub fn to_rustls(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let make = |reason: String| PkiError::Make {
            name: "identity".into(),
            reason,
        };
        let certs = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| make(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| make(error.to_string()))?;
        Ok((certs, key))
    }
}

/// What a leaf is for.
#[derive(Clone, Debug, Default)]
pub struct LeafSpec {
    /// Subject's common name: the user name of a client.
    pub common_name: String,
    /// Subject's organisations: the groups of a client.
    pub organizations: Vec<String>,
    /// DNS names it serves.
    pub dns_names: Vec<String>,
    /// Addresses it serves.
    pub ips: Vec<IpAddr>,
    /// Shown by a server.
    pub server: bool,
    /// Shown by a client.
    pub client: bool,
}

/// A node's two identities.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// What the kubelet's endpoint shows.
    pub serving: Identity,
    /// What the agent shows to the API server: user `system:node:<name>`, group `system:nodes`.
    pub client: Identity,
}

/// Where the keys are, and what the server is called.
#[derive(Clone, Debug)]
pub struct PkiConfig {
    /// Directory of the files.
    pub dir: PathBuf,
    /// Addresses clients reach the server at, besides loopback.
    pub advertise: Vec<IpAddr>,
    /// Further names.
    pub names: Vec<String>,
    /// Address of the `kubernetes` Service.
    pub service_ip: IpAddr,
}

/// The opened directory.
pub struct Pki {
    dir: PathBuf,
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    server: Identity,
    kubelet_client: Identity,
    admin: Identity,
    service_account_key: KeyPair,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Pki {
    /// Opens the directory, making what is not there and renewing what nears its end.
    ///
    /// # Errors
    /// A file cannot be read or written, or the CA's file is damaged (it is never replaced).
    pub fn open(config: &PkiConfig, now: Timestamp) -> Result<Self, PkiError> {
        std::fs::create_dir_all(&config.dir).map_err(file_error(&config.dir))?;
        std::fs::set_permissions(&config.dir, std::fs::Permissions::from_mode(0o700))
            .map_err(file_error(&config.dir))?;
        let ca = open_authority(&config.dir.join("ca.pem"), now)?;
        let authority_error = |reason: String| PkiError::Authority {
            path: config.dir.join("ca.pem"),
            reason,
        };
        let key =
            KeyPair::from_pem(&ca.key_pem).map_err(|error| authority_error(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_pem(&ca.cert_pem, key)
            .map_err(|error| authority_error(error.to_string()))?;
        let ca_der = CertificateDer::from_pem_slice(ca.cert_pem.as_bytes())
            .map_err(|error| authority_error(error.to_string()))?;
        let public = config.dir.join("ca.crt");
        if std::fs::read_to_string(&public).ok().as_deref() != Some(ca.cert_pem.as_str()) {
            write_file(&public, ca.cert_pem.as_bytes(), 0o644)?;
        }

        let leaf = |name: &str, spec: &LeafSpec| {
            ensure_leaf(&config.dir.join(name), spec, &issuer, &ca_der, now)
        };
        let mut ips = vec![
            IpAddr::from([127, 0, 0, 1]),
            "::1".parse().expect("a literal address"),
            config.service_ip,
        ];
        ips.extend(&config.advertise);
        ips.sort_unstable();
        ips.dedup();
        let mut dns_names: Vec<String> =
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
                .into_iter()
                .chain(["kubernetes.default.svc.cluster.local", "localhost"])
                .map(str::to_owned)
                .collect();
        dns_names.extend(config.names.iter().cloned());
        let server = leaf(
            "apiserver.pem",
            &LeafSpec {
                common_name: "kube-apiserver".into(),
                dns_names,
                ips,
                server: true,
                ..LeafSpec::default()
            },
        )?;
        let masters = vec!["system:masters".to_owned()];
        let client = |name: &str| LeafSpec {
            common_name: name.to_owned(),
            organizations: masters.clone(),
            client: true,
            ..LeafSpec::default()
        };
        let kubelet_client = leaf(
            "apiserver-kubelet.pem",
            &client("kube-apiserver-kubelet-client"),
        )?;
        let admin = leaf("admin.pem", &client("kubernetes-admin"))?;
        let service_account_key = open_key(&config.dir.join("service-account.key"))?;
        Ok(Self {
            dir: config.dir.clone(),
            ca_pem: ca.cert_pem,
            ca_der,
            issuer,
            server,
            kubelet_client,
            admin,
            service_account_key,
        })
    }

    /// The CA's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The CA's certificate, for rustls.
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca_der
    }

    /// The CA's key, PKCS#8 PEM, for whoever signs certificates of nodes.
    pub fn ca_key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// What the server shows.
    pub fn server(&self) -> &Identity {
        &self.server
    }

    /// What the server shows to kubelets.
    pub fn kubelet_client(&self) -> &Identity {
        &self.kubelet_client
    }

    /// User `kubernetes-admin`, group `system:masters`.
    pub fn admin(&self) -> &Identity {
        &self.admin
    }

    /// The key ServiceAccount tokens are signed with.
    pub fn service_account_key(&self) -> &KeyPair {
        &self.service_account_key
    }

    /// A leaf that is kept in `path`, made or renewed when it has to be.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn leaf(&self, path: &Path, spec: &LeafSpec, now: Timestamp) -> Result<Identity, PkiError> {
        ensure_leaf(path, spec, &self.issuer, &self.ca_der, now)
    }

    /// The identities of a node, kept in `dir`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn node(
        &self,
        dir: &Path,
        node: &str,
        ips: &[IpAddr],
        now: Timestamp,
    ) -> Result<NodeIdentity, PkiError> {
        std::fs::create_dir_all(dir).map_err(file_error(dir))?;
        let name = format!("system:node:{node}");
        let organizations = vec!["system:nodes".to_owned()];
        let serving = LeafSpec {
            common_name: name.clone(),
            organizations: organizations.clone(),
            dns_names: vec![node.to_owned(), "localhost".to_owned()],
            ips: ips
                .iter()
                .copied()
                .chain([IpAddr::from([127, 0, 0, 1])])
                .collect(),
            server: true,
            client: false,
        };
        let client = LeafSpec {
            common_name: name,
            organizations,
            client: true,
            ..LeafSpec::default()
        };
        Ok(NodeIdentity {
            serving: self.leaf(&dir.join("kubelet-server.pem"), &serving, now)?,
            client: self.leaf(&dir.join("kubelet-client.pem"), &client, now)?,
        })
    }
}

/// A certificate as PEM.
pub fn certificate_pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    const LINE: usize = 64;
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(LINE) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// A kubeconfig with everything in it.
pub fn kubeconfig(server_url: &str, ca_pem: &str, user: &str, identity: &Identity) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: wherry\n  cluster:\n    server: {server_url}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {cert}\n    \
         client-key-data: {key}\ncontexts:\n- name: {user}@wherry\n  context:\n    cluster: wherry\n    user: {user}\n\
         current-context: {user}@wherry\n",
        ca = STANDARD.encode(ca_pem),
        cert = STANDARD.encode(&identity.cert_pem),
        key = STANDARD.encode(&identity.key_pem),
    )
}

/// Writes a file whole: a temporary name beside it, sync, rename.
///
/// # Errors
/// The directory cannot be written.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let write = || -> std::io::Result<()> {
        let dir = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(content)?;
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(file_error(path))
}

fn file_error(path: &Path) -> impl Fn(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File {
        path: path.clone(),
        source,
    }
}

fn read_file(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(path)(error)),
    }
}

fn make_error(path: &Path) -> impl Fn(rcgen::Error) -> PkiError {
    let name = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    move |error| PkiError::Make {
        name: name.clone(),
        reason: error.to_string(),
    }
}

fn open_authority(path: &Path, now: Timestamp) -> Result<Identity, PkiError> {
    if let Some(text) = read_file(path)? {
        return Identity::parse(&text).ok_or_else(|| PkiError::Authority {
            path: path.to_owned(),
            reason: "no certificate and key in it".into(),
        });
    }
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "wherry-ca");
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    set_validity(&mut params, now, CA_YEARS * 365);
    let key = KeyPair::generate().map_err(make_error(path))?;
    let cert = params.self_signed(&key).map_err(make_error(path))?;
    let identity = Identity {
        cert_pem: cert.pem(),
        key_pem: key.serialize_pem(),
    };
    write_file(
        path,
        format!("{}{}", identity.cert_pem, identity.key_pem).as_bytes(),
        0o600,
    )?;
    Ok(identity)
}

fn open_key(path: &Path) -> Result<KeyPair, PkiError> {
    if let Some(text) = read_file(path)? {
        return KeyPair::from_pem(&text).map_err(make_error(path));
    }
    let key = KeyPair::generate().map_err(make_error(path))?;
    write_file(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

fn ensure_leaf(
    path: &Path,
    spec: &LeafSpec,
    issuer: &Issuer<'static, KeyPair>,
    ca: &CertificateDer<'_>,
    now: Timestamp,
) -> Result<Identity, PkiError> {
    if let Some(identity) = read_file(path)?.as_deref().and_then(Identity::parse)
        && is_current(&identity, spec, ca, now)
    {
        return Ok(identity);
    }
    let mut params = CertificateParams::new(spec.dns_names.clone()).map_err(make_error(path))?;
    params
        .subject_alt_names
        .extend(spec.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    let mut subject = DistinguishedName::new();
    for organization in &spec.organizations {
        subject.push(DnType::OrganizationName, organization.as_str());
    }
    subject.push(DnType::CommonName, spec.common_name.as_str());
    params.distinguished_name = subject;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if spec.server {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if spec.client {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, LEAF_DAYS);
    let key = KeyPair::generate().map_err(make_error(path))?;
    let cert = params.signed_by(&key, issuer).map_err(make_error(path))?;
    let identity = Identity {
        cert_pem: cert.pem(),
        key_pem: key.serialize_pem(),
    };
    write_file(
        path,
        format!("{}{}", identity.cert_pem, identity.key_pem).as_bytes(),
        0o600,
    )?;
    Ok(identity)
}

/// Whether a leaf on disk still serves: issued by this CA, far from its end, with the names asked for.
fn is_current(
    identity: &Identity,
    spec: &LeafSpec,
    ca: &CertificateDer<'_>,
    now: Timestamp,
) -> bool {
    use x509_parser::{extensions::GeneralName, prelude::*};
    let Ok(der) = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()) else {
        return false;
    };
    let (Ok((_, cert)), Ok((_, ca))) = (
        X509Certificate::from_der(&der),
        X509Certificate::from_der(ca),
    ) else {
        return false;
    };
    let Ok(key) = KeyPair::from_pem(&identity.key_pem) else {
        return false;
    };
    let names = match cert.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.as_slice(),
        _ => &[],
    };
    let has_ip = |ip: &IpAddr| {
        names.iter().any(|name| match (name, ip) {
            (GeneralName::IPAddress(bytes), IpAddr::V4(ip)) => *bytes == ip.octets(),
            (GeneralName::IPAddress(bytes), IpAddr::V6(ip)) => *bytes == ip.octets(),
            _ => false,
        })
    };
    let has_dns = |dns: &String| {
        names
            .iter()
            .any(|name| matches!(name, GeneralName::DNSName(found) if found == dns))
    };
    let common_name = cert
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok());
    cert.issuer() == ca.subject()
        && authority_key(&cert).is_none_or(|id| Some(id) == subject_key(&ca))
        && cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
        && cert.validity().not_before.timestamp() <= now.as_second()
        && cert.validity().not_after.timestamp() - now.as_second() > RENEW_BEFORE_DAYS * 24 * 3600
        && common_name == Some(spec.common_name.as_str())
        && spec.ips.iter().all(has_ip)
        && spec.dns_names.iter().all(has_dns)
}

fn authority_key<'a>(cert: &'a x509_parser::certificate::X509Certificate<'_>) -> Option<&'a [u8]> {
    cert.iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|key| key.0)
            }
            _ => None,
        })
}

fn subject_key<'a>(cert: &'a x509_parser::certificate::X509Certificate<'_>) -> Option<&'a [u8]> {
    cert.iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        })
}

/// From yesterday, for clocks that are behind, to `days` from now.
fn set_validity(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let today = now.to_zoned(TimeZone::UTC).date();
    let [from, until] = [-1, days].map(|offset| {
        let date = today.checked_add(offset.days()).unwrap_or(today);
        rcgen::date_time_ymd(
            i32::from(date.year()),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    });
    params.not_before = from;
    params.not_after = until;
}

#[cfg(test)]
mod tests;
