//! Addresses and node ports of Services: which are taken, and taking another.
//!
//! What is taken is a key in the store, made before the Service is written and removed after it is gone, so that two
//! control planes on one store never give the same twice. An address's key holds an IPAddress object, as
//! kube-apiserver's do. A key whose Service never came to be (its writer was killed in between) is taken over when
//! somebody else wants it.

use std::{collections::HashSet, net::Ipv4Addr, ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use wherry_api::{FieldError, Resource, Status, field::Path, meta};
use wherry_store::{Durability, Store, StoreError};

use crate::{cidr::Cidr, stored, verbs::store_status};

/// Kubernetes' default `--service-node-port-range`.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Where the addresses' keys are.
const IPS: &str = "/registry/ipaddresses/";
/// Where the ports' keys are.
const PORTS: &str = "/registry/ranges/servicenodeports/";
/// Blind tries before all keys are looked at.
const GUESSES: u32 = 8;
/// For a Service to follow its keys; later they are nobody's.
const ORPHAN_AGE: Duration = Duration::from_secs(60);

/// Gives Services what they ask for.
pub(crate) struct ServiceIps {
    cidr: Cidr,
    /// Services from before there were keys have theirs.
    is_complete: OnceCell<()>,
}

/// Whether keys are made or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// For a write.
    Real,
    /// For a dry run.
    DryRun,
}

impl Mode {
    pub(crate) fn of(is_dry_run: bool) -> Self {
        if is_dry_run { Self::DryRun } else { Self::Real }
    }
}

/// Addresses and ports taken for a write that is under way. Given back when dropped.
pub(crate) struct Claim {
    store: Arc<dyn Store>,
    mode: Mode,
    owner: Value,
    /// Taken for this write.
    taken: Vec<String>,
    /// Not needed any more, once it is done.
    released: Vec<String>,
}

impl Claim {
    /// The write is done.
    pub(crate) async fn keep(mut self) {
        self.taken.clear();
        let released = std::mem::take(&mut self.released);
        release_keys(&self.store, released).await;
    }

    /// Takes a key; answers whether it was free.
    async fn take(&mut self, key: String, value: Value) -> Result<bool, Status> {
        let fail = |error| store_status(services(), "", error);
        if self.mode == Mode::DryRun {
            let there = self.store.get(&key).await.map_err(fail)?.0;
            return Ok(there.is_none() && !self.taken.contains(&key));
        }
        let bytes = Bytes::from(value.to_string());
        match self
            .store
            .create(&key, bytes.clone(), Durability::Durable)
            .await
        {
            Ok(_) => {}
            Err(StoreError::Exists(_)) => {
                if !take_over(&self.store, &key, bytes).await.map_err(fail)? {
                    return Ok(false);
                }
            }
            Err(error) => return Err(fail(error)),
        }
        self.taken.push(key);
        Ok(true)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.taken.is_empty() || self.mode == Mode::DryRun {
            return;
        }
        let (store, taken) = (self.store.clone(), std::mem::take(&mut self.taken));
        // Should this process end before: the keys are taken over one day.
        tokio::spawn(async move { release_keys(&store, taken).await });
    }
}

async fn release_keys(store: &Arc<dyn Store>, keys: Vec<String>) {
    for key in keys {
        match store.delete(&key, 0).await {
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(error) => {
                tracing::warn!(key, %error, "A Service's address or port was not given back")
            }
        }
    }
}

/// Makes a key ours that belongs to no Service; answers whether it was so.
async fn take_over(store: &Arc<dyn Store>, key: &str, value: Bytes) -> Result<bool, StoreError> {
    let Some(kv) = store.get(key).await?.0 else {
        // Gone since: whoever wants it asks again.
        return Ok(false);
    };
    let claim = stored::decode(&kv);
    let text = |path: &str| claim.pointer(path).and_then(Value::as_str);
    let age = text("/metadata/creationTimestamp")
        .and_then(|at| at.parse::<Timestamp>().ok())
        .and_then(|at| Duration::try_from(Timestamp::now().duration_since(at)).ok());
    if age.is_none_or(|age| age < ORPHAN_AGE) {
        return Ok(false);
    }
    let owner = "/spec/parentRef";
    let part = |name: &str| text(&format!("{owner}/{name}")).unwrap_or_default();
    let service = stored::key(services(), part("namespace"), part("name"));
    if let Some(kv) = store.get(&service).await?.0
        && keys_of(&stored::decode(&kv)).contains(&key.to_owned())
    {
        return Ok(false);
    }
    match store
        .update(key, value, kv.mod_revision, Durability::Durable)
        .await
    {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict { .. } | StoreError::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn services() -> &'static Resource {
    wherry_api::find("", "v1", "services").expect("a row")
}

fn type_of(service: &Value) -> &str {
    service
        .pointer("/spec/type")
        .and_then(Value::as_str)
        .unwrap_or("ClusterIP")
}

fn cluster_ip(service: &Value) -> &str {
    service
        .pointer("/spec/clusterIP")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn ips_of(service: &Value) -> Vec<Ipv4Addr> {
    cluster_ip(service).parse().into_iter().collect()
}

/// The ports of nodes that a Service has, one for its health included.
fn ports_of(service: &Value) -> Vec<u16> {
    let ports = service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    ports
        .filter_map(|port| u16::try_from(port.get("nodePort")?.as_u64()?).ok())
        .filter(|port| *port != 0)
        .chain(health_port_of(service))
        .collect()
}

/// Where nodes say whether they have endpoints of a Service.
fn health_port_of(service: &Value) -> Option<u16> {
    let port = service.pointer("/spec/healthCheckNodePort")?.as_u64()?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn ip_key(ip: Ipv4Addr) -> String {
    format!("{IPS}{ip}")
}

fn port_key(port: u16) -> String {
    format!("{PORTS}{port}")
}

/// The keys of all that a Service has.
fn keys_of(service: &Value) -> Vec<String> {
    let ips = ips_of(service).into_iter().map(ip_key);
    ips.chain(ports_of(service).into_iter().map(port_key))
        .collect()
}

/// Whom a key belongs to.
fn owner_of(service: &Value) -> Value {
    json!({
        "group": "",
        "resource": "services",
        "namespace": meta::namespace(service),
        "name": meta::name(service),
    })
}

fn ip_value(ip: Ipv4Addr, owner: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": ip.to_string(),
            "creationTimestamp": meta::format_time(Timestamp::now()),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": owner},
    })
}

fn port_value(owner: &Value) -> Value {
    json!({"metadata": {"creationTimestamp": meta::format_time(Timestamp::now())}, "spec": {"parentRef": owner}})
}

impl ServiceIps {
    pub(crate) fn new(cidr: Cidr) -> Self {
        Self {
            cidr,
            is_complete: OnceCell::new(),
        }
    }

    /// Makes the keys of Services that were written before there were keys.
    async fn complete(&self, store: &Arc<dyn Store>) -> Result<(), Status> {
        let complete = async || {
            let fail = |error| store_status(services(), "", error);
            let list = store.list(&stored::prefix(services()), None, 0, 0).await;
            for kv in &list.map_err(fail)?.items {
                let service = stored::decode(kv);
                let owner = owner_of(&service);
                let ips = ips_of(&service).into_iter();
                let ports = ports_of(&service).into_iter();
                let values = ips
                    .map(|ip| (ip_key(ip), ip_value(ip, &owner)))
                    .chain(ports.map(|port| (port_key(port), port_value(&owner))));
                for (key, value) in values {
                    let value = Bytes::from(value.to_string());
                    match store.create(&key, value, Durability::Durable).await {
                        Ok(_) | Err(StoreError::Exists(_)) => {}
                        Err(error) => return Err(fail(error)),
                    }
                }
            }
            Ok(())
        };
        self.is_complete.get_or_try_init(complete).await.copied()
    }

    /// Gives a new Service what it asks for and lacks.
    pub(crate) async fn claim_new(
        &self,
        store: &Arc<dyn Store>,
        service: &mut Value,
        mode: Mode,
    ) -> Result<Claim, Status> {
        self.complete(store).await?;
        self.claim(store, service, &Value::Null, mode).await
    }

    /// Gives a changed Service what it asks for and lacks, and lets it keep what it has.
    pub(crate) async fn claim_changed(
        &self,
        store: &Arc<dyn Store>,
        service: &mut Value,
        old: &Value,
        mode: Mode,
    ) -> Result<Claim, Status> {
        self.complete(store).await?;
        if type_of(service) != "ExternalName"
            && type_of(old) != "ExternalName"
            && cluster_ip(service).is_empty()
        {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(value) = old.get("spec").and_then(|spec| spec.get(field)) {
                    service["spec"][field] = value.clone();
                }
            }
        }
        self.claim(store, service, old, mode).await
    }

    /// A Service is gone.
    pub(crate) async fn release(&self, store: &Arc<dyn Store>, service: &Value) {
        release_keys(store, keys_of(service)).await;
    }

    async fn claim(
        &self,
        store: &Arc<dyn Store>,
        service: &mut Value,
        old: &Value,
        mode: Mode,
    ) -> Result<Claim, Status> {
        let mut claim = Claim {
            store: store.clone(),
            mode,
            owner: owner_of(service),
            taken: Vec::new(),
            released: Vec::new(),
        };
        if type_of(service) == "ExternalName" {
            if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut)
                && !old.is_null()
            {
                spec.remove("clusterIP");
                spec.remove("clusterIPs");
            }
        } else if cluster_ip(service) != "None" {
            self.claim_ip(service, &ips_of(old), &mut claim).await?;
        }
        let given = claim_ports(service, &ports_of(old), &mut claim).await?;
        claim_health_port(service, old, &given, &mut claim).await?;
        if mode == Mode::Real {
            let kept = keys_of(service);
            claim.released = keys_of(old);
            claim.released.retain(|key| !kept.contains(key));
        }
        Ok(claim)
    }

    async fn claim_ip(
        &self,
        service: &mut Value,
        old: &[Ipv4Addr],
        claim: &mut Claim,
    ) -> Result<(), Status> {
        let asked = cluster_ip(service).to_owned();
        let name = meta::name(service).to_owned();
        let invalid = |detail: String| {
            let path = Path::new("spec");
            let error = FieldError::invalid(&path.child("clusterIPs"), json!([asked]), detail);
            Status::invalid(services(), &name, vec![error])
        };
        let ip = if asked.is_empty() {
            self.take_any_ip(claim).await?
        } else {
            let ip: Ipv4Addr = match asked.parse() {
                Ok(ip) => ip,
                // Validation says what is wrong with it.
                Err(_) => return Ok(()),
            };
            if old.contains(&ip) {
                return Ok(());
            }
            if !self.cidr.contains(ip) {
                return Err(invalid(format!(
                    "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid \
                     IPs is {}",
                    self.cidr
                )));
            }
            let value = ip_value(ip, &claim.owner);
            if !claim.take(ip_key(ip), value).await? {
                return Err(invalid(format!(
                    "failed to allocate IP {ip}: provided IP is already allocated"
                )));
            }
            ip
        };
        service["spec"]["clusterIP"] = ip.to_string().into();
        service["spec"]["clusterIPs"] = json!([ip.to_string()]);
        Ok(())
    }

    async fn take_any_ip(&self, claim: &mut Claim) -> Result<Ipv4Addr, Status> {
        // Kubernetes keeps the lower part for those who ask; so does this, by beginning above it.
        let hosts = self.cidr.hosts();
        let reserved = (hosts / 16).clamp(1, 256);
        for _ in 0..GUESSES {
            let ip = self.cidr.host(rand::random_range(reserved..hosts));
            let value = ip_value(ip, &claim.owner);
            if claim.take(ip_key(ip), value).await? {
                return Ok(ip);
            }
        }
        let taken = keys(&claim.store, IPS).await?;
        let start = rand::random_range(0..hosts - reserved);
        let upper = (0..hosts - reserved).map(|i| reserved + (start + i) % (hosts - reserved));
        for ip in upper
            .chain(0..reserved)
            .map(|number| self.cidr.host(number))
        {
            let key = ip_key(ip);
            if !taken.contains(&key) && claim.take(key, ip_value(ip, &claim.owner)).await? {
                return Ok(ip);
            }
        }
        Err(Status::internal(
            "failed to allocate a serviceIP: range is full",
        ))
    }
}

async fn keys(store: &Arc<dyn Store>, prefix: &str) -> Result<HashSet<String>, Status> {
    let list = store.list(prefix, None, 0, 0).await;
    let list = list.map_err(|error| store_status(services(), "", error))?;
    Ok(list.items.iter().map(|kv| kv.key.to_string()).collect())
}

const OUT_OF_RANGE: &str =
    "provided port is not in the valid range. The range of valid ports is 30000-32767";
const TAKEN: &str = "provided port is already allocated";

/// Answers which ports its ports have.
async fn claim_ports(
    service: &mut Value,
    old: &[u16],
    claim: &mut Claim,
) -> Result<HashSet<u16>, Status> {
    let name = meta::name(service).to_owned();
    let has_node_ports = match type_of(service) {
        "NodePort" => true,
        "LoadBalancer" => {
            service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false))
        }
        _ => false,
    };
    let Some(ports) = service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
    else {
        return Ok(HashSet::new());
    };
    // One number may serve two protocols of one Service.
    let mut given = HashSet::new();
    for (i, port) in ports.iter_mut().enumerate() {
        let asked = port
            .get("nodePort")
            .and_then(Value::as_u64)
            .unwrap_or_default();
        if asked == 0 {
            if has_node_ports {
                let free = take_any_port(claim).await?;
                given.insert(free);
                port["nodePort"] = free.into();
            }
            continue;
        }
        let invalid = |detail: &str| {
            let spec = Path::new("spec");
            let ports = spec.child("ports");
            let port = ports.index(i);
            let error = FieldError::invalid(&port.child("nodePort"), asked, detail);
            Status::invalid(services(), &name, vec![error])
        };
        let Some(wanted) = u16::try_from(asked)
            .ok()
            .filter(|port| NODE_PORTS.contains(port))
        else {
            return Err(invalid(OUT_OF_RANGE));
        };
        if !given.insert(wanted) || old.contains(&wanted) {
            continue;
        }
        let value = port_value(&claim.owner);
        if !claim.take(port_key(wanted), value).await? {
            return Err(invalid(TAKEN));
        }
    }
    Ok(given)
}

/// A Service whose balancer asks nodes for its health gets a port for that, and keeps it; `given` are the ports that
/// lead to it.
async fn claim_health_port(
    service: &mut Value,
    old: &Value,
    given: &HashSet<u16>,
    claim: &mut Claim,
) -> Result<(), Status> {
    if !service
        .get("spec")
        .is_some_and(wherry_api::needs_health_check)
    {
        // Validation says so if it has one all the same.
        return Ok(());
    }
    let asked = service
        .pointer("/spec/healthCheckNodePort")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    if asked == 0 {
        service["spec"]["healthCheckNodePort"] = take_any_port(claim).await?.into();
        return Ok(());
    }
    let name = meta::name(service).to_owned();
    let invalid = |detail: &str| {
        let spec = Path::new("spec");
        let error = FieldError::invalid(&spec.child("healthCheckNodePort"), asked, detail);
        Err(Status::invalid(services(), &name, vec![error]))
    };
    let Some(wanted) = u16::try_from(asked)
        .ok()
        .filter(|port| NODE_PORTS.contains(port))
    else {
        return invalid(OUT_OF_RANGE);
    };
    if given.contains(&wanted) {
        return invalid(TAKEN);
    }
    if health_port_of(old) == Some(wanted) {
        return Ok(());
    }
    // A port that led to the Service until now is its own.
    if ports_of(old).contains(&wanted)
        || claim
            .take(port_key(wanted), port_value(&claim.owner))
            .await?
    {
        return Ok(());
    }
    invalid(TAKEN)
}

async fn take_any_port(claim: &mut Claim) -> Result<u16, Status> {
    for _ in 0..GUESSES {
        let port = rand::random_range(NODE_PORTS);
        let value = port_value(&claim.owner);
        if claim.take(port_key(port), value).await? {
            return Ok(port);
        }
    }
    let taken = keys(&claim.store, PORTS).await?;
    for port in NODE_PORTS {
        let key = port_key(port);
        if !taken.contains(&key) && claim.take(key, port_value(&claim.owner)).await? {
            return Ok(port);
        }
    }
    Err(Status::internal(
        "failed to allocate a nodePort: range is full",
    ))
}

#[cfg(test)]
mod tests {
    use wherry_store::MemoryStore;

    use super::*;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": spec})
    }

    fn store() -> Arc<dyn Store> {
        Arc::new(MemoryStore::default())
    }

    fn ips(cidr: &str) -> ServiceIps {
        ServiceIps::new(cidr.parse().unwrap())
    }

    async fn claim(ips: &ServiceIps, store: &Arc<dyn Store>, one: &mut Value) -> Claim {
        ips.claim_new(store, one, Mode::Real)
            .await
            .unwrap_or_else(|status| panic!("{status}"))
    }

    #[tokio::test]
    async fn addresses_are_given_once_and_come_back() {
        let store = store();
        // Two control planes.
        let planes = [ips("10.0.0.0/29"), ips("10.0.0.0/29")];
        let mut seen = HashSet::new();
        let mut last = Value::Null;
        for n in 0..6 {
            let mut one = service(json!({"type": "ClusterIP"}));
            claim(&planes[n % 2], &store, &mut one).await.keep().await;
            assert!(seen.insert(cluster_ip(&one).to_owned()));
            last = one;
        }
        let mut one = service(json!({}));
        let full = planes[0].claim_new(&store, &mut one, Mode::Real).await;
        assert_eq!(full.err().unwrap().code, 500);
        planes[1].release(&store, &last).await;
        claim(&planes[0], &store, &mut one).await.keep().await;
        assert_eq!(cluster_ip(&one), cluster_ip(&last));

        for (asked, trouble) in [
            ("10.0.1.1", "is not in the valid range"),
            (cluster_ip(&one), "provided IP is already allocated"),
        ] {
            let mut asks = service(json!({"clusterIP": asked}));
            let status = planes[1].claim_new(&store, &mut asks, Mode::Real).await;
            let status = status.err().unwrap();
            assert!(status.message.contains(trouble), "{status}");
        }
    }

    #[tokio::test]
    async fn what_a_failed_write_had_taken_is_given_back() {
        let (store, ips) = (store(), ips("10.0.0.0/24"));
        let mut one = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        let mut watch = store.watch("/registry/", 0).await.unwrap();
        drop(claim(&ips, &store, &mut one).await);
        let mut writes = 0;
        while writes < 4 {
            if let Some(wherry_store::WatchMessage::Events(events)) = watch.recv().await {
                writes += events.len();
            }
        }
        assert_eq!(store.count("/registry/").await.unwrap().0, 0);
    }

    #[tokio::test]
    async fn a_dry_run_takes_nothing() {
        let (store, ips) = (store(), ips("10.0.0.0/24"));
        let mut one = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        ips.claim_new(&store, &mut one, Mode::DryRun)
            .await
            .unwrap_or_else(|status| panic!("{status}"))
            .keep()
            .await;
        assert!(!cluster_ip(&one).is_empty());
        assert_eq!(store.count("/registry/").await.unwrap().0, 0);
    }

    #[tokio::test]
    async fn node_ports_are_given_kept_and_refused_when_taken() {
        let (store, ips) = (store(), ips("10.0.0.0/24"));
        let mut first = service(
            json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "nodePort": 30001}]}),
        );
        claim(&ips, &store, &mut first).await.keep().await;
        assert_eq!(ports_of(&first).len(), 2);
        let mut second =
            service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}));
        let status = ips.claim_new(&store, &mut second, Mode::Real).await;
        let status = status.err().unwrap();
        assert!(
            status.message.contains(
                "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"
            ),
            "{status}"
        );
        let mut changed = first.clone();
        ips.claim_changed(&store, &mut changed, &first, Mode::Real)
            .await
            .unwrap_or_else(|status| panic!("{status}"))
            .keep()
            .await;
        assert_eq!(changed, first);
    }

    #[tokio::test]
    async fn a_balanced_service_of_local_endpoints_has_a_port_for_its_health() {
        let (store, ips) = (store(), ips("10.0.0.0/24"));
        let local = |port: Value| {
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
                "ports": [{"port": 80, "nodePort": 30100}]})
        };
        let mut first = service(local(Value::Null));
        claim(&ips, &store, &mut first).await.keep().await;
        let port = health_port_of(&first).expect("it is given one");
        assert!(NODE_PORTS.contains(&port) && port != 30_100);
        for (spec, trouble) in [
            (
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}),
                TAKEN,
            ),
            (local(30_100.into()), TAKEN),
            (local(port.into()), TAKEN),
            (local(80.into()), OUT_OF_RANGE),
        ] {
            let mut second = service(spec.clone());
            second["spec"]["ports"][0]["nodePort"] = match second["spec"]["type"].as_str() {
                Some("NodePort") => port.into(),
                _ => 0.into(),
            };
            let status = ips.claim_new(&store, &mut second, Mode::Real).await;
            let message = status.err().expect("it is refused").message;
            assert!(message.contains(trouble), "{spec}: {message}");
        }
        let change = async |old: &Value, spec: Value| {
            let mut new = service(spec);
            ips.claim_changed(&store, &mut new, old, Mode::Real)
                .await
                .unwrap_or_else(|status| panic!("{status}"))
                .keep()
                .await;
            new
        };
        // Its own, as long as it is asked for; nobody's, when the policy changes.
        let kept = change(&first, local(port.into())).await;
        assert_eq!(health_port_of(&kept), Some(port));
        let key = port_key(port);
        assert!(store.get(&key).await.unwrap().0.is_some());
        let spread = change(
            &kept,
            json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30100}]}),
        )
        .await;
        assert!(store.get(&key).await.unwrap().0.is_none());
        let again = change(&spread, local(30_200.into())).await;
        assert_eq!(health_port_of(&again), Some(30_200));
        ips.release(&store, &again).await;
        for port in [30_100, 30_200] {
            assert!(store.get(&port_key(port)).await.unwrap().0.is_none());
        }
    }

    #[tokio::test]
    async fn keys_of_services_that_never_came_to_be_are_taken_over() {
        let (store, ips) = (store(), ips("10.0.0.0/24"));
        let orphan = |age: i64| {
            let mut value = ip_value("10.0.0.7".parse().unwrap(), &owner_of(&service(json!({}))));
            let at = Timestamp::now() - jiff::SignedDuration::from_secs(age);
            value["metadata"]["creationTimestamp"] = at.to_string().into();
            Bytes::from(value.to_string())
        };
        let key = ip_key("10.0.0.7".parse().unwrap());
        let young = store
            .create(&key, orphan(5), Durability::Lazy)
            .await
            .unwrap();
        let ask = async || {
            let mut one = service(json!({"clusterIP": "10.0.0.7"}));
            ips.claim_new(&store, &mut one, Mode::Real).await
        };
        assert!(
            ask().await.is_err(),
            "its Service may be about to be written"
        );
        store
            .update(&key, orphan(90), young.mod_revision, Durability::Lazy)
            .await
            .unwrap();
        let claim = ask().await.unwrap_or_else(|status| panic!("{status}"));
        claim.keep().await;
    }

    #[tokio::test]
    async fn services_from_before_there_were_keys_keep_what_they_have() {
        let (store, ips) = (store(), ips("10.0.0.0/24"));
        let old = service(json!({"clusterIP": "10.0.0.9", "type": "ClusterIP"}));
        let key = stored::key(services(), "ns", "a");
        let value = Bytes::from(old.to_string());
        store
            .create(&key, value, Durability::Durable)
            .await
            .unwrap();
        let mut asks = service(json!({"clusterIP": "10.0.0.9"}));
        let status = ips.claim_new(&store, &mut asks, Mode::Real).await;
        assert!(status.err().unwrap().message.contains("already allocated"));
    }
}
