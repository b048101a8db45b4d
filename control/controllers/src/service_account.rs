//! The ServiceAccount `default` in each namespace.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Namespace, ServiceAccount},
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

const NAME: &str = "default";

/// Keeps the ServiceAccounts there until shutdown.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let accounts = watcher::Config::default().fields("metadata.name=default");
    let controller = Controller::new(
        Api::<Namespace>::all(client.clone()),
        watcher::Config::default(),
    )
    .watches(
        Api::<ServiceAccount>::all(client.clone()),
        accounts,
        |account| {
            account
                .namespace()
                .map(|namespace| ObjectRef::new(&namespace))
        },
    );
    keep::until_shutdown(
        controller,
        "Default service account not made",
        reconcile,
        client,
        shutdown,
    )
    .await;
}

async fn reconcile(namespace: Arc<Namespace>, client: Arc<Client>) -> kube::Result<Action> {
    if !is_active(&namespace) {
        return Ok(Action::await_change());
    }
    let namespace = namespace.name_any();
    let accounts: Api<ServiceAccount> = Api::namespaced((*client).clone(), &namespace);
    if accounts.get_metadata_opt(NAME).await?.is_none() {
        let metadata = ObjectMeta {
            name: Some(NAME.into()),
            ..ObjectMeta::default()
        };
        let account = ServiceAccount {
            metadata,
            ..ServiceAccount::default()
        };
        match accounts.create(&PostParams::default(), &account).await {
            Ok(_) => info!(%namespace, "Default service account made"),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Action::await_change())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake::Fake;

    #[tokio::test]
    async fn each_namespace_gets_its_account_and_gets_it_back() {
        let fake = Fake::new();
        fake.put(
            "v1/namespaces",
            json!({ "metadata": { "name": "a" }, "status": { "phase": "Active" } }),
        );
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(fake.client(), shutdown.clone()));
        let made = |namespace: &'static str| {
            move |object: &serde_json::Value| object["metadata"]["namespace"] == namespace
        };
        let first = fake.wait_for("v1/serviceaccounts", made("a")).await;
        fake.put(
            "v1/namespaces",
            json!({ "metadata": { "name": "b" }, "status": { "phase": "Active" } }),
        );
        fake.wait_for("v1/serviceaccounts", made("b")).await;
        fake.remove("v1/serviceaccounts", "a", "default");
        let uid = first["metadata"]["uid"].clone();
        fake.wait_for("v1/serviceaccounts", move |object| {
            object["metadata"]["namespace"] == "a" && object["metadata"]["uid"] != uid
        })
        .await;
        shutdown.cancel();
        task.await.unwrap();
    }
}
