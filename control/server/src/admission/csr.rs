//! Requests for certificates: who asks is who authentication says, and who decides has to be allowed to.

use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
use serde_json::{Value, json};
use wherry_api::{FieldError, Status, field::Path, meta};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use crate::{authz::Attributes, call::Call};

const GROUP: &str = "certificates.k8s.io";
/// Signs for clients of the API server, and so for whoever administrators are.
const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";

pub(super) fn is_for(call: &Call) -> bool {
    call.resource.group == GROUP && call.resource.plural == "certificatesigningrequests"
}

/// Fills in who asks, and refuses what can never be signed.
pub(super) fn create(call: &Call, object: &mut Value) -> Result<(), Status> {
    let spec = &mut object["spec"];
    spec["username"] = call.user.name.clone().into();
    spec["groups"] = json!(call.user.groups);
    let optional = [
        ("uid", json!(call.user.uid), call.user.uid.is_empty()),
        ("extra", json!(call.user.extra), call.user.extra.is_empty()),
    ];
    if let Some(spec) = spec.as_object_mut() {
        for (field, value, is_empty) in optional {
            spec.remove(field);
            if !is_empty {
                spec.insert(field.to_owned(), value);
            }
        }
    }
    let encoded = object["spec"]["request"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    // What is no PEM at all is told by the rules of the kind.
    let Some(pem) = decode(&encoded) else {
        return Ok(());
    };
    let Ok(der) = CertificateSigningRequestDer::from_pem_slice(&pem) else {
        return Ok(());
    };
    let name = meta::name(object);
    let Ok((_, request)) = X509CertificationRequest::from_der(&der) else {
        let root = Path::new("spec");
        let at = root.child("request");
        let error = FieldError::invalid(&at, encoded, "is not a certificate request (PKCS#10)");
        return Err(Status::invalid(call.resource, name, vec![error]));
    };
    let mut groups = request
        .certification_request_info
        .subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok());
    if object["spec"]["signerName"] == API_CLIENT && groups.any(|group| group == "system:masters") {
        let detail = format!("use of {API_CLIENT} signer with system:masters group is not allowed");
        return Err(Status::forbidden(call.resource, name, &detail));
    }
    Ok(())
}

fn decode(encoded: &str) -> Option<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(encoded).ok()
}

/// Approving and signing take the right to do so for the signer in question.
pub(super) async fn update(
    call: &Call,
    subresource: &str,
    new: &Value,
    old: &Value,
) -> Result<(), Status> {
    let (verb, is_changed) = match subresource {
        "approval" => (
            "approve",
            new["status"]["conditions"] != old["status"]["conditions"],
        ),
        "status" => ("sign", new["status"] != old["status"]),
        _ => return Ok(()),
    };
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = signer.split_once('/').map_or("", |(domain, _)| domain);
    let may = async |name: &str| {
        let asked = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            resource: "signers".to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        call.app.may(&call.user, &asked).await
    };
    if !is_changed || may(signer).await || may(&format!("{domain}/*")).await {
        return Ok(());
    }
    let detail = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(Status::forbidden(call.resource, call.name(), &detail))
}
