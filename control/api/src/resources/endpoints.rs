//! Endpoints.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, get, integer, list, list_mut, text},
};

/// As many addresses as `kubectl get` shows.
const SHOWN_MAX: usize = 3;

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Endpoints",
        "The set of all endpoints is the union of all subsets.",
    ),
    Column::age(),
];

pub(super) struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in list_mut(object, "subsets") {
            for port in list_mut(subset, "ports") {
                default(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("subsets");
        for (i, subset) in list(object, "subsets").iter().enumerate() {
            let at = path.index(i);
            if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty()
            {
                errors.push(FieldError::required(
                    &at,
                    "must specify `addresses` or `notReadyAddresses`",
                ));
            }
            for field in ["addresses", "notReadyAddresses"] {
                let at = at.child(field);
                for (j, address) in list(subset, field).iter().enumerate() {
                    super::pod::ip(text(address, "ip"), &at.index(j).child("ip"), &mut errors);
                }
            }
            let ports = at.child("ports");
            let is_name_required = list(subset, "ports").len() > 1;
            for (j, port) in list(subset, "ports").iter().enumerate() {
                let at = ports.index(j);
                let name = text(port, "name");
                if name.is_empty() {
                    if is_name_required {
                        errors.push(FieldError::required(&at.child("name"), ""));
                    }
                } else {
                    let texts = meta::dns1123_label(name);
                    errors.extend(
                        texts
                            .into_iter()
                            .map(|text| FieldError::invalid(&at.child("name"), name, text)),
                    );
                }
                super::pod::port_number(
                    integer(port, "port").unwrap_or_default(),
                    &at.child("port"),
                    &mut errors,
                );
                let protocol = text(port, "protocol");
                if !["SCTP", "TCP", "UDP"].contains(&protocol) {
                    let supported = ["SCTP", "TCP", "UDP"];
                    errors.push(FieldError::not_supported(
                        &at.child("protocol"),
                        protocol,
                        &supported,
                    ));
                }
            }
        }
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            meta::name(object).into(),
            shown(list(object, "subsets")).into(),
            table::age(object, now).into(),
        ]
    }
}

fn shown(subsets: &[Value]) -> String {
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut texts = Vec::new();
    let mut count = 0;
    for subset in subsets {
        let addresses = list(subset, "addresses");
        let ports: Vec<Option<i64>> = match list(subset, "ports") {
            [] => vec![None],
            ports => ports
                .iter()
                .map(|port| Some(get(port, "port").as_i64().unwrap_or_default()))
                .collect(),
        };
        for port in ports {
            count += addresses.len();
            for address in addresses
                .iter()
                .take(SHOWN_MAX - texts.len().min(SHOWN_MAX))
            {
                let ip = text(address, "ip");
                texts.push(match port {
                    None => ip.to_owned(),
                    Some(port) if ip.contains(':') => format!("[{ip}]:{port}"),
                    Some(port) => format!("{ip}:{port}"),
                });
            }
        }
    }
    let list = texts.join(",");
    if count > SHOWN_MAX {
        format!("{list} + {} more...", count - SHOWN_MAX)
    } else {
        list
    }
}
