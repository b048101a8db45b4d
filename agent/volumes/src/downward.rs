//! What a pod may know of itself: fields of its metadata and its containers' resources. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, DownwardAPIVolumeFile, Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};
use wherry_api::quantity;

use crate::{
    SetUpError,
    payload::{self, File, Payload},
};

/// Files of a downwardAPI volume.
///
/// `allocatable` stands in for limits that a container does not have.
///
/// # Errors
/// A field cannot be shown, a container is not there, or a path leaves the volume.
pub fn files(
    pod: &Pod,
    allocatable: &BTreeMap<String, Quantity>,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
) -> Result<Payload, SetUpError> {
    let mut files = Payload::new();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), _) => field(pod, &selector.field_path)?,
            (None, Some(selector)) => resource_of(pod, allocatable, selector)?,
            (None, None) => {
                let why = format!(
                    "{}: neither fieldRef nor resourceFieldRef is set",
                    item.path
                );
                return Err(SetUpError::Invalid(why));
            }
        };
        let mode = item
            .mode
            .map_or(default_mode, |bits| payload::mode(Some(bits)));
        payload::insert(
            &mut files,
            &item.path,
            File {
                data: text.into_bytes(),
                mode,
                uid: None,
            },
        )?;
    }
    Ok(files)
}

/// A field of the pod's metadata as text. Whole maps have one `key="value"` a line, sorted.
///
/// # Errors
/// The path is none of those that a volume may show.
pub fn field(pod: &Pod, path: &str) -> Result<String, SetUpError> {
    let metadata = &pod.metadata;
    let text = match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(metadata.labels.as_ref()),
        "metadata.annotations" => format_map(metadata.annotations.as_ref()),
        _ => {
            let (map, key) = if let Some(key) = subscript(path, "metadata.labels") {
                (metadata.labels.as_ref(), key)
            } else if let Some(key) = subscript(path, "metadata.annotations") {
                (metadata.annotations.as_ref(), key)
            } else {
                return Err(SetUpError::Invalid(format!(
                    "unsupported fieldPath: {path}"
                )));
            };
            map.and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default()
        }
    };
    Ok(text)
}

/// The key in `metadata.labels['key']`.
fn subscript<'a>(path: &'a str, map: &str) -> Option<&'a str> {
    path.strip_prefix(map)?
        .strip_prefix("['")?
        .strip_suffix("']")
}

fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<_> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect();
    lines.join("\n")
}

/// Quotes as Go's `%q` does, which is what programs that read these files expect.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        match char {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0b' => quoted.push_str("\\v"),
            char if char < ' ' || char == '\x7f' => {
                quoted.push_str(&format!("\\x{:02x}", char as u32))
            }
            char if char.is_control() => quoted.push_str(&format!("\\u{:04x}", char as u32)),
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

fn resource_of(
    pod: &Pod,
    allocatable: &BTreeMap<String, Quantity>,
    selector: &ResourceFieldSelector,
) -> Result<String, SetUpError> {
    let name = selector.container_name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let containers = spec
        .map(|spec| spec.containers.iter())
        .into_iter()
        .flatten();
    let init = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .into_iter()
        .flatten();
    let container = containers
        .chain(init)
        .find(|container| container.name == name)
        .ok_or_else(|| SetUpError::Invalid(format!("container {name} not found")))?;
    resource(
        container,
        allocatable,
        &selector.resource,
        selector.divisor.as_ref(),
    )
}

/// A request or limit of a container, divided and rounded up, as text. A limit that is not set is
/// what the node has for pods; a request that is not set is 0.
///
/// # Errors
/// The resource is not one that can be shown, or a quantity cannot be read.
pub fn resource(
    container: &Container,
    allocatable: &BTreeMap<String, Quantity>,
    resource: &str,
    divisor: Option<&Quantity>,
) -> Result<String, SetUpError> {
    let unsupported =
        || SetUpError::Invalid(format!("unsupported container resource : {resource}"));
    let (kind, name) = resource.split_once('.').ok_or_else(unsupported)?;
    if !(matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")) {
        return Err(unsupported());
    }
    let resources = container.resources.as_ref();
    let set = match kind {
        "limits" => {
            let limit = resources.and_then(|resources| resources.limits.as_ref()?.get(name));
            limit
                .filter(|limit| !is_zero(limit))
                .or_else(|| allocatable.get(name))
        }
        "requests" => resources.and_then(|resources| resources.requests.as_ref()?.get(name)),
        _ => return Err(unsupported()),
    };
    let milli = |quantity: &Quantity| {
        quantity::Quantity::parse(&quantity.0)
            .map(|parsed| parsed.milli())
            .map_err(|_| {
                SetUpError::Invalid(format!("{resource}: {:?} is not a quantity", quantity.0))
            })
    };
    let value = set.map(milli).transpose()?.unwrap_or(0);
    // A divisor of 0, which is what an absent one decodes to in some clients, means 1.
    let divisor = divisor
        .filter(|divisor| !is_zero(divisor))
        .map(milli)
        .transpose()?
        .unwrap_or(1000);
    if name != "cpu" && divisor % 1000 != 0 {
        return Err(SetUpError::Invalid(format!(
            "{resource}: a divisor must be whole"
        )));
    }
    Ok(value
        .div_euclid(divisor)
        .saturating_add(i128::from(value.rem_euclid(divisor) > 0))
        .to_string())
}

fn is_zero(quantity: &Quantity) -> bool {
    quantity.0.is_empty()
        || quantity::Quantity::parse(&quantity.0).is_ok_and(|parsed| parsed.is_zero())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{ObjectFieldSelector, PodSpec, ResourceRequirements},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };

    use super::*;

    fn quantities(of: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
        of.iter()
            .map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned())))
            .collect()
    }

    fn pod() -> Pod {
        let container = Container {
            name: "main".into(),
            resources: Some(ResourceRequirements {
                limits: Some(quantities(&[("cpu", "1500m"), ("memory", "64Mi")])),
                requests: Some(quantities(&[("cpu", "250m"), ("memory", "1000001")])),
                ..ResourceRequirements::default()
            }),
            ..Container::default()
        };
        let bare = Container {
            name: "bare".into(),
            ..Container::default()
        };
        Pod {
            metadata: ObjectMeta {
                name: Some("web".into()),
                namespace: Some("shop".into()),
                uid: Some("u-1".into()),
                labels: Some(
                    [
                        ("b".into(), "2".into()),
                        ("a".into(), "say \"hi\"\n".into()),
                    ]
                    .into(),
                ),
                annotations: Some([("x/y".into(), "é\u{1}".into())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                containers: vec![container, bare],
                ..PodSpec::default()
            }),
            ..Pod::default()
        }
    }

    #[test]
    fn fields_read_as_the_kubelet_writes_them() {
        for (path, want) in [
            ("metadata.name", Some("web")),
            ("metadata.namespace", Some("shop")),
            ("metadata.uid", Some("u-1")),
            ("metadata.labels", Some("a=\"say \\\"hi\\\"\\n\"\nb=\"2\"")),
            ("metadata.annotations", Some("x/y=\"é\\x01\"")),
            ("metadata.labels['a']", Some("say \"hi\"\n")),
            ("metadata.annotations['x/y']", Some("é\u{1}")),
            ("metadata.annotations['none']", Some("")),
            ("status.podIP", None),
            ("spec.nodeName", None),
        ] {
            assert_eq!(field(&pod(), path).ok().as_deref(), want, "{path}");
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let node = quantities(&[
            ("cpu", "2"),
            ("memory", "1Gi"),
            ("ephemeral-storage", "10Gi"),
        ]);
        for (container, resource, divisor, want) in [
            ("main", "limits.cpu", "", Some("2")),
            ("main", "limits.cpu", "1m", Some("1500")),
            ("main", "requests.cpu", "1", Some("1")),
            ("main", "limits.memory", "1Mi", Some("64")),
            ("main", "requests.memory", "1k", Some("1001")),
            ("main", "requests.memory", "0", Some("1000001")),
            ("bare", "limits.cpu", "1m", Some("2000")),
            ("bare", "limits.memory", "1Mi", Some("1024")),
            ("bare", "requests.memory", "", Some("0")),
            ("bare", "limits.ephemeral-storage", "1Gi", Some("10")),
            ("main", "limits.gpus", "1", None),
            ("none", "limits.cpu", "1", None),
        ] {
            let selector = ResourceFieldSelector {
                container_name: Some(container.into()),
                divisor: (!divisor.is_empty()).then(|| Quantity(divisor.into())),
                resource: resource.into(),
            };
            let got = resource_of(&pod(), &node, &selector).ok();
            assert_eq!(got.as_deref(), want, "{container} {resource} {divisor}");
        }
    }

    #[test]
    fn an_item_sets_its_own_mode() {
        let items = [DownwardAPIVolumeFile {
            path: "a/name".into(),
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.name".into(),
                api_version: None,
            }),
            mode: Some(0o400),
            ..DownwardAPIVolumeFile::default()
        }];
        let files = files(&pod(), &BTreeMap::new(), &items, 0o644).unwrap();
        assert_eq!(
            files["a/name"],
            File {
                data: b"web".to_vec(),
                mode: 0o400,
                uid: None
            }
        );
    }
}
