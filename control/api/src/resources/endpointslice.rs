//! EndpointSlice of discovery.k8s.io.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, get, integer, list, list_mut, text},
};

/// As many addresses and ports as `kubectl get` shows.
const SHOWN_MAX: usize = 3;
const ENDPOINTS_MAX: usize = 1_000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 100;
const ADDRESS_TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("AddressType", "What the addresses are."),
    Column::text("Ports", "Ports of all endpoints of this slice."),
    Column::text("Endpoints", "Addresses of the endpoints."),
    Column::age(),
];

pub(super) struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn default(&self, object: &mut Value) {
        for port in list_mut(object, "ports") {
            default(port, "name", "");
            default(port, "protocol", "TCP");
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let type_ = text(object, "addressType");
        if type_.is_empty() {
            errors.push(FieldError::required(&Path::new("addressType"), ""));
        } else if !ADDRESS_TYPES.contains(&type_) {
            errors.push(FieldError::not_supported(
                &Path::new("addressType"),
                type_,
                ADDRESS_TYPES,
            ));
        }
        let path = Path::new("endpoints");
        let endpoints = list(object, "endpoints");
        if endpoints.len() > ENDPOINTS_MAX {
            errors.push(FieldError::too_many(&path, endpoints.len(), ENDPOINTS_MAX));
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            validate_endpoint(endpoint, type_, &path.index(i), &mut errors);
        }
        let path = Path::new("ports");
        let ports = list(object, "ports");
        if ports.len() > PORTS_MAX {
            errors.push(FieldError::too_many(&path, ports.len(), PORTS_MAX));
        }
        let mut names = Vec::new();
        for (i, port) in ports.iter().enumerate() {
            let at = path.index(i);
            let name = text(port, "name");
            if !name.is_empty() {
                let texts = meta::dns1123_label(name);
                errors.extend(
                    texts
                        .into_iter()
                        .map(|text| FieldError::invalid(&at.child("name"), name, text)),
                );
            }
            if names.contains(&name) {
                errors.push(FieldError::duplicate(&at.child("name"), name));
            }
            names.push(name);
            let protocol = text(port, "protocol");
            if !PROTOCOLS.contains(&protocol) {
                errors.push(FieldError::not_supported(
                    &at.child("protocol"),
                    protocol,
                    PROTOCOLS,
                ));
            }
        }
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if text(new, "addressType") != text(old, "addressType") {
            errors.push(FieldError::invalid(
                &Path::new("addressType"),
                text(new, "addressType"),
                "field is immutable",
            ));
        }
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = list(object, "ports")
            .iter()
            .map(|port| match integer(port, "port") {
                Some(number) => number.to_string(),
                None => "*".to_owned(),
            })
            .collect();
        let addresses: Vec<String> = list(object, "endpoints")
            .iter()
            .flat_map(|endpoint| list(endpoint, "addresses"))
            .filter_map(|address| address.as_str().map(str::to_owned))
            .collect();
        vec![
            meta::name(object).into(),
            text(object, "addressType").into(),
            shown(&ports, "<unset>").into(),
            shown(&addresses, "<unset>").into(),
            table::age(object, now).into(),
        ]
    }
}

fn validate_endpoint(endpoint: &Value, type_: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let at = path.child("addresses");
    let addresses = list(endpoint, "addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(&at, "must contain at least 1 address"));
    } else if addresses.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(&at, addresses.len(), ADDRESSES_MAX));
    }
    for (i, address) in addresses.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let ip = address.parse::<IpAddr>();
        let trouble = match (type_, ip) {
            ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => None,
            ("IPv4", _) => Some("must be a valid IPv4 address"),
            ("IPv6", _) => Some("must be a valid IPv6 address"),
            _ => None,
        };
        if let Some(trouble) = trouble {
            errors.push(FieldError::invalid(&at.index(i), address, trouble));
        }
        if type_ == "FQDN" {
            for text in meta::dns1123_subdomain(address) {
                errors.push(FieldError::invalid(&at.index(i), address, text));
            }
        }
    }
    let name = text(endpoint, "hostname");
    if !name.is_empty() {
        for text in meta::dns1123_label(name) {
            errors.push(FieldError::invalid(&path.child("hostname"), name, text));
        }
    }
    if !get(endpoint, "deprecatedTopology").is_null() {
        errors.push(FieldError::forbidden(
            &path.child("deprecatedTopology"),
            "cannot be set through this API version",
        ));
    }
}

fn shown(texts: &[String], none: &str) -> String {
    if texts.is_empty() {
        return none.to_owned();
    }
    let list = texts[..texts.len().min(SHOWN_MAX)].join(",");
    if texts.len() > SHOWN_MAX {
        format!("{list} + {} more...", texts.len() - SHOWN_MAX)
    } else {
        list
    }
}
