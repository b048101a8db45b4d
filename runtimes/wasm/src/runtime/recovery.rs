//! Finding what earlier agents left, and staying in line with workers.

use super::*;

impl Inner {
    pub(super) async fn recover(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let failed = || RuntimeError::io("wasm records");
        let root = self.config.root.join("wasm");
        for (_, sandbox) in
            read_all::<PodSandbox>(&root.join("sandboxes"), "sandbox.json").map_err(failed())?
        {
            lock(&self.sandboxes).insert(sandbox.id.clone(), sandbox);
        }
        let records = read_all::<ContainerRecord>(&root.join("containers"), "container.json")
            .map_err(failed())?;
        let found = Worker::find_all(&self.config).map_err(failed())?;
        for name in cgroup::workers(&self.config.cgroup_root) {
            if !found.iter().any(|worker| worker.id == name) {
                cgroup::remove(&self.config.cgroup_root, &name);
            }
        }
        let mut connecting = Vec::new();
        {
            let mut workers = self.workers.lock().await;
            for worker in found {
                workers.insert(worker.id.clone(), worker);
            }
            for (_, record) in records {
                let worker = match workers.get(&record.worker) {
                    Some(worker) => worker.clone(),
                    None => {
                        self.forget_record(&record.id);
                        continue;
                    }
                };
                worker.assign();
                let state = watch::Sender::new(record.state());
                let id = record.id.clone();
                lock(&self.containers).insert(
                    id,
                    Arc::new(Container {
                        record: Mutex::new(record),
                        is_forgotten: AtomicBool::new(false),
                        state,
                        worker,
                    }),
                );
            }
            for worker in workers.values() {
                let (done, is_done) = tokio::sync::oneshot::channel();
                self.tasks
                    .spawn(self.clone().attend(worker.clone(), Some(done)));
                connecting.push(is_done);
            }
        }
        let all = futures::future::join_all(connecting);
        if tokio::time::timeout(RECOVERY_TIMEOUT, all).await.is_err() {
            tracing::warn!("Some wasm workers do not answer yet");
        }
        let holders: HashSet<String> = lock(&self.containers)
            .keys()
            .map(|id| format!("{LEASE_PREFIX}{id}"))
            .collect();
        for (holder, _) in self.config.images.leases().unwrap_or_default() {
            if holder.starts_with(LEASE_PREFIX) && !holders.contains(&holder) {
                let _ = self.config.images.release(&holder);
            }
        }
        Ok(())
    }

    /// Stays connected to a worker until it is gone, and clears up after it. Says `ready` once what
    /// it holds is known.
    pub(super) async fn attend(
        self: Arc<Self>,
        worker: Arc<Worker>,
        mut ready: Option<tokio::sync::oneshot::Sender<()>>,
    ) {
        let mut pause = RECONNECT_PAUSE_MIN;
        while worker.is_alive() {
            match Client::connect(&worker.id, &worker.socket()).await {
                Ok((client, reports, events)) => {
                    pause = RECONNECT_PAUSE_MIN;
                    worker.set_client(Some(client));
                    self.reconcile(&worker, reports).await;
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(());
                    }
                    self.clone().retire_if_unused(&worker, true).await;
                    self.follow(&worker, events).await;
                    worker.set_client(None);
                }
                Err(error) => {
                    tracing::debug!(worker = %worker.id, %error, "Wasm worker does not answer")
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
        }
        self.bury(&worker).await;
        if let Some(ready) = ready.take() {
            let _ = ready.send(());
        }
    }

    pub(super) async fn follow(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        mut events: mpsc::Receiver<Event>,
    ) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Exited(record) => self.record_exit(&record.id.into(), record.exit),
                Event::LogFull { id } => {
                    let id = ContainerId::from(id);
                    if let Err(error) = self.rotate_log(worker, &id).await {
                        tracing::warn!(container = %id, %error, "Log cannot be rotated");
                    }
                }
                Event::ExecExited { .. } => {}
            }
        }
    }

    /// Brings records and a worker in line.
    pub(super) async fn reconcile(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        reports: Vec<ContainerReport>,
    ) {
        let ours = self.containers_of(worker);
        let held: HashSet<ContainerId> = reports
            .iter()
            .map(|report| report.id.as_str().into())
            .collect();
        for report in reports {
            let id = ContainerId::from(report.id);
            if report.log_is_full
                && let Err(error) = self.rotate_log(worker, &id).await
            {
                tracing::warn!(container = %id, %error, "Log cannot be rotated");
            }
            match (ours.get(&id), report.exit) {
                (Some(_), Some(exit)) => self.record_exit(&id, exit),
                (Some(container), None) => {
                    if let Some(started_at) = report.started_at {
                        self.record_start(container, started_at);
                    }
                }
                // Its record is gone: it was being removed.
                (None, _) => {
                    if let Ok(client) = worker.client() {
                        let _ = client
                            .ask(RequestBody::Remove { id: id.to_string() }, &[])
                            .await;
                    }
                }
            }
        }
        for (id, container) in ours {
            let record = container.record();
            if !held.contains(&id) && record.exit.is_none() {
                if record.started_at.is_some() {
                    let exit = lost_with_its_worker(&id, record.started_at, false);
                    self.record_exit(&id, exit);
                } else {
                    // It was being made; whoever asked asks again.
                    self.forget(&id, &container).await;
                }
            }
        }
    }

    pub(super) fn containers_of(
        &self,
        worker: &Arc<Worker>,
    ) -> HashMap<ContainerId, Arc<Container>> {
        let containers = lock(&self.containers);
        let ours = containers
            .iter()
            .filter(|(_, container)| container.worker.id == worker.id);
        ours.map(|(id, container)| (id.clone(), container.clone()))
            .collect()
    }

    /// A worker is dead: its containers are too.
    pub(super) async fn bury(self: &Arc<Self>, worker: &Arc<Worker>) {
        self.workers.lock().await.remove(&worker.id);
        let oom_killed = worker.was_oom_killed();
        for exit in worker.exits() {
            self.record_exit(&exit.id.into(), exit.exit);
        }
        for (id, container) in self.containers_of(worker) {
            let record = container.record();
            if record.exit.is_some() {
                continue;
            }
            if record.started_at.is_some() {
                let exit = lost_with_its_worker(&id, record.started_at, oom_killed);
                self.record_exit(&id, exit);
            } else {
                self.forget(&id, &container).await;
            }
        }
        if let Err(error) = worker.clear_away().await {
            tracing::warn!(worker = %worker.id, %error, "What a wasm worker left cannot be removed");
        }
    }
}
