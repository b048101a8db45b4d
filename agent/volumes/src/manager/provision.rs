//! Volumes that plugins make for claims, and take away, where the control plane asks this node for it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use wherry_api::provision::{CreateVolume, CreatedVolume, DeleteVolume};
use wherry_plugin_host::{
    protocol::{ClaimAccess, Wanted},
    volume::{VolumeFailure, VolumePlugins, VolumeRequest},
};

use super::VolumeManager;

/// What a plugin is asked about a volume of a name.
fn request(
    plugin: &str,
    name: &str,
    attributes: BTreeMap<String, String>,
    fs_type: Option<String>,
    secret: BTreeMap<String, ByteString>,
) -> VolumeRequest {
    VolumeRequest {
        plugin: plugin.to_owned(),
        name: name.to_owned(),
        attributes,
        fs_type,
        credentials: secret
            .into_iter()
            .map(|(key, value)| (key, value.0))
            .collect(),
        ..VolumeRequest::default()
    }
}

impl VolumeManager {
    fn provisioners(&self, plugin: &str) -> Result<&dyn VolumePlugins, VolumeFailure> {
        let plugins = self.inner.config.plugins.as_deref();
        plugins.ok_or_else(|| VolumeFailure::NotInstalled(plugin.to_owned()))
    }

    /// Has a plugin make a volume of a name that no other has. Repeatable.
    ///
    /// # Errors
    /// It is not made. [`VolumeFailure::is_no_provisioner`]: it needs no making.
    pub async fn create(
        &self,
        plugin: &str,
        name: &str,
        asked: CreateVolume,
    ) -> Result<CreatedVolume, VolumeFailure> {
        let mut access = Vec::new();
        for mode in &asked.access_modes {
            access.push(
                ClaimAccess::named(mode).ok_or_else(|| VolumeFailure::Refused {
                    plugin: plugin.to_owned(),
                    why: format!("access mode {mode:?}: not one that is known here"),
                })?,
            );
        }
        let wanted = Wanted {
            bytes_min: asked.bytes_min,
            bytes_max: asked.bytes_max,
            access,
            claim: asked.claim,
        };
        let request = request(plugin, name, asked.parameters, asked.fs_type, asked.secret);
        let created = self.provisioners(plugin)?.create(&request, wanted).await?;
        Ok(CreatedVolume {
            handle: created.handle,
            bytes: created.bytes,
            attributes: created.attributes.into_iter().collect(),
            is_of_this_node: created.is_of_this_node,
        })
    }

    /// Has a plugin take a volume away. Repeatable.
    ///
    /// # Errors
    /// It may be there still.
    pub async fn delete(
        &self,
        plugin: &str,
        name: &str,
        asked: DeleteVolume,
    ) -> Result<(), VolumeFailure> {
        let request = request(plugin, name, asked.attributes, asked.fs_type, asked.secret);
        self.provisioners(plugin)?
            .delete(&request, &asked.handle)
            .await
    }
}
