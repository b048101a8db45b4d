//! CertificateSigningRequest of certificates.k8s.io. Who asks is filled in by the server, not by whoever asks.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{get, integer, keep, list, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::age(),
    Column::text("SignerName", "Who is asked to sign."),
    Column::text("Requestor", "The user who asks."),
    Column::text(
        "RequestedDuration",
        "How long the certificate is to be valid.",
    ),
    Column::text("Condition", "What has been decided and done."),
];

/// What a certificate can be asked to be good for.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Shortest validity that may be asked for.
const EXPIRATION_SECONDS_MIN: i64 = 600;

const PEM_LABEL: &str = "CERTIFICATE REQUEST";

pub(super) struct CertificateSigningRequest;

impl Strategy for CertificateSigningRequest {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        keep(new, old, "spec");
        match subresource {
            "approval" => {
                let conditions = get(get(new, "status"), "conditions").clone();
                keep(new, old, "status");
                if !new["status"].is_object() {
                    new["status"] = json!({});
                }
                match conditions {
                    Value::Null => drop(
                        new["status"]
                            .as_object_mut()
                            .map(|s| s.remove("conditions")),
                    ),
                    conditions => new["status"]["conditions"] = conditions,
                }
            }
            "status" => {
                // Decisions are made under `approval` alone.
                let is_decision = |condition: &&Value| is_decision(text(condition, "type"));
                let decisions = list(get(old, "status"), "conditions")
                    .iter()
                    .filter(is_decision);
                let rest = list(get(new, "status"), "conditions").iter();
                let rest = rest.filter(|condition| !is_decision(condition));
                let all: Vec<Value> = decisions.chain(rest).cloned().collect();
                if !all.is_empty() {
                    new["status"]["conditions"] = all.into();
                }
            }
            _ => keep(new, old, "status"),
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        request(text(spec, "request"), &path.child("request"), &mut errors);
        usages(list(spec, "usages"), &path.child("usages"), &mut errors);
        signer_name(
            text(spec, "signerName"),
            &path.child("signerName"),
            &mut errors,
        );
        if let Some(seconds) = integer(spec, "expirationSeconds")
            && seconds < EXPIRATION_SECONDS_MIN
        {
            let at = path.child("expirationSeconds");
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(FieldError::invalid(&at, seconds, detail));
        }
        errors
    }

    fn validate_update(&self, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (new, old) = (get(new, "status"), get(old, "status"));
        let status = Path::new("status");
        let path = status.child("conditions");
        let mut seen = BTreeSet::new();
        for (i, condition) in list(new, "conditions").iter().enumerate() {
            let (at, type_) = (path.index(i), text(condition, "type"));
            if type_.is_empty() {
                errors.push(FieldError::required(&at.child("type"), ""));
            }
            match text(condition, "status") {
                "" => errors.push(FieldError::required(&at.child("status"), "")),
                "True" => {}
                other if ["Approved", "Denied", "Failed"].contains(&type_) => errors.push(
                    FieldError::not_supported(&at.child("status"), other, &["True"]),
                ),
                "False" | "Unknown" => {}
                other => errors.push(FieldError::not_supported(
                    &at.child("status"),
                    other,
                    &["True", "False", "Unknown"],
                )),
            }
            if !seen.insert(type_) {
                errors.push(FieldError::duplicate(&at.child("type"), type_));
            }
        }
        if seen.contains("Approved") && seen.contains("Denied") {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid(&path, "Denied", detail));
        }
        for kept in list(old, "conditions")
            .iter()
            .map(|found| text(found, "type"))
        {
            if ["Approved", "Denied", "Failed"].contains(&kept) && !seen.contains(kept) {
                let detail = format!("updates may not remove a condition of type {kept:?}");
                errors.push(FieldError::forbidden(&path, detail));
            }
        }
        let (was, is) = (text(old, "certificate"), text(new, "certificate"));
        if subresource == "status" && !was.is_empty() && was != is {
            let at = status.child("certificate");
            errors.push(FieldError::forbidden(
                &at,
                "updates may not set certificate content",
            ));
        }
        errors
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        (field == "spec.signerName").then(|| text(get(object, "spec"), "signerName").to_owned())
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let duration = integer(spec, "expirationSeconds")
            .map_or_else(|| "<none>".to_owned(), table::human_duration);
        vec![
            meta::name(object).into(),
            table::age(object, now).into(),
            table::or_none(text(spec, "signerName")).into(),
            text(spec, "username").into(),
            duration.into(),
            condition(get(object, "status")).into(),
        ]
    }
}

fn is_decision(type_: &str) -> bool {
    matches!(type_, "Approved" | "Denied")
}

/// As kubectl prints it: `Pending`, `Approved,Issued`.
fn condition(status: &Value) -> String {
    let has = |type_: &str| {
        let mut conditions = list(status, "conditions").iter();
        conditions.any(|condition| text(condition, "type") == type_)
    };
    let mut words: Vec<&str> = match (has("Denied"), has("Approved")) {
        (true, _) => vec!["Denied"],
        (false, true) => vec!["Approved"],
        (false, false) => vec!["Pending"],
    };
    if has("Failed") {
        words.push("Failed");
    }
    if !text(status, "certificate").is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

fn request(encoded: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if encoded.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let pem = STANDARD.decode(encoded).unwrap_or_default();
    let pem = String::from_utf8_lossy(&pem);
    let begin = format!("-----BEGIN {PEM_LABEL}-----");
    if pem.matches("-----BEGIN ").count() != 1 || !pem.contains(&begin) {
        let detail = format!("PEM block type must be {PEM_LABEL}");
        errors.push(FieldError::invalid(path, encoded, detail));
    }
}

fn usages(usages: &[Value], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if usages.is_empty() {
        errors.push(FieldError::required(path, "usages is required"));
    }
    let mut seen = BTreeSet::new();
    for (i, usage) in usages.iter().enumerate() {
        let usage = usage.as_str().unwrap_or_default();
        if !USAGES.contains(&usage) {
            errors.push(FieldError::not_supported(&path.index(i), usage, USAGES));
        }
        if !seen.insert(usage) {
            errors.push(FieldError::duplicate(&path.index(i), usage));
        }
    }
}

fn signer_name(name: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let Some((domain, rest)) = name
        .split_once('/')
        .filter(|(domain, rest)| domain.contains('.') && !rest.is_empty() && !rest.contains('/'))
    else {
        let detail =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid(path, name, detail));
        return;
    };
    let troubles = meta::dns1123_subdomain(domain).into_iter();
    for trouble in troubles.chain(meta::dns1123_subdomain(rest)) {
        errors.push(FieldError::invalid(path, name, trouble));
    }
    if name == "kubernetes.io/legacy-unknown" {
        let detail = "the legacy signerName is not allowed via this API version";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csr() -> Value {
        let pem = "-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n";
        json!({
            "metadata": { "name": "a" },
            "spec": {
                "request": STANDARD.encode(pem),
                "signerName": "kubernetes.io/kubelet-serving",
                "usages": ["server auth"],
                "username": "system:node:a",
            },
        })
    }

    #[test]
    fn requests_are_checked() {
        for (field, value, expected) in [
            ("usages", json!(["server auth"]), ""),
            (
                "usages",
                json!([]),
                "spec.usages: Required value: usages is required",
            ),
            (
                "usages",
                json!(["server auth", "server auth"]),
                "spec.usages[1]: Duplicate value: \"server auth\"",
            ),
            ("signerName", json!(""), "spec.signerName: Required value"),
            (
                "signerName",
                json!("x"),
                "spec.signerName: Invalid value: \"x\": must be a fully qualified domain and path of the form \
                 'example.com/signer-name'",
            ),
            (
                "expirationSeconds",
                json!(599),
                "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)",
            ),
            (
                "request",
                json!("AAAA"),
                "spec.request: Invalid value: \"AAAA\": PEM block type must be CERTIFICATE REQUEST",
            ),
        ] {
            let mut object = csr();
            object["spec"][field] = value;
            let errors = CertificateSigningRequest.validate_create(&object);
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(errors.join("; "), expected, "{field}");
        }
    }

    #[test]
    fn each_path_changes_its_part_alone() {
        let mut old = csr();
        old["status"] = json!({ "conditions": [{ "type": "Approved", "status": "True" }] });
        let mut new = old.clone();
        new["spec"]["username"] = "system:masters".into();
        new["status"]["certificate"] = "Yw==".into();
        new["status"]["conditions"] = json!([{ "type": "Denied", "status": "True" }]);
        let after = |subresource: &str| {
            let mut new = new.clone();
            CertificateSigningRequest.prepare_update(subresource, &mut new, &old);
            assert_eq!(new["spec"], old["spec"], "{subresource:?}");
            new["status"].clone()
        };
        assert_eq!(after(""), old["status"]);
        assert_eq!(
            after("status"),
            json!({ "certificate": "Yw==", "conditions": old["status"]["conditions"] })
        );
        assert_eq!(
            after("approval"),
            json!({ "conditions": new["status"]["conditions"] })
        );
        let errors = CertificateSigningRequest.validate_update("approval", &new, &old);
        assert_eq!(errors.len(), 1, "an approval stands");
    }

    #[test]
    fn the_condition_says_what_was_done() {
        let with = |types: &[&str], certificate: &str| {
            let conditions: Vec<Value> =
                types.iter().map(|type_| json!({ "type": type_ })).collect();
            condition(&json!({ "conditions": conditions, "certificate": certificate }))
        };
        assert_eq!(with(&[], ""), "Pending");
        assert_eq!(with(&["Approved"], ""), "Approved");
        assert_eq!(with(&["Approved"], "Yw=="), "Approved,Issued");
        assert_eq!(with(&["Denied"], ""), "Denied");
        assert_eq!(with(&["Approved", "Failed"], ""), "Approved,Failed");
    }
}
