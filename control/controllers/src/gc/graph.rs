//! Who depends on whom, as far as somebody does. Pure.
//!
//! Of an object that nobody owns and that owns nobody, only a number is kept: that it is there.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The finalizers of the two ways to be deleted that the collector has a part in.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

/// Stands for a uid, which is five times as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id(u64);

impl Id {
    pub(crate) fn of(uid: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        uid.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// An object with owners, or one that is deleted with its dependents in mind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Index of its resource.
    pub(crate) resource: usize,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) owners: Vec<OwnerReference>,
    pub(crate) deletion: Option<Deletion>,
}

/// How an object that is on its way out treats its dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// They go first.
    Foreground,
    /// They stay and forget it.
    Orphan,
}

/// Something to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Work {
    /// An object whose owners may all be gone.
    Dependent(Id),
    /// An object whose dependents are to go, or to be let go, before it does.
    Owner(Id),
}

#[derive(Debug, Default)]
pub(crate) struct Graph {
    entries: HashMap<Id, Entry>,
    dependents: HashMap<Id, BTreeSet<Id>>,
    /// What is there, by resource.
    present: HashMap<usize, HashSet<Id>>,
    /// What a list that is under way has shown.
    listed: HashMap<usize, HashSet<Id>>,
}

impl Graph {
    /// Begins a list of a resource.
    pub(crate) fn begin_list(&mut self, resource: usize) {
        self.listed.insert(resource, HashSet::new());
    }

    /// Ends it: what it has not shown is gone.
    pub(crate) fn end_list(&mut self, resource: usize) -> Vec<Work> {
        let listed = self.listed.remove(&resource).unwrap_or_default();
        let known = self.present.get(&resource).into_iter().flatten();
        let gone: Vec<Id> = known.filter(|id| !listed.contains(id)).copied().collect();
        gone.into_iter()
            .flat_map(|id| self.remove(resource, id))
            .collect()
    }

    /// Takes an object's news.
    pub(crate) fn set(&mut self, resource: usize, metadata: &ObjectMeta) -> Vec<Work> {
        let uid = metadata.uid.clone().unwrap_or_default();
        let id = Id::of(&uid);
        self.present.entry(resource).or_default().insert(id);
        if let Some(listed) = self.listed.get_mut(&resource) {
            listed.insert(id);
        }
        let mut work = Vec::new();
        self.unlink(id);
        let entry = Entry {
            resource,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone().unwrap_or_default(),
            uid,
            owners: metadata.owner_references.clone().unwrap_or_default(),
            deletion: deletion(metadata),
        };
        if entry.deletion.is_some() {
            work.push(Work::Owner(id));
        }
        if !entry.owners.is_empty() {
            work.push(Work::Dependent(id));
            for owner in &entry.owners {
                self.dependents
                    .entry(Id::of(&owner.uid))
                    .or_default()
                    .insert(id);
            }
        }
        if !work.is_empty() {
            self.entries.insert(id, entry);
        }
        work
    }

    /// Forgets an object; its dependents and the owners that wait for it are to be looked at.
    pub(crate) fn remove(&mut self, resource: usize, id: Id) -> Vec<Work> {
        if let Some(present) = self.present.get_mut(&resource) {
            present.remove(&id);
        }
        let owners = self.unlink(id).map_or_else(Vec::new, |entry| entry.owners);
        let waiting = owners
            .iter()
            .map(|owner| Id::of(&owner.uid))
            .filter(|owner| self.is_foreground(*owner));
        let dependents = self
            .dependents
            .get(&id)
            .into_iter()
            .flatten()
            .map(|id| Work::Dependent(*id));
        dependents.chain(waiting.map(Work::Owner)).collect()
    }

    /// Forgets a resource that is served no more.
    pub(crate) fn remove_resource(&mut self, resource: usize) -> Vec<Work> {
        self.begin_list(resource);
        self.end_list(resource)
    }

    fn unlink(&mut self, id: Id) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        for owner in &entry.owners {
            let owner = Id::of(&owner.uid);
            if let Some(dependents) = self.dependents.get_mut(&owner) {
                dependents.remove(&id);
                if dependents.is_empty() {
                    self.dependents.remove(&owner);
                }
            }
        }
        Some(entry)
    }

    pub(crate) fn entry(&self, id: Id) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Whether an object waits for its dependents to go.
    pub(crate) fn is_foreground(&self, id: Id) -> bool {
        self.entries
            .get(&id)
            .is_some_and(|entry| entry.deletion == Some(Deletion::Foreground))
    }

    /// Whether an object is known to be there and to stay: a dependent of it is none of the
    /// collector's business.
    pub(crate) fn is_solid(&self, id: Id) -> bool {
        self.present.values().any(|present| present.contains(&id)) && !self.is_foreground(id)
    }

    pub(crate) fn dependents(&self, id: Id) -> Vec<Id> {
        self.dependents
            .get(&id)
            .into_iter()
            .flatten()
            .copied()
            .collect()
    }

    /// Dependents that hold up the deletion of their owner.
    pub(crate) fn has_blocking_dependents(&self, id: Id) -> bool {
        self.dependents(id)
            .iter()
            .filter_map(|dependent| self.entries.get(dependent))
            .any(|dependent| {
                let refers = |owner: &&OwnerReference| Id::of(&owner.uid) == id;
                dependent
                    .owners
                    .iter()
                    .filter(refers)
                    .any(|owner| owner.block_owner_deletion == Some(true))
            })
    }
}

fn deletion(metadata: &ObjectMeta) -> Option<Deletion> {
    metadata.deletion_timestamp.as_ref()?;
    let has = |finalizer: &str| {
        metadata
            .finalizers
            .iter()
            .flatten()
            .any(|other| other == finalizer)
    };
    if has(ORPHAN) {
        Some(Deletion::Orphan)
    } else {
        has(FOREGROUND).then_some(Deletion::Foreground)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metadata(uid: &str, owners: &[&str], extra: Value) -> ObjectMeta {
        let owners: Vec<_> = owners
            .iter()
            .map(|owner| json!({ "apiVersion": "v1", "kind": "X", "name": owner, "uid": owner, "blockOwnerDeletion": true }))
            .collect();
        let mut metadata = json!({ "name": uid, "uid": uid, "ownerReferences": owners });
        json_patch::merge(&mut metadata, &extra);
        serde_json::from_value(metadata).unwrap()
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        assert_eq!(graph.set(0, &metadata("owner", &[], json!({}))), []);
        assert_eq!(
            graph.set(1, &metadata("a", &["owner"], json!({}))),
            [Work::Dependent(Id::of("a"))]
        );
        assert!(graph.is_solid(Id::of("owner")));
        assert!(!graph.is_solid(Id::of("stranger")));
        assert_eq!(
            graph.remove(0, Id::of("owner")),
            [Work::Dependent(Id::of("a"))]
        );
        assert!(!graph.is_solid(Id::of("owner")));
        graph.set(1, &metadata("a", &[], json!({})));
        assert!(
            graph.entries.is_empty() && graph.dependents.is_empty(),
            "nothing is kept of what nobody owns"
        );
    }

    #[test]
    fn what_a_list_does_not_show_is_gone() {
        let mut graph = Graph::default();
        graph.set(0, &metadata("owner", &[], json!({})));
        graph.set(0, &metadata("other", &[], json!({})));
        graph.set(1, &metadata("a", &["owner"], json!({})));
        graph.begin_list(0);
        graph.set(0, &metadata("other", &[], json!({})));
        assert_eq!(graph.end_list(0), [Work::Dependent(Id::of("a"))]);
        assert!(graph.is_solid(Id::of("other")));
        assert!(graph.remove_resource(1).is_empty());
        assert!(graph.entries.is_empty());
    }

    #[test]
    fn an_owner_that_waits_is_looked_at_when_a_dependent_goes() {
        let mut graph = Graph::default();
        let waiting =
            json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND] });
        graph.set(0, &metadata("owner", &[], json!({})));
        graph.set(1, &metadata("a", &["owner"], json!({})));
        assert_eq!(
            graph.set(0, &metadata("owner", &[], waiting)),
            [Work::Owner(Id::of("owner"))]
        );
        assert!(graph.has_blocking_dependents(Id::of("owner")) && !graph.is_solid(Id::of("owner")));
        assert_eq!(graph.remove(1, Id::of("a")), [Work::Owner(Id::of("owner"))]);
        assert!(!graph.has_blocking_dependents(Id::of("owner")));
    }
}
