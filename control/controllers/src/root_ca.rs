//! The ConfigMap `kube-root-ca.crt` in each namespace: whom pods trust to be the API server.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    runtime::{Controller, controller::Action, reflector::ObjectRef, watcher},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{keep, namespace::is_active};

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
     endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
     distributions of Kubernetes clusters.";

struct Context {
    client: Client,
    root_ca: String,
}

/// Keeps the ConfigMaps there and right until shutdown.
pub(crate) async fn run(client: Client, root_ca: String, shutdown: CancellationToken) {
    let config_maps = watcher::Config::default().fields("metadata.name=kube-root-ca.crt");
    let controller = Controller::new(
        Api::<Namespace>::all(client.clone()),
        watcher::Config::default(),
    )
    .watches(
        Api::<ConfigMap>::all(client.clone()),
        config_maps,
        |config_map| {
            config_map
                .namespace()
                .map(|namespace| ObjectRef::new(&namespace))
        },
    );
    keep::until_shutdown(
        controller,
        "Root certificate not published",
        reconcile,
        Context { client, root_ca },
        shutdown,
    )
    .await;
}

async fn reconcile(namespace: Arc<Namespace>, context: Arc<Context>) -> kube::Result<Action> {
    if !is_active(&namespace) {
        return Ok(Action::await_change());
    }
    let namespace = namespace.name_any();
    let config_maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let found = config_maps.get_opt(NAME).await?;
    let Some(wanted) = wanted(found.as_ref(), &context.root_ca) else {
        return Ok(Action::await_change());
    };
    let params = PostParams::default();
    let written = match found {
        Some(_) => config_maps.replace(NAME, &params, &wanted).await,
        None => config_maps.create(&params, &wanted).await,
    };
    match written {
        Ok(_) => info!(%namespace, "Root certificate published"),
        // Somebody was faster; the watch shows what it is now.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error),
    }
    Ok(Action::await_change())
}

/// What is to be written, if anything.
fn wanted(found: Option<&ConfigMap>, root_ca: &str) -> Option<ConfigMap> {
    let data = BTreeMap::from([(KEY.to_owned(), root_ca.to_owned())]);
    if found.is_some_and(|found| found.data.as_ref() == Some(&data)) {
        return None;
    }
    let annotations = BTreeMap::from([(
        "kubernetes.io/description".to_owned(),
        DESCRIPTION.to_owned(),
    )]);
    let metadata = ObjectMeta {
        name: Some(NAME.into()),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    let mut wanted = found.cloned().unwrap_or(ConfigMap {
        metadata,
        ..ConfigMap::default()
    });
    wanted.data = Some(data);
    wanted.binary_data = None;
    Some(wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake::Fake;

    #[tokio::test]
    async fn each_namespace_gets_the_certificate_and_gets_it_back() {
        let fake = Fake::new();
        fake.put(
            "v1/namespaces",
            json!({ "metadata": { "name": "a" }, "status": { "phase": "Active" } }),
        );
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(fake.client(), "PEM".into(), shutdown.clone()));
        let made = |object: &serde_json::Value| object["data"]["ca.crt"] == "PEM";
        let mut object = fake.wait_for("v1/configmaps", made).await;
        assert_eq!(object["metadata"]["name"], "kube-root-ca.crt");
        object["data"] = json!({ "ca.crt": "mine" });
        fake.put("v1/configmaps", object);
        fake.wait_for("v1/configmaps", made).await;
        shutdown.cancel();
        task.await.unwrap();
    }

    #[test]
    fn what_is_right_is_not_written() {
        let right = wanted(None, "PEM").unwrap();
        assert_eq!(wanted(Some(&right), "PEM"), None);
        assert!(wanted(Some(&right), "NEW").is_some());
    }
}
