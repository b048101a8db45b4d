//! What nodes said of plugins, taken off the Plugin objects when the nodes are gone. Whether the plugin is well is then
//! for those that are left to say: they do as soon as they see it.

use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams},
};
use serde_json::{Map, Value, json};
use tracing::debug;

/// Forgets nodes that are not there. An API server that has no Plugins has nothing to forget.
///
/// # Errors
/// The API server's; what has been done stays done.
pub(crate) async fn forget(client: &Client, is_there: impl Fn(&str) -> bool) -> kube::Result<()> {
    let kind = GroupVersionKind::gvk("wherry.dev", "v1alpha1", "Plugin");
    let resource = ApiResource::from_gvk_with_plural(&kind, "plugins");
    let plugins: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let listed = match plugins.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        listed => listed?,
    };
    for plugin in listed {
        let Some(patch) = without(&plugin.data, &is_there) else {
            continue;
        };
        let name = plugin.name_any();
        let parameters = PatchParams::default();
        match plugins
            .patch_status(&name, &parameters, &Patch::Merge(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            patched => drop(patched?),
        }
        debug!(plugin = name, "Nodes that are gone forgotten");
    }
    Ok(())
}

/// What takes out the parts of nodes that are gone, if there are any.
fn without(plugin: &Value, is_there: impl Fn(&str) -> bool) -> Option<Value> {
    let nodes = plugin["status"]["nodes"].as_object()?;
    let gone = nodes.keys().filter(|name| !is_there(name));
    let gone: Map<_, _> = gone.map(|name| (name.clone(), Value::Null)).collect();
    (!gone.is_empty()).then(|| json!({"status": {"nodes": gone}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const PLUGINS: &str = "wherry.dev/v1alpha1/plugins";

    fn plugin(name: &str, nodes: Value) -> Value {
        json!({"metadata": {"name": name}, "status": {"nodes": nodes}})
    }

    #[tokio::test]
    async fn only_what_nodes_said_that_are_gone_is_taken_out() {
        let fake = Fake::new();
        let ready = json!({"ready": true});
        fake.put(
            PLUGINS,
            plugin("both", json!({"here": ready, "gone": ready})),
        );
        fake.put(PLUGINS, plugin("one", json!({"here": ready})));
        fake.put(PLUGINS, json!({"metadata": {"name": "new"}}));
        let is_there = |name: &str| name == "here";
        forget(&fake.client(), is_there).await.expect("all patched");
        for name in ["both", "one"] {
            let left = fake.get(PLUGINS, "", name).expect("a plugin");
            assert_eq!(left["status"]["nodes"], json!({"here": ready}), "{name}");
        }
        assert_eq!(fake.requests("PATCH"), 1);
        forget(&fake.client(), is_there)
            .await
            .expect("nothing to do");
        assert_eq!(fake.requests("PATCH"), 1);
    }

    #[tokio::test]
    async fn an_api_server_without_plugins_has_none_to_patch() {
        let fake = Fake::new();
        fake.fail_next("plugins", 404);
        forget(&fake.client(), |_| false)
            .await
            .expect("nothing to do");
        fake.fail_next("plugins", 500);
        assert!(forget(&fake.client(), |_| false).await.is_err());
    }
}
