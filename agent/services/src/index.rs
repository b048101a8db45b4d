//! What the API server says of Services, for whoever turns it into packets or names.
//!
//! Written by [`crate::watch`], synchronously; readers are told that something has changed, and ask what.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::sync::watch;

use crate::object::{Endpoint, Service, ServiceKey, Slice};

/// Namespace and name of an EndpointSlice.
type SliceKey = (Arc<str>, String);

/// All that an index holds.
pub(crate) struct Snapshot {
    /// Counts the changes up to it.
    pub(crate) edits: u64,
    pub(crate) services: Vec<(ServiceKey, Arc<Service>)>,
    /// Each with its Service and its name.
    pub(crate) slices: Vec<(ServiceKey, String, Arc<Slice>)>,
}

/// A Service with what is behind it.
#[derive(Clone, Debug)]
pub struct View {
    /// The Service.
    pub service: Arc<Service>,
    /// Its slices, by name.
    pub slices: Vec<Arc<Slice>>,
}

impl View {
    /// The endpoints of all slices, each with its slice's ports.
    pub fn endpoints(&self) -> impl Iterator<Item = (&Endpoint, &Slice)> {
        self.slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().map(move |item| (item, &**slice)))
    }
}

#[derive(Default)]
struct State {
    services: BTreeMap<ServiceKey, Arc<Service>>,
    slices: HashMap<ServiceKey, BTreeMap<String, Arc<Slice>>>,
    /// The Service that each slice was last of.
    owners: HashMap<SliceKey, ServiceKey>,
    changed: HashSet<ServiceKey>,
    /// Changes so far.
    edits: u64,
    has_services: bool,
    has_slices: bool,
    /// What an agent before this one knew was put in.
    is_loaded: bool,
    /// Nobody is waited for any more.
    is_alone: bool,
}

impl State {
    fn touch(&mut self, key: ServiceKey) {
        self.changed.insert(key);
        self.edits += 1;
    }

    fn is_complete(&self) -> bool {
        self.has_services && self.has_slices
    }

    fn view(&self, key: &ServiceKey) -> Option<View> {
        let slices = self.slices.get(key);
        Some(View {
            service: Arc::clone(self.services.get(key)?),
            slices: slices
                .into_iter()
                .flat_map(BTreeMap::values)
                .cloned()
                .collect(),
        })
    }

    fn forget_slice(&mut self, slice: &SliceKey) {
        let Some(owner) = self.owners.remove(slice) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&slice.1);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.touch(owner);
    }
}

/// The Services of the cluster.
///
/// It knows nothing at first, or what an agent before this one knew ([`crate::kept`]); then everything has been
/// listed, and it is complete. Where nobody can be asked for a while, what was known before has to do.
pub struct Index {
    state: RwLock<State>,
    version: watch::Sender<u64>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            state: RwLock::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl Index {
    /// One that is complete without ever being told anything: for a node without an API server.
    pub fn of_nothing() -> Self {
        let index = Self::default();
        index.retain_services(&HashSet::new());
        index.retain_slices(&HashSet::new());
        index
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Changes are inserts and removals, none of which panics half way.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Is told of every change, some at once.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Whether everything has been listed once. Before that nothing can be said not to be there.
    pub fn is_complete(&self) -> bool {
        self.read().is_complete()
    }

    /// Whether what is not here counts as not there: everything has been listed, or what was known before has to do.
    pub fn is_known(&self) -> bool {
        let state = self.read();
        state.is_complete() || (state.is_loaded && state.is_alone)
    }

    /// Waits until everything has been listed, or nobody is waited for any more.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn settled(&self) {
        let mut versions = self.subscribe();
        let is_settled = || {
            let state = self.read();
            state.is_complete() || state.is_alone
        };
        while !is_settled() && versions.changed().await.is_ok() {}
    }

    /// Waits until what is not here counts as not there.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn known(&self) {
        let mut versions = self.subscribe();
        while !self.is_known() && versions.changed().await.is_ok() {}
    }

    /// Whether there is something from before that can do.
    pub(crate) fn is_loaded(&self) -> bool {
        self.read().is_loaded
    }

    /// Nobody tells what there is: what was known before has to do until somebody does.
    pub(crate) fn go_alone(&self) {
        self.write().is_alone = true;
        self.tell();
    }

    /// What an agent before this one knew. What the API server says goes before it.
    pub(crate) fn load(
        &self,
        services: Vec<(ServiceKey, Service)>,
        slices: Vec<(ServiceKey, String, Slice)>,
    ) {
        for (key, service) in services {
            self.put_service(key, service);
        }
        for (service, name, slice) in slices {
            self.put_slice(service, name, slice);
        }
        self.write().is_loaded = true;
        self.tell();
    }

    /// Counts the changes so far.
    pub(crate) fn edits(&self) -> u64 {
        self.read().edits
    }

    /// All of it, at one moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.read();
        let services = state.services.iter();
        let slices = state.slices.iter().flat_map(|(service, slices)| {
            let own = slices.iter();
            own.map(|(name, slice)| (service.clone(), name.clone(), Arc::clone(slice)))
        });
        Snapshot {
            edits: state.edits,
            services: services
                .map(|(key, service)| (key.clone(), Arc::clone(service)))
                .collect(),
            slices: slices.collect(),
        }
    }

    /// A Service is there, and like this.
    pub fn put_service(&self, key: ServiceKey, service: Service) {
        let mut state = self.write();
        if state
            .services
            .get(&key)
            .is_some_and(|known| **known == service)
        {
            return;
        }
        state.touch(key.clone());
        state.services.insert(key, Arc::new(service));
        drop(state);
        self.tell();
    }

    /// A Service is gone.
    pub fn remove_service(&self, key: &ServiceKey) {
        let mut state = self.write();
        if state.services.remove(key).is_some() {
            state.touch(key.clone());
            drop(state);
            self.tell();
        }
    }

    /// These are all Services there are.
    pub fn retain_services(&self, listed: &HashSet<ServiceKey>) {
        let mut state = self.write();
        let state = &mut *state;
        state.services.retain(|key, _| {
            let is_there = listed.contains(key);
            if !is_there {
                state.changed.insert(key.clone());
                state.edits += 1;
            }
            is_there
        });
        state.has_services = true;
        self.tell();
    }

    /// A slice is there, and of this Service.
    pub fn put_slice(&self, service: ServiceKey, name: String, slice: Slice) {
        let mut state = self.write();
        let own = (Arc::clone(&service.namespace), name);
        if state
            .owners
            .get(&own)
            .is_some_and(|owner| *owner != service)
        {
            state.forget_slice(&own);
        }
        let slices = state.slices.entry(service.clone()).or_default();
        if slices.get(&own.1).is_some_and(|known| **known == slice) {
            return;
        }
        slices.insert(own.1.clone(), Arc::new(slice));
        state.owners.insert(own, service.clone());
        state.touch(service);
        drop(state);
        self.tell();
    }

    /// A slice is gone, or of no Service any more.
    pub fn remove_slice(&self, namespace: &str, name: &str) {
        self.write().forget_slice(&(namespace.into(), name.into()));
        self.tell();
    }

    /// These are all slices there are, by namespace and name.
    pub fn retain_slices(&self, listed: &HashSet<(Arc<str>, String)>) {
        let mut state = self.write();
        let gone: Vec<SliceKey> = state
            .owners
            .keys()
            .filter(|slice| !listed.contains(*slice))
            .cloned()
            .collect();
        for slice in &gone {
            state.forget_slice(slice);
        }
        state.has_slices = true;
        drop(state);
        self.tell();
    }

    /// What has changed since this was last asked; `None` for Services that are gone. For one caller.
    pub fn take_changed(&self) -> Vec<(ServiceKey, Option<View>)> {
        let mut state = self.write();
        let changed = std::mem::take(&mut state.changed);
        changed
            .into_iter()
            .map(|key| {
                let view = state.view(&key);
                (key, view)
            })
            .collect()
    }

    /// One Service.
    pub fn get(&self, namespace: &str, name: &str) -> Option<View> {
        self.read().view(&ServiceKey::new(namespace, name))
    }

    /// The Services whose health balancers ask for, by the port they ask at.
    pub(crate) fn health_checks(&self) -> BTreeMap<u16, ServiceKey> {
        let state = self.read();
        let checked = state
            .services
            .iter()
            .filter(|(_, service)| !service.is_foreign)
            .filter_map(|(key, service)| Some((service.health_check_port?, key.clone())));
        checked.collect()
    }

    /// The Services of a namespace.
    pub fn of_namespace(&self, namespace: &str) -> Vec<(ServiceKey, Arc<Service>)> {
        let first = ServiceKey::new(namespace, "");
        let state = self.read();
        let own = state
            .services
            .range(&first..)
            .take_while(|(key, _)| &*key.namespace == namespace);
        own.map(|(key, service)| (key.clone(), Arc::clone(service)))
            .collect()
    }

    /// Whether a namespace has any.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        let first = ServiceKey::new(namespace, "");
        self.read()
            .services
            .range(&first..)
            .next()
            .is_some_and(|(key, _)| &*key.namespace == namespace)
    }

    /// Whether Services of a namespace send new connections to an address; `None` if none of them knows it.
    pub fn leads_to(&self, namespace: &str, address: IpAddr) -> Option<bool> {
        let state = self.read();
        let slices = state
            .slices
            .iter()
            .filter(|(key, _)| &*key.namespace == namespace);
        slices
            .flat_map(|(_, slices)| slices.values())
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.address == address)
            .map(|endpoint| endpoint.is_ready)
            .reduce(|one, other| one || other)
    }

    /// The first answer that `find` has of any Service, in their order.
    pub fn find<T>(&self, mut find: impl FnMut(&ServiceKey, &View) -> Option<T>) -> Option<T> {
        let state = self.read();
        state
            .services
            .keys()
            .find_map(|key| find(key, &state.view(key)?))
    }

    /// Whose cluster address it is.
    pub fn find_cluster_ip(&self, ip: IpAddr) -> Option<ServiceKey> {
        let state = self.read();
        let found = state.services.iter().find(|(_, service)| {
            matches!(&service.kind, crate::object::Kind::Cluster(ips) if ips.contains(&ip))
        });
        found.map(|(key, _)| key.clone())
    }
}
