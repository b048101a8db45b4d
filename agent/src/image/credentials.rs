//! Credentials for a pull: of the pod's pull secrets, of its ServiceAccount's, and of the node.

use std::{fs, io, path::PathBuf, sync::Arc};

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

/// Finds credentials.
pub(crate) struct Credentials {
    objects: Arc<Objects>,
    recorder: Recorder,
    /// In the form of `~/.docker/config.json`; read for each pull, so that it can be changed.
    node_file: PathBuf,
}

impl Credentials {
    /// Credentials out of `objects` and `node_file`, which need not be there.
    pub(crate) fn new(objects: Arc<Objects>, recorder: Recorder, node_file: PathBuf) -> Self {
        Self {
            objects,
            recorder,
            node_file,
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
        let of_node = auth::lookup(&self.of_node(), image);
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

    fn of_node(&self) -> auth::Keyring {
        let read = match fs::read(&self.node_file) {
            Ok(text) => auth::parse_config(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return auth::Keyring::new(),
            Err(error) => Err(error.to_string()),
        };
        read.unwrap_or_else(|error| {
            warn!(file = %self.node_file.display(), error, "Registry credentials of the node not read");
            auth::Keyring::new()
        })
    }
}
