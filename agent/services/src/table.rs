//! Who wants which elements, and what is to be changed when that changes. Pure.

use std::collections::{BTreeSet, HashMap};

use crate::{
    object::ServiceKey,
    plan::{At, Data, Element, Frontend, Key, Target},
};

/// Who wants an element. Where two want the same differently, the lesser one has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    /// The ports that pods have of the node.
    HostPorts,
    /// A Service.
    Service(ServiceKey),
}

/// What is to be done in the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Elements as they are there.
    pub(crate) removed: Vec<Element>,
    /// Elements as they are to be.
    pub(crate) added: Vec<Element>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// Frontends that endpoints left or came to.
    pub(crate) fn frontends(&self) -> BTreeSet<Frontend> {
        let elements = self.removed.iter().chain(&self.added);
        elements
            .filter_map(|(key, _)| match key {
                Key::Endpoint(frontend, _) => Some(*frontend),
                _ => None,
            })
            .collect()
    }
}

/// The elements of the table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    claims: HashMap<Key, Vec<(Owner, Data)>>,
    owned: HashMap<Owner, Vec<Key>>,
}

impl Table {
    fn data(&self, key: &Key) -> Option<Data> {
        Some(self.claims.get(key)?.first()?.1)
    }

    /// Makes `elements` all that `owner` wants, and notes what that changes.
    pub(crate) fn set(&mut self, owner: &Owner, elements: &[Element], changes: &mut Changes) {
        let old = self.owned.remove(owner).unwrap_or_default();
        let mut before: HashMap<Key, Option<Data>> = HashMap::new();
        for key in old.iter().chain(elements.iter().map(|(key, _)| key)) {
            before.entry(*key).or_insert_with(|| self.data(key));
        }
        for key in &old {
            if let Some(claims) = self.claims.get_mut(key) {
                claims.retain(|(claimant, _)| claimant != owner);
                if claims.is_empty() {
                    self.claims.remove(key);
                }
            }
        }
        let mut keys = Vec::with_capacity(elements.len());
        for (key, data) in elements {
            let claims = self.claims.entry(*key).or_default();
            if claims.iter().any(|(claimant, _)| claimant == owner) {
                continue;
            }
            let place = claims.partition_point(|(claimant, _)| claimant < owner);
            claims.insert(place, (owner.clone(), *data));
            keys.push(*key);
        }
        if !keys.is_empty() {
            self.owned.insert(owner.clone(), keys);
        }
        for (key, was) in before {
            let is = self.data(&key);
            if was != is {
                changes.removed.extend(was.map(|data| (key, data)));
                changes.added.extend(is.map(|data| (key, data)));
            }
        }
    }

    /// All of them.
    pub(crate) fn elements(&self) -> impl Iterator<Item = Element> {
        self.claims
            .iter()
            .filter_map(|(key, claims)| Some((*key, claims.first()?.1)))
    }

    /// Where packets for a frontend go.
    pub(crate) fn targets(&self, frontend: Frontend) -> Vec<Target> {
        (0..u16::MAX)
            .map_while(|number| match self.data(&Key::Endpoint(frontend, number)) {
                Some(Data::Target(target)) => Some(target),
                _ => None,
            })
            .collect()
    }

    /// Whether a frontend's clients keep their endpoints.
    pub(crate) fn remembers(&self, frontend: Frontend) -> bool {
        self.data(&Key::Remember(frontend)).is_some()
    }
}

/// The frontend at an address, or at the node if there is none.
pub(crate) fn at(address: Option<std::net::Ipv4Addr>) -> At {
    address.map_or(At::Node, At::Ip)
}

#[cfg(test)]
mod tests;
