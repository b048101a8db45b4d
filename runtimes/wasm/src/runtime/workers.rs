//! Which worker a container gets, and when one has had its time.

use super::*;

impl Inner {
    /// Ends a worker nobody needs: a pod's at once, a tenant's after a while.
    pub(super) async fn retire_if_unused(self: Arc<Self>, worker: &Arc<Worker>, is_found: bool) {
        if !worker.is_unused() {
            return;
        }
        match worker.key {
            WorkerKey::Pod { .. } => self.retire(worker).await,
            // Found without containers: younger than its idle time, but who knows how much.
            WorkerKey::Tenant { .. } if is_found && self.config.worker_idle_max.is_zero() => {
                self.retire(worker).await
            }
            WorkerKey::Tenant { .. } => {
                let (tasks, worker) = (self.tasks.clone(), worker.clone());
                tasks.spawn(async move {
                    tokio::time::sleep(self.config.worker_idle_max).await;
                    self.retire(&worker).await;
                });
            }
        }
    }

    pub(super) async fn retire(&self, worker: &Arc<Worker>) {
        let mut workers = self.workers.lock().await;
        if worker.is_unused()
            && let Ok(client) = worker.client()
            && client.ask(RequestBody::Shutdown, &[]).await.is_ok()
        {
            workers.remove(&worker.id);
        }
    }

    /// A connected worker for a container, which is counted as assigned from here on.
    pub(super) async fn worker_for(
        self: &Arc<Self>,
        new: NewWorker<'_>,
        engine: &str,
    ) -> Result<(Arc<Worker>, Arc<Client>), RuntimeError> {
        let mut workers = self.workers.lock().await;
        for worker in workers.values() {
            let assigned = worker.assigned.load(Ordering::SeqCst);
            if worker.key == new.key
                && assigned < self.config.instances_per_worker_max as usize
                && let Ok(client) = worker.client()
                && client.engine == engine
            {
                worker.assign();
                return Ok((worker.clone(), client));
            }
        }
        let worker = Worker::start(&self.config, new).await?;
        worker.assign();
        workers.insert(worker.id.clone(), worker.clone());
        drop(workers);
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        self.tasks
            .spawn(self.clone().attend(worker.clone(), Some(ready)));
        let _ = is_ready.await;
        match worker.client() {
            Ok(client) => Ok((worker, client)),
            Err(error) => {
                worker.unassign();
                Err(error)
            }
        }
    }

    /// Weighs a worker as the containers it holds now. Only a pod's worker has neighbours to be
    /// weighed against: the pod's other containers.
    pub(super) fn weigh(&self, worker: &Arc<Worker>) {
        if let WorkerKey::Pod { .. } = worker.key {
            let shares = self.containers_of(worker).into_values().map(|container| {
                let record = lock(&container.record);
                record
                    .config
                    .resources
                    .cpu_shares
                    .filter(|_| record.exit.is_none())
            });
            worker.weigh(shares.flatten().sum());
        }
    }

    /// The user namespace that shows a mount to a worker with a container's user in the worker's
    /// place; none where they are the same, or where the kernel has none.
    pub(super) async fn user_namespace(&self, user: u32, group: u32) -> Option<Arc<OwnedFd>> {
        let worker = (self.config.worker_uid, self.config.worker_gid);
        if (user, group) == worker {
            return None;
        }
        let mut known = self.user_namespaces.lock().await;
        if let Some(namespace) = known.get(&(user, group)) {
            return namespace.clone();
        }
        let made = userns::make(&self.config.exe, worker, user, group).await;
        let namespace = match made {
            Ok(namespace) => Some(Arc::new(namespace)),
            Err(error) => {
                tracing::warn!(%error, "No user namespace: components use mounts as an unprivileged user");
                None
            }
        };
        if known.len() >= USER_NAMESPACES_MAX {
            known.clear();
        }
        known.insert((user, group), namespace.clone());
        namespace
    }
}
