//! Questions about other names, passed on to the node's own name servers.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use hickory_proto::op::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

/// Questions under way; more are answered with a failure.
const ASKED_MAX: usize = 256;
/// For one server to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Times that each server is asked.
const ROUNDS: usize = 2;
/// Servers that are read from resolv.conf, as resolvers do.
const SERVERS_MAX: usize = 3;

/// Whether a question came by UDP or TCP, and is passed on so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Passes questions on.
pub(crate) struct Forwarder {
    /// Read for each question: it changes when the node moves.
    pub(crate) resolv_conf: PathBuf,
    /// Where others listen.
    pub(crate) port: u16,
    /// Where we listen ourselves: never asked, or a question would never end.
    own: Vec<IpAddr>,
    permits: Semaphore,
}

impl Forwarder {
    pub(crate) fn new(resolv_conf: PathBuf, port: u16, own: Vec<IpAddr>) -> Self {
        Self {
            resolv_conf,
            port,
            own,
            permits: Semaphore::new(ASKED_MAX),
        }
    }

    /// Asks one server after the other. `None`: nobody answered, or too much is asked at once.
    pub(crate) async fn ask(&self, query: &Message, transport: Transport) -> Option<Message> {
        let _permit = self.permits.try_acquire().ok()?;
        let text = fs::read_to_string(&self.resolv_conf).unwrap_or_default();
        let servers = servers(&text, &self.own);
        for _ in 0..ROUNDS {
            for server in &servers {
                let server = SocketAddr::new(*server, self.port);
                let answer = timeout(ANSWER_TIMEOUT, exchange(server, query, transport)).await;
                if let Ok(Ok(mut answer)) = answer {
                    answer.metadata.id = query.metadata.id;
                    return Some(answer);
                }
            }
        }
        None
    }
}

/// The name servers of a resolv.conf that are not `own`.
fn servers(text: &str, own: &[IpAddr]) -> Vec<IpAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    });
    let mut servers: Vec<IpAddr> = named.take(SERVERS_MAX).collect();
    servers.retain(|server| !own.contains(server));
    servers
}

/// One question and its answer, under an identity of our own that nobody can guess.
async fn exchange(
    server: SocketAddr,
    query: &Message,
    transport: Transport,
) -> io::Result<Message> {
    let mut own = query.clone();
    own.metadata.id = rand::random();
    let bytes = own.to_vec().map_err(io::Error::other)?;
    match transport {
        Transport::Udp => {
            let any: IpAddr = if server.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(server).await?;
            socket.send(&bytes).await?;
            let mut buffer = vec![0; usize::from(u16::MAX)];
            loop {
                let len = socket.recv(&mut buffer).await?;
                if let Ok(answer) = Message::from_vec(&buffer[..len])
                    && answers(&answer, &own)
                {
                    return Ok(answer);
                }
            }
        }
        Transport::Tcp => {
            let mut stream = TcpStream::connect(server).await?;
            write_framed(&mut stream, &bytes).await?;
            let bytes = read_framed(&mut stream).await?;
            let answer = Message::from_vec(&bytes).map_err(io::Error::other)?;
            if answers(&answer, &own) {
                Ok(answer)
            } else {
                Err(io::Error::other("the answer is to another question"))
            }
        }
    }
}

fn answers(answer: &Message, query: &Message) -> bool {
    answer.metadata.id == query.metadata.id && answer.queries == query.queries
}

/// Reads a message as TCP carries it: after two bytes of length.
pub(crate) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(len)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Writes a message as TCP carries it.
pub(crate) async fn write_framed(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    // In one piece: some clients read the length and the rest at once.
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend(bytes);
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_servers_are_asked_and_never_ourselves() {
        let own: IpAddr = "10.96.0.10".parse().unwrap();
        let text = "# made by hand\nsearch corp\nnameserver 10.96.0.10\nnameserver 10.0.0.1 \nnameserver nobody\nnameserver fd00::1\n";
        let want: Vec<IpAddr> = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(servers(text, &[own]), want);
    }
}
