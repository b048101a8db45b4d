//! ResourceQuota: what an object takes is reserved in the status of each quota that holds it, before it is made.
//!
//! Reserving is a compare-and-swap, so that two objects never share what is enough for one, whichever servers they come
//! to. One that is not made after all gives back what was reserved; what is freed by deletions is counted anew by a
//! controller.

use std::hash::{BuildHasher, RandomState};

use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};
use wherry_api::{
    Resource, Status, meta,
    quantity::Quantity,
    quota::{self, Amounts},
};
use wherry_store::{Durability, KeyValue, StoreError};

use crate::{App, call::Call, stored, verbs::store_status};

/// How often a reservation is tried anew when somebody else wrote in between: other servers, and the recount.
const TRIES_MAX: usize = 32;
/// Objects of as many namespaces reserve side by side.
const TURNS: usize = 16;

/// Who reserves next, by namespace: those of one server take turns, for they would only undo each other's tries.
pub(crate) struct Turns {
    hasher: RandomState,
    turns: [Mutex<()>; TURNS],
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            turns: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl Turns {
    async fn take(&self, namespace: &str) -> MutexGuard<'_, ()> {
        let at = self.hasher.hash_one(namespace) % TURNS as u64;
        self.turns[usize::try_from(at).unwrap_or_default()]
            .lock()
            .await
    }
}

fn row() -> &'static Resource {
    wherry_api::find("", "v1", "resourcequotas").expect("a row")
}

/// What was reserved, by the quotas' keys.
#[derive(Debug, Default)]
#[must_use = "an object that is not made gives back what was reserved for it"]
pub(crate) struct Reservation(Vec<(Box<str>, Amounts)>);

impl Reservation {
    /// Gives it back.
    pub(crate) async fn release(self, app: &App) {
        for (key, taken) in self.0 {
            for _ in 0..TRIES_MAX {
                let Ok((Some(kv), _)) = app.store.get(&key).await else {
                    break;
                };
                let less: Amounts = taken
                    .iter()
                    .map(|(name, amount)| (name.clone(), Quantity::ZERO - *amount))
                    .collect();
                match write(app, &kv, &less).await {
                    Err(StoreError::Conflict { .. }) => {}
                    _ => break,
                }
            }
        }
    }
}

/// Adds to what is used of a quota. It may be forgotten by a power cut, and is then counted anew.
async fn write(app: &App, kv: &KeyValue, more: &Amounts) -> Result<KeyValue, StoreError> {
    let mut object = stored::decode(kv);
    let mut used = quota::amounts(&object["status"], "used");
    for (name, more) in more {
        let used = used.entry(name.clone()).or_insert(Quantity::ZERO);
        *used = (*used + *more).max(Quantity::ZERO);
    }
    object["status"]["used"] = quota::to_value(&used);
    let value = stored::encode(row(), &object);
    app.store
        .update(&kv.key, value, kv.mod_revision, Durability::Lazy)
        .await
}

/// What an object takes of a quota more than it did before: all of it if the quota has not held it until now; `None` if
/// the quota does not hold it.
fn more(call: &Call, quota_spec: &Value, new: &Value, old: Option<&Value>) -> Option<Amounts> {
    let (group, plural) = (call.resource.group, call.resource.plural);
    let is_held = |object: &&Value| quota::covers(quota_spec, plural, object);
    let mut more = Some(new)
        .filter(is_held)
        .map(|new| quota::usage(group, plural, new))?;
    for (name, before) in old
        .filter(is_held)
        .map(|old| quota::usage(group, plural, old))
        .unwrap_or_default()
    {
        let now = more.get(&name).copied().unwrap_or(Quantity::ZERO);
        more.insert(name, now - before);
    }
    more.retain(|_, amount| !amount.is_zero());
    Some(more)
}

/// Whether a change of this can take more than the object had, of one quota or another.
fn may_grow(call: &Call, subresource: &str, new: &Value, old: &Value) -> bool {
    match (call.resource.group, call.resource.plural) {
        ("", "services" | "persistentvolumeclaims") => subresource.is_empty(),
        // A deadline is all of a pod that both scopes look at and a change may set.
        ("", "pods") if subresource.is_empty() => {
            let deadline = |pod: &Value| pod.pointer("/spec/activeDeadlineSeconds").is_some();
            deadline(new) != deadline(old)
        }
        ("", "pods") => subresource == "resize",
        _ => false,
    }
}

/// Reserves what a new object takes.
pub(crate) async fn reserve_new(
    call: &Call,
    namespace: &str,
    object: &Value,
    is_dry_run: bool,
) -> Result<Reservation, Status> {
    if !call.resource.namespaced || call.resource.lazy {
        return Ok(Reservation::default());
    }
    reserve(call, namespace, object, None, is_dry_run).await
}

/// Reserves what a changed object takes more than before.
pub(crate) async fn reserve_change(
    call: &Call,
    subresource: &str,
    new: &Value,
    old: &Value,
    is_dry_run: bool,
) -> Result<Reservation, Status> {
    if !may_grow(call, subresource, new, old) {
        return Ok(Reservation::default());
    }
    reserve(call, call.namespace(), new, Some(old), is_dry_run).await
}

async fn reserve(
    call: &Call,
    namespace: &str,
    new: &Value,
    old: Option<&Value>,
    is_dry_run: bool,
) -> Result<Reservation, Status> {
    let app = &call.app;
    let prefix = stored::collection(row(), namespace);
    let list = async || {
        let listed = app.store.list(&prefix, None, 0, 0).await;
        listed
            .map(|list| list.items)
            .map_err(|error| store_status(row(), "", error))
    };
    let quotas = call.judged_by_all(&prefix).await;
    let quotas = quotas.map_err(|error| store_status(row(), "", error))?;
    let asks = |kv: &KeyValue| {
        let more = more(call, &stored::decode(kv)["spec"], new, old);
        more.is_some_and(|more| more.values().any(|amount| *amount > Quantity::ZERO))
    };
    // What gets less is counted anew by the controller.
    if quotas.is_empty() || (old.is_some() && !quotas.iter().any(asks)) {
        return Ok(Reservation::default());
    }
    let _turn = app.quota_turns.take(namespace).await;
    for _ in 0..TRIES_MAX {
        let mut wanted = Vec::new();
        for kv in list().await? {
            if let Some(asked) = asked(call, &kv, new, old)? {
                wanted.push((kv, asked));
            }
        }
        let mut reserved = Reservation::default();
        if is_dry_run {
            return Ok(reserved);
        }
        let mut failed = None;
        for (kv, asked) in wanted {
            match write(app, &kv, &asked).await {
                Ok(_) => reserved.0.push((kv.key.as_ref().into(), asked)),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        match failed {
            None => return Ok(reserved),
            Some(error) => {
                reserved.release(app).await;
                if !matches!(error, StoreError::Conflict { .. } | StoreError::NotFound(_)) {
                    return Err(store_status(row(), "", error));
                }
            }
        }
    }
    let message = format!(
        "{} could not be counted: quotas of the namespace change too fast",
        call.resource.plural
    );
    Err(Status::too_many_requests(&message, 1))
}

/// What is asked of one quota; `None`: it holds nothing of it.
fn asked(
    call: &Call,
    kv: &KeyValue,
    new: &Value,
    old: Option<&Value>,
) -> Result<Option<Amounts>, Status> {
    let object = stored::decode(kv);
    let Some(more) = more(call, &object["spec"], new, old) else {
        return Ok(None);
    };
    let hard = quota::amounts(&object["status"], "hard");
    let asked = quota::held(&more, &hard);
    let name = meta::name(new);
    let refuse = |detail: String| Err(Status::forbidden(call.resource, name, &detail));
    if old.is_none()
        && call.resource.group.is_empty()
        && call.resource.plural == "pods"
        && let Some(what) = quota::unspecified(&hard, new)
    {
        return refuse(format!(
            "failed quota: {}: must specify {what}",
            meta::name(&object)
        ));
    }
    if asked.is_empty() {
        return Ok(None);
    }
    match quota::refusal(&object, &asked) {
        Some(why) => refuse(why),
        None => Ok(Some(asked)),
    }
}
