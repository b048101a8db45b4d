//! Certificates of nodes: approved where a rule says so, signed where they are approved, cleared away afterwards.
//!
//! ```text
//!  request ── rules: may be approved without a person ──▶ approved ── signer ──▶ certificate ── 1 h ──▶ deleted
//!     │                                                      ▲
//!     └────── kubectl certificate approve ───────────────────┘
//! ```
//!
//! A first certificate is approved for whoever RBAC lets create `certificatesigningrequests/nodeclient` (bootstrap
//! tokens), the next ones for the node itself (`selfnodeclient`), as in kubeadm's clusters. What a node serves with is
//! approved if it names nothing but the node's own addresses. The authority's key comes with the configuration: the
//! controller is a plain client otherwise.

mod rules;
mod signer;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        certificates::v1::{
            CertificateSigningRequest, CertificateSigningRequestCondition,
            CertificateSigningRequestSpec,
        },
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{Controller, controller::Action, watcher},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    rules::{Asked, Signer, Verdict},
    signer::Authority,
};
use crate::{ClusterSigning, keep};

/// How long a request stays after it was dealt with; kube-controller-manager's `csrcleaner` has the same.
const KEEP_DECIDED: Duration = Duration::from_secs(60 * 60);
/// How long one stays that nobody dealt with.
const KEEP_PENDING: Duration = Duration::from_secs(24 * 60 * 60);
/// How soon a request is looked at again that waits for its node to say its addresses, while it is new.
const WAIT_FOR_NODE: Duration = Duration::from_millis(500);
/// For how long it is new.
const NEW: Duration = Duration::from_secs(60);
/// How soon it is looked at afterwards.
const WAIT_LONG: Duration = Duration::from_secs(30);

struct Context {
    client: Client,
    authority: Authority,
}

/// Approves, signs and clears away until shutdown.
pub(crate) async fn run(client: Client, signing: ClusterSigning, shutdown: CancellationToken) {
    let authority = match Authority::new(&signing) {
        Ok(authority) => authority,
        Err(error) => {
            warn!(%error, "Certificates are not signed: the authority cannot be used");
            return;
        }
    };
    let controller = Controller::new(
        Api::<CertificateSigningRequest>::all(client.clone()),
        watcher::Config::default(),
    );
    keep::until_shutdown(
        controller,
        "Certificate request not dealt with",
        reconcile,
        Context { client, authority },
        shutdown,
    )
    .await;
}

async fn reconcile(
    request: Arc<CertificateSigningRequest>,
    context: Arc<Context>,
) -> kube::Result<Action> {
    if request.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let api: Api<CertificateSigningRequest> = Api::all(context.client.clone());
    let name = request.name_any();
    let now = Timestamp::now();
    let stays = stays_for(&request, now);
    if stays.is_zero() {
        match api.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            deleted => drop(deleted?),
        }
        return Ok(Action::await_change());
    }
    let later = Action::requeue(stays);
    if is_issued(&request) || has(&request, "Denied") || has(&request, "Failed") {
        return Ok(later);
    }
    let spec = &request.spec;
    let Some(signer) = Signer::of(&spec.signer_name) else {
        return Ok(later);
    };
    let asked = Asked::read(&spec.request.0).and_then(|asked| {
        signer
            .check(&asked, spec.usages.as_deref().unwrap_or_default())
            .map(|()| asked)
    });
    if has(&request, "Approved") {
        let signed = asked.and_then(|asked| {
            context
                .authority
                .sign(signer, asked, spec.expiration_seconds, now)
        });
        let status = match signed {
            Ok(pem) => {
                info!(request = %name, requestor = spec.username, signer = spec.signer_name, "Certificate issued");
                json!({ "certificate": ByteString(pem.into_bytes()) })
            }
            Err(why) => {
                warn!(request = %name, error = %why, "Certificate not issued");
                json!({ "conditions": with(&request, "Failed", "SignerValidationFailure", &why, now) })
            }
        };
        let patch = patch(&request, status);
        settle(
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await,
        )?;
        return Ok(later);
    }
    let Ok(asked) = asked else {
        // A person may still deny it, or let the signer say what is wrong.
        return Ok(later);
    };
    let verdict = match signer {
        Signer::NodeServing => {
            let node = asked.node_name().unwrap_or_default();
            let nodes: Api<Node> = Api::all(context.client.clone());
            rules::serving(&asked, spec, nodes.get_opt(node).await?.as_ref())
        }
        signer => rules::client(signer, &asked, spec),
    };
    let message = match verdict {
        Verdict::Leave => return Ok(later),
        Verdict::Wait(why) => {
            let age = Duration::from_secs(age_seconds(&request, now));
            if age >= NEW {
                warn!(request = %name, why, "Certificate request not approved");
            }
            return Ok(Action::requeue(if age < NEW {
                WAIT_FOR_NODE
            } else {
                WAIT_LONG
            }));
        }
        Verdict::Approve(message) => message,
        Verdict::Review {
            subresource,
            message,
        } => {
            if !may(&context.client, spec, subresource).await? {
                return Ok(later);
            }
            message
        }
    };
    info!(request = %name, requestor = spec.username, signer = spec.signer_name, "Certificate request approved");
    let conditions = with(&request, "Approved", "AutoApproved", message, now);
    let patch = patch(&request, json!({ "conditions": conditions }));
    settle(
        api.patch_approval(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await,
    )?;
    Ok(later)
}

/// Of the version that was decided upon.
fn patch(request: &CertificateSigningRequest, status: Value) -> Value {
    json!({ "metadata": { "resourceVersion": request.resource_version() }, "status": status })
}

/// Somebody else may have been faster, or have removed it; news comes either way.
fn settle<T>(written: kube::Result<T>) -> kube::Result<()> {
    match written {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        written => written.map(drop),
    }
}

/// Whether whoever asks may have such a request approved without a person.
async fn may(
    client: &Client,
    spec: &CertificateSigningRequestSpec,
    subresource: &str,
) -> kube::Result<bool> {
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            groups: spec.groups.clone(),
            uid: spec.uid.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                verb: Some("create".into()),
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(subresource.into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

fn has(request: &CertificateSigningRequest, type_: &str) -> bool {
    let status = request.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    conditions
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == type_)
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    let status = request.status.as_ref();
    status
        .and_then(|status| status.certificate.as_ref())
        .is_some_and(|certificate| !certificate.0.is_empty())
}

/// The request's conditions and one more.
fn with(
    request: &CertificateSigningRequest,
    type_: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<CertificateSigningRequestCondition> {
    let status = request.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.clone());
    let mut conditions = conditions.unwrap_or_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
    conditions
}

fn age_seconds(request: &CertificateSigningRequest, now: Timestamp) -> u64 {
    let created = request.metadata.creation_timestamp.as_ref();
    created.map_or(0, |created| {
        now.duration_since(created.0)
            .as_secs()
            .max(0)
            .unsigned_abs()
    })
}

/// How long a request has still to stay.
fn stays_for(request: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let is_decided = is_issued(request) || has(request, "Denied") || has(request, "Failed");
    let keep = if is_decided {
        KEEP_DECIDED
    } else {
        KEEP_PENDING
    };
    keep.saturating_sub(Duration::from_secs(age_seconds(request, now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_cleared_away_an_hour_after_they_are_dealt_with() {
        let request = |status: Value| -> CertificateSigningRequest {
            serde_json::from_value(json!({
                "metadata": { "name": "a", "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "request": "", "signerName": "x/y" },
                "status": status,
            }))
            .unwrap()
        };
        let condition =
            |type_: &str| json!({ "conditions": [{ "type": type_, "status": "True" }] });
        for (status, hours) in [
            (json!({}), 24),
            (condition("Approved"), 24),
            (condition("Denied"), 1),
            (condition("Failed"), 1),
            (json!({ "certificate": "Yw==" }), 1),
        ] {
            let request = request(status.clone());
            let at = |seconds: i64| {
                stays_for(
                    &request,
                    Timestamp::from_second(1_767_225_600 + seconds).unwrap(),
                )
            };
            assert_eq!(at(0), Duration::from_secs(hours * 3600), "{status}");
            assert_eq!(at(hours.cast_signed() * 3600), Duration::ZERO, "{status}");
        }
    }
}
