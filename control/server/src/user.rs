//! Who is asking.

use std::collections::BTreeMap;

/// The name of those without credentials.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// Their group.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";

/// A user as authentication found it. Put into a request's extensions it stands for one that has been authenticated,
/// which is how the parts of one process talk to the server in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Name, such as `system:node:a`.
    pub name: String,
    /// Uid; empty when there is none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else authentication says.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user in these groups, and in `system:authenticated`.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let groups = groups
            .iter()
            .copied()
            .chain(["system:authenticated"])
            .map(str::to_owned)
            .collect();
        Self {
            name: name.into(),
            groups,
            ..Self::default()
        }
    }

    /// The administrator.
    pub fn admin() -> Self {
        Self::new("kubernetes-admin", &["system:masters"])
    }

    /// Somebody without credentials, where such are let in (`--anonymous-auth`).
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// The agent of a node.
    pub fn node(name: &str) -> Self {
        Self::new(format!("system:node:{name}"), &["system:nodes"])
    }

    /// A part of the control plane, such as `kube-scheduler`.
    pub fn component(name: &str) -> Self {
        Self::new(format!("system:{name}"), &[])
    }

    /// A controller, such as `replicaset-controller`: an account in `kube-system`.
    pub fn controller(name: &str) -> Self {
        Self::service_account("kube-system", name, "")
    }

    /// A service account.
    pub(crate) fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let mut user = Self::new(
            format!("system:serviceaccount:{namespace}:{name}"),
            &[
                "system:serviceaccounts",
                &format!("system:serviceaccounts:{namespace}"),
            ],
        );
        uid.clone_into(&mut user.uid);
        user
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|found| found == group)
    }

    /// The node whose agent this is.
    pub fn node_name(&self) -> Option<&str> {
        self.is_in("system:nodes")
            .then(|| self.name.strip_prefix("system:node:"))
            .flatten()
    }
}
