//! The way outside, in an nftables table of our own: masquerade, and leave to forward.
//!
//! A verdict of ours cannot overrule another table that drops what it does not know, as Docker's
//! does by policy. There, and only there, two rules marked with our name are put in front, and
//! [`remove`] takes them back by that mark.

use std::collections::BTreeSet;

use serde_json::Value;
use tracing::info;

use crate::{
    Cidr, NetworkConfig, NetworkError,
    nft::{self, list},
};

/// A base chain of somebody else's that drops by policy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    family: String,
    table: String,
    name: String,
}

/// Puts the table in place, whatever it was, in one transaction. `inside` is met by pods under their own addresses;
/// `None` leaves what the table says of that. Answers the processes that did it.
pub(crate) async fn ensure(
    config: &NetworkConfig,
    inside: Option<&BTreeSet<Cidr>>,
) -> Result<Vec<u32>, NetworkError> {
    let mut runs = vec![nft::run(&ruleset(config, inside)).await?.pid];
    for chain in dropping_chains(&list(&["chains"]).await?, &table(config)) {
        let Chain {
            family,
            table,
            name,
        } = &chain;
        if marked_rules(&list(&["chain", family, table, name]).await?, &mark(config)).is_empty() {
            info!(%family, %table, chain = %name, "Pods' packets are let through a chain that drops by policy");
            let (bridge, mark) = (&config.bridge, mark(config));
            let rules = format!(
                "insert rule {family} {table} {name} iifname \"{bridge}\" accept comment \"{mark}\"\n\
                 insert rule {family} {table} {name} oifname \"{bridge}\" accept comment \"{mark}\"\n"
            );
            runs.push(nft::run(&rules).await?.pid);
        }
    }
    Ok(runs)
}

/// Takes the table away and the rules in front of others. Gone already: `Ok`.
pub(crate) async fn remove(config: &NetworkConfig) -> Result<(), NetworkError> {
    let mut script = String::new();
    for table in [table(config), services_table(&config.bridge)] {
        script.push_str(&format!(
            "add table inet {table}\ndelete table inet {table}\n"
        ));
    }
    for Chain {
        family,
        table,
        name,
    } in dropping_chains(&list(&["chains"]).await?, &table(config))
    {
        for handle in marked_rules(
            &list(&["chain", &family, &table, &name]).await?,
            &mark(config),
        ) {
            script.push_str(&format!(
                "delete rule {family} {table} {name} handle {handle}\n"
            ));
        }
    }
    nft::run(&script).await.map(drop)
}

pub(crate) fn table(config: &NetworkConfig) -> String {
    table_of(&config.bridge)
}

/// The table that Services of a node are in: named after its bridge, for nodes may share a machine. It is
/// removed with the network.
pub fn services_table(bridge: &str) -> String {
    format!("{}_services", table_of(bridge))
}

fn table_of(bridge: &str) -> String {
    // A table's name may hold letters, digits, slashes, dots and underscores.
    let name = bridge.chars().map(|char| {
        if char.is_ascii_alphanumeric() {
            char
        } else {
            '_'
        }
    });
    format!("wherry_{}", name.collect::<String>())
}

fn mark(config: &NetworkConfig) -> String {
    format!("wherry:{}", config.bridge)
}

/// The whole table. Chains are flushed rather than deleted, so that what is inside stays known over a restart.
fn ruleset(config: &NetworkConfig, inside: Option<&BTreeSet<Cidr>>) -> String {
    let (table, bridge) = (table(config), &config.bridge);
    let mut script = format!("add table inet {table}\n");
    for family in [Family::V4, Family::V6] {
        let (set, kind) = (family.set(), family.kind());
        script.push_str(&format!(
            "add set inet {table} {set} {{ type {kind}; flags interval; auto-merge; }}\n"
        ));
        if inside.is_some() {
            script.push_str(&format!("flush set inet {table} {set}\n"));
        }
        let ranges = config.cidrs().chain(config.no_masquerade.iter().copied());
        let ranges = ranges.chain(inside.into_iter().flatten().copied());
        let ranges: Vec<String> = ranges
            .filter(|cidr| Family::of(cidr) == family)
            .map(|cidr| cidr.to_string())
            .collect();
        if !ranges.is_empty() {
            let ranges = ranges.join(", ");
            script.push_str(&format!("add element inet {table} {set} {{ {ranges} }}\n"));
        }
    }
    for (chain, hook) in [
        ("postrouting", "type nat hook postrouting priority srcnat"),
        ("forward", "type filter hook forward priority filter"),
    ] {
        script.push_str(&format!(
            "add chain inet {table} {chain} {{ {hook}; policy accept; }}\nflush chain inet {table} {chain}\n"
        ));
    }
    let mut rule = |chain: &str, rule: String| {
        script.push_str(&format!("add rule inet {table} {chain} {rule}\n"));
    };
    for cidr in config.cidrs() {
        let family = Family::of(&cidr);
        let (ip, set) = (family.keyword(), family.set());
        rule(
            "postrouting",
            format!("{ip} saddr {cidr} {ip} daddr @{set} return"),
        );
        rule(
            "postrouting",
            format!("{ip} saddr {cidr} oifname != {{ \"lo\", \"{bridge}\" }} masquerade"),
        );
    }
    rule("forward", format!("iifname \"{bridge}\" accept"));
    rule("forward", format!("oifname \"{bridge}\" accept"));
    script
}

/// What differs between IPv4 and IPv6.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(cidr: &Cidr) -> Self {
        if cidr.network().is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// In a rule.
    fn keyword(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// The type of an address.
    fn kind(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// The set of what is not masqueraded.
    fn set(self) -> &'static str {
        match self {
            Self::V4 => "inside",
            Self::V6 => "inside6",
        }
    }
}

/// Base chains on the way through the node, of other tables, that drop by policy.
fn dropping_chains(listing: &Value, own_table: &str) -> Vec<Chain> {
    let chains = listing["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| &item["chain"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    chains
        .filter(|chain| {
            chain["hook"] == "forward" && chain["policy"] == "drop" && chain["table"] != own_table
        })
        .filter(|chain| matches!(chain["family"].as_str(), Some("ip" | "ip6" | "inet")))
        .map(|chain| Chain {
            family: text(&chain["family"]),
            table: text(&chain["table"]),
            name: text(&chain["name"]),
        })
        .collect()
}

/// Handles of the rules that carry our mark.
fn marked_rules(listing: &Value, mark: &str) -> Vec<u64> {
    let rules = listing["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| &item["rule"]);
    rules
        .filter(|rule| rule["comment"] == mark)
        .filter_map(|rule| rule["handle"].as_u64())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn config() -> NetworkConfig {
        NetworkConfig {
            bridge: "wherry-1".into(),
            pod_cidr_v6: Some("fd00::/64".parse().unwrap()),
            no_masquerade: vec!["10.0.0.0/8".parse().unwrap()],
            ..NetworkConfig::new(PathBuf::new(), "10.88.0.0/16".parse().unwrap())
        }
    }

    #[test]
    fn the_table_masquerades_what_leaves_the_pod_network() {
        let inside = BTreeSet::from(["10.89.0.0/24".parse().unwrap()]);
        let ruleset = ruleset(&config(), Some(&inside));
        let lines: Vec<_> = ruleset.lines().map(str::trim).collect();
        for want in [
            "add element inet wherry_wherry_1 inside { 10.88.0.0/16, 10.0.0.0/8, 10.89.0.0/24 }",
            "add element inet wherry_wherry_1 inside6 { fd00::/64 }",
            "add rule inet wherry_wherry_1 postrouting ip saddr 10.88.0.0/16 ip daddr @inside return",
            "add rule inet wherry_wherry_1 postrouting ip saddr 10.88.0.0/16 oifname != { \"lo\", \"wherry-1\" } masquerade",
            "add rule inet wherry_wherry_1 postrouting ip6 saddr fd00::/64 ip6 daddr @inside6 return",
            "add rule inet wherry_wherry_1 postrouting ip6 saddr fd00::/64 oifname != { \"lo\", \"wherry-1\" } masquerade",
        ] {
            assert!(lines.contains(&want), "{want} is not in\n{ruleset}");
        }
    }

    #[test]
    fn only_others_chains_that_drop_forwarded_packets_matter() {
        let chain = |family: &str, table: &str, name: &str, hook: &str, policy: &str| json!({ "chain": { "family": family, "table": table, "name": name, "hook": hook, "policy": policy } });
        let listing = json!({ "nftables": [
            { "metainfo": {} },
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            chain("ip", "filter", "INPUT", "input", "drop"),
            chain("ip6", "filter", "FORWARD", "forward", "accept"),
            chain("inet", "own", "forward", "forward", "drop"),
            chain("bridge", "filter", "FORWARD", "forward", "drop"),
            { "chain": { "family": "ip", "table": "filter", "name": "DOCKER-USER" } },
        ] });
        let want = Chain {
            family: "ip".into(),
            table: "filter".into(),
            name: "FORWARD".into(),
        };
        assert_eq!(dropping_chains(&listing, "own"), [want]);
    }

    #[test]
    fn our_rules_are_known_by_their_mark() {
        let listing = json!({ "nftables": [
            { "rule": { "handle": 3, "comment": "wherry:wherry0" } },
            { "rule": { "handle": 4, "comment": "somebody's" } },
            { "rule": { "handle": 5 } },
        ] });
        assert_eq!(marked_rules(&listing, "wherry:wherry0"), [3]);
    }
}
