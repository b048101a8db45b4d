//! Calls to the members of an etcd cluster: one after the other until one answers.

use std::{
    error::Error as _,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use prost::Message;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_prost::ProstCodec;

use super::rpc;

/// For a member to take a connection.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// For a member to answer one call. An election of a new leader takes 1 to 2 s with etcd's defaults.
const CALL_MAX: Duration = Duration::from_secs(5);
/// For any member to answer, all tries together.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between tries.
const PAUSE: Duration = Duration::from_millis(100);
/// A silent connection is asked whether it lives; etcd refuses to be asked more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The longest answer that is read. A page of the largest objects stays far below.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// Where an etcd cluster is, and how to be sure of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `host:port` of each member.
    pub members: Vec<String>,
    /// Authorities that the members' certificates are signed by, PEM. With it, connections are TLS.
    pub ca_file: Option<PathBuf>,
    /// Certificate to show to the members, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
}

/// An etcd cluster cannot be used as a store.
#[derive(Debug, Error)]
pub enum EtcdError {
    /// `--store` is not `etcd://host:port,host:port`.
    #[error("store {0:?}: not of the form etcd://host:port[,host:port…]")]
    Address(String),
    /// A certificate or key cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The trouble.
        #[source]
        source: std::io::Error,
    },
    /// A certificate and its key go together, and with an authority.
    #[error(
        "the certificate shown to etcd needs its key, and an authority to trust: --etcd-cafile, --etcd-certfile and --etcd-keyfile"
    )]
    IncompleteTls,
    /// The connection cannot be described.
    #[error("etcd {member}: {why}")]
    Member {
        /// Which.
        member: String,
        /// The trouble.
        why: String,
    },
    /// No member answers.
    #[error("etcd {members}: {why}")]
    Unreachable {
        /// All of them.
        members: String,
        /// What the last one said.
        why: String,
    },
}

impl EtcdConfig {
    /// Members as `--store` names them: `etcd://a:2379,b:2379`.
    pub fn parse(store: &str) -> Result<Self, EtcdError> {
        let bad = || EtcdError::Address(store.to_owned());
        let members: Vec<String> = store
            .strip_prefix("etcd://")
            .ok_or_else(bad)?
            .trim_end_matches('/')
            .split(',')
            .map(str::to_owned)
            .collect();
        let is_well_formed = |member: &String| {
            member.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
            })
        };
        if !members.iter().all(is_well_formed) {
            return Err(bad());
        }
        Ok(Self {
            members,
            ..Self::default()
        })
    }

    fn tls(&self) -> Result<Option<ClientTlsConfig>, EtcdError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| EtcdError::File {
                path: path.clone(),
                source,
            })
        };
        match (&self.ca_file, &self.cert_file, &self.key_file) {
            (None, None, None) => Ok(None),
            (Some(ca), certificate, key) => {
                let mut tls =
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
                match (certificate, key) {
                    (Some(certificate), Some(key)) => {
                        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
                    }
                    (None, None) => {}
                    _ => return Err(EtcdError::IncompleteTls),
                }
                Ok(Some(tls))
            }
            _ => Err(EtcdError::IncompleteTls),
        }
    }
}

/// How a call that may be tried at the next member differs from one that may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Asking twice is asking once.
    Freely,
    /// Only if the first try surely did nothing.
    IfUnsent,
}

/// Connections to all members, made when needed.
pub(super) struct Client {
    names: String,
    members: Vec<Channel>,
    /// How often a member was passed over; whose turn it is follows from that.
    current: AtomicUsize,
}

impl Client {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, EtcdError> {
        let tls = config.tls()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut members = Vec::new();
        for member in &config.members {
            let trouble = |error: tonic::transport::Error| EtcdError::Member {
                member: member.clone(),
                why: chain(&error),
            };
            let mut endpoint = Endpoint::from_shared(format!("{scheme}://{member}"))
                .map_err(trouble)?
                .connect_timeout(CONNECT_MAX)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(CALL_MAX)
                .keep_alive_while_idle(true);
            if let Some(tls) = &tls {
                endpoint = endpoint.tls_config(tls.clone()).map_err(trouble)?;
            }
            members.push(endpoint.connect_lazy());
        }
        Ok(Self {
            names: config.members.join(","),
            members,
            current: AtomicUsize::new(0),
        })
    }

    /// All members, for messages.
    pub(super) fn names(&self) -> &str {
        &self.names
    }

    /// The member whose turn it is, and the turn.
    fn member(&self) -> (usize, Grpc<Channel>) {
        let turn = self.current.load(Ordering::Relaxed);
        let channel = self.members[turn % self.members.len()].clone();
        let grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        (turn, grpc)
    }

    /// Lets the next call go to the member after that of a turn.
    fn pass_over(&self, turn: usize) {
        // Somebody else may have passed it over already.
        let _ = self.current.compare_exchange(
            turn,
            turn.wrapping_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Asks one member after the other.
    ///
    /// # Errors
    /// What etcd answered; or, when nobody does within the patience of the client, what the last try met. After a
    /// failure for which [`is_ambiguous`] holds the call may have been carried out.
    pub(super) async fn call<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        repeat: Repeat,
    ) -> Result<A, Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let end = Instant::now() + PATIENCE;
        loop {
            let (turn, mut grpc) = self.member();
            let attempt = async {
                grpc.ready()
                    .await
                    .map_err(|error| Status::unavailable(chain(&error)))?;
                let path = http::uri::PathAndQuery::from_static(path);
                grpc.unary(Request::new(request.clone()), path, ProstCodec::default())
                    .await
            };
            let status = match timeout(CALL_MAX, attempt).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {CALL_MAX:?}")),
            };
            let may_repeat = match repeat {
                Repeat::Freely => is_ambiguous(&status),
                Repeat::IfUnsent => is_unsent(&status),
            };
            if is_ambiguous(&status) {
                self.pass_over(turn);
            }
            if !may_repeat || Instant::now() >= end {
                return Err(status);
            }
            sleep(PAUSE).await;
        }
    }

    /// Opens a watch at some member. It ends when that member has no leader.
    pub(super) async fn watch(
        &self,
        create: rpc::WatchCreateRequest,
    ) -> Result<Streaming<rpc::WatchResponse>, Status> {
        let (turn, mut grpc) = self.member();
        let request = rpc::WatchRequest {
            request: Some(rpc::WatchRequestUnion::Create(create)),
        };
        let attempt = async {
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(chain(&error)))?;
            // Nothing follows the first request, and the stream has to stay open for the watch to live.
            let requests = tokio_stream::StreamExt::chain(
                tokio_stream::once(request),
                tokio_stream::pending(),
            );
            let mut requests = Request::new(requests);
            requests
                .metadata_mut()
                .insert("hasleader", MetadataValue::from_static("true"));
            let path = http::uri::PathAndQuery::from_static(rpc::WATCH);
            grpc.streaming(requests, path, ProstCodec::default()).await
        };
        let result = timeout(CALL_MAX, attempt)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer to a watch")));
        if result.is_err() {
            self.pass_over(turn);
        }
        result.map(tonic::Response::into_inner)
    }

    /// The member in use lost its leader or its connection.
    pub(super) fn next_member(&self) {
        self.pass_over(self.current.load(Ordering::Relaxed));
    }
}

/// Whether a call with this answer may or may not have been carried out, and another member may do better.
pub(super) fn is_ambiguous(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
    )
}

/// Whether the call surely never reached the member.
fn is_unsent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        source = error.source();
    }
    false
}

/// An error with what caused it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_member_is_passed_over_again_and_again() {
        let config = EtcdConfig::parse("etcd://127.0.0.1:1,127.0.0.1:2").expect("two members");
        let client = Client::new(&config).expect("a client");
        for round in 0..5 {
            let (turn, _) = client.member();
            assert_eq!(turn, round);
            client.pass_over(turn);
            // Whoever met the same trouble is late.
            client.pass_over(turn);
        }
    }

    #[test]
    fn members_are_read_from_the_store_flag() {
        let parse = |text| EtcdConfig::parse(text).map(|config| config.members);
        assert_eq!(parse("etcd://a:2379").unwrap(), ["a:2379"]);
        assert_eq!(
            parse("etcd://10.0.0.1:2379,[fd00::2]:2379/").unwrap(),
            ["10.0.0.1:2379", "[fd00::2]:2379"]
        );
        for bad in [
            "a:2379",
            "etcd://",
            "etcd://a",
            "etcd://a:b",
            "etcd://a:2379,,b:2379",
            "etcd://http://a:2379",
        ] {
            assert!(matches!(parse(bad), Err(EtcdError::Address(_))), "{bad}");
        }
    }

    #[test]
    fn a_certificate_needs_its_key_and_an_authority() {
        let config = EtcdConfig {
            cert_file: Some("c".into()),
            ..EtcdConfig::parse("etcd://a:1").unwrap()
        };
        assert!(matches!(config.tls(), Err(EtcdError::IncompleteTls)));
    }
}
