//! Credentials for a pull: of the pod's pull secrets, of its ServiceAccount's, and of the node.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use tracing::{debug, warn};
use wherry_runtime_api::RegistryAuth;

use crate::{
    events::{Kind, Recorder},
    objects::Objects,
    pod,
};

use super::auth;

const REASON: &str = "FailedToRetrieveImagePullSecret";

/// What the node itself is known by to registries: whatever it pulls may use it.
#[derive(Clone, Debug)]
pub struct NodeCredentials {
    /// In the form of `~/.docker/config.json`; read for each pull, so that it can be changed.
    file: PathBuf,
}

impl NodeCredentials {
    /// Out of a file in the form of `~/.docker/config.json`, which need not be there.
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Out of the file of a node's root that is read where no other is named.
    pub fn below(root: &Path) -> Self {
        Self::new(root.join("config.json"))
    }

    /// What to try for an image, in order.
    pub fn of(&self, image: &str) -> Vec<RegistryAuth> {
        auth::lookup(&self.keyring(), image)
    }

    fn keyring(&self) -> auth::Keyring {
        let read = match fs::read(&self.file) {
            Ok(text) => auth::parse_config(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return auth::Keyring::new(),
            Err(error) => Err(error.to_string()),
        };
        read.unwrap_or_else(|error| {
            warn!(file = %self.file.display(), error, "Registry credentials of the node not read");
            auth::Keyring::new()
        })
    }
}

/// Finds credentials.
pub(crate) struct Credentials {
    objects: Arc<Objects>,
    recorder: Recorder,
    of_node: NodeCredentials,
}

impl Credentials {
    /// Credentials out of `objects`, which need not be there, and the node's.
    pub(crate) fn new(objects: Arc<Objects>, recorder: Recorder, of_node: NodeCredentials) -> Self {
        Self {
            objects,
            recorder,
            of_node,
        }
    }

    /// What to try for an image, in order: the pod's pull secrets, else its ServiceAccount's; then
    /// the node's. What cannot be used is said in an event.
    pub(crate) async fn of(&self, pod: &Pod, image: &str) -> Vec<RegistryAuth> {
        let namespace = pod::namespace(pod);
        let mut keyring = auth::Keyring::new();
        let mut missing = Vec::new();
        let warn_of = |message| {
            self.recorder
                .record(pod, None, Kind::Warning, REASON, message);
        };
        for name in self.names(pod).await {
            match self.objects.secret(namespace, &name).await {
                Ok(Some(secret)) => match auth::parse(&secret) {
                    Ok(entries) => keyring.extend(entries),
                    Err(why) => warn_of(format!(
                        "Image pull secret {name} cannot be used ({why}); attempting to pull the image may not succeed."
                    )),
                },
                Ok(None) => missing.push(name),
                Err(error) => {
                    debug!(pod = pod::name(pod), secret = name, %error, "Pull secret not available");
                    missing.push(name);
                }
            }
        }
        if !missing.is_empty() {
            let names = missing.join(", ");
            warn_of(format!(
                "Unable to retrieve some image pull secrets ({names}); attempting to pull the image may not succeed."
            ));
        }
        let mut found = auth::lookup(&keyring, image);
        let of_node = self.of_node.of(image);
        found.extend(
            of_node
                .into_iter()
                .filter(|auth| !keyring.iter().any(|(_, own)| own == auth)),
        );
        found
    }

    async fn names(&self, pod: &Pod) -> Vec<String> {
        let spec = pod::spec(pod);
        let own = spec.image_pull_secrets.iter().flatten();
        let mut names: Vec<String> = own.map(|secret| secret.name.clone()).collect();
        if names.is_empty() && !pod::is_static(pod) {
            let account = spec.service_account_name.as_deref().unwrap_or("default");
            let namespace = pod::namespace(pod);
            names = self.objects.account_pull_secrets(namespace, account).await;
        }
        names.retain(|name| !name.is_empty());
        names
    }
}
