//! Names that a component looks up, and whom it trusts: its pod's own, in a worker that it shares.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use libtest_mimic::Trial;
use rustls::pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::AbortHandle,
};
use wherry_runtime_api::{ContainerId, PodSandbox};

use crate::{
    harness::{Node, mount, next_ip},
    tests,
};

/// The tests of this file.
pub(crate) fn trials() -> Vec<Trial> {
    tests!(
        names_are_the_pods_own_in_a_worker_of_many,
        a_name_that_is_nowhere_and_a_server_that_is_silent_are_told_apart,
        https_trusts_whom_the_pod_names_and_nobody_else,
    )
}

/// A name server that knows some addresses and remembers who asked for what.
struct NameServer {
    ip: Ipv4Addr,
    asked: Arc<Mutex<Vec<(IpAddr, String)>>>,
    task: AbortHandle,
}

impl NameServer {
    async fn start(known: &[(&str, Ipv4Addr)]) -> Self {
        let ip = next_ip();
        let known: HashMap<String, Ipv4Addr> = known
            .iter()
            .map(|(name, ip)| ((*name).to_owned(), *ip))
            .collect();
        let socket = UdpSocket::bind((ip, 53)).await.unwrap();
        let asked: Arc<Mutex<Vec<(IpAddr, String)>>> = Arc::default();
        let log = asked.clone();
        let serve = async move {
            let mut query = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut query).await.unwrap();
                let query = &query[..length];
                let (name, end) = question(query);
                log.lock().unwrap().push((from.ip(), name.clone()));
                let found = known.get(&name);
                // Of the query: its number and question. Response, recursion both ways, and a code.
                let mut answer = query[..2].to_vec();
                answer.extend([0x81, if found.is_some() { 0x80 } else { 0x83 }, 0, 1]);
                answer.extend([0, u8::from(found.is_some()), 0, 0, 0, 0]);
                answer.extend(&query[12..end]);
                if let Some(ip) = found {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
                    answer.extend(ip.octets());
                }
                socket.send_to(&answer, from).await.unwrap();
            }
        };
        Self {
            ip,
            asked,
            task: tokio::spawn(serve).abort_handle(),
        }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The name asked for, and where the question ends.
fn question(query: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] > 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8(query[at + 1..=at + length].to_vec()).unwrap());
        at += length + 1;
    }
    (labels.join("."), at + 5)
}

/// A pod with files of its own, and a container in it to look names up from.
async fn pod_with(node: &Node, name: &str, hosts: &str, resolv: &str) -> (PodSandbox, ContainerId) {
    let pod = node.pod("default").await;
    let files = node.directory(name);
    std::fs::write(files.join("hosts"), hosts).unwrap();
    std::fs::write(files.join("resolv.conf"), resolv).unwrap();
    let mut config = node.shell("sleep infinity");
    config.mounts = ["hosts", "resolv.conf"]
        .map(|file| mount(&format!("/etc/{file}"), &files.join(file), true))
        .into();
    let id = node.run(&pod, &config).await;
    (pod, id)
}

async fn names_are_the_pods_own_in_a_worker_of_many() {
    let node = Node::new().await;
    let [one, two] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    let server = NameServer::start(&[("db.one.svc", one), ("db.two.svc", two)]).await;
    let resolv = |tenant: &str| {
        format!(
            "nameserver {}\nsearch {tenant}.svc svc\noptions ndots:5\n",
            server.ip
        )
    };
    let (first, in_first) = pod_with(
        &node,
        "first",
        "198.51.100.7 alias alias.example\n",
        &resolv("one"),
    )
    .await;
    let (_, in_second) = pod_with(&node, "second", "", &resolv("two")).await;
    assert_eq!(node.workers(), 1);
    for (id, name, address) in [
        (&in_first, "db", "192.0.2.1"),
        (&in_second, "db", "192.0.2.2"),
        (&in_second, "db.one", "192.0.2.1"),
        (&in_first, "Alias.Example", "198.51.100.7"),
    ] {
        let said = node.exec(id, &format!("nslookup {name}")).await;
        assert_eq!(said, (0, format!("Name:\t{name}\nAddress: {address}\n")));
    }
    assert_eq!(
        node.exec(&in_second, "nslookup alias 2>&-; nslookup alias")
            .await
            .0,
        1
    );
    let asked = server.asked.lock().unwrap().clone();
    let by_first: Vec<&str> = asked
        .iter()
        .filter(|(from, _)| *from == first.ips[0])
        .map(|(_, name)| name.as_str())
        .collect();
    assert_eq!(
        by_first,
        ["db.one.svc"],
        "from its own address, and no more than it takes: {asked:?}"
    );
}

async fn a_name_that_is_nowhere_and_a_server_that_is_silent_are_told_apart() {
    let node = Node::new().await;
    let server = NameServer::start(&[]).await;
    let resolv = format!("nameserver {}\n", server.ip);
    let (_, id) = pod_with(&node, "nowhere", "", &resolv).await;
    let (code, said) = node.exec(&id, "wget -q -O - http://nowhere.test/").await;
    assert_eq!(code, 1);
    assert!(said.contains("DnsError"), "{said}");
    // An address of nobody's port 53: refused at once.
    let resolv = format!("nameserver {}\noptions timeout:1 attempts:1\n", next_ip());
    let (_, id) = pod_with(&node, "silent", "", &resolv).await;
    let (code, said) = node.exec(&id, "wget -q -O - http://nowhere.test/").await;
    assert_eq!(code, 1);
    assert!(said.contains("DnsTimeout"), "{said}");
}

async fn https_trusts_whom_the_pod_names_and_nobody_else() {
    let node = Node::new().await;
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["secure.test".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::try_from(leaf_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let address = SocketAddr::from((next_ip(), 443));
    let listener = TcpListener::bind(address).await.unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            let answer =
                "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nsecret\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    let pod = node.pod("default").await;
    let files = node.directory("files");
    std::fs::write(files.join("ca.pem"), ca_certificate.pem()).unwrap();
    std::fs::write(
        files.join("hosts"),
        format!("{} secure.test other.test\n", address.ip()),
    )
    .unwrap();
    let mut config = node.shell("sleep infinity");
    config.mounts = vec![
        mount("/etc/hosts", &files.join("hosts"), true),
        mount("/trusted", &files, true),
    ];
    let stranger = node.run(&pod, &config).await;
    config.name = "trusting".into();
    config.env = vec![("SSL_CERT_FILE".into(), "/trusted/ca.pem".into())];
    let trusting = node.run(&pod, &config).await;
    let get = "wget -q -O - https://secure.test/";
    assert_eq!(node.exec(&trusting, get).await, (0, "secret\n".into()));
    for (id, script) in [
        (&stranger, get),
        (&trusting, "wget -q -O - https://other.test/"),
    ] {
        let (code, said) = node.exec(id, script).await;
        assert_eq!(code, 1, "{said}");
        assert!(
            said.contains("TlsCertificateError") || said.contains("no bundle"),
            "{said}"
        );
    }
    config.name = "mistaken".into();
    config.env = vec![("SSL_CERT_FILE".into(), "/trusted/nothing.pem".into())];
    let mistaken = node.run(&pod, &config).await;
    let (code, said) = node.exec(&mistaken, get).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("SSL_CERT_FILE"), "{said}");
    server.abort();
}
