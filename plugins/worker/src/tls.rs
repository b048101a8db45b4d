//! Whom a guest's HTTPS request trusts, and who it is.

use std::{
    fs::File,
    io::Read,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
    client::{WantsClientCert, danger::ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{
    accept_any::AcceptAny,
    bindings::wherry::plugin::http::{Identity, Trust, Version},
};

/// The bundles of distributions are a few hundred KiB.
const BUNDLE_BYTES_MAX: u64 = 8 << 20;

/// The authorities that the node trusts, read by the first who needs them.
pub(crate) struct NodeRoots(Mutex<Roots>);

enum Roots {
    Unread(Option<File>),
    Read(Result<Arc<RootCertStore>, String>),
}

impl NodeRoots {
    pub(crate) fn new(bundle: Option<File>) -> Self {
        Self(Mutex::new(Roots::Unread(bundle)))
    }

    fn get(&self) -> Result<Arc<RootCertStore>, String> {
        let mut roots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Roots::Unread(bundle) = &mut *roots {
            let mut pem = Vec::new();
            let read = match bundle.take() {
                Some(file) => file
                    .take(BUNDLE_BYTES_MAX)
                    .read_to_end(&mut pem)
                    .map_err(|error| format!("the node's certificate authorities: {error}")),
                None => Err("the node has no bundle of certificate authorities".into()),
            };
            *roots = Roots::Read(read.and_then(|_| authorities(&pem)));
        }
        match &*roots {
            Roots::Read(roots) => roots.clone(),
            Roots::Unread(_) => Err("the node's certificate authorities are not read".into()),
        }
    }
}

fn authorities(pem: &[u8]) -> Result<Arc<RootCertStore>, String> {
    let mut store = RootCertStore::empty();
    // A bundle may hold what this library does not take; the others count.
    let certificates = CertificateDer::pem_slice_iter(pem).flatten();
    let (added, _) = store.add_parsable_certificates(certificates);
    if added == 0 {
        return Err("no certificate authority to trust".into());
    }
    Ok(Arc::new(store))
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
}

fn trusting(
    trust: &Trust,
    node: &NodeRoots,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    Ok(match trust {
        Trust::Anybody => {
            let anybody: Arc<dyn ServerCertVerifier> = Arc::new(AcceptAny::default());
            builder()?
                .dangerous()
                .with_custom_certificate_verifier(anybody)
        }
        Trust::Node => builder()?.with_root_certificates(node.get()?),
        Trust::Authorities(pem) => builder()?.with_root_certificates(authorities(pem)?),
    })
}

/// What a connection is made with.
pub(crate) fn client_config(
    trust: &Trust,
    identity: Option<&Identity>,
    version: Version,
    node: &NodeRoots,
) -> Result<Arc<ClientConfig>, String> {
    let builder = trusting(trust, node)?;
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = CertificateDer::pem_slice_iter(&identity.certificate_chain)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| format!("identity's certificate chain: {error}"))?;
            let key = PrivateKeyDer::from_pem_slice(&identity.private_key)
                .map_err(|error| format!("identity's private key: {error}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("identity: {error}"))?
        }
    };
    if version == Version::Http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    Ok(Arc::new(config))
}
