//! Which objects a pod's volumes show, for whoever follows their changes. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::plugin;

/// An object that a volume shows, in the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectRef {
    /// A ConfigMap, by name.
    ConfigMap(String),
    /// A Secret, by name.
    Secret(String),
}

/// What makes the files of a pod's volumes change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Objects of the API.
    pub objects: BTreeSet<ObjectRef>,
    /// The pod's own labels, annotations and resources.
    pub own_fields: bool,
    /// Tokens, by themselves.
    pub tokens: bool,
    /// What plugins write, by themselves.
    pub plugins: bool,
}

impl Changes {
    /// Reads a pod's volumes.
    pub fn of(pod: &Pod) -> Self {
        let mut changes = Self::default();
        let volumes = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        for volume in volumes {
            changes.add(volume);
        }
        changes
    }

    /// Whether nothing ever changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, volume: &Volume) {
        let config_map = |name: &String| ObjectRef::ConfigMap(name.clone());
        let secret = |name: &String| ObjectRef::Secret(name.clone());
        let named = volume
            .config_map
            .iter()
            .map(|source| config_map(&source.name));
        self.objects.extend(named);
        let named = volume.secret.iter().flat_map(|source| &source.secret_name);
        self.objects.extend(named.map(secret));
        self.own_fields |= volume.downward_api.is_some();
        let is_claimed = volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
        self.plugins |= is_claimed || plugin::of_pod(volume).is_some();
        let projected = volume.projected.iter().flat_map(|source| &source.sources);
        for source in projected.flatten() {
            let named = source
                .config_map
                .iter()
                .map(|source| config_map(&source.name));
            self.objects.extend(named);
            let named = source.secret.iter().map(|source| secret(&source.name));
            self.objects.extend(named);
            self.own_fields |= source.downward_api.is_some();
            self.tokens |= source.service_account_token.is_some();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_source_is_found_wherever_it_is() {
        let pod = |volumes| {
            serde_json::from_value(json!({ "spec": { "containers": [], "volumes": volumes } }))
                .unwrap()
        };
        let all = Changes::of(&pod(json!([
            { "name": "a", "configMap": { "name": "c1" } },
            { "name": "b", "secret": { "secretName": "s1" } },
            { "name": "d", "projected": { "sources": [
                { "configMap": { "name": "c2" } },
                { "secret": { "name": "s1" } },
                { "downwardAPI": {} },
                { "serviceAccountToken": { "path": "t" } },
            ] } },
        ])));
        let objects = [
            ObjectRef::ConfigMap("c1".into()),
            ObjectRef::ConfigMap("c2".into()),
            ObjectRef::Secret("s1".into()),
        ];
        assert!(all.objects.iter().eq(&objects));
        assert!(all.own_fields && all.tokens);
        let own = Changes::of(&pod(json!([{ "name": "a", "downwardAPI": {} }])));
        assert!(own.own_fields && !own.tokens && own.objects.is_empty());
        let still =
            json!([{ "name": "a", "emptyDir": {} }, { "name": "b", "hostPath": { "path": "/" } }]);
        assert!(Changes::of(&pod(still)).is_empty());
        for given in [
            json!({ "csi": { "driver": "git.wherry.dev" } }),
            json!({ "persistentVolumeClaim": { "claimName": "c" } }),
        ] {
            let mut given = given;
            given["name"] = "v".into();
            assert!(Changes::of(&pod(json!([given]))).plugins);
        }
    }
}
