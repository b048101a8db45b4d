//! Runs those controllers whose queue is kube's.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use futures::{FutureExt, StreamExt};
use kube::{
    Resource,
    runtime::{Controller, controller::Action},
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::retry;

/// Has objects looked at until shutdown; those that are being looked at then are finished. `complaint` is what the log
/// says when that fails.
pub(crate) async fn until_shutdown<K, C, F>(
    controller: Controller<K>,
    complaint: &'static str,
    reconcile: impl FnMut(Arc<K>, Arc<C>) -> F,
    context: C,
    shutdown: CancellationToken,
) where
    K: Resource<DynamicType: Eq + Hash + Clone + Default + Debug + Unpin>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
    F: Future<Output = kube::Result<Action>> + Send + 'static,
{
    let objects = controller.store();
    let work = controller
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(reconcile, |_, _, _| retry::soon(), Arc::new(context))
        .for_each(async |result| retry::log(complaint, result));
    // Until the first list is there kube's controller looks at nothing, and does not hear that it shall stop.
    let is_idle = async {
        shutdown.cancelled().await;
        if objects.wait_until_ready().now_or_never().is_some() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = work => {}
        () = is_idle => {}
    }
}
