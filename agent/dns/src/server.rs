//! Listens for questions, and answers them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{DNSClass, Name, RecordType},
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_services::Index;

use crate::{
    forward::{Forwarder, Transport, read_framed, write_framed},
    zone::{Answer, Zone},
};

/// The port of DNS.
const PORT: u16 = 53;
/// Connections at a time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// For a client to ask, or to ask again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// What fits into a datagram where the client says nothing, and the most that is sent in one: what
/// passes every path without being cut.
const DATAGRAM: u16 = 512;
const DATAGRAM_MAX: u16 = 1232;
/// How long the first questions wait for the cluster's names to be known: less than a resolver waits before it asks again.
const NAMES_WAIT: Duration = Duration::from_secs(4);
/// Between looks whether the address is still the node's.
const REPAIR_PERIOD: Duration = Duration::from_secs(30);

/// What the name server needs to know of its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The interface that gets the addresses.
    pub bridge: String,
    /// Where to listen, `--cluster-dns`.
    pub listen: Vec<IpAddr>,
    /// The cluster's domain, without a dot at its end.
    pub domain: String,
    /// Names the servers that know all other names.
    pub resolv_conf: PathBuf,
}

/// Answers until shutdown.
pub async fn run(config: Config, index: Arc<Index>, shutdown: CancellationToken) {
    let forwarder = Forwarder::new(config.resolv_conf, PORT, config.listen.clone());
    let forwarder = Arc::new(forwarder);
    let mut tasks = JoinSet::new();
    for address in config.listen {
        let Some(zone) = Zone::new(&config.domain, address, Arc::clone(&index)) else {
            warn!(
                domain = config.domain,
                "The cluster's domain is no name; nobody answers for it"
            );
            return;
        };
        let server = Arc::new(Server {
            zone,
            forwarder: Arc::clone(&forwarder),
        });
        tasks.spawn(listen(
            config.bridge.clone(),
            address,
            server,
            Arc::clone(&index),
        ));
    }
    shutdown.cancelled().await;
    tasks.shutdown().await;
}

/// Has the address and listens at it, for ever.
async fn listen(bridge: String, address: IpAddr, server: Arc<Server>, index: Arc<Index>) {
    let mut is_told = false;
    loop {
        match serve(&bridge, address, &server, &index, &mut is_told).await {
            Ok(()) => {}
            Err(error) if is_told => tracing::debug!(%address, %error, "Still no cluster DNS"),
            Err(error) => {
                is_told = true;
                warn!(%address, %error, "Cluster DNS is not answered; trying again");
            }
        }
        sleep(REPAIR_PERIOD).await;
    }
}

async fn serve(
    bridge: &str,
    address: IpAddr,
    server: &Arc<Server>,
    index: &Index,
    is_told: &mut bool,
) -> io::Result<()> {
    let own = || async { wherry_network::local::add_address(bridge, address).await };
    own().await.map_err(io::Error::other)?;
    let at = SocketAddr::new(address, PORT);
    let (udp, tcp) = (UdpSocket::bind(at).await?, TcpListener::bind(at).await?);
    info!(%address, "Cluster DNS");
    *is_told = false;
    // Questions wait in the kernel meanwhile.
    let _ = timeout(NAMES_WAIT, index.settled()).await;
    let mut repair = interval(REPAIR_PERIOD);
    repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let keep = async {
        loop {
            repair.tick().await;
            if let Err(error) = own().await {
                return io::Error::other(error);
            }
        }
    };
    tokio::select! {
        result = Arc::clone(server).datagrams(Arc::new(udp)) => result,
        result = Arc::clone(server).connections(tcp) => result,
        error = keep => Err(error),
    }
}

/// Answers at one address.
pub(crate) struct Server {
    pub(crate) zone: Zone,
    pub(crate) forwarder: Arc<Forwarder>,
}

impl Server {
    pub(crate) async fn datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) -> io::Result<()> {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut forwards = JoinSet::new();
        loop {
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    // An answer that reached nobody may be reported here; the next question may be another's.
                    let Ok((len, from)) = received else { continue };
                    let Ok(query) = Message::from_vec(&buffer[..len]) else { continue };
                    if let Some(reply) = self.known(&query) {
                        // Whoever did not get it asks again.
                        let _ = socket.send_to(&fit(reply, &query), from).await;
                        continue;
                    }
                    let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
                    forwards.spawn(async move {
                        let reply = server.ask(&query, Transport::Udp).await;
                        let _ = socket.send_to(&fit(reply, &query), from).await;
                    });
                }
                Some(_) = forwards.join_next() => {}
            }
        }
    }

    pub(crate) async fn connections(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await;
            let (stream, _) = listener.accept().await?;
            let server = Arc::clone(&self);
            connections.spawn(async move {
                let _permit = permit;
                // A client that breaks off is nobody's trouble.
                let _ = server.connection(stream).await;
            });
            while connections.try_join_next().is_some() {}
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let bytes = timeout(IDLE_TIMEOUT, read_framed(&mut stream)).await??;
            let query = Message::from_vec(&bytes).map_err(io::Error::other)?;
            let reply = match self.known(&query) {
                Some(reply) => reply,
                None => self.ask(&query, Transport::Tcp).await,
            };
            let bytes = reply.to_vec().map_err(io::Error::other)?;
            timeout(IDLE_TIMEOUT, write_framed(&mut stream, &bytes)).await??;
        }
    }

    /// The answer to a question, if nobody else has to be asked.
    fn known(&self, query: &Message) -> Option<Message> {
        if query.metadata.message_type != MessageType::Query {
            // Not answered at all by others; the least that can be done here is to say so.
            return Some(refusal(query, ResponseCode::FormErr));
        }
        if query.metadata.op_code != OpCode::Query {
            return Some(refusal(query, ResponseCode::NotImp));
        }
        let [question] = &query.queries[..] else {
            return Some(refusal(query, ResponseCode::FormErr));
        };
        if question.query_class() != DNSClass::IN {
            return Some(refusal(query, ResponseCode::Refused));
        }
        let mut reply = refusal(query, ResponseCode::NoError);
        reply.metadata.authoritative = true;
        match self.zone.answer(question.name(), question.query_type()) {
            Answer::Records {
                mut answers,
                additionals,
            } => {
                if answers.is_empty() {
                    reply.add_authority(self.zone.authority());
                } else {
                    // Clients take the first: each question gets another one.
                    let turn = usize::from(query.metadata.id) % answers.len();
                    if answers
                        .iter()
                        .all(|record| record.record_type() != RecordType::CNAME)
                    {
                        answers.rotate_left(turn);
                    }
                }
                reply.insert_answers(answers);
                reply.insert_additionals(additionals);
            }
            Answer::NotFound => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                reply.add_authority(self.zone.authority());
            }
            Answer::Failed => return Some(refusal(query, ResponseCode::ServFail)),
            Answer::Alias { .. } | Answer::Elsewhere => return None,
        }
        Some(reply)
    }

    /// The answer to a question that others know.
    async fn ask(&self, query: &Message, transport: Transport) -> Message {
        let failed = || refusal(query, ResponseCode::ServFail);
        let Some(question) = query.queries.first() else {
            return failed();
        };
        match self.zone.answer(question.name(), question.query_type()) {
            Answer::Alias { answers, target } => {
                let asked = retarget(query, target);
                let Some(found) = self.forwarder.ask(&asked, transport).await else {
                    return failed();
                };
                let mut reply = refusal(query, found.metadata.response_code);
                reply.insert_answers(answers);
                reply.add_answers(found.answers);
                reply.insert_authorities(found.authorities);
                reply.metadata.truncation = found.metadata.truncation;
                reply
            }
            _ => {
                let answer = self.forwarder.ask(query, transport).await;
                answer.unwrap_or_else(failed)
            }
        }
    }
}

fn retarget(query: &Message, target: Name) -> Message {
    let mut asked = query.clone();
    for question in &mut asked.queries {
        question.set_name(target.clone());
    }
    asked
}

/// A reply with nothing but a code.
fn refusal(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::error_msg(query.metadata.id, query.metadata.op_code, code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_MAX);
        reply.set_edns(edns);
    }
    reply
}

/// The bytes of a datagram that the client takes: what does not fit is left out, and that is said.
fn fit(mut reply: Message, query: &Message) -> Vec<u8> {
    let asked = query.edns.as_ref().map_or(DATAGRAM, Edns::max_payload);
    let max = usize::from(asked.clamp(DATAGRAM, DATAGRAM_MAX));
    loop {
        let bytes = reply.to_vec().unwrap_or_default();
        if bytes.len() <= max {
            return bytes;
        }
        // Additional records are a courtesy; without answers a client has to know.
        if reply.additionals.pop().is_none() {
            reply.metadata.truncation = true;
            if reply.authorities.pop().is_none() && reply.answers.pop().is_none() {
                return bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests;
