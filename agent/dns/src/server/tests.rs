//! Over loopback, with another server that plays the outside.

use std::net::Ipv4Addr;

use hickory_proto::{
    op::Query,
    rr::{RData, Record, rdata::A},
};

use super::*;
use crate::zone::tests::index;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Asked {
    at: SocketAddr,
    _tasks: JoinSet<io::Result<()>>,
    _dir: tempfile::TempDir,
}

/// Both transports at one port.
async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

/// A server of the cluster, with `upstream` as the node's name server.
async fn start(upstream: u16) -> Asked {
    let dir = tempfile::tempdir().unwrap();
    let resolv_conf = dir.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
    let (udp, tcp) = sockets().await;
    let at = udp.local_addr().unwrap();
    let server = Arc::new(Server {
        zone: Zone::new("cluster.local", LOCALHOST, index()).unwrap(),
        forwarder: Arc::new(Forwarder::new(resolv_conf, upstream, Vec::new())),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&server).datagrams(Arc::new(udp)));
    tasks.spawn(server.connections(tcp));
    Asked {
        at,
        _tasks: tasks,
        _dir: dir,
    }
}

/// The outside: as many addresses for every name as its first label says.
async fn outside() -> (u16, JoinSet<()>) {
    let (udp, tcp) = sockets().await;
    let port = udp.local_addr().unwrap().port();
    let answer = |query: &Message| {
        let name = query.queries[0].name().clone();
        let count = name
            .iter()
            .next()
            .and_then(|label| std::str::from_utf8(label).ok()?.parse().ok());
        let mut reply = refusal(query, ResponseCode::NoError);
        for last in 0..count.unwrap_or(1) {
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
            reply.add_answer(Record::from_rdata(name.clone(), 60, data));
        }
        reply
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (len, from) = udp.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..len]).unwrap();
            udp.send_to(&fit(answer(&query), &query), from)
                .await
                .unwrap();
        }
    });
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let query = Message::from_vec(&read_framed(&mut stream).await.unwrap()).unwrap();
            let bytes = answer(&query).to_vec().unwrap();
            write_framed(&mut stream, &bytes).await.unwrap();
        }
    });
    (port, tasks)
}

fn query(name: &str) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    query
}

async fn ask(at: SocketAddr, query: &Message, transport: Transport) -> Message {
    let bytes = query.to_vec().unwrap();
    let answer = match transport {
        Transport::Udp => {
            let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
            socket.send_to(&bytes, at).await.unwrap();
            let mut buffer = vec![0; 4096];
            let len = socket.recv(&mut buffer).await.unwrap();
            buffer.truncate(len);
            buffer
        }
        Transport::Tcp => {
            let mut stream = TcpStream::connect(at).await.unwrap();
            write_framed(&mut stream, &bytes).await.unwrap();
            read_framed(&mut stream).await.unwrap()
        }
    };
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.id, query.metadata.id);
    assert!(answer.metadata.recursion_available);
    answer
}

#[tokio::test]
async fn the_clusters_names_are_answered_over_both_transports() {
    let server = start(1).await;
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = ask(server.at, &query("web.ns.svc.cluster.local."), transport).await;
        assert!(answer.metadata.authoritative);
        assert_eq!(answer.answers.len(), 1);
        let answer = ask(server.at, &query("none.ns.svc.cluster.local."), transport).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
}

#[tokio::test]
async fn other_names_are_asked_of_the_nodes_servers() {
    let (port, _tasks) = outside().await;
    let server = start(port).await;
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = ask(server.at, &query("1.example.org."), transport).await;
        assert_eq!(answer.answers.len(), 1);
        let answer = ask(server.at, &query("far.ns.svc.cluster.local."), transport).await;
        let kinds: Vec<_> = answer.answers.iter().map(Record::record_type).collect();
        assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    }
}

#[tokio::test]
async fn what_does_not_fit_is_said_and_comes_by_tcp() {
    let (port, _tasks) = outside().await;
    let server = start(port).await;
    let many = query("200.example.org.");
    let answer = ask(server.at, &many, Transport::Udp).await;
    assert!(answer.metadata.truncation);
    let answer = ask(server.at, &many, Transport::Tcp).await;
    assert_eq!(answer.answers.len(), 200);
}

#[tokio::test]
async fn nobody_there_is_a_failure_and_not_a_silence() {
    let server = start(1).await;
    let answer = ask(server.at, &query("example.org."), Transport::Udp).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn questions_wait_until_all_of_the_clusters_names_are_known() {
    let index = Index::default();
    let mut known = std::pin::pin!(index.settled());
    for listed in [
        |_: &Index| {},
        |index: &Index| {
            index.retain_services(&Default::default());
        },
    ] {
        listed(&index);
        let waited = timeout(Duration::from_millis(20), known.as_mut()).await;
        assert!(waited.is_err(), "not everything has been listed");
    }
    index.retain_slices(&Default::default());
    timeout(NAMES_WAIT, known).await.unwrap();
}
