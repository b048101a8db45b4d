//! Who may do what.
//!
//! ```text
//!  system:masters ─ everything
//!  system:nodes ─── what a node needs, of the objects that its pods name: `node`, over `graph`
//!  everybody ────── what roles let them: `rbac`
//! ```

pub(crate) mod graph;
pub(crate) mod node;

use crate::{App, UserInfo};

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural; empty: this is about [`path`](Self::path).
    pub resource: String,
    /// Path below an object.
    pub subresource: String,
    /// Namespace; empty: all, or none.
    pub namespace: String,
    /// Name; empty: all. A list or watch of one object by its name has it too.
    pub name: String,
    /// `fieldSelector` of a list or watch.
    pub field_selector: String,
    /// A path that is no resource.
    pub path: String,
}

impl App {
    /// Whether a user may, and if not, why; mostly there is nothing to say.
    pub(crate) async fn authorize(
        &self,
        user: &UserInfo,
        asked: &Attributes,
    ) -> Result<(), String> {
        if user.is_in("system:masters") {
            return Ok(());
        }
        let mut reason = String::new();
        if let Some(node) = user.node_name() {
            match node::check(self, node, asked).await {
                Ok(()) => return Ok(()),
                Err(why) => reason = why,
            }
        }
        if self.rbac.allows(user, asked) {
            return Ok(());
        }
        Err(reason)
    }

    /// [`Self::authorize`] where nobody asks why.
    pub(crate) async fn may(&self, user: &UserInfo, asked: &Attributes) -> bool {
        self.authorize(user, asked).await.is_ok()
    }
}
