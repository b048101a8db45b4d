//! News of containers, on disk before anybody hears of them.

use super::*;

impl Inner {
    pub(super) fn record_start(&self, container: &Container, started_at: SystemTime) {
        let mut record = lock(&container.record);
        let is_forgotten = container.is_forgotten.load(Ordering::Relaxed);
        if record.started_at.is_some() || record.exit.is_some() || is_forgotten {
            return;
        }
        record.started_at = Some(started_at);
        self.write_record(&record);
        container.state.send_replace(record.state());
        let event = RuntimeEvent::ContainerStarted {
            pod: record.pod.clone(),
            id: record.id.clone(),
        };
        drop(record);
        let _ = self.events.send(event);
    }

    pub(super) fn record_exit(&self, id: &ContainerId, exit: ContainerExit) {
        let Some(container) = self.find(id) else {
            return;
        };
        // The exit of a short-lived app can overtake the answer to its start.
        if let Some(started_at) = exit.started_at {
            self.record_start(&container, started_at);
        }
        let mut record = lock(&container.record);
        if record.exit.is_some() || container.is_forgotten.load(Ordering::Relaxed) {
            return;
        }
        record.exit = Some(exit);
        self.write_record(&record);
        container.state.send_replace(record.state());
        let event = RuntimeEvent::ContainerExited {
            pod: record.pod.clone(),
            id: id.clone(),
        };
        drop(record);
        self.weigh(&container.worker);
        let _ = self.events.send(event);
    }

    pub(super) fn find(&self, id: &ContainerId) -> Option<Arc<Container>> {
        lock(&self.containers).get(id).cloned()
    }

    pub(super) fn write_record(&self, record: &ContainerRecord) {
        let path = self.container_directory(&record.id).join("container.json");
        if let Err(error) = write_json(&path, record) {
            tracing::warn!(container = %record.id, %error, "Record cannot be written");
        }
    }

    pub(super) fn forget_record(&self, id: &ContainerId) {
        let _ = self.config.images.release(&format!("{LEASE_PREFIX}{id}"));
        if let Err(error) = remove_directory(&self.container_directory(id)) {
            tracing::warn!(container = %id, %error, "Record cannot be removed");
        }
    }

    /// Removes a container that no worker holds.
    pub(super) async fn forget(self: &Arc<Self>, id: &ContainerId, container: &Container) {
        if lock(&self.containers).remove(id).is_none() {
            return;
        }
        {
            let _record = lock(&container.record);
            container.is_forgotten.store(true, Ordering::Relaxed);
            self.forget_record(id);
        }
        self.weigh(&container.worker);
        if container.worker.unassign() {
            self.clone()
                .retire_if_unused(&container.worker, false)
                .await;
        }
    }
}
