//! Pods counted by topology domain, once for each term that some pod has. Pure.
//!
//! A term is looked up by what it asks for at least (a namespace, a label's value), so that counting a pod costs as
//! much as there are terms that may mean it, however many pods and terms there are. A term that is new is counted
//! once from the pods that are there. The domains themselves are counted too, so that the emptiest one is known
//! without a look at every node.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use jiff::Timestamp;
use wherry_api::selector::Operator;

use super::{node::NodeInfo, pod::Needs, term::Term};

/// Terms that no counted pod has and that are kept for pods that wait, before they are forgotten.
const IDLE_TERMS_MAX: usize = 1024;

type Labels = BTreeMap<String, String>;

/// A pod that is counted in on a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counted {
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) needs: Arc<Needs>,
    pub(crate) is_terminating: bool,
    pub(crate) started: Option<Timestamp>,
}

/// Pods that are counted in.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    by_uid: HashMap<Arc<str>, Counted>,
    by_namespace: HashMap<String, HashSet<Arc<str>>>,
}

impl Pods {
    pub(crate) fn get(&self, uid: &str) -> Option<&Counted> {
        self.by_uid.get(uid)
    }

    pub(crate) fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_uid.keys()
    }

    pub(crate) fn insert(&mut self, uid: &str, pod: Counted) -> Arc<str> {
        let uid: Arc<str> = uid.into();
        let namespace = &pod.needs.namespace;
        match self.by_namespace.get_mut(namespace) {
            Some(uids) => {
                uids.insert(uid.clone());
            }
            None => {
                let uids = HashSet::from([uid.clone()]);
                self.by_namespace.insert(namespace.clone(), uids);
            }
        }
        self.by_uid.insert(uid.clone(), pod);
        uid
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Counted> {
        let pod = self.by_uid.remove(uid)?;
        if let Some(uids) = self.by_namespace.get_mut(&pod.needs.namespace) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_namespace.remove(&pod.needs.namespace);
            }
        }
        Some(pod)
    }

    /// Pods that a term may mean.
    fn candidates<'a>(&'a self, term: &'a Term) -> Box<dyn Iterator<Item = &'a Counted> + 'a> {
        match only_namespace(term) {
            Some(namespace) => {
                let uids = self.by_namespace.get(namespace).into_iter().flatten();
                Box::new(uids.filter_map(|uid| self.by_uid.get(uid)))
            }
            None => Box::new(self.by_uid.values()),
        }
    }
}

/// A number for each node, and for each domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    nodes: HashMap<usize, i64>,
    domains: HashMap<String, i64>,
    /// How many domains have a number.
    numbers: BTreeMap<i64, usize>,
}

impl Tally {
    fn add(&mut self, node: usize, domain: Option<&str>, amount: i64) {
        let of_node = self.nodes.entry(node).or_default();
        *of_node += amount;
        if *of_node == 0 {
            self.nodes.remove(&node);
        }
        if let Some(domain) = domain {
            self.add_to_domain(domain, amount);
        }
    }

    fn add_to_domain(&mut self, domain: &str, amount: i64) {
        let old = self.of_domain(domain);
        let new = old + amount;
        match self.domains.get_mut(domain) {
            _ if new == 0 => {
                self.domains.remove(domain);
            }
            Some(number) => *number = new,
            None => {
                self.domains.insert(domain.to_owned(), new);
            }
        }
        if let Some(domains) = self.numbers.get_mut(&old) {
            *domains -= 1;
            if *domains == 0 {
                self.numbers.remove(&old);
            }
        }
        if new != 0 {
            *self.numbers.entry(new).or_default() += 1;
        }
    }

    fn move_node(&mut self, node: usize, old: Option<&str>, new: Option<&str>) {
        let Some(number) = self.nodes.get(&node).copied() else {
            return;
        };
        if let Some(old) = old {
            self.add_to_domain(old, -number);
        }
        if let Some(new) = new {
            self.add_to_domain(new, number);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// The least number of any of so many domains.
    pub(crate) fn fewest(&self, domains: usize) -> i64 {
        let fewest = self
            .numbers
            .first_key_value()
            .map_or(0, |(number, _)| *number);
        if self.domains.len() < domains {
            fewest.min(0)
        } else {
            fewest
        }
    }

    pub(crate) fn of_domain(&self, domain: &str) -> i64 {
        self.domains.get(domain).copied().unwrap_or(0)
    }

    pub(crate) fn of_node(&self, node: usize) -> i64 {
        self.nodes.get(&node).copied().unwrap_or(0)
    }
}

/// What is counted for a term.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) term: Arc<Term>,
    /// Pods that it means.
    pub(crate) meant: Tally,
    /// Pods that require to be apart from pods that it means.
    pub(crate) repelled: Tally,
    /// What a pod that it means is worth there to those that have it as a preference.
    pub(crate) draw: Tally,
    bucket: u64,
    /// How often counted pods have it.
    uses: usize,
}

/// The nodes that have a label.
#[derive(Debug, Default)]
struct Topology {
    nodes: usize,
    /// How many have a value.
    values: HashMap<String, usize>,
}

impl Topology {
    fn add(&mut self, value: &str) {
        self.nodes += 1;
        match self.values.get_mut(value) {
            Some(nodes) => *nodes += 1,
            None => {
                self.values.insert(value.to_owned(), 1);
            }
        }
    }

    fn remove(&mut self, value: &str) {
        let Some(nodes) = self.values.get_mut(value) else {
            return;
        };
        self.nodes -= 1;
        *nodes -= 1;
        if *nodes == 0 {
            self.values.remove(value);
        }
    }
}

/// All terms.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    ids: HashMap<Arc<Term>, usize>,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    buckets: HashMap<u64, Vec<usize>>,
    hasher: RandomState,
    namespaces: HashMap<String, Labels>,
    /// By the labels that terms count by.
    topologies: HashMap<String, Topology>,
    /// Nodes that the API knows.
    nodes: usize,
    /// Terms without uses.
    idle: usize,
}

impl Counts {
    pub(crate) fn entry(&self, id: usize) -> Option<&Entry> {
        self.entries.get(id)?.as_ref()
    }

    /// The id of a term that is registered.
    pub(crate) fn id(&self, term: &Term) -> Option<usize> {
        self.ids.get(term).copied()
    }

    fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().flatten()
    }

    /// The id of a term, which is counted from now on. Ids hold until [`Self::forget_idle`].
    pub(crate) fn register(&mut self, term: &Arc<Term>, pods: &Pods, nodes: &[NodeInfo]) -> usize {
        if let Some(id) = self.ids.get(term) {
            return *id;
        }
        let mut entry = Entry {
            term: term.clone(),
            meant: Tally::default(),
            repelled: Tally::default(),
            draw: Tally::default(),
            bucket: self.bucket_of(term),
            uses: 0,
        };
        recount(&mut entry, &self.namespaces, pods, nodes);
        if !self.topologies.contains_key(&term.topology_key) {
            let mut topology = Topology::default();
            for value in nodes
                .iter()
                .filter_map(|node| node.label(&term.topology_key))
            {
                topology.add(value);
            }
            self.topologies.insert(term.topology_key.clone(), topology);
        }
        let bucket = entry.bucket;
        let id = match self.free.pop() {
            Some(id) => {
                self.entries[id] = Some(entry);
                id
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() - 1
            }
        };
        self.idle += 1;
        self.ids.insert(term.clone(), id);
        self.buckets.entry(bucket).or_default().push(id);
        id
    }

    /// Forgets terms that nobody has, once there are many. Their ids mean nothing after that.
    pub(crate) fn forget_idle(&mut self) {
        if self.idle <= IDLE_TERMS_MAX {
            return;
        }
        for id in 0..self.entries.len() {
            let Some(entry) = self.entries[id].take_if(|entry| entry.uses == 0) else {
                continue;
            };
            self.ids.remove(&entry.term);
            self.free.push(id);
            if let Some(ids) = self.buckets.get_mut(&entry.bucket) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.buckets.remove(&entry.bucket);
                }
            }
        }
        self.idle = 0;
        let entries = self.entries.iter().flatten();
        let keys: HashSet<&str> = entries
            .map(|entry| entry.term.topology_key.as_str())
            .collect();
        self.topologies.retain(|key, _| keys.contains(key.as_str()));
    }

    /// How many domains there are by a label, if nodes that are in one of them have the other labels too.
    pub(crate) fn domains(&self, key: &str, others: &[&str]) -> Option<usize> {
        let of_key = self.topologies.get(key)?;
        let has_all = |other: &&str| {
            *other == key
                || self
                    .topologies
                    .get(*other)
                    .is_some_and(|other| other.nodes == self.nodes)
        };
        others.iter().all(has_all).then_some(of_key.values.len())
    }

    /// Counts a pod in (1) or out (-1). Its terms have to be registered before; `pods` is for that.
    pub(crate) fn count(&mut self, pod: &Counted, sign: i64, pods: &Pods, nodes: &[NodeInfo]) {
        if let Some(between) = &pod.needs.between {
            let repelled = between.anti_affinity.iter().map(|term| (1, term, true));
            let draws = between.draws.iter().map(|(by, term)| (*by, term, false));
            for (amount, term, is_required) in repelled.chain(draws) {
                let id = self.register(term, pods, nodes);
                let Some(entry) = self.entries[id].as_mut() else {
                    continue;
                };
                let domain = nodes[pod.node].label(&term.topology_key);
                let tally = if is_required {
                    &mut entry.repelled
                } else {
                    &mut entry.draw
                };
                tally.add(pod.node, domain, sign * amount);
                self.idle -= usize::from(entry.uses == 0);
                entry.uses = entry.uses.saturating_add_signed(sign as isize);
                self.idle += usize::from(entry.uses == 0);
            }
        }
        for id in self.that_mean(&pod.needs) {
            if let Some(entry) = self.entries[id].as_mut()
                && (entry.term.counts_terminating || !pod.is_terminating)
            {
                let domain = nodes[pod.node].label(&entry.term.topology_key);
                entry.meant.add(pod.node, domain, sign);
            }
        }
    }

    /// Terms that mean a pod.
    pub(crate) fn that_mean(&self, needs: &Needs) -> Vec<usize> {
        if self.ids.is_empty() {
            return Vec::new();
        }
        let mut found = Vec::new();
        let namespace_labels = self.namespaces.get(&needs.namespace);
        let mut look = |bucket: u64| {
            for id in self.buckets.get(&bucket).into_iter().flatten() {
                if self.entry(*id).is_some_and(|entry| {
                    let mut scopes = entry.term.scopes.iter();
                    scopes
                        .all(|scope| scope.holds(&needs.namespace, &needs.labels, namespace_labels))
                }) {
                    found.push(*id);
                }
            }
        };
        for namespace in [Some(needs.namespace.as_str()), None] {
            look(self.hasher.hash_one((namespace, None::<(&str, &str)>)));
            for (key, value) in &needs.labels {
                let label = Some((key.as_str(), value.as_str()));
                look(self.hasher.hash_one((namespace, label)));
            }
        }
        // Two buckets may be one by chance.
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Follows a node's labels.
    pub(crate) fn move_node(&mut self, node: usize, old: Option<&Labels>, new: Option<&Labels>) {
        self.nodes -= usize::from(old.is_some());
        self.nodes += usize::from(new.is_some());
        for (key, topology) in &mut self.topologies {
            if let Some(value) = old.and_then(|labels| labels.get(key)) {
                topology.remove(value);
            }
            if let Some(value) = new.and_then(|labels| labels.get(key)) {
                topology.add(value);
            }
        }
        for entry in self.entries_mut() {
            let key = &entry.term.topology_key;
            let value =
                |labels: Option<&Labels>| labels.and_then(|labels| labels.get(key)).cloned();
            let (old, new) = (value(old), value(new));
            if old != new {
                for tally in [&mut entry.meant, &mut entry.repelled, &mut entry.draw] {
                    tally.move_node(node, old.as_deref(), new.as_deref());
                }
            }
        }
    }

    /// Follows a namespace's labels; answers whether they are others now.
    pub(crate) fn set_namespace(
        &mut self,
        name: &str,
        labels: Option<Labels>,
        pods: &Pods,
        nodes: &[NodeInfo],
    ) -> bool {
        if self.namespaces.get(name) == labels.as_ref() {
            return false;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        let Self {
            entries,
            namespaces,
            ..
        } = self;
        let by_labels = entries.iter_mut().flatten().filter(|entry| {
            let mut scopes = entry.term.scopes.iter();
            scopes.any(|scope| scope.namespace_selector.is_some())
        });
        for entry in by_labels {
            recount(entry, namespaces, pods, nodes);
        }
        true
    }

    /// Namespaces whose labels are known.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &String> {
        self.namespaces.keys()
    }

    /// Where a term is looked up: by a label's value that it asks for, in the smallest bucket there is.
    fn bucket_of(&self, term: &Term) -> u64 {
        let namespace = only_namespace(term);
        let requirements = term
            .scopes
            .iter()
            .flat_map(|scope| scope.selector.requirements());
        let labels = requirements.filter_map(|requirement| {
            match (requirement.operator, requirement.values.as_slice()) {
                (Operator::In, [value]) => Some((requirement.key.as_str(), value.as_str())),
                _ => None,
            }
        });
        let buckets = labels.map(|label| self.hasher.hash_one((namespace, Some(label))));
        buckets
            .min_by_key(|bucket| self.buckets.get(bucket).map_or(0, Vec::len))
            .unwrap_or_else(|| self.hasher.hash_one((namespace, None::<(&str, &str)>)))
    }
}

/// The one namespace whose pods a term can mean, if it is only one.
fn only_namespace(term: &Term) -> Option<&str> {
    term.scopes.iter().find_map(|scope| {
        let mut namespaces = scope.namespaces.iter();
        match (
            namespaces.next(),
            namespaces.next(),
            &scope.namespace_selector,
        ) {
            (Some(only), None, None) => Some(only.as_str()),
            _ => None,
        }
    })
}

/// Counts the pods that a term means anew.
fn recount(
    entry: &mut Entry,
    namespaces: &HashMap<String, Labels>,
    pods: &Pods,
    nodes: &[NodeInfo],
) {
    entry.meant = Tally::default();
    let term = entry.term.clone();
    for pod in pods.candidates(&term) {
        let needs = &pod.needs;
        let namespace = namespaces.get(&needs.namespace);
        let mut scopes = term.scopes.iter();
        if (term.counts_terminating || !pod.is_terminating)
            && scopes.all(|scope| scope.holds(&needs.namespace, &needs.labels, namespace))
        {
            let domain = nodes[pod.node].label(&term.topology_key);
            entry.meant.add(pod.node, domain, 1);
        }
    }
}

#[cfg(test)]
mod tests;
