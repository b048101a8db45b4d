//! Who manages which field: `metadata.managedFields`, and server-side apply, which goes by it.
//!
//! ```text
//!  apply   live ⊕ configuration − what its manager applied before, nobody else manages, and it no longer names
//!          what changes and others manage: a conflict, or theirs no more when forced
//!  update  what changed is its manager's and nobody else's
//! ```
//!
//! Pure, after `sigs.k8s.io/structured-merge-diff` and the field manager of kube-apiserver. A live list in which an item
//! stands twice is managed as a whole.

mod set;
mod walk;

use serde_json::{Map, Value, json};

pub use set::FieldSet;
use walk::{Shape, compare, fields_of, merge, prune, without_system_fields};

use crate::{
    Resource, Status, meta,
    schema::Schema,
    status::{StatusCause, StatusDetails},
};

/// Managers that update, before the oldest of them become one.
const UPDATERS_MAX: usize = 10;
/// Name of those of old.
const ANCIENT: &str = "ancient-changes";
/// Name of whoever made what was there before anybody was recorded.
const BEFORE: &str = "before-first-apply";
/// What kubectl's client-side apply leaves on an object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager that takes over from client-side apply.
const KUBECTL: &str = "kubectl";

/// One who manages fields.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    is_apply: bool,
    api_version: String,
    /// When the fields last changed hands; empty: unknown.
    time: String,
    subresource: String,
    fields: FieldSet,
}

impl Entry {
    fn parse(value: &Value) -> Option<Self> {
        let text = |field: &str| {
            let text = value.get(field).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let operation = text("operation");
        if !matches!(operation.as_str(), "Apply" | "Update") || text("fieldsType") != "FieldsV1" {
            return None;
        }
        Some(Self {
            manager: text("manager"),
            is_apply: operation == "Apply",
            api_version: text("apiVersion"),
            time: text("time"),
            subresource: text("subresource"),
            fields: FieldSet::parse(value.get("fieldsV1")?)?,
        })
    }

    fn to_value(&self) -> Value {
        let mut value = Map::new();
        let mut add = |field: &str, text: &str| {
            if !text.is_empty() {
                value.insert(field.to_owned(), text.into());
            }
        };
        add("manager", &self.manager);
        add("operation", if self.is_apply { "Apply" } else { "Update" });
        add("apiVersion", &self.api_version);
        add("time", &self.time);
        add("fieldsType", "FieldsV1");
        add("subresource", &self.subresource);
        value.insert("fieldsV1".to_owned(), self.fields.to_value());
        Value::Object(value)
    }

    fn is_same_manager(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.is_apply == other.is_apply
            && self.subresource == other.subresource
            && (self.is_apply || self.api_version == other.api_version)
    }

    /// As conflicts name it.
    fn describe(&self) -> String {
        let mut text = crate::field::quote(&self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(
                " with subresource {}",
                crate::field::quote(&self.subresource)
            ));
        }
        if !self.is_apply {
            text.push_str(&format!(" using {}", self.api_version));
            if !self.time.is_empty() {
                text.push_str(&format!(" at {}", self.time));
            }
        }
        text
    }
}

/// What an object says of its managers. `None`: there is something that cannot be read.
fn entries_of(object: &Value) -> Option<Vec<Entry>> {
    match object.pointer("/metadata/managedFields") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(entries)) => entries.iter().map(Entry::parse).collect(),
        Some(_) => None,
    }
}

fn write_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| {
        (
            !a.is_apply,
            &a.time,
            &a.manager,
            &a.api_version,
            &a.subresource,
        )
            .cmp(&(
                !b.is_apply,
                &b.time,
                &b.manager,
                &b.api_version,
                &b.subresource,
            ))
    });
    let metadata = meta::metadata_mut(object);
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        let entries = entries.iter().map(Entry::to_value).collect();
        metadata.insert("managedFields".to_owned(), Value::Array(entries));
    }
}

/// Who does something, where, and when.
#[derive(Clone, Copy, Debug)]
pub struct Act<'a> {
    /// What it is done to.
    pub resource: &'a Resource,
    /// By which path below the object; empty: the object's own.
    pub subresource: &'a str,
    /// Name of who does it.
    pub manager: &'a str,
    /// When, in RFC 3339.
    pub now: &'a str,
}

impl Act<'_> {
    fn shape(&self) -> Shape<'static> {
        let resource = self.resource;
        Shape::of_kind(
            Schema::get(),
            resource.group,
            resource.version,
            resource.kind,
        )
    }

    fn entry(&self, is_apply: bool) -> Entry {
        Entry {
            manager: self.manager.to_owned(),
            is_apply,
            api_version: self.resource.api_version(),
            time: self.now.to_owned(),
            subresource: self.subresource.to_owned(),
            fields: FieldSet::default(),
        }
    }

    /// Leaves of a set what this path can write.
    fn confine(&self, set: &mut FieldSet) {
        match self.subresource {
            "status" => set.retain("f:status"),
            "" if self.resource.has_status() => set.remove("f:status"),
            _ => {}
        }
    }
}

/// Records what an update (or a creation, with `old` null) changed as its manager's. `new` may bring a record of its own,
/// which then counts instead of the old one; `[{}]` asks for a new beginning.
pub fn track_update(act: &Act<'_>, old: &Value, new: &mut Value) {
    let given = new.pointer("/metadata/managedFields").cloned();
    let is_reset = given == Some(json!([{}]));
    let mut entries = if is_reset {
        Vec::new()
    } else {
        // A path below the object does not write the record.
        let own = act
            .subresource
            .is_empty()
            .then(|| entries_of(new))
            .flatten();
        own.filter(|entries| !entries.is_empty())
            .or_else(|| entries_of(old))
            .unwrap_or_default()
    };
    let is_first = entries.is_empty() && !old.is_null();
    if is_first && !is_reset {
        // Nobody is known: that is settled when somebody applies.
        meta::metadata_mut(new).remove("managedFields");
        return;
    }
    if is_reset {
        meta::metadata_mut(new).remove("managedFields");
        return;
    }
    let difference = compare(
        &without_system_fields(old),
        &without_system_fields(new),
        act.shape(),
    );
    let mut changed = difference.added;
    changed.union(&difference.modified);
    act.confine(&mut changed);
    for entry in &mut entries {
        entry.fields.subtract(&changed);
        entry.fields.subtract(&difference.removed);
    }
    if !changed.is_empty() {
        let mine = act.entry(false);
        match entries
            .iter_mut()
            .find(|entry| entry.is_same_manager(&mine))
        {
            Some(entry) => {
                entry.fields.union(&changed);
                entry.time.clone_from(&mine.time);
            }
            None => entries.push(Entry {
                fields: changed,
                ..mine
            }),
        }
        cap(&mut entries);
    }
    write_entries(new, entries);
}

/// Makes the oldest updaters one when there are too many.
fn cap(entries: &mut Vec<Entry>) {
    let updaters = entries.iter().filter(|entry| !entry.is_apply).count();
    if updaters <= UPDATERS_MAX {
        return;
    }
    let (mut old, kept): (Vec<Entry>, Vec<Entry>) = std::mem::take(entries)
        .into_iter()
        .partition(|entry| !entry.is_apply);
    old.sort_by(|a, b| a.time.cmp(&b.time));
    let mut rest = old.split_off(updaters - UPDATERS_MAX + 1);
    *entries = kept;
    for entry in old {
        let found = entries
            .iter_mut()
            .find(|other| other.manager == ANCIENT && other.api_version == entry.api_version);
        match found {
            Some(ancient) => {
                ancient.fields.union(&entry.fields);
                ancient.time.clone_from(&entry.time);
            }
            None => entries.push(Entry {
                manager: ANCIENT.to_owned(),
                subresource: String::new(),
                ..entry
            }),
        }
    }
    entries.append(&mut rest);
}

/// A field that another manager has set to something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who, as messages name it.
    pub manager: String,
    /// Which, such as `.spec.containers[name="a"].image`.
    pub path: String,
}

/// Why a configuration could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Others manage what it would change: 409, unless forced.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// It is no configuration of such an object.
    #[error("{0}")]
    Invalid(String),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            only.manager, only.path
        );
    }
    let mut managers: Vec<&str> = conflicts
        .iter()
        .map(|conflict| &*conflict.manager)
        .collect();
    managers.sort_unstable();
    managers.dedup();
    let mut lines = Vec::new();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        let own = conflicts
            .iter()
            .filter(|conflict| conflict.manager == manager);
        lines.extend(own.map(|conflict| format!("- {}", conflict.path)));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}

impl ApplyError {
    /// As a client is told.
    pub fn to_status(&self) -> Status {
        match self {
            Self::Invalid(message) => Status::bad_request(message.clone()),
            Self::Conflicts(conflicts) => {
                let causes = conflicts.iter().map(|conflict| StatusCause {
                    reason: "FieldManagerConflict".to_owned(),
                    message: format!("conflict with {}", conflict.manager),
                    field: conflict.path.clone(),
                });
                Status::failure(409, "Conflict", self.to_string()).with_details(StatusDetails {
                    causes: causes.collect(),
                    ..StatusDetails::default()
                })
            }
        }
    }
}

/// Applies a configuration to a live object (null: there is none yet). What comes back has its record written.
///
/// # Errors
/// [`ApplyError::Conflicts`] unless `is_forced`; [`ApplyError::Invalid`] when the configuration cannot be one.
pub fn apply(
    act: &Act<'_>,
    live: &Value,
    config: &Value,
    is_forced: bool,
) -> Result<Value, ApplyError> {
    let result = apply_once(act, live, config, is_forced);
    // What kubectl applied from the client's side it may take over from the server's.
    let Err(ApplyError::Conflicts(conflicts)) = &result else {
        return result;
    };
    if act.manager != KUBECTL {
        return result;
    }
    let allowed = last_applied(act, live)
        .map(|set| set.paths())
        .unwrap_or_default();
    let (mine, others): (Vec<Conflict>, Vec<Conflict>) = conflicts
        .iter()
        .cloned()
        .partition(|conflict| allowed.contains(&conflict.path));
    match (mine.is_empty(), others.is_empty()) {
        (false, true) => apply_once(act, live, config, true),
        (_, false) => Err(ApplyError::Conflicts(others)),
        (true, true) => result,
    }
}

/// The fields of the last configuration that was applied from the client's side and still stand as it said.
fn last_applied(act: &Act<'_>, live: &Value) -> Option<FieldSet> {
    let config: Value = serde_json::from_str(meta::annotation(live, LAST_APPLIED)?).ok()?;
    let config = without_system_fields(&config);
    let live = without_system_fields(live);
    let mut set = fields_of(&config, act.shape());
    let difference = compare(&config, &live, act.shape());
    set.subtract(&difference.modified);
    set.subtract(&difference.removed);
    Some(set)
}

fn apply_once(
    act: &Act<'_>,
    live: &Value,
    config: &Value,
    is_forced: bool,
) -> Result<Value, ApplyError> {
    let shape = act.shape();
    if config
        .pointer("/metadata/managedFields")
        .is_some_and(|fields| !fields.is_null())
    {
        return Err(ApplyError::Invalid(
            "metadata.managedFields must be nil".to_owned(),
        ));
    }
    let bare = without_system_fields(config);
    walk::check(&bare, shape, "").map_err(|trouble| {
        let name = match meta::namespace(config) {
            "" => meta::name(config).to_owned(),
            namespace => format!("{namespace}/{}", meta::name(config)),
        };
        ApplyError::Invalid(format!(
            "failed to create typed patch object ({name}; {}, Kind={}): {trouble}",
            act.resource.api_version(),
            act.resource.kind
        ))
    })?;
    let mut wanted = fields_of(&bare, shape);
    act.confine(&mut wanted);

    let mut entries = entries_of(live).unwrap_or_default();
    let live_bare = without_system_fields(live);
    if entries.is_empty() && !live.is_null() {
        let fields = fields_of(&live_bare, shape);
        entries.push(Entry {
            manager: BEFORE.to_owned(),
            subresource: String::new(),
            fields,
            ..act.entry(false)
        });
    }
    let mut mine = act.entry(true);
    let before = entries
        .iter()
        .position(|entry| entry.is_same_manager(&mine));
    let before = before.map(|at| entries.remove(at));

    let base = if live.is_null() {
        &Value::Object(Map::new())
    } else {
        live
    };
    let mut merged = merge(base, config, shape);
    if !live.is_null() {
        keep_system_fields(&mut merged, live);
    }
    if let Some(before) = &before {
        let mut keep = wanted.clone();
        keep.insert(&["f:metadata".to_owned(), "f:name".to_owned()]);
        for entry in &entries {
            keep.union(&entry.fields);
        }
        prune(&mut merged, &before.fields, &keep, shape);
    }

    let difference = compare(&live_bare, &without_system_fields(&merged), shape);
    let mut changed = difference.added;
    changed.union(&difference.modified);
    let mut conflicts = Vec::new();
    for entry in &mut entries {
        let both = entry.fields.intersection(&changed);
        conflicts.extend(both.paths().into_iter().map(|path| Conflict {
            manager: entry.describe(),
            path,
        }));
        entry.fields.subtract(&both);
        entry.fields.subtract(&difference.removed);
    }
    if !is_forced && !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    mine.fields = wanted;
    if let Some(before) = before
        && before.fields == mine.fields
        && changed.is_empty()
        && difference.removed.is_empty()
    {
        mine.time = before.time;
    }
    entries.push(mine);
    if act.manager == KUBECTL && meta::annotation(&merged, LAST_APPLIED).is_some() {
        let text = config.to_string();
        merged["metadata"]["annotations"][LAST_APPLIED] = text.into();
    }
    write_entries(&mut merged, entries);
    Ok(merged)
}

/// What a configuration says of what is the server's does not count, but for what it insists on.
fn keep_system_fields(merged: &mut Value, live: &Value) {
    let metadata = meta::metadata_mut(merged);
    for field in [
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        match live
            .get("metadata")
            .and_then(|metadata| metadata.get(field))
        {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

#[cfg(test)]
mod tests;
