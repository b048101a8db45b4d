//! Addresses and node ports of Services: which are taken, and taking another.
//!
//! The truth is the Services in the store. What is taken is read from there when first needed and kept up to date by
//! the verbs; a claim that is not kept (the write failed) is given back.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use wherry_api::{FieldError, Resource, Status, field::Path, meta};
use wherry_store::Store;

use crate::{stored, verbs::store_status};

/// Kubernetes' default `--service-node-port-range`.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// An IPv4 range, such as `10.96.0.0/12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    first: u32,
    prefix_len: u8,
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text}: not an IPv4 range such as 10.96.0.0/12");
        let (address, prefix_len) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let prefix_len: u8 = prefix_len
            .parse()
            .ok()
            .filter(|len| (8..=30).contains(len))
            .ok_or_else(invalid)?;
        Ok(Self {
            first: u32::from(address) & (u32::MAX << (32 - prefix_len)),
            prefix_len,
        })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix_len)
    }
}

impl Cidr {
    /// The address after the network's own: that of the `kubernetes` Service.
    pub fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from(self.first + 1)
    }

    fn hosts(self) -> u32 {
        (1_u32 << (32 - self.prefix_len)) - 2
    }

    fn contains(self, ip: Ipv4Addr) -> bool {
        (u32::from(ip).wrapping_sub(self.first + 1)) < self.hosts()
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Taken {
    ips: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
}

/// What Services have.
pub(crate) struct ServiceIps {
    cidr: Cidr,
    taken: Arc<Mutex<Taken>>,
    is_loaded: OnceCell<()>,
}

/// Addresses and ports taken for a write that is under way.
pub(crate) struct Claim {
    taken: Arc<Mutex<Taken>>,
    ips: Vec<Ipv4Addr>,
    ports: Vec<u16>,
    /// Given up by the write, once it is done.
    released: (Vec<Ipv4Addr>, Vec<u16>),
    is_kept: bool,
}

impl Claim {
    /// The write is done.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (ips, ports) = if self.is_kept {
            (&self.released.0, &self.released.1)
        } else {
            (&self.ips, &self.ports)
        };
        let mut taken = lock(&self.taken);
        for ip in ips {
            taken.ips.remove(ip);
        }
        for port in ports {
            taken.ports.remove(port);
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
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

fn ports_of(service: &Value) -> Vec<u16> {
    let ports = service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    ports
        .filter_map(|port| u16::try_from(port.get("nodePort")?.as_u64()?).ok())
        .filter(|port| *port != 0)
        .collect()
}

impl ServiceIps {
    pub(crate) fn new(cidr: Cidr) -> Self {
        Self {
            cidr,
            taken: Arc::default(),
            is_loaded: OnceCell::new(),
        }
    }

    async fn load(&self, store: &Arc<dyn Store>) -> Result<(), Status> {
        let load = async || {
            let list = store.list(&stored::prefix(services()), None, 0, 0).await;
            let list = list.map_err(|error| store_status(services(), "", error))?;
            let mut taken = lock(&self.taken);
            for kv in &list.items {
                let service = stored::decode(kv);
                taken.ips.extend(ips_of(&service));
                taken.ports.extend(ports_of(&service));
            }
            Ok(())
        };
        self.is_loaded.get_or_try_init(load).await.copied()
    }

    /// Gives a new Service what it asks for and lacks.
    pub(crate) async fn claim_new(
        &self,
        store: &Arc<dyn Store>,
        service: &mut Value,
    ) -> Result<Claim, Status> {
        self.load(store).await?;
        self.claim(service, &Value::Null)
    }

    /// Gives a changed Service what it asks for and lacks, and lets it keep what it has.
    pub(crate) async fn claim_changed(
        &self,
        store: &Arc<dyn Store>,
        service: &mut Value,
        old: &Value,
    ) -> Result<Claim, Status> {
        self.load(store).await?;
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
        self.claim(service, old)
    }

    /// A Service is gone.
    pub(crate) fn release(&self, service: &Value) {
        let mut taken = lock(&self.taken);
        for ip in ips_of(service) {
            taken.ips.remove(&ip);
        }
        for port in ports_of(service) {
            taken.ports.remove(&port);
        }
    }

    fn claim(&self, service: &mut Value, old: &Value) -> Result<Claim, Status> {
        let (old_ips, old_ports) = (ips_of(old), ports_of(old));
        let mut claim = Claim {
            taken: self.taken.clone(),
            ips: Vec::new(),
            ports: Vec::new(),
            released: (Vec::new(), Vec::new()),
            is_kept: false,
        };
        if type_of(service) == "ExternalName" {
            if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut)
                && !old.is_null()
            {
                spec.remove("clusterIP");
                spec.remove("clusterIPs");
            }
        } else if cluster_ip(service) != "None" {
            self.claim_ip(service, &old_ips, &mut claim)?;
        }
        self.claim_ports(service, &old_ports, &mut claim)?;
        let (ips, ports) = (ips_of(service), ports_of(service));
        claim.released.0 = old_ips.into_iter().filter(|ip| !ips.contains(ip)).collect();
        claim.released.1 = old_ports
            .into_iter()
            .filter(|port| !ports.contains(port))
            .collect();
        Ok(claim)
    }

    fn claim_ip(
        &self,
        service: &mut Value,
        old: &[Ipv4Addr],
        claim: &mut Claim,
    ) -> Result<(), Status> {
        let name = meta::name(service).to_owned();
        let asked = cluster_ip(service).to_owned();
        let invalid = |detail: String| {
            let path = Path::new("spec");
            let error = FieldError::invalid(&path.child("clusterIPs"), json!([asked]), detail);
            Status::invalid(services(), &name, vec![error])
        };
        let mut taken = lock(&self.taken);
        let ip = if asked.is_empty() {
            // Kubernetes keeps the lower part for those who ask; so does this, by beginning above it.
            let hosts = self.cidr.hosts();
            let reserved = (hosts / 16).clamp(1, 256);
            let start = rand::random_range(0..hosts - reserved);
            let upper = (0..hosts - reserved).map(|i| reserved + (start + i) % (hosts - reserved));
            upper
                .chain(0..reserved)
                .map(|offset| Ipv4Addr::from(self.cidr.first + 1 + offset))
                .find(|ip| !taken.ips.contains(ip))
                .ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?
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
            if taken.ips.contains(&ip) {
                return Err(invalid(format!(
                    "failed to allocate IP {ip}: provided IP is already allocated"
                )));
            }
            ip
        };
        taken.ips.insert(ip);
        claim.ips.push(ip);
        service["spec"]["clusterIP"] = ip.to_string().into();
        service["spec"]["clusterIPs"] = json!([ip.to_string()]);
        Ok(())
    }

    fn claim_ports(
        &self,
        service: &mut Value,
        old: &[u16],
        claim: &mut Claim,
    ) -> Result<(), Status> {
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
            return Ok(());
        };
        let mut taken = lock(&self.taken);
        for (i, port) in ports.iter_mut().enumerate() {
            let asked = port
                .get("nodePort")
                .and_then(Value::as_u64)
                .unwrap_or_default();
            if asked == 0 {
                if has_node_ports {
                    let free = NODE_PORTS
                        .cycle_from(rand::random_range(NODE_PORTS))
                        .find(|p| !taken.ports.contains(p));
                    let free = free.ok_or_else(|| {
                        Status::internal("failed to allocate a nodePort: range is full")
                    })?;
                    taken.ports.insert(free);
                    claim.ports.push(free);
                    port["nodePort"] = free.into();
                }
                continue;
            }
            let invalid = |detail: &str| {
                let root = Path::new("spec");
                let path = root.child("ports");
                let path = path.index(i);
                let error = FieldError::invalid(&path.child("nodePort"), asked, detail);
                Status::invalid(services(), &name, vec![error])
            };
            let Some(wanted) = u16::try_from(asked)
                .ok()
                .filter(|port| NODE_PORTS.contains(port))
            else {
                return Err(invalid(
                    "provided port is not in the valid range. The range of valid ports is 30000-32767",
                ));
            };
            if old.contains(&wanted) || claim.ports.contains(&wanted) {
                continue;
            }
            if !taken.ports.insert(wanted) {
                return Err(invalid("provided port is already allocated"));
            }
            claim.ports.push(wanted);
        }
        Ok(())
    }
}

trait CycleFrom {
    fn cycle_from(self, start: u16) -> impl Iterator<Item = u16>;
}

impl CycleFrom for RangeInclusive<u16> {
    fn cycle_from(self, start: u16) -> impl Iterator<Item = u16> {
        (start..=*self.end()).chain(*self.start()..start)
    }
}

#[cfg(test)]
mod tests {
    use wherry_store::MemoryStore;

    use super::*;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": spec})
    }

    #[tokio::test]
    async fn addresses_are_given_once_and_come_back() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let ips = ServiceIps::new("10.0.0.0/29".parse().unwrap());
        let mut claims = Vec::new();
        let mut seen = HashSet::new();
        for _ in 0..6 {
            let mut one = service(json!({"type": "ClusterIP"}));
            claims.push(
                ips.claim_new(&store, &mut one)
                    .await
                    .unwrap_or_else(|status| panic!("{status}")),
            );
            assert!(seen.insert(cluster_ip(&one).to_owned()));
        }
        let mut one = service(json!({}));
        assert_eq!(
            ips.claim_new(&store, &mut one).await.err().unwrap().code,
            500
        );
        claims.pop();
        claims.push(
            ips.claim_new(&store, &mut one)
                .await
                .unwrap_or_else(|status| panic!("{status}")),
        );
        claims.into_iter().for_each(Claim::keep);
        ips.release(&one);
        let mut asks = service(json!({"clusterIP": cluster_ip(&one)}));
        assert!(ips.claim_new(&store, &mut asks).await.is_ok());
        let mut asks = service(json!({"clusterIP": "10.0.1.1"}));
        let status = ips.claim_new(&store, &mut asks).await.err().unwrap();
        assert!(
            status.message.contains("is not in the valid range"),
            "{status}"
        );
    }

    #[tokio::test]
    async fn node_ports_are_given_kept_and_refused_when_taken() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let ips = ServiceIps::new("10.0.0.0/24".parse().unwrap());
        let mut first = service(
            json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "nodePort": 30001}]}),
        );
        ips.claim_new(&store, &mut first)
            .await
            .unwrap_or_else(|status| panic!("{status}"))
            .keep();
        assert_eq!(ports_of(&first).len(), 2);
        let mut second =
            service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}));
        let status = ips.claim_new(&store, &mut second).await.err().unwrap();
        assert!(
            status.message.contains(
                "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"
            ),
            "{status}"
        );
        let mut changed = first.clone();
        ips.claim_changed(&store, &mut changed, &first)
            .await
            .unwrap_or_else(|status| panic!("{status}"))
            .keep();
        assert_eq!(changed, first);
    }
}
