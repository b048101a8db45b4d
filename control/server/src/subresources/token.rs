//! `serviceaccounts/token`: a token for an account, bound to a pod where one is named.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use wherry_api::{FieldError, Status, field::Path, meta};

use crate::{
    admission,
    answer::{self, Answer},
    call::{self, Call},
    stored,
    token::{
        Bound, Claims, EXPIRATION_SECONDS_DEFAULT, EXPIRATION_SECONDS_MAX, EXPIRATION_SECONDS_MIN,
        ISSUER, KubernetesClaim,
    },
    verbs::{get, store_status},
};

pub(super) async fn request(call: &Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let (mut request, _) = call::read_value(headers, body)?;
    let account = stored::decode(&get::load(call).await?);
    let root = Path::new("spec");
    let invalid = |error| {
        Err(Status::invalid_kind(
            "authentication.k8s.io",
            "TokenRequest",
            call.name(),
            vec![error],
        ))
    };
    let audiences: Vec<String> = match request.pointer("/spec/audiences").and_then(Value::as_array)
    {
        Some(list) if !list.is_empty() => list
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => vec![ISSUER.to_owned()],
    };
    let seconds = request
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64)
        .unwrap_or(EXPIRATION_SECONDS_DEFAULT);
    let path = root.child("expirationSeconds");
    if seconds < EXPIRATION_SECONDS_MIN {
        return invalid(FieldError::invalid(
            &path,
            seconds,
            "may not specify a duration less than 10 minutes",
        ));
    }
    if seconds > EXPIRATION_SECONDS_MAX {
        return invalid(FieldError::invalid(
            &path,
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    let mut claim = KubernetesClaim {
        namespace: call.namespace().to_owned(),
        serviceaccount: Bound {
            name: call.name().to_owned(),
            uid: meta::uid(&account).to_owned(),
        },
        pod: None,
        node: None,
        secret: None,
    };
    if let Some(reference) = request
        .pointer("/spec/boundObjectRef")
        .filter(|reference| reference.is_object())
    {
        bind(call, reference, &mut claim).await?;
    }
    if claim.pod.is_none() {
        admission::token(call, None)?;
    }
    let now = Timestamp::now();
    let claims = Claims::new(claim, audiences.clone(), now, seconds);
    let token = call.app.tokens.sign(&claims).map_err(Status::internal)?;
    let expires = now
        .checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX);
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    let metadata = meta::metadata_mut(&mut request);
    metadata.insert("name".into(), call.name().into());
    metadata.insert("namespace".into(), call.namespace().into());
    metadata.insert("creationTimestamp".into(), meta::format_time(now).into());
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    request["status"] = json!({"token": token, "expirationTimestamp": meta::format_time(expires)});
    Ok(answer::value(call.accept, StatusCode::CREATED, &request))
}

/// Binds a token to the object a request names.
async fn bind(call: &Call, reference: &Value, claim: &mut KubernetesClaim) -> Result<(), Status> {
    let text = |field: &str| {
        reference
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let plural = match (text("apiVersion").as_str(), kind.as_str()) {
        ("" | "v1", "Pod") => "pods",
        ("" | "v1", "Secret") => "secrets",
        (version, kind) => {
            return Err(Status::bad_request(format!(
                "cannot bind token for object of type {version}, Kind={kind}"
            )));
        }
    };
    let resource = wherry_api::find("", "v1", plural).expect("a row");
    let found = call
        .app
        .store
        .get(&stored::key(resource, call.namespace(), &name))
        .await;
    let (found, _) = found.map_err(|error| store_status(resource, &name, error))?;
    let found = stored::decode(&found.ok_or_else(|| Status::not_found(resource, &name))?);
    if !uid.is_empty() && uid != meta::uid(&found) {
        let detail = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(resource, &name, &detail));
    }
    let bound = Some(Bound {
        name: name.clone(),
        uid: meta::uid(&found).to_owned(),
    });
    if kind == "Secret" {
        claim.secret = bound;
        return Ok(());
    }
    let account = found
        .pointer("/spec/serviceAccountName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if account != call.name() {
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            call.name()
        )));
    }
    admission::token(call, Some(&found))?;
    claim.pod = bound;
    if let Some(node) = found
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .filter(|node| !node.is_empty())
    {
        let nodes = wherry_api::find("", "v1", "nodes").expect("a row");
        let kv = call
            .app
            .store
            .get(&stored::key(nodes, "", node))
            .await
            .map_err(|error| store_status(nodes, node, error))?
            .0;
        let uid = kv
            .map(|kv| meta::uid(&stored::decode(&kv)).to_owned())
            .unwrap_or_default();
        claim.node = Some(Bound {
            name: node.to_owned(),
            uid,
        });
    }
    Ok(())
}
