//! Who the controllers are to the API server.

use std::{fmt, sync::Arc};

use kube::Client;

/// Makes the client of one controller.
type Maker = dyn Fn(&str) -> Client + Send + Sync;

/// Clients of one API server, one for each controller, by the name of its account in `kube-system` (such as
/// `replicaset-controller`); `kube-scheduler` and `kube-controller-manager` are users.
#[derive(Clone)]
pub struct Clients(Arc<Maker>);

impl Clients {
    /// Each gets what `client` makes of its name.
    pub fn new(client: impl Fn(&str) -> Client + Send + Sync + 'static) -> Self {
        Self(Arc::new(client))
    }

    pub(crate) fn of(&self, name: &str) -> Client {
        (self.0)(name)
    }

    /// What watches for several of them.
    pub(crate) fn manager(&self) -> Client {
        self.of("kube-controller-manager")
    }
}

/// All are one: that is what a kubeconfig gives.
impl From<Client> for Clients {
    fn from(client: Client) -> Self {
        Self::new(move |_| client.clone())
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}
