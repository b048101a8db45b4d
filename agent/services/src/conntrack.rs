//! Flows that the kernel remembers and that lead where nothing is any more.
//!
//! A UDP client that goes on sending keeps its flow, and with it an endpoint that has gone, for as long
//! as it sends. TCP has an end of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
};

use nix::sys::socket::SockFlag;

use wherry_network::netfilter::{
    Attributes, Messages, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, Socket, request,
};

use crate::{
    object::Protocol,
    plan::{At, Frontend, Target},
};

/// `linux/netfilter/nfnetlink_conntrack.h`: requests.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const AF_INET: u8 = 2;
/// Attributes of a flow.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
/// Attributes of a tuple.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE_PORT: u16 = 2;
const PROTOCOL_DESTINATION_PORT: u16 = 3;
const UDP: u8 = 17;

/// Where a flow was sent to, and who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    to: Target,
    answers: Target,
}

/// Frontends of UDP with the endpoints that they have now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted(BTreeMap<Frontend, BTreeSet<Target>>);

impl Wanted {
    /// Notes a frontend; those of TCP do not matter.
    pub(crate) fn insert(&mut self, frontend: Frontend, targets: Vec<Target>) {
        if frontend.protocol == Protocol::Udp {
            self.0.insert(frontend, targets.into_iter().collect());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a flow belongs to one of the frontends and leads to none of its endpoints.
    fn is_stale(&self, flow: Flow) -> bool {
        let (ip, port) = flow.to;
        [At::Ip(ip), At::Node].into_iter().any(|at| {
            let frontend = Frontend {
                at,
                protocol: Protocol::Udp,
                port,
            };
            // At a port of the node: only what was translated, for the address may be anybody's.
            self.0.get(&frontend).is_some_and(|targets| {
                !targets.contains(&flow.answers) && (at != At::Node || flow.answers != flow.to)
            })
        })
    }
}

/// Makes the kernel forget flows that lead to none of the endpoints that their frontend has now.
/// Answers how many.
///
/// # Errors
/// The kernel refuses to list them.
pub(crate) async fn forget_stale(wanted: Wanted) -> io::Result<usize> {
    // Opened here, for a thread of the pool may be in another network namespace.
    let socket = Socket::open(0, SockFlag::empty())?;
    tokio::task::spawn_blocking(move || {
        let stale = list(&socket, &wanted)?;
        for tuple in &stale {
            let attribute = (TUPLE_ORIGINAL | NLA_F_NESTED, tuple.as_slice());
            let message = request(DELETE, NLM_F_REQUEST | NLM_F_ACK, AF_INET, Some(attribute));
            socket.send(&message)?;
            let mut buffer = Vec::new();
            // Gone by itself meanwhile is as good.
            socket.receive(&mut buffer)?;
        }
        Ok(stale.len())
    })
    .await
    .map_err(io::Error::other)?
}

/// Tuples of stale flows, as the kernel wrote them.
fn list(socket: &Socket, wanted: &Wanted) -> io::Result<Vec<Vec<u8>>> {
    socket.send(&request(GET, NLM_F_REQUEST | NLM_F_DUMP, AF_INET, None))?;
    let mut stale = Vec::new();
    let mut buffer = Vec::new();
    loop {
        socket.receive(&mut buffer)?;
        for message in Messages(&buffer) {
            match message.kind {
                NLMSG_DONE => return Ok(stale),
                NLMSG_ERROR => return Err(io::Error::from_raw_os_error(message.errno())),
                _ => {}
            }
            let attributes = message.attributes();
            if flow(attributes).is_some_and(|flow| wanted.is_stale(flow)) {
                stale.extend(attributes.get(TUPLE_ORIGINAL).map(<[u8]>::to_vec));
            }
        }
    }
}

fn flow(attributes: Attributes<'_>) -> Option<Flow> {
    let original = attributes.nested(TUPLE_ORIGINAL)?;
    let reply = attributes.nested(TUPLE_REPLY)?;
    if original.nested(TUPLE_PROTOCOL)?.get(PROTOCOL_NUMBER)? != [UDP] {
        return None;
    }
    Some(Flow {
        to: (
            address(original, IP_V4_DESTINATION)?,
            port(original, PROTOCOL_DESTINATION_PORT)?,
        ),
        answers: (
            address(reply, IP_V4_SOURCE)?,
            port(reply, PROTOCOL_SOURCE_PORT)?,
        ),
    })
}

fn address(tuple: Attributes<'_>, kind: u16) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = tuple.nested(TUPLE_IP)?.get(kind)?.try_into().ok()?;
    Some(bytes.into())
}

fn port(tuple: Attributes<'_>, kind: u16) -> Option<u16> {
    let bytes = tuple.nested(TUPLE_PROTOCOL)?.get(kind)?.try_into().ok()?;
    Some(u16::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        let address: std::net::SocketAddrV4 = text.parse().unwrap();
        (*address.ip(), address.port())
    }

    #[test]
    fn flows_are_stale_that_lead_to_no_endpoint_of_their_frontend() {
        let mut wanted = Wanted::default();
        let frontend = |at, port| Frontend {
            at,
            protocol: Protocol::Udp,
            port,
        };
        wanted.insert(
            frontend(At::Ip([10, 96, 0, 5].into()), 53),
            vec![target("10.88.0.2:53")],
        );
        wanted.insert(frontend(At::Node, 30053), vec![]);
        let cases = [
            ("10.96.0.5:53", "10.88.0.2:53", false),
            ("10.96.0.5:53", "10.88.0.3:53", true),
            // Sent before there was a Service, and on its way to nowhere since.
            ("10.96.0.5:53", "10.96.0.5:53", true),
            ("10.96.0.6:53", "10.88.0.3:53", false),
            ("10.51.0.1:30053", "10.88.0.3:53", true),
            // A program of the node's own.
            ("10.51.0.1:30053", "10.51.0.1:30053", false),
        ];
        for (to, answers, want) in cases {
            let flow = Flow {
                to: target(to),
                answers: target(answers),
            };
            assert_eq!(wanted.is_stale(flow), want, "{to} by {answers}");
        }
    }
}
