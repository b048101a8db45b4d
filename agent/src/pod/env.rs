//! A container's environment: literals, references, Services, and `$(VAR)`. Pure; the objects that
//! are referred to are fetched before ([`references`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, ResourceFieldSelector, Secret},
    apimachinery::pkg::api::resource::Quantity,
};
use thiserror::Error;

use super::{name, namespace, quantity, spec, uid};

/// Why an environment cannot be made; a `CreateContainerConfigError` with the kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum EnvError {
    /// The object is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// A field path that means nothing here.
    #[error("failed to resolve env var {variable}: unsupported fieldPath: {path}")]
    FieldPath {
        /// The variable.
        variable: String,
        /// The path.
        path: String,
    },
    /// A source that nothing here can read.
    #[error("failed to resolve env var {variable}: {field} is not supported on this node")]
    Unsupported {
        /// The variable.
        variable: String,
        /// As the API spells it.
        field: &'static str,
    },
    /// A resource that means nothing here.
    #[error("failed to resolve env var {variable}: unsupported container resource: {resource}")]
    Resource {
        /// The variable.
        variable: String,
        /// The resource.
        resource: String,
    },
}

/// Names of the objects a container's environment refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct References {
    /// ConfigMaps.
    pub(crate) config_maps: BTreeSet<String>,
    /// Secrets.
    pub(crate) secrets: BTreeSet<String>,
}

/// The objects that were fetched; an absent one is `None` or left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    /// By name.
    pub(crate) config_maps: BTreeMap<String, Option<ConfigMap>>,
    /// By name.
    pub(crate) secrets: BTreeMap<String, Option<Secret>>,
}

impl Objects {
    fn config_map(
        &self,
        name: &str,
        optional: Option<bool>,
    ) -> Result<Option<&ConfigMap>, EnvError> {
        let found = self.config_maps.get(name).and_then(Option::as_ref);
        or_none(found, optional, || EnvError::NotFound {
            kind: "configmap",
            name: name.into(),
        })
    }

    fn secret(&self, name: &str, optional: Option<bool>) -> Result<Option<&Secret>, EnvError> {
        let found = self.secrets.get(name).and_then(Option::as_ref);
        or_none(found, optional, || EnvError::NotFound {
            kind: "secret",
            name: name.into(),
        })
    }
}

/// Which objects to fetch.
pub(crate) fn references(container: &Container) -> References {
    let mut found = References::default();
    for source in container.env_from.iter().flatten() {
        found
            .config_maps
            .extend(source.config_map_ref.as_ref().map(|r| r.name.clone()));
        found
            .secrets
            .extend(source.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|variable| variable.value_from.as_ref())
    {
        found
            .config_maps
            .extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        found
            .secrets
            .extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    found
}

/// A Service, as far as the environment shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceEnv {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its cluster IP.
    pub(crate) ip: String,
    /// Name, number and protocol, in the Service's order.
    pub(crate) ports: Vec<(Option<String>, u16, String)>,
}

/// What an environment is made of besides the container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// What was fetched.
    pub(crate) objects: &'a Objects,
    /// Every Service with a cluster IP.
    pub(crate) services: &'a [ServiceEnv],
    /// The pod's addresses.
    pub(crate) pod_ips: &'a [IpAddr],
    /// The node's addresses.
    pub(crate) host_ips: &'a [IpAddr],
    /// The node's name.
    pub(crate) node_name: &'a str,
    /// What the node has for pods; stands for a limit that is not set.
    pub(crate) allocatable: &'a BTreeMap<String, Quantity>,
}

/// Makes the environment, in order.
pub(crate) fn build(
    inputs: Inputs<'_>,
    container: &Container,
) -> Result<Vec<(String, String)>, EnvError> {
    let services = service_variables(inputs);
    let mut result = Ordered::default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(from) = &source.config_map_ref
            && let Some(object) = inputs.objects.config_map(&from.name, from.optional)?
        {
            for (key, value) in object.data.iter().flatten() {
                result.set(format!("{prefix}{key}"), value.clone());
            }
        }
        if let Some(from) = &source.secret_ref
            && let Some(object) = inputs.objects.secret(&from.name, from.optional)?
        {
            for (key, value) in object.data.iter().flatten() {
                result.set(format!("{prefix}{key}"), text(value));
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => Some(expand(value, |name| {
                result.get(name).or_else(|| services.get(name)).cloned()
            })),
            (_, Some(source)) => resolve(inputs, container, &variable.name, source)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            result.set(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if result.get(&name).is_none() {
            result.set(name, value);
        }
    }
    Ok(result.list)
}

#[derive(Default)]
struct Ordered {
    list: Vec<(String, String)>,
}

impl Ordered {
    fn set(&mut self, name: String, value: String) {
        match self.list.iter_mut().find(|(there, _)| *there == name) {
            Some(entry) => entry.1 = value,
            None => self.list.push((name, value)),
        }
    }

    fn get(&self, name: &str) -> Option<&String> {
        self.list
            .iter()
            .find(|(there, _)| there == name)
            .map(|(_, value)| value)
    }
}

fn resolve(
    inputs: Inputs<'_>,
    container: &Container,
    variable: &str,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    let namespace = namespace(inputs.pod);
    if let Some(field) = &source.field_ref {
        let path = field.field_path.as_str();
        return match field_value(inputs, path) {
            Some(value) => Ok(Some(value)),
            None => Err(EnvError::FieldPath {
                variable: variable.into(),
                path: path.into(),
            }),
        };
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_value(inputs, container, field)
            .map(Some)
            .ok_or_else(|| EnvError::Resource {
                variable: variable.into(),
                resource: field.resource.clone(),
            });
    }
    let no_key = |kind, key: &str, name: &str| EnvError::NoKey {
        key: key.into(),
        kind,
        namespace: namespace.into(),
        name: name.into(),
    };
    if let Some(from) = &source.config_map_key_ref {
        let object = inputs.objects.config_map(&from.name, from.optional)?;
        let Some(object) = object else {
            return Ok(None);
        };
        let value = object.data.as_ref().and_then(|data| data.get(&from.key));
        return or_none(value.cloned(), from.optional, || {
            no_key("ConfigMap", &from.key, &from.name)
        });
    }
    if let Some(from) = &source.secret_key_ref {
        let object = inputs.objects.secret(&from.name, from.optional)?;
        let Some(object) = object else {
            return Ok(None);
        };
        let value = object.data.as_ref().and_then(|data| data.get(&from.key));
        return or_none(value.map(text), from.optional, || {
            no_key("Secret", &from.key, &from.name)
        });
    }
    if source.file_key_ref.is_some() {
        return Err(EnvError::Unsupported {
            variable: variable.into(),
            field: "fileKeyRef",
        });
    }
    Ok(Some(String::new()))
}

/// What was found; nothing is fine where it is optional.
fn or_none<T>(
    found: Option<T>,
    optional: Option<bool>,
    error: impl FnOnce() -> EnvError,
) -> Result<Option<T>, EnvError> {
    match found {
        None if optional != Some(true) => Err(error()),
        found => Ok(found),
    }
}

/// A Secret's value as a variable has it.
fn text(value: &ByteString) -> String {
    String::from_utf8_lossy(&value.0).into_owned()
}

fn field_value(inputs: Inputs<'_>, path: &str) -> Option<String> {
    let pod = inputs.pod;
    let join = |ips: &[IpAddr]| {
        ips.iter()
            .map(IpAddr::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    let keyed = |map: Option<&BTreeMap<String, String>>, prefix: &str| {
        let key = path
            .strip_prefix(prefix)?
            .strip_prefix("['")?
            .strip_suffix("']")?;
        Some(
            map.and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default(),
        )
    };
    Some(match path {
        "metadata.name" => name(pod).into(),
        "metadata.namespace" => namespace(pod).into(),
        "metadata.uid" => uid(pod).to_string(),
        "spec.nodeName" => inputs.node_name.into(),
        "spec.serviceAccountName" => spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => inputs
            .host_ips
            .first()
            .map(IpAddr::to_string)
            .unwrap_or_default(),
        "status.hostIPs" => join(inputs.host_ips),
        "status.podIP" => inputs
            .pod_ips
            .first()
            .map(IpAddr::to_string)
            .unwrap_or_default(),
        "status.podIPs" => join(inputs.pod_ips),
        _ => {
            return keyed(pod.metadata.labels.as_ref(), "metadata.labels")
                .or_else(|| keyed(pod.metadata.annotations.as_ref(), "metadata.annotations"));
        }
    })
}

fn resource_value(
    inputs: Inputs<'_>,
    container: &Container,
    field: &ResourceFieldSelector,
) -> Option<String> {
    let named = field
        .container_name
        .as_deref()
        .and_then(|name| super::container(inputs.pod, name));
    let resources = named.as_deref().unwrap_or(container).resources.as_ref();
    let (list, resource) = field.resource.split_once('.')?;
    let limits = resources.and_then(|r| r.limits.as_ref());
    let chosen = match list {
        "limits" => limits.and_then(|map| map.get(resource)),
        "requests" => {
            let requests = resources.and_then(|r| r.requests.as_ref());
            requests
                .and_then(|map| map.get(resource))
                .or_else(|| limits.and_then(|map| map.get(resource)))
        }
        _ => return None,
    };
    let is_known = matches!(resource, "cpu" | "memory" | "ephemeral-storage")
        || resource.starts_with("hugepages-");
    let of_node = || {
        let is_shared = list == "limits" && !resource.starts_with("hugepages-");
        inputs.allocatable.get(resource).filter(|_| is_shared)
    };
    let millis = match chosen.or_else(of_node) {
        _ if !is_known => return None,
        Some(quantity) => quantity::millis(quantity)?,
        None => 0,
    };
    let divisor = field
        .divisor
        .as_ref()
        .and_then(quantity::millis)
        .filter(|divisor| *divisor > 0)
        .unwrap_or(1000);
    Some((millis.div_euclid(divisor) + i128::from(millis.rem_euclid(divisor) != 0)).to_string())
}

/// `$(VAR)` becomes the variable's value where there is one, `$$` becomes `$`.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => {
                    result.push_str("$(");
                    result.push_str(name);
                    result.push(')');
                }
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

fn service_variables(inputs: Inputs<'_>) -> BTreeMap<String, String> {
    let links = spec(inputs.pod).enable_service_links.unwrap_or(true);
    let namespace = namespace(inputs.pod);
    let mut variables = BTreeMap::new();
    // A Service of the pod's own namespace wins over default/kubernetes of the same name.
    let master = |s: &&ServiceEnv| s.namespace == "default" && s.name == "kubernetes";
    let own = |s: &&ServiceEnv| links && s.namespace == namespace;
    for service in inputs
        .services
        .iter()
        .filter(master)
        .chain(inputs.services.iter().filter(own))
    {
        let prefix = service.name.to_uppercase().replace('-', "_");
        let ip = if service.ip.contains(':') {
            format!("[{}]", service.ip)
        } else {
            service.ip.clone()
        };
        variables.insert(format!("{prefix}_SERVICE_HOST"), service.ip.clone());
        for (index, (port_name, port, protocol)) in service.ports.iter().enumerate() {
            if index == 0 {
                variables.insert(format!("{prefix}_SERVICE_PORT"), port.to_string());
            }
            if let Some(port_name) = port_name {
                let port_name = port_name.to_uppercase().replace('-', "_");
                variables.insert(
                    format!("{prefix}_SERVICE_PORT_{port_name}"),
                    port.to_string(),
                );
            }
            let url = format!("{}://{ip}:{port}", protocol.to_lowercase());
            if index == 0 {
                variables.insert(format!("{prefix}_PORT"), url.clone());
            }
            let link = format!("{prefix}_PORT_{port}_{protocol}");
            variables.insert(format!("{link}_PROTO"), protocol.to_lowercase());
            variables.insert(format!("{link}_PORT"), port.to_string());
            variables.insert(format!("{link}_ADDR"), service.ip.clone());
            variables.insert(link, url);
        }
    }
    variables
}

#[cfg(test)]
mod tests;
