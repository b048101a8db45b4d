//! Volumes that a node's plugin makes for a claim, and takes away. Each call is repeatable, by the volume's name.
//!
//! ```text
//!  claim ─▶ class, Secret ─▶ node: create ─┬─▶ PersistentVolume, ProvisioningSucceeded
//!                              │           ├─ 501: the plugin's volumes need no making ─▶ PersistentVolume
//!                              │           ├─ 507: the scheduler chooses another node
//!                              └─ another   └─ else: ProvisioningFailed, and again
//!  volume ─▶ node: delete ─▶ PersistentVolume gone, or VolumeFailedDelete and again
//! ```

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim, Secret},
        storage::v1::StorageClass,
    },
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
};
use serde_json::{Value, json};
use tracing::warn;
use wherry_api::{
    provision::{CreateVolume, CreatedVolume, DeleteVolume},
    quantity::Quantity,
};

use super::{
    effects::{Effects, NewVolume, failed, proxy},
    flights::Landing,
    plan::{NODE, PLUGIN, Say, plugin_name},
    provision::{self, Parameters, SecretName},
    view::{ClaimView, PROVISIONED_BY, PROVISIONER, PROVISIONER_BETA, SELECTED_NODE, VolumeView},
};
use crate::{nodes::NodeView, retry};

/// When a volume whose node has gone is looked at again: the node may come back.
const GONE_RETRY: Duration = Duration::from_secs(300);

/// By then what has been written has been seen.
const SEEN: Duration = Duration::from_secs(2);

/// A volume that a claim wants of a plugin.
pub(super) struct Creation {
    pub(super) claim: Arc<ClaimView>,
    pub(super) class: String,
    /// As the class says it.
    pub(super) provisioner: String,
    /// That the scheduler has chosen, or empty.
    pub(super) node: String,
    pub(super) nodes: Vec<Arc<NodeView>>,
    pub(super) failures: u32,
}

/// What the API server says of a Plugin.
enum Known {
    /// There is no such object: it is built in, or there is none.
    No,
    /// These nodes can call it.
    On(HashSet<String>),
}

/// How a node answered.
enum Answer {
    Created(CreatedVolume),
    /// Its volumes need no making.
    Given,
    /// It is not installed there.
    Missing(String),
    /// There is no room on it.
    Full(String),
    Failed(String),
}

impl Answer {
    fn of(answer: kube::Result<CreatedVolume>) -> Self {
        match answer {
            Ok(created) => Self::Created(created),
            Err(kube::Error::Api(status)) => match status.code {
                501 => Self::Given,
                404 => Self::Missing(status.message.clone()),
                507 => Self::Full(status.message.clone()),
                _ => Self::Failed(status.message.clone()),
            },
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

impl Effects {
    /// Whether a provisioner is a Plugin that somebody has installed under that name.
    pub(super) async fn is_installed(&self, provisioner: &str) -> kube::Result<bool> {
        // No object has such a name.
        if provisioner.contains('/') {
            return Ok(false);
        }
        Ok(matches!(self.known(provisioner).await?, Known::On(_)))
    }

    async fn known(&self, plugin: &str) -> kube::Result<Known> {
        let gvk = GroupVersionKind::gvk("wherry.dev", "v1alpha1", "Plugin");
        let resource = ApiResource::from_gvk_with_plural(&gvk, "plugins");
        let plugins: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let Some(found) = plugins.get_opt(plugin).await? else {
            return Ok(Known::No);
        };
        let nodes = found.data["status"]["nodes"].as_object();
        let ready = nodes
            .into_iter()
            .flatten()
            .filter(|(_, node)| node["ready"] == true);
        Ok(Known::On(ready.map(|(name, _)| name.clone()).collect()))
    }

    async fn secret(
        &self,
        wanted: Option<&SecretName>,
    ) -> Result<BTreeMap<String, ByteString>, String> {
        let Some(SecretName { namespace, name }) = wanted else {
            return Ok(BTreeMap::new());
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let what = || format!("secret {namespace}/{name}");
        match secrets.get_opt(name).await {
            Ok(Some(found)) => Ok(found.data.unwrap_or_default()),
            Ok(None) => Err(format!("{}: not found", what())),
            Err(error) => Err(format!("{}: {}", what(), retry::text(&error))),
        }
    }

    async fn post<T: serde::de::DeserializeOwned>(
        &self,
        node: &str,
        path: &str,
        body: &impl serde::Serialize,
    ) -> kube::Result<T> {
        let mut request = proxy(http::Method::POST, node, path);
        let json = http::HeaderValue::from_static("application/json");
        request
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, json);
        *request.body_mut() = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
        let text = self.client.request_text(request).await?;
        // What has nothing to say answers nothing.
        let text = if text.is_empty() { "null" } else { &text };
        serde_json::from_str(text).map_err(kube::Error::SerdeError)
    }

    /// Has a plugin make a claim's volume, and writes it down.
    pub(super) async fn create(&self, creation: Creation) -> Landing {
        match self.try_create(&creation).await {
            Ok(landing) => landing,
            Err(why) => {
                let Creation { claim, class, .. } = &creation;
                let message =
                    format!("failed to provision volume with StorageClass {class:?}: {why}");
                self.say_of_claim(claim, failed("ProvisioningFailed", message));
                Landing::Failed
            }
        }
    }

    async fn try_create(&self, creation: &Creation) -> Result<Landing, String> {
        let Creation {
            claim,
            provisioner,
            nodes,
            ..
        } = creation;
        let said = |error: kube::Error| retry::text(&error);
        let claims = self.claims(&claim.key.namespace);
        let asked = claims.get_opt(&claim.key.name).await.map_err(said)?;
        let is_wanted = |found: &PersistentVolumeClaim| {
            found.metadata.uid.as_deref() == Some(&claim.uid)
                && found.metadata.deletion_timestamp.is_none()
        };
        let Some(asked) = asked.filter(is_wanted) else {
            return Ok(Landing::Done);
        };
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let class = classes.get(&creation.class).await.map_err(said)?;
        let name = format!("pvc-{}", claim.uid);
        let parameters = Parameters::read(&class, &claim.key, &name)?;
        let plugin = plugin_name(provisioner);
        let known = self.known(plugin).await.map_err(said)?;
        let installed = match &known {
            Known::No => None,
            Known::On(nodes) => Some(nodes),
        };
        let candidates = provision::candidates(
            nodes,
            &creation.node,
            &class,
            installed,
            &name,
            creation.failures,
        );
        if candidates.is_empty() {
            return Err(format!("no node that is ready has the plugin {plugin}"));
        }
        let sizes = asked.spec.and_then(|spec| spec.resources);
        let (requests, limits) = sizes.map_or((None, None), |sizes| (sizes.requests, sizes.limits));
        let size = requests.and_then(|mut sizes| sizes.remove("storage"));
        let size = size.ok_or("the claim asks for no size")?.0;
        let size_bytes = Quantity::parse(&size).map_or(0, |size| size.value());
        let limit = limits.and_then(|mut sizes| sizes.remove("storage"));
        let request = CreateVolume {
            claim: claim.key.to_string(),
            access_modes: claim.access_modes.clone(),
            bytes_min: u64::try_from(size_bytes).map_err(|_| format!("size {size}: too large"))?,
            bytes_max: limit
                .and_then(|limit| u64::try_from(Quantity::parse(&limit.0).ok()?.value()).ok()),
            parameters: parameters.of_plugin.clone(),
            fs_type: parameters.fs_type.clone(),
            secret: self.secret(parameters.provisioner_secret.as_ref()).await?,
        };
        if creation.failures == 0 {
            let message = format!(
                "External provisioner is provisioning volume for claim \"{}\"",
                claim.key
            );
            self.say_of_claim(
                claim,
                Say {
                    is_warning: false,
                    reason: "Provisioning",
                    message,
                },
            );
        }
        let mut why = Vec::new();
        let mut is_missing = true;
        for node in &candidates {
            let path = format!("plugins/{plugin}/volumes/{name}");
            let answer = Answer::of(self.post(node, &path, &request).await);
            is_missing &= matches!(answer, Answer::Missing(_));
            let new = |annotations, source| NewVolume {
                claim,
                class: &class,
                capacity: size.clone(),
                annotations,
                source,
            };
            match answer {
                Answer::Created(created) => {
                    if let Err(error) = provision::check(&created, size_bytes) {
                        return Err(format!("node {node}: {error}"));
                    }
                    let found = nodes.iter().find(|found| found.key.name == *node);
                    let hostname = found.and_then(|node| node.labels.get(provision::HOSTNAME));
                    let hostname = hostname.map_or(node.as_str(), String::as_str);
                    let annotations =
                        provision::annotations(provisioner, plugin, node, &parameters);
                    let source = provision::source(provisioner, &created, hostname, &parameters);
                    let mut new = new(annotations, source);
                    new.capacity = provision::capacity(&created, &size, size_bytes);
                    self.write_down(new).await.map_err(said)?;
                    return Ok(Landing::Later(SEEN));
                }
                Answer::Given => {
                    let given = CreatedVolume {
                        handle: name.clone(),
                        attributes: parameters.of_plugin.clone(),
                        ..CreatedVolume::default()
                    };
                    let mut annotations =
                        provision::annotations(provisioner, plugin, node, &parameters);
                    // Nothing is there to be taken away.
                    annotations[NODE] = Value::Null;
                    let source = provision::source(provisioner, &given, "", &parameters);
                    let written = self.write_down(new(annotations, source)).await;
                    written.map_err(said)?;
                    return Ok(Landing::Later(SEEN));
                }
                Answer::Missing(text) => why.push(format!("node {node}: {text}")),
                Answer::Full(text) => {
                    why.push(format!("node {node}: {text}"));
                    if !creation.node.is_empty() {
                        self.choose_again(claim).await.map_err(said)?;
                    }
                }
                Answer::Failed(text) => {
                    why.push(format!("node {node}: {text}"));
                    // It may have made what its answer does not say.
                    break;
                }
            }
        }
        if is_missing && matches!(known, Known::No) {
            // Nobody here is called so. Somebody may come who is.
            self.ask(claim, provisioner).await.map_err(said)?;
            return Ok(Landing::Later(super::SYNC_PERIOD));
        }
        Err(why.join("; "))
    }

    /// The scheduler is to choose another node, whatever else of the claim has changed meanwhile.
    async fn choose_again(&self, claim: &ClaimView) -> kube::Result<()> {
        let patch = json!({ "metadata": {
            "uid": claim.uid,
            "annotations": { SELECTED_NODE: null },
        } });
        let claims = self.claims(&claim.key.namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let written = claims.patch(&claim.key.name, &params, &patch);
        written.await.map(drop)
    }

    /// Has a plugin take a volume away, and removes the object.
    pub(super) async fn delete(
        &self,
        volume: Arc<VolumeView>,
        nodes: Vec<Arc<NodeView>>,
    ) -> Landing {
        let fail = |why: String| self.say_of_volume(&volume, failed("VolumeFailedDelete", why));
        match self.try_delete(&volume, &nodes).await {
            Ok(Ok(())) => Landing::Later(SEEN),
            Ok(Err(gone)) => {
                fail(gone);
                if let Err(error) = self.set_volume_phase(&volume, "Failed").await {
                    warn!(volume = volume.name, error = %retry::text(&error), "Phase not written");
                }
                Landing::Later(GONE_RETRY)
            }
            Err(why) => {
                fail(why);
                Landing::Failed
            }
        }
    }

    /// `Err` is tried again soon; `Ok(Err)` is a node that is not there any more.
    async fn try_delete(
        &self,
        volume: &VolumeView,
        nodes: &[Arc<NodeView>],
    ) -> Result<Result<(), String>, String> {
        let said = |error: kube::Error| retry::text(&error);
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = volumes.get_opt(&volume.name).await.map_err(said)?;
        let Some(found) = found.filter(|found| found.metadata.uid.as_deref() == Some(&volume.uid))
        else {
            return Ok(Ok(()));
        };
        let Some(source) = found.spec.and_then(|spec| spec.csi) else {
            return Err("the volume is none of a driver's (csi)".into());
        };
        let annotation = |key: &str| volume.annotations.get(key).map_or("", String::as_str);
        let plugin = match annotation(PLUGIN) {
            "" => plugin_name(annotation(PROVISIONED_BY)),
            plugin => plugin,
        };
        let made_on = annotation(NODE);
        let secret = Some(SecretName {
            namespace: annotation(provision::DELETION_SECRET_NAMESPACE).to_owned(),
            name: annotation(provision::DELETION_SECRET_NAME).to_owned(),
        })
        .filter(|secret| !secret.name.is_empty());
        let request = DeleteVolume {
            handle: source.volume_handle,
            attributes: source.volume_attributes.unwrap_or_default(),
            fs_type: source.fs_type,
            secret: self.secret(secret.as_ref()).await?,
        };
        let is_there_alone = volume.affinity.is_some();
        let asked = provision::deleters(nodes, made_on, is_there_alone);
        if asked.is_empty() {
            return match is_there_alone {
                true => Ok(Err(format!(
                    "node {made_on:?}: it is not there any more, and what the volume holds with it: delete the \
                     PersistentVolume, and what the machine has, if it lives"
                ))),
                false => Err("no node is ready that could take it away".into()),
            };
        }
        let mut why = Vec::new();
        for node in &asked {
            let path = format!("plugins/{plugin}/volumes/{}/delete", volume.name);
            match self.post::<Value>(node, &path, &request).await {
                Ok(_) => {
                    self.forget(volume).await.map_err(said)?;
                    return Ok(Ok(()));
                }
                Err(error) => why.push(format!("node {node}: {}", retry::text(&error))),
            }
        }
        Err(why.join("; "))
    }

    /// Names a claim's provisioner to whoever looks, as Kubernetes does before anything is made.
    pub(super) async fn name_provisioner(
        &self,
        claim: &ClaimView,
        provisioner: &str,
    ) -> kube::Result<bool> {
        if claim.annotation(PROVISIONER) == provisioner {
            return Ok(false);
        }
        let patch = json!({ "metadata": { "annotations": {
            PROVISIONER: provisioner, PROVISIONER_BETA: provisioner,
        } } });
        self.patch_claim(claim, patch).await?;
        Ok(true)
    }
}
