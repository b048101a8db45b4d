//! Writing the status of an object.

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Writes a status if it is another than the one that is there. Who has gone has none.
pub(crate) async fn write<K, S>(
    api: &Api<K>,
    (name, uid): (&str, &str),
    old: Option<&S>,
    new: &S,
) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
    S: Serialize + PartialEq,
{
    if old == Some(new) {
        return Ok(());
    }
    let patch = json!({"metadata": {"uid": uid}, "status": difference(old, new)});
    let written = api
        .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    match written {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        written => written.map(drop),
    }
}

/// What is not said any more must go, and a merge only takes away what is null.
fn difference<S: Serialize>(old: Option<&S>, new: &S) -> Value {
    let mut new = serde_json::to_value(new).unwrap_or_default();
    let old = serde_json::to_value(old).unwrap_or_default();
    if let (Value::Object(old), Value::Object(new)) = (old, &mut new) {
        for (field, _) in old {
            new.entry(field).or_insert(Value::Null);
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_any_more_goes() {
        let (old, new) = (json!({"a": 1, "b": 2}), json!({"b": 3}));
        assert_eq!(difference(Some(&old), &new), json!({"a": null, "b": 3}));
        assert_eq!(difference(None, &new), new);
    }
}
