//! JSON patch, merge patch and strategic merge patch.
//!
//! A strategic merge patch knows from the schema which lists are sets of named things: it merges those item by item, and
//! understands directives in the patch: `$patch`, `$retainKeys`, `$setElementOrder/<list>`, `$deleteFromPrimitiveList/<list>`.

use serde_json::{Map, Value};

use crate::{
    Resource,
    schema::{PatchRule, Schema, Type},
};

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatchKind {
    /// `application/json-patch+json`, RFC 6902.
    Json,
    /// `application/merge-patch+json`, RFC 7386.
    Merge,
    /// `application/strategic-merge-patch+json`.
    StrategicMerge,
}

/// Why a patch could not be applied; messages are for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is none: 400.
    #[error("{0}")]
    BadRequest(String),
    /// It does not fit the object: 422.
    #[error("{0}")]
    Unprocessable(String),
    /// Too many operations: 413.
    #[error("{0}")]
    TooLarge(String),
}

/// Operations that a JSON patch may have, as in kube-apiserver.
const OPERATIONS_MAX: usize = 10_000;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

impl PatchKind {
    /// From a `Content-Type` without parameters.
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::StrategicMerge),
            _ => None,
        }
    }

    /// All content types.
    pub const CONTENT_TYPES: &'static [&'static str] = &[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        APPLY_CONTENT_TYPE,
    ];
}

/// Content type of a configuration to be applied: see [`crate::managed`].
pub const APPLY_CONTENT_TYPE: &str = "application/apply-patch+yaml";

/// Applies a patch. The result is not yet checked: [`crate::decode::check`] does that.
///
/// # Errors
/// When the patch is none, or does not fit the object.
pub fn apply(
    kind: PatchKind,
    resource: &Resource,
    original: &Value,
    patch: &Value,
) -> Result<Value, PatchError> {
    match kind {
        PatchKind::Json => apply_json(original, patch),
        PatchKind::Merge => {
            if !patch.is_object() {
                return Err(PatchError::BadRequest(
                    "error decoding patch: a merge patch must be an object".to_owned(),
                ));
            }
            let mut merged = original.clone();
            json_patch::merge(&mut merged, patch);
            Ok(merged)
        }
        PatchKind::StrategicMerge => {
            let schema = Schema::get();
            let (Some(original), Some(patch)) = (original.as_object(), patch.as_object()) else {
                return Err(PatchError::BadRequest(
                    "error decoding patch: invalid JSON document".to_owned(),
                ));
            };
            let type_ = schema
                .kind(resource.group, resource.version, resource.kind)
                .map(Type::Object);
            let merger = Merger { schema };
            merger
                .merge_map(original.clone(), patch.clone(), type_.as_ref(), false)
                .map(Value::Object)
        }
    }
}

fn apply_json(original: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| PatchError::BadRequest(format!("error decoding patch: {e}")))?;
    if operations.0.len() > OPERATIONS_MAX {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.0.len()
        )));
    }
    let mut patched = original.clone();
    json_patch::patch(&mut patched, &operations)
        .map_err(|e| PatchError::Unprocessable(e.to_string()))?;
    Ok(patched)
}

struct Merger {
    schema: &'static Schema,
}

type Merged<T> = Result<T, PatchError>;

fn bad<T>(message: impl Into<String>) -> Merged<T> {
    Err(PatchError::BadRequest(message.into()))
}

impl Merger {
    /// Type and patch rule of a field below `type_`.
    fn field<'t>(
        &self,
        type_: Option<&'t Type>,
        name: &str,
    ) -> (Option<&'t Type>, Option<&'static PatchRule>)
    where
        Self: 't,
    {
        match type_ {
            Some(Type::Object(id)) => match self.schema.object(*id).field(name) {
                Some(field) => (Some(&field.type_), field.patch),
                None => (None, None),
            },
            Some(Type::Map(value)) => (Some(value), None),
            _ => (None, None),
        }
    }

    /// `retain_keys`: the map is a union whose other members vanish when `$retainKeys` names one.
    fn merge_map(
        &self,
        mut original: Map<String, Value>,
        mut patch: Map<String, Value>,
        type_: Option<&Type>,
        retain_keys: bool,
    ) -> Merged<Map<String, Value>> {
        match patch.remove(DIRECTIVE) {
            None => {}
            Some(Value::String(directive)) => match directive.as_str() {
                "replace" => return Ok(without_directives(patch)),
                "delete" => return Ok(Map::new()),
                "merge" => {}
                other => return bad(format!("unknown patch type found: {other}")),
            },
            Some(other) => return bad(format!("unknown patch type found: {other}")),
        }
        if let Some(keys) = patch.remove(RETAIN_KEYS) {
            let Some(keys) = keys.as_array() else {
                return bad(format!(
                    "unexpected patch value in {RETAIN_KEYS}: expected an array"
                ));
            };
            if retain_keys || type_.is_some() {
                let is_kept = |key: &str| keys.iter().any(|kept| kept == key);
                if let Some(lost) = patch
                    .iter()
                    .find(|(key, value)| !value.is_null() && !is_kept(key))
                {
                    return bad(format!(
                        "patch has a field {} that {RETAIN_KEYS} does not name",
                        lost.0
                    ));
                }
                original.retain(|key, _| is_kept(key));
            }
        }
        self.order_lists(&mut original, &mut patch, type_)?;
        for (name, value) in patch {
            if let Some(list) = name.strip_prefix(DELETE_FROM) {
                let Value::Array(gone) = value else {
                    return bad(format!("{name}: expected an array"));
                };
                if let Some(Value::Array(items)) = original.get_mut(list) {
                    items.retain(|item| !gone.contains(item));
                }
                continue;
            }
            if value.is_null() {
                original.remove(&name);
                continue;
            }
            let (field_type, rule) = self.field(type_, &name);
            let merged = match (original.remove(&name), value) {
                (Some(Value::Object(old)), Value::Object(new)) => {
                    let is_union = rule.is_some_and(|rule| rule.retain_keys);
                    Value::Object(self.merge_map(old, new, field_type, is_union)?)
                }
                (Some(Value::Array(old)), Value::Array(new)) => match rule {
                    Some(rule) => Value::Array(self.merge_list(old, new, field_type, rule, None)?),
                    None => Value::Array(new),
                },
                // What is not there yet is taken as it stands in the patch.
                (_, new) => cleaned(new),
            };
            original.insert(name, merged);
        }
        Ok(original)
    }

    /// Merges the lists for which the patch states an order, and takes them and the order out of the patch.
    fn order_lists(
        &self,
        original: &mut Map<String, Value>,
        patch: &mut Map<String, Value>,
        type_: Option<&Type>,
    ) -> Merged<()> {
        let ordered: Vec<String> = patch
            .keys()
            .filter(|key| key.starts_with(SET_ORDER))
            .cloned()
            .collect();
        for key in ordered {
            let list = &key[SET_ORDER.len()..];
            let Some(Value::Array(order)) = patch.remove(&key) else {
                return bad(format!("{key}: expected an array"));
            };
            let (field_type, rule) = self.field(type_, list);
            let Some(rule) = rule else { continue };
            let new = match patch.remove(list) {
                Some(Value::Array(new)) => new,
                Some(Value::Null) => {
                    patch.insert(list.to_owned(), Value::Null);
                    continue;
                }
                Some(_) => return bad(format!("{list}: expected an array")),
                None => Vec::new(),
            };
            let gone = match patch.remove(&format!("{DELETE_FROM}{list}")) {
                Some(Value::Array(gone)) => gone,
                _ => Vec::new(),
            };
            let old = match original.remove(list) {
                Some(Value::Array(mut old)) => {
                    old.retain(|item| !gone.contains(item));
                    old
                }
                _ => Vec::new(),
            };
            let is_absent = old.is_empty() && new.is_empty();
            let merged = self.merge_list(old, new, field_type, rule, Some(order))?;
            if !is_absent {
                original.insert(list.to_owned(), Value::Array(merged));
            }
        }
        Ok(())
    }

    /// `order`: what `$setElementOrder` says; without it the items of the patch stand in the order of the patch.
    fn merge_list(
        &self,
        original: Vec<Value>,
        patch: Vec<Value>,
        type_: Option<&Type>,
        rule: &PatchRule,
        order: Option<Vec<Value>>,
    ) -> Merged<Vec<Value>> {
        let item_type = match type_ {
            Some(Type::List(item)) => Some(&**item),
            _ => None,
        };
        let key = rule.merge_key;
        let server_order = original.clone();
        if key.is_empty() {
            let mut merged = original;
            for item in &patch {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            return Ok(sort(
                merged,
                order.as_deref().unwrap_or(&patch),
                &server_order,
                key,
            ));
        }

        let mut merged = original;
        let mut wanted: Vec<Value> = Vec::with_capacity(patch.len());
        let mut replaces = false;
        for item in patch {
            let Value::Object(mut item) = item else {
                return bad(format!(
                    "the list of {key}s in the patch has an item that is no object: {item}"
                ));
            };
            match item
                .remove(DIRECTIVE)
                .as_ref()
                .map(|directive| directive.as_str().unwrap_or_default())
            {
                None => wanted.push(Value::Object(item)),
                Some("replace") => {
                    replaces = true;
                    // The directive may stand alone or in an item of the new list.
                    if !item.is_empty() {
                        wanted.push(Value::Object(item));
                    }
                }
                Some("delete") => {
                    let Some(gone) = item.get(key) else {
                        return no_key(&item, key);
                    };
                    merged.retain(|kept| kept.get(key) != Some(gone));
                }
                Some("merge") => return bad("merging lists cannot yet be specified in the patch"),
                Some(other) => return bad(format!("unknown patch type found: {other}")),
            }
        }
        if replaces {
            return Ok(wanted.into_iter().map(cleaned).collect());
        }
        let named = wanted.clone();
        for item in wanted {
            let Value::Object(item) = item else { continue };
            let Some(name) = item.get(key).cloned() else {
                return no_key(&item, key);
            };
            match merged.iter_mut().find(|old| old.get(key) == Some(&name)) {
                Some(old) => {
                    let before = old.as_object_mut().map(std::mem::take).unwrap_or_default();
                    *old =
                        Value::Object(self.merge_map(before, item, item_type, rule.retain_keys)?);
                }
                None => merged.push(cleaned(Value::Object(item))),
            }
        }
        Ok(sort(
            merged,
            order.as_deref().unwrap_or(&named),
            &server_order,
            key,
        ))
    }
}

fn no_key<T>(item: &Map<String, Value>, key: &str) -> Merged<T> {
    let item = Value::Object(item.clone());
    bad(format!(
        "map: {item} does not contain declared merge key: {key}"
    ))
}

/// Orders merged items: those that `order` names as it says, the others as the server had them, and both woven so that
/// the server's order is kept where it says something of a pair.
fn sort(merged: Vec<Value>, order: &[Value], server_order: &[Value], key: &str) -> Vec<Value> {
    let is_same = |a: &Value, b: &Value| {
        if key.is_empty() {
            a == b
        } else {
            a.get(key) == b.get(key)
        }
    };
    let position =
        |list: &[Value], item: &Value| list.iter().position(|other| is_same(other, item));
    let (mut patched, mut server_only): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|item| position(order, item).is_some());
    patched.sort_by_key(|item| position(order, item));
    server_only.sort_by_key(|item| position(server_order, item));

    let mut sorted = Vec::with_capacity(patched.len() + server_only.len());
    let (mut patched, mut server_only) = (
        patched.into_iter().peekable(),
        server_only.into_iter().peekable(),
    );
    loop {
        let server_first = match (server_only.peek(), patched.peek()) {
            (Some(ours), Some(theirs)) => position(server_order, ours)
                .zip(position(server_order, theirs))
                .is_some_and(|(ours, theirs)| ours < theirs),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return sorted,
        };
        sorted.extend(if server_first {
            server_only.next()
        } else {
            patched.next()
        });
    }
}

/// A value of the patch as it becomes a value of the object: without directives and nulls.
fn cleaned(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => Value::Array(
            items
                .into_iter()
                .filter(|item| !matches!(item.get(DIRECTIVE), Some(Value::String(directive)) if directive == "delete"))
                .map(cleaned)
                .collect(),
        ),
        other => other,
    }
}

fn without_directives(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(key, value)| {
            let is_directive = key == DIRECTIVE
                || key == RETAIN_KEYS
                || key.starts_with(DELETE_FROM)
                || key.starts_with(SET_ORDER);
            !is_directive && !value.is_null()
        })
        .map(|(key, value)| (key, cleaned(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn strategic(original: Value, patch: Value) -> Result<Value, PatchError> {
        apply(
            PatchKind::StrategicMerge,
            crate::find("", "v1", "pods").expect("pods"),
            &original,
            &patch,
        )
    }

    #[test]
    fn strategic_merge_patches_follow_the_schema() {
        let containers = |list: Value| json!({"spec": {"containers": list}});
        for (claim, original, patch, result) in [
            (
                "containers are merged by name",
                containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
                containers(json!([{"name": "b", "image": "2"}])),
                containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}])),
            ),
            (
                "ports are merged by containerPort and env by name",
                containers(
                    json!([{"name": "a", "env": [{"name": "X", "value": "1"}], "ports": [{"containerPort": 80}]}]),
                ),
                containers(
                    json!([{"name": "a", "env": [{"name": "X", "value": "2"}], "ports": [{"containerPort": 80, "name": "http"}]}]),
                ),
                containers(
                    json!([{"name": "a", "env": [{"name": "X", "value": "2"}], "ports": [{"containerPort": 80, "name": "http"}]}]),
                ),
            ),
            (
                "lists without a merge key are replaced",
                containers(json!([{"name": "a", "args": ["1", "2"]}])),
                containers(json!([{"name": "a", "args": ["3"]}])),
                containers(json!([{"name": "a", "args": ["3"]}])),
            ),
            (
                "tolerations are replaced",
                json!({"spec": {"tolerations": [{"key": "a"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
            ),
            (
                "$patch: delete takes an item out",
                containers(json!([{"name": "a"}, {"name": "b"}])),
                containers(json!([{"name": "a", "$patch": "delete"}])),
                containers(json!([{"name": "b"}])),
            ),
            (
                "$patch: replace in a list replaces the list",
                containers(json!([{"name": "a"}, {"name": "b"}])),
                containers(json!([{"$patch": "replace"}, {"name": "c"}])),
                containers(json!([{"name": "c"}])),
            ),
            (
                "$patch: replace in a map replaces the map",
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"c": "3", "$patch": "replace"}}}),
                json!({"metadata": {"labels": {"c": "3"}}}),
            ),
            (
                "$patch: delete in a map empties it",
                json!({"metadata": {"labels": {"a": "1"}}}),
                json!({"metadata": {"labels": {"$patch": "delete"}}}),
                json!({"metadata": {"labels": {}}}),
            ),
            (
                "null takes a field out",
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"a": null, "c": null}}}),
                json!({"metadata": {"labels": {"b": "2"}}}),
            ),
            (
                "$retainKeys leaves one member of a union",
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}, "$retainKeys": ["name", "hostPath"]}]}}),
                json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}),
            ),
            (
                "finalizers are a set",
                json!({"metadata": {"finalizers": ["a/x", "a/y"]}}),
                json!({"metadata": {"finalizers": ["a/y", "a/z"], "$setElementOrder/finalizers": ["a/x", "a/y", "a/z"]}}),
                json!({"metadata": {"finalizers": ["a/x", "a/y", "a/z"]}}),
            ),
            (
                "$deleteFromPrimitiveList takes values out",
                json!({"metadata": {"finalizers": ["a/x", "a/y"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/x"]}}),
                json!({"metadata": {"finalizers": ["a/y"]}}),
            ),
            (
                "$deleteFromPrimitiveList and $setElementOrder go together, as kubectl sends them",
                json!({"metadata": {"finalizers": ["a/x", "a/y"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/x"], "$setElementOrder/finalizers": ["a/y"]}}),
                json!({"metadata": {"finalizers": ["a/y"]}}),
            ),
            (
                "$setElementOrder orders, and what only the server has keeps its place",
                containers(json!([{"name": "a"}, {"name": "server"}, {"name": "b"}])),
                json!({"spec": {
                    "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "c"}],
                    "containers": [{"name": "c", "image": "i"}],
                }}),
                containers(
                    json!([{"name": "server"}, {"name": "b"}, {"name": "a"}, {"name": "c", "image": "i"}]),
                ),
            ),
            (
                "$setElementOrder alone only orders",
                containers(json!([{"name": "a", "image": "1"}, {"name": "b"}])),
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
                containers(json!([{"name": "b"}, {"name": "a", "image": "1"}])),
            ),
            (
                "conditions are merged by type",
                json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}]}}),
            ),
            (
                "what was not there is taken without directives and nulls",
                json!({}),
                json!({"metadata": {"labels": {"a": "1", "b": null, "$patch": "merge"}}}),
                json!({"metadata": {"labels": {"a": "1"}}}),
            ),
        ] {
            assert_eq!(strategic(original, patch).expect(claim), result, "{claim}");
        }
    }

    #[test]
    fn strategic_merge_patches_that_make_no_sense_are_refused() {
        for (patch, message) in [
            (json!({"$patch": "foo"}), "unknown patch type found: foo"),
            (
                json!({"spec": {"containers": [{"image": "x"}]}}),
                "map: {\"image\":\"x\"} does not contain declared merge key: name",
            ),
            (json!([]), "error decoding patch: invalid JSON document"),
        ] {
            let original = json!({"spec": {"containers": [{"name": "a"}]}});
            assert_eq!(
                strategic(original, patch),
                Err(PatchError::BadRequest(message.to_owned()))
            );
        }
    }

    #[test]
    fn an_empty_strategic_patch_changes_nothing() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(strategic(pod.clone(), json!({})).expect("empty"), pod);
        assert_eq!(strategic(pod.clone(), pod.clone()).expect("itself"), pod);
    }

    #[test]
    fn json_and_merge_patches_are_those_of_their_rfcs() {
        let pods = crate::find("", "v1", "pods").expect("pods");
        let pod = json!({"metadata": {"labels": {"a": "1"}}});
        let patch = json!([{"op": "replace", "path": "/metadata/labels/a", "value": "2"}]);
        assert_eq!(
            apply(PatchKind::Json, pods, &pod, &patch).expect("patch"),
            json!({"metadata": {"labels": {"a": "2"}}})
        );
        let patch = json!([{"op": "test", "path": "/metadata/labels/a", "value": "2"}]);
        assert!(matches!(
            apply(PatchKind::Json, pods, &pod, &patch),
            Err(PatchError::Unprocessable(_))
        ));
        let patch = json!({"op": "test"});
        assert!(matches!(
            apply(PatchKind::Json, pods, &pod, &patch),
            Err(PatchError::BadRequest(_))
        ));
        let patch = json!({"metadata": {"labels": {"a": null, "b": "2"}}});
        assert_eq!(
            apply(PatchKind::Merge, pods, &pod, &patch).expect("patch"),
            json!({"metadata": {"labels": {"b": "2"}}})
        );
        let many = Value::Array(vec![
            json!({"op": "test", "path": "", "value": 1});
            OPERATIONS_MAX + 1
        ]);
        assert!(matches!(
            apply(PatchKind::Json, pods, &pod, &many),
            Err(PatchError::TooLarge(_))
        ));
    }
}
