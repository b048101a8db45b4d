//! What is said to `nft`: the table, and changes of its elements. Pure.
//!
//! Everything is declared again and flushed rather than deleted, so that clients keep their endpoints
//! over a restart; a table of an older form, which cannot be declared again, is deleted first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::Ipv4Addr,
};

use wherry_network::Cidr;

use crate::{
    plan::{At, Chain, Data, Element, Frontend, Key},
    table::Changes,
};

/// Set on connections whose senders are to appear as the node. Kubernetes' own bit, in another place:
/// kube-proxy marks packets, this the connection.
const MASQUERADE: &str = "0x4000";
/// Clients remembered at a time, over all Services with session affinity; the oldest make room.
const CLIENTS_MAX: u32 = 65_535;

/// How long a pod that a Service no longer leads to is still answered when it meets itself.
const HAIRPIN_REST: &str = "10s";

/// What the table is made for.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    pub(crate) table: String,
    pub(crate) bridge: String,
    pub(crate) pod_cidr: Cidr,
    pub(crate) service_cidr: Option<Cidr>,
    /// Answers of pods on the bridge do not pass by the node, so they have to be sent to it.
    pub(crate) masquerades_bridged: bool,
}

/// Prefixes of what exists twice: for addresses, and for ports of the node.
fn prefix(is_node: bool) -> &'static str {
    if is_node { "node_" } else { "" }
}

/// What a frontend's key is made of in a packet.
fn packet(is_node: bool) -> &'static str {
    if is_node {
        "meta l4proto . th dport"
    } else {
        "ip daddr . meta l4proto . th dport"
    }
}

/// The same of a connection's first packet.
fn original(is_node: bool) -> &'static str {
    if is_node {
        "meta l4proto . ct original proto-dst"
    } else {
        "ct original ip daddr . meta l4proto . ct original proto-dst"
    }
}

/// Maps and sets: name, what they are declared with, whether they are filled by us.
fn declarations() -> Vec<(String, String, bool)> {
    let mut all = Vec::new();
    for is_node in [false, true] {
        let (prefix, packet) = (prefix(is_node), packet(is_node));
        let address = if is_node { "" } else { "ipv4_addr . " };
        let frontend = format!("{address}inet_proto . inet_service");
        for verdicts in ["services", "refused", "remembered"] {
            all.push((
                format!("map {prefix}{verdicts}"),
                format!("type {frontend} : verdict;"),
                true,
            ));
        }
        all.push((
            format!("map {prefix}endpoints"),
            format!("typeof {packet} . numgen random mod 65536 : ip daddr . tcp dport;"),
            true,
        ));
        all.push((
            format!("map {prefix}affinity"),
            format!(
                "type {frontend} . ipv4_addr : ipv4_addr . inet_service; size {CLIENTS_MAX}; flags dynamic,timeout;"
            ),
            false,
        ));
    }
    all.push((
        "set hairpin".into(),
        "type ipv4_addr . ipv4_addr; flags timeout;".into(),
        true,
    ));
    all.push((
        "set guarded".into(),
        "type ipv4_addr . inet_proto . inet_service;".into(),
        true,
    ));
    all.push((
        "set allowed".into(),
        "type ipv4_addr . inet_proto . inet_service . ipv4_addr; flags interval;".into(),
        true,
    ));
    all
}

/// Chains that are always there: name, hook, rules.
fn fixed_chains(form: &Form) -> Vec<(&'static str, &'static str, Vec<String>)> {
    let lookup = |map: &str| {
        vec![
            format!("{} vmap @{map}", packet(false)),
            format!(
                "fib daddr type local ip daddr != 127.0.0.0/8 {} vmap @node_{map}",
                packet(true)
            ),
        ]
    };
    let mut refused = lookup("refused");
    if let Some(cidr) = form.service_cidr {
        // An address that no Service has leads nowhere; the sender is told at once.
        refused.push(format!(
            "ip daddr {cidr} fib daddr type != local goto turn_away"
        ));
    }
    let mut source = vec![
        "oifname \"lo\" return".into(),
        format!("ct mark & {MASQUERADE} == {MASQUERADE} masquerade"),
        "ct status dnat ip saddr . ip daddr @hairpin masquerade".into(),
    ];
    if form.masquerades_bridged {
        let bridge = &form.bridge;
        source.push(format!(
            "iifname \"{bridge}\" oifname \"{bridge}\" ct status dnat masquerade"
        ));
    }
    let at = packet(false);
    let guard = vec![format!("{at} @guarded {at} . ip saddr != @allowed drop")];
    let mut remember = Vec::new();
    for is_node in [false, true] {
        for protocol in ["tcp", "udp"] {
            remember.push(format!(
                "ct status dnat meta l4proto {protocol} {} vmap @{}remembered",
                original(is_node),
                prefix(is_node)
            ));
        }
    }
    // The node's own addresses among the Services' are its name server's. While that is between two agents, a question is
    // asked again after some seconds if nothing is heard, and given up if it is refused.
    let silence = form.service_cidr.map(|cidr| {
        format!("ip saddr {cidr} icmp type destination-unreachable icmp code port-unreachable drop")
    });
    let jump = |to: &str| vec![format!("jump {to}")];
    let new = |to: &str| vec![format!("ct state new jump {to}")];
    vec![
        (
            "turn_away",
            "",
            vec![
                // A program of the node itself hears of a reset at once, of ICMP only when it sends again.
                "meta l4proto tcp reject with tcp reset".into(),
                "reject".into(),
            ],
        ),
        ("services", "", [guard, lookup("services")].concat()),
        ("refused", "", refused),
        ("remember", "", remember),
        (
            "prerouting",
            "type nat hook prerouting priority dstnat;",
            jump("services"),
        ),
        (
            "output",
            "type nat hook output priority -100;",
            jump("services"),
        ),
        (
            "postrouting",
            "type nat hook postrouting priority srcnat;",
            source,
        ),
        (
            "filter_input",
            "type filter hook input priority filter;",
            [new("refused"), new("remember")].concat(),
        ),
        (
            "filter_forward",
            "type filter hook forward priority filter;",
            [new("refused"), new("remember")].concat(),
        ),
        (
            "filter_output",
            "type filter hook output priority filter;",
            [Vec::from_iter(silence), new("refused"), new("remember")].concat(),
        ),
    ]
}

/// Puts the whole table in place, in one transaction. `from_nothing` forgets what is there, clients'
/// endpoints with it.
pub(crate) fn replace(
    form: &Form,
    elements: impl Iterator<Item = Element>,
    chains: &mut BTreeSet<String>,
    from_nothing: bool,
) -> String {
    let table = &form.table;
    let mut script = format!("add table inet {table}\n");
    if from_nothing {
        let _ = write!(
            script,
            "delete table inet {table}\nadd table inet {table}\n"
        );
    }
    for (name, declaration, is_ours) in declarations() {
        let (kind, name) = name.split_once(' ').unwrap_or(("map", &name));
        let _ = writeln!(script, "add {kind} inet {table} {name} {{ {declaration} }}");
        if is_ours {
            let _ = writeln!(script, "flush {kind} inet {table} {name}");
        }
    }
    for (name, hook, _) in fixed_chains(form) {
        let hook = if hook.is_empty() {
            String::new()
        } else {
            format!(" {{ {hook} policy accept; }}")
        };
        let _ = writeln!(script, "add chain inet {table} {name}{hook}");
        let _ = writeln!(script, "flush chain inet {table} {name}");
    }
    for (name, _, rules) in fixed_chains(form) {
        for rule in rules {
            let _ = writeln!(script, "add rule inet {table} {name} {rule}");
        }
    }
    let changes = Changes {
        removed: Vec::new(),
        added: elements.collect(),
    };
    script + &update(form, &changes, chains)
}

/// Changes elements. `chains` are those that have been made; it gains those that this makes.
pub(crate) fn update(form: &Form, changes: &Changes, chains: &mut BTreeSet<String>) -> String {
    let table = &form.table;
    let mut script = String::new();
    let mut removed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, _) in &changes.removed {
        // A pod may have been sent to itself a moment ago and not be masqueraded yet: without its element that connection
        // would hang, so the element goes a little later, by itself.
        if let Key::Hairpin(_) = key {
            let _ = writeln!(
                script,
                "{}add element inet {table} hairpin {{ {} timeout {HAIRPIN_REST} }}",
                drop_hairpin(table, key),
                key_text(key)
            );
        } else {
            removed.entry(map_of(key)).or_default().push(key_text(key));
        }
    }
    let mut added: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, data) in &changes.added {
        if let Some((name, rules)) = chains_of(form, key, *data)
            && chains.insert(name.clone())
        {
            let _ = writeln!(script, "add chain inet {table} {name}");
            let _ = writeln!(script, "flush chain inet {table} {name}");
            for rule in rules {
                let _ = writeln!(script, "add rule inet {table} {name} {rule}");
            }
        }
        if let Key::Hairpin(_) = key {
            script.push_str(&drop_hairpin(table, key));
        }
        let mut text = key_text(key);
        if let Some(data) = data_text(key, *data) {
            let _ = write!(text, " : {data}");
        }
        added.entry(map_of(key)).or_default().push(text);
    }
    for (verb, maps) in [("delete", removed), ("add", added)] {
        for (map, mut elements) in maps {
            elements.sort_unstable();
            let _ = writeln!(
                script,
                "{verb} element inet {table} {map} {{ {} }}",
                elements.join(", ")
            );
        }
    }
    script
}

/// Takes a hairpin's element away, whether it is there, about to go by itself, or gone.
fn drop_hairpin(table: &str, key: &Key) -> String {
    let key = key_text(key);
    format!(
        "add element inet {table} hairpin {{ {key} timeout {HAIRPIN_REST} }}\ndelete element inet {table} hairpin {{ {key} }}\n"
    )
}

/// Forgets which endpoint a client of a frontend has.
pub(crate) fn forget(form: &Form, frontend: &Frontend, client: Ipv4Addr) -> String {
    format!(
        "delete element inet {} {}affinity {{ {} . {client} }}\n",
        form.table,
        prefix(frontend.at == At::Node),
        frontend_text(frontend)
    )
}

fn frontend_of(key: &Key) -> Option<&Frontend> {
    match key {
        Key::Serve(frontend)
        | Key::Endpoint(frontend, _)
        | Key::Refuse(frontend)
        | Key::Remember(frontend)
        | Key::Guard(frontend)
        | Key::Allow(frontend, _) => Some(frontend),
        Key::Hairpin(_) => None,
    }
}

fn map_of(key: &Key) -> String {
    let name = match key {
        Key::Serve(_) => "services",
        Key::Endpoint(..) => "endpoints",
        Key::Refuse(_) => "refused",
        Key::Remember(_) => "remembered",
        Key::Hairpin(_) => "hairpin",
        Key::Guard(_) => "guarded",
        Key::Allow(..) => "allowed",
    };
    let is_node = frontend_of(key).is_some_and(|frontend| frontend.at == At::Node);
    format!("{}{name}", prefix(is_node))
}

fn frontend_text(frontend: &Frontend) -> String {
    let (protocol, port) = (frontend.protocol.as_str(), frontend.port);
    match frontend.at {
        At::Ip(ip) => format!("{ip} . {protocol} . {port}"),
        At::Node => format!("{protocol} . {port}"),
    }
}

fn key_text(key: &Key) -> String {
    match key {
        Key::Serve(frontend)
        | Key::Refuse(frontend)
        | Key::Remember(frontend)
        | Key::Guard(frontend) => frontend_text(frontend),
        Key::Allow(frontend, source) => format!("{} . {source}", frontend_text(frontend)),
        Key::Endpoint(frontend, number) => format!("{} . {number}", frontend_text(frontend)),
        Key::Hairpin(ip) => format!("{ip} . {ip}"),
    }
}

fn data_text(key: &Key, data: Data) -> Option<String> {
    match data {
        Data::Chain(chain) => Some(format!("goto {}", chain_name(chain))),
        Data::Target((ip, port)) => Some(format!("{ip} . {port}")),
        Data::Reject => Some("goto turn_away".into()),
        Data::Drop => Some("drop".into()),
        Data::Seconds(seconds) => Some(format!("goto {}", remember_name(key, seconds))),
        Data::Present => None,
    }
}

fn chain_name(chain: Chain) -> String {
    let mut name = format!("{}to_{}", prefix(chain.is_node), chain.endpoints);
    if chain.masquerades {
        name.push_str("_masquerade");
    }
    if chain.has_affinity {
        name.push_str("_affinity");
    }
    name
}

fn remember_name(key: &Key, seconds: u64) -> String {
    let is_node = frontend_of(key).is_some_and(|frontend| frontend.at == At::Node);
    format!("{}remember_{seconds}", prefix(is_node))
}

/// The chain that an element leads to, with its rules.
fn chains_of(form: &Form, key: &Key, data: Data) -> Option<(String, Vec<String>)> {
    match data {
        Data::Chain(chain) => {
            let (prefix, packet) = (prefix(chain.is_node), packet(chain.is_node));
            let mut rules = Vec::new();
            if chain.masquerades {
                rules.push(format!(
                    "ip saddr != {} ct mark set ct mark or {MASQUERADE}",
                    form.pod_cidr
                ));
            }
            // One rule for each protocol: nft takes "th dport" of a translation for TCP's.
            for protocol in ["tcp", "udp", "sctp"] {
                let packet = packet.replace("th dport", &format!("{protocol} dport"));
                let translate = format!("meta l4proto {protocol} dnat ip to {packet}");
                if chain.has_affinity {
                    rules.push(format!("{translate} . ip saddr map @{prefix}affinity"));
                }
                rules.push(format!(
                    "{translate} . numgen random mod {} map @{prefix}endpoints",
                    chain.endpoints
                ));
            }
            Some((chain_name(chain), rules))
        }
        Data::Seconds(seconds) => {
            let is_node = frontend_of(key).is_some_and(|frontend| frontend.at == At::Node);
            let rules = ["tcp", "udp"].map(|protocol| {
                format!(
                    "meta l4proto {protocol} update @{}affinity {{ {} . ct original ip saddr timeout {seconds}s : ip daddr . {protocol} dport }}",
                    prefix(is_node),
                    original(is_node)
                )
            });
            Some((remember_name(key, seconds), rules.into()))
        }
        Data::Target(_) | Data::Reject | Data::Drop | Data::Present => None,
    }
}

#[cfg(test)]
mod tests;
