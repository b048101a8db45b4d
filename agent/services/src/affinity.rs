//! Clients that the kernel remembers by the endpoint they were sent to.

use std::net::Ipv4Addr;

use wherry_network::{NetworkError, nft};

use crate::{
    plan::{At, Frontend, Target},
    script::Form,
};

/// A frontend with the address of a client.
pub(crate) type Entry = (Frontend, Ipv4Addr);

/// Clients of frontends that are sent to none of their targets.
///
/// # Errors
/// The maps cannot be listed.
pub(crate) async fn stale(
    form: &Form,
    wanted: &[(Frontend, Vec<Target>)],
) -> Result<Vec<Entry>, NetworkError> {
    let mut stale = Vec::new();
    for (is_node, map) in [(false, "affinity"), (true, "node_affinity")] {
        if !wanted.iter().any(|(at, _)| (at.at == At::Node) == is_node) {
            continue;
        }
        let listing = nft::list(&["map", "inet", &form.table, map]).await?;
        let items = listing["nftables"].as_array().into_iter().flatten();
        let elements = items.filter_map(|item| item["map"]["elem"].as_array());
        for element in elements.flatten() {
            stale.extend(read(element, is_node, wanted));
        }
    }
    Ok(stale)
}

/// An element `[{elem: {val: {concat: [ip, protocol, port, client]}, …}}, {concat: [ip, port]}]`, if it is
/// one to forget.
fn read(
    element: &serde_json::Value,
    is_node: bool,
    wanted: &[(Frontend, Vec<Target>)],
) -> Option<Entry> {
    let key = element[0]["elem"]["val"]["concat"].as_array()?;
    let data = &element[1]["concat"];
    let skip = usize::from(is_node);
    let (protocol, port) = (key.get(1 - skip)?, key.get(2 - skip)?.as_u64()?);
    let client = key.get(3 - skip)?.as_str()?.parse().ok()?;
    let target: Target = (
        data[0].as_str()?.parse().ok()?,
        u16::try_from(data[1].as_u64()?).ok()?,
    );
    let (frontend, targets) = wanted.iter().find(|(frontend, _)| {
        let is_there = match frontend.at {
            At::Node => is_node,
            At::Ip(ip) => !is_node && key[0].as_str() == Some(&ip.to_string()),
        };
        is_there && u64::from(frontend.port) == port && *protocol == frontend.protocol.as_str()
    })?;
    (!targets.contains(&target)).then_some((*frontend, client))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::Protocol;

    #[test]
    fn clients_are_forgotten_whose_endpoint_has_gone() {
        let frontend = |at| Frontend {
            at,
            protocol: Protocol::Tcp,
            port: 80,
        };
        let (ip, node) = (frontend(At::Ip([10, 96, 0, 5].into())), frontend(At::Node));
        let target = ([10, 88, 0, 2].into(), 8080);
        let wanted = [(ip, vec![target]), (node, vec![target])];
        let element = |key: serde_json::Value, last: u8| json!([{ "elem": { "val": { "concat": key }, "timeout": 10, "expires": 9 } }, { "concat": [format!("10.88.0.{last}"), 8080] }]);
        let key = json!(["10.96.0.5", "tcp", 80, "10.88.0.9"]);
        let client = Ipv4Addr::new(10, 88, 0, 9);
        assert_eq!(read(&element(key.clone(), 2), false, &wanted), None);
        assert_eq!(read(&element(key, 3), false, &wanted), Some((ip, client)));
        let other = json!(["10.96.0.6", "tcp", 80, "10.88.0.9"]);
        assert_eq!(read(&element(other, 3), false, &wanted), None);
        let key = json!(["tcp", 80, "10.88.0.9"]);
        assert_eq!(read(&element(key, 3), true, &wanted), Some((node, client)));
    }
}
