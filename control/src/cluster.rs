//! What every node of a cluster has to know of it: the addresses of Services, the name server, the domain.
//!
//! `wherry control` keeps it in the ConfigMap `kube-system/wherry-cluster`, which nodes may read. In a cluster of another
//! make a node takes what it finds: `ServiceCIDR`s, and the Service `kube-dns`. What was found once is kept on disk, so
//! that a node starts without the API server as well.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Service},
    networking::v1::ServiceCIDR,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use wherry_network::Cidr;

use crate::cli::{NodeArgs, RootArgs};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "wherry-cluster";
/// Keys of the ConfigMap.
const SERVICE_RANGE: &str = "serviceClusterIPRange";
const DNS: &str = "clusterDNS";
const DOMAIN: &str = "clusterDomain";
/// Domain of a cluster that says nothing of it.
const DOMAIN_DEFAULT: &str = "cluster.local";
/// How long a node waits for it: one that knows it from before, and one that does not.
const PATIENCE_KNOWN: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(500);

/// What every node of a cluster has to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterInfo {
    /// Addresses that Services get.
    #[serde(default)]
    pub(crate) service_range: Option<String>,
    /// Name servers for pods.
    #[serde(default)]
    pub(crate) dns: Vec<IpAddr>,
    /// Domain of the cluster's names.
    #[serde(default)]
    pub(crate) domain: Option<String>,
}

impl ClusterInfo {
    /// Addresses that Services get, if they are known.
    pub(crate) fn service_cidr(&self) -> Option<Cidr> {
        self.service_range.as_ref()?.parse().ok()
    }

    /// Name servers for pods: the tenth address for Services by convention.
    pub(crate) fn dns(&self) -> Vec<IpAddr> {
        if !self.dns.is_empty() {
            return self.dns.clone();
        }
        let tenth = match self.service_cidr().map(|cidr| cidr.network()) {
            Some(IpAddr::V4(first)) => Ipv4Addr::from_bits(first.to_bits() | 10).into(),
            Some(IpAddr::V6(first)) => Ipv6Addr::from_bits(first.to_bits() | 10).into(),
            None => Ipv4Addr::new(10, 96, 0, 10).into(),
        };
        vec![tenth]
    }

    /// Domain of the cluster's names.
    pub(crate) fn domain(&self) -> String {
        self.domain.clone().unwrap_or_else(|| DOMAIN_DEFAULT.into())
    }

    /// With what is said here before what is said there.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            service_range: self.service_range.or(other.service_range),
            dns: if self.dns.is_empty() {
                other.dns
            } else {
                self.dns
            },
            domain: self.domain.or(other.domain),
        }
    }

    /// What a node was told on its command line.
    pub(crate) fn given(args: &NodeArgs, service_range: Option<&str>) -> Self {
        Self {
            service_range: service_range.map(String::from),
            dns: args.cluster_dns.clone(),
            domain: args.cluster_domain.clone(),
        }
    }

    fn from_data(map: &ConfigMap) -> Self {
        let value = |key: &str| {
            let value = map.data.as_ref()?.get(key)?;
            (!value.is_empty()).then(|| value.clone())
        };
        let dns = value(DNS).unwrap_or_default();
        Self {
            service_range: value(SERVICE_RANGE),
            dns: dns
                .split(',')
                .filter_map(|ip| ip.trim().parse().ok())
                .collect(),
            domain: value(DOMAIN),
        }
    }
}

/// Publishes it, as the administrator.
pub(crate) async fn publish(client: &Client, info: &ClusterInfo) -> Result<()> {
    let dns: Vec<String> = info.dns().iter().map(IpAddr::to_string).collect();
    let meta = json!({ "name": NAME, "namespace": NAMESPACE });
    let data = json!({
        SERVICE_RANGE: info.service_range.clone().unwrap_or_default(),
        DNS: dns.join(","),
        DOMAIN: info.domain(),
    });
    let group = "rbac.authorization.k8s.io";
    apply::<ConfigMap>(
        client,
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data }),
    )
    .await?;
    apply::<Role>(
        client,
        json!({
            "apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": meta,
            "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get"] }],
        }),
    )
    .await?;
    apply::<RoleBinding>(
        client,
        json!({
            "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": meta,
            "roleRef": { "apiGroup": group, "kind": "Role", "name": NAME },
            "subjects": [{ "apiGroup": group, "kind": "Group", "name": "system:nodes" }],
        }),
    )
    .await
}

async fn apply<K>(client: &Client, object: serde_json::Value) -> Result<()>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), NAMESPACE);
    let params = PatchParams::apply("wherry-control").force();
    let done = api.patch(NAME, &params, &Patch::Apply(object)).await;
    done.map(drop)
        .with_context(|| format!("{} {NAMESPACE}/{NAME}", K::kind(&())))
}

/// What a node of the cluster goes by: what it was given, what the cluster says, what it knew before.
pub(crate) async fn settle(
    root: &RootArgs,
    client: Option<&Client>,
    given: ClusterInfo,
) -> ClusterInfo {
    let path = root.root.join("agent/cluster.json");
    let known: Option<ClusterInfo> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(_) => None,
    };
    let Some(client) = client else {
        return given.or(known.unwrap_or_default());
    };
    let patience = if known.is_some() {
        PATIENCE_KNOWN
    } else {
        PATIENCE
    };
    match ask(client, patience).await {
        Some(told) => {
            if known.as_ref() != Some(&told)
                && let Err(error) = keep(&path, &told)
            {
                warn!(path = %path.display(), %error, "What the cluster says of itself is not kept");
            }
            info!(
                services = told.service_range,
                dns = ?told.dns,
                domain = told.domain,
                "The cluster says what its Services and names are"
            );
            given.or(told)
        }
        None => {
            if known.is_none() {
                warn!(
                    "The cluster does not say what its Services and names are; the usual ones are taken"
                );
            }
            given.or(known.unwrap_or_default())
        }
    }
}

fn keep(path: &Path, info: &ClusterInfo) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    wherry_server::pki::write_file(path, &serde_json::to_vec(info)?, 0o644)
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Asks until there is an answer of any kind; `None` if there is none in time.
async fn ask(client: &Client, patience: Duration) -> Option<ClusterInfo> {
    let until = Instant::now() + patience;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        match timeout(left, maps.get(NAME)).await {
            Ok(Ok(map)) => return Some(ClusterInfo::from_data(&map)),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                return Some(find(client).await);
            }
            Ok(Err(_)) => sleep(RETRY.min(left)).await,
            Err(_) => return None,
        }
    }
}

/// What a cluster of another make shows; nothing where it shows nothing.
async fn find(client: &Client) -> ClusterInfo {
    let ranges: Api<ServiceCIDR> = Api::all(client.clone());
    let range = ranges.get_opt("kubernetes").await.ok().flatten();
    let service_range = range.and_then(|range| range.spec?.cidrs?.into_iter().next());
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let dns = services.get_opt("kube-dns").await.ok().flatten();
    let ips = dns
        .and_then(|dns| dns.spec?.cluster_ips)
        .unwrap_or_default();
    ClusterInfo {
        service_range,
        dns: ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
        domain: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(range: Option<&str>, dns: &[&str], domain: Option<&str>) -> ClusterInfo {
        ClusterInfo {
            service_range: range.map(String::from),
            dns: dns.iter().map(|ip| ip.parse().unwrap()).collect(),
            domain: domain.map(String::from),
        }
    }

    #[test]
    fn what_is_given_goes_before_what_is_told_and_that_before_custom() {
        let told = info(Some("10.32.0.0/16"), &["10.32.0.53"], Some("here.test"));
        let given = info(None, &["10.0.0.53"], None);
        assert_eq!(
            given.or(told),
            info(Some("10.32.0.0/16"), &["10.0.0.53"], Some("here.test"))
        );
        let nothing = ClusterInfo::default();
        assert_eq!(nothing.dns(), ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(nothing.domain(), "cluster.local");
        let range = info(Some("10.32.0.0/16"), &[], None);
        assert_eq!(range.dns(), ["10.32.0.10".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_config_map_is_read_as_far_as_it_makes_sense() {
        let read = |data: serde_json::Value| {
            let map = json!({ "metadata": {}, "data": data });
            ClusterInfo::from_data(&serde_json::from_value(map).unwrap())
        };
        assert_eq!(
            read(
                json!({ SERVICE_RANGE: "10.32.0.0/16", DNS: "10.32.0.10, fd00::a", DOMAIN: "a.test" })
            ),
            info(
                Some("10.32.0.0/16"),
                &["10.32.0.10", "fd00::a"],
                Some("a.test")
            )
        );
        assert_eq!(
            read(json!({ SERVICE_RANGE: "", DNS: "none" })),
            ClusterInfo::default()
        );
    }
}
