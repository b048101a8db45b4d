//! Whom an outgoing HTTPS request trusts: the certificate authorities of the file that the container
//! names in `SSL_CERT_FILE`, as programs with OpenSSL have it, or else those of the node.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{Mode, OFlags, openat};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The bundles of distributions are a few hundred KiB.
const BUNDLE_BYTES_MAX: u64 = 8 << 20;

/// The node's authorities, read by the first who needs them.
#[derive(Debug)]
pub(crate) struct NodeRoots(Mutex<State>);

#[derive(Debug)]
enum State {
    Unread(Option<File>),
    Read(Result<Arc<ClientConfig>, String>),
}

impl NodeRoots {
    pub(crate) fn new(bundle: Option<OwnedFd>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State::Unread(bundle.map(File::from)))))
    }

    fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Unread(bundle) = &mut *state {
            let config = match bundle.take() {
                Some(file) => client_config(file),
                None => Err(
                    "the node has no bundle of certificate authorities; name one in SSL_CERT_FILE"
                        .into(),
                ),
            };
            *state = State::Read(config);
        }
        match &*state {
            State::Read(config) => config.clone(),
            State::Unread(_) => Err("the node's certificate authorities are not read".into()),
        }
    }
}

/// Whom one container trusts.
#[derive(Debug)]
pub(crate) struct Trust {
    node: Arc<NodeRoots>,
    own: Mutex<Own>,
}

/// The container's own file, as the guest sees it.
#[derive(Debug)]
enum Own {
    /// It names none.
    None,
    /// A directory of the container's, and the path below.
    Unread(OwnedFd, PathBuf),
    Read(Arc<ClientConfig>),
    /// The container is over.
    Released,
}

impl Trust {
    pub(crate) fn new(node: Arc<NodeRoots>, own: Option<(OwnedFd, PathBuf)>) -> Self {
        let own = own.map_or(Own::None, |(directory, path)| Own::Unread(directory, path));
        Self {
            node,
            own: Mutex::new(own),
        }
    }

    /// Lets go of the container's volume.
    pub(crate) fn release(&self) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Own::Unread(..) = *own {
            *own = Own::Released;
        }
    }

    /// A file that cannot be read is tried again: it may be written by a neighbour.
    fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        match &*own {
            Own::None => self.node.config(),
            Own::Read(config) => Ok(config.clone()),
            Own::Released => Err("SSL_CERT_FILE: the container is over".into()),
            Own::Unread(directory, path) => {
                // Not waiting where it is a pipe.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let read = openat(directory, path, flags, Mode::empty())
                    .map_err(|error| io::Error::from(error).to_string())
                    .and_then(|file| client_config(file.into()));
                let shown = path.display();
                let config = read.map_err(|error| format!("SSL_CERT_FILE: {shown}: {error}"))?;
                *own = Own::Read(config.clone());
                Ok(config)
            }
        }
    }

    /// Makes a connection secure, as a client of `host`.
    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        host: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        let config = self.config().map_err(io::Error::other)?;
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    }
}

fn client_config(bundle: File) -> Result<Arc<ClientConfig>, String> {
    let mut pem = Vec::new();
    bundle
        .take(BUNDLE_BYTES_MAX)
        .read_to_end(&mut pem)
        .map_err(|error| format!("certificate authorities: {error}"))?;
    let mut roots = RootCertStore::empty();
    // As elsewhere: one odd certificate does not cost the others.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    if roots.is_empty() {
        return Err("no certificate authority in the bundle".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(
        builder.with_root_certificates(roots).with_no_client_auth(),
    ))
}
