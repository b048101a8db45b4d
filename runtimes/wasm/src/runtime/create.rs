//! Making a container: image, mounts, worker, record.

use super::*;

impl Inner {
    pub(super) async fn image(
        &self,
        sandbox: &PodSandbox,
        config: &ContainerConfig,
    ) -> Result<(StoredImage, Compiled), RuntimeError> {
        let found = self
            .config
            .images
            .image(&config.image_id)
            .map_err(|error| RuntimeError::Internal(error.to_string()))?;
        let image = found.ok_or_else(|| RuntimeError::ImageNotFound(config.image.clone()))?;
        let Some(wasm) = image.wasm.clone() else {
            let why = match sandbox.network {
                SandboxNetwork::Namespace { .. } => "",
                _ => ", and the pod has no namespaces that a process could join",
            };
            return Err(RuntimeError::InvalidArgument(format!(
                "image {} holds no Wasm module{why}",
                config.image
            )));
        };
        let key = image
            .wasm_key
            .clone()
            .unwrap_or_else(|| image.image.id.clone());
        let what = format!("image {}", config.image);
        let compiled = self.aot.compile(&what, &key, &wasm).await?;
        Ok((image, compiled))
    }

    pub(super) async fn create(
        self: &Arc<Self>,
        sandbox: &PodSandbox,
        config: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        check(config)?;
        self.check_ready(sandbox)?;
        let (image, compiled) = self.image(sandbox, config).await?;
        let args = app_args(&image, config);
        let ports = http_ports(config)?;
        let id = ContainerId::new(uuid::Uuid::new_v4().simple().to_string());
        let preopens = self.preopens(&image, config).await?;
        let module_directory = open_module(&compiled.directory)?;
        let log = open_log(&config.log_path)?;
        let record = ContainerRecord {
            id: id.clone(),
            sandbox: sandbox.id.clone(),
            pod: sandbox.config.uid.clone(),
            config: config.clone(),
            worker: String::new(),
            program: args.first().cloned().unwrap_or_default(),
            created_at: SystemTime::now(),
            started_at: None,
            exit: None,
            warnings: [ignored(&sandbox.config, config), preopens.warnings].concat(),
        };
        let spec = ContainerSpec {
            id: id.to_string(),
            module: compiled.name,
            kind: compiled.kind,
            args,
            env: environment(&image, &sandbox.config, config),
            working_dir: config
                .working_dir
                .clone()
                .or_else(|| image.config.working_dir.clone()),
            preopens: preopens.names,
            network: match sandbox.network {
                SandboxNetwork::Confined => NetworkPolicy::Confined(sandbox.ips.clone()),
                _ => NetworkPolicy::Open,
            },
            hosts: etc(config, "hosts"),
            resolv_conf: etc(config, "resolv.conf"),
            http_port: ports[0],
            http_ports: ports,
            limits: limits(&config.resources),
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            log_size_bytes_max: config.log_rotation.size_bytes_max,
        };
        let engine = self.aot.engine().await?;
        let (worker, client) = self.worker_for(new_worker(sandbox), engine).await?;
        let record = ContainerRecord {
            worker: worker.id.clone(),
            ..record
        };
        let state = watch::Sender::new(record.state());
        let container = Arc::new(Container {
            record: Mutex::new(record.clone()),
            is_forgotten: AtomicBool::new(false),
            state,
            worker,
        });
        let made = async {
            let directory = self.container_directory(&id);
            let failed = || RuntimeError::io(format!("container {id}: record"));
            std::fs::create_dir(&directory).map_err(failed())?;
            write_json(&directory.join("container.json"), &record).map_err(failed())?;
            lock(&self.containers).insert(id.clone(), container.clone());
            // A stop that came meanwhile did not see the container.
            self.check_ready(sandbox)?;
            self.config
                .images
                .lease(&config.image_id, &format!("{LEASE_PREFIX}{id}"))
                .map_err(|error| RuntimeError::Internal(error.to_string()))?;
            let mut descriptors = vec![module_directory.as_fd(), log.as_fd()];
            descriptors.extend(preopens.directories.iter().map(AsFd::as_fd));
            client
                .ask(RequestBody::Create(Box::new(spec)), &descriptors)
                .await
        };
        if let Err(error) = made.await {
            // Also when the worker made it and could not say so.
            let _ = client
                .ask(RequestBody::Remove { id: id.to_string() }, &[])
                .await;
            lock(&self.containers).insert(id.clone(), container.clone());
            self.forget(&id, &container).await;
            return Err(error);
        }
        self.weigh(&container.worker);
        Ok(id)
    }

    /// The container's mounts, seen by its worker as by the container's user.
    async fn preopens(
        &self,
        image: &StoredImage,
        config: &ContainerConfig,
    ) -> Result<mounts::Preopens, RuntimeError> {
        let worker = (self.config.worker_uid, self.config.worker_gid);
        let identity = Identity::new(&config.security, image.config.user.as_deref(), worker)?;
        let mut sources = Vec::with_capacity(config.mounts.len());
        for mount in &config.mounts {
            let (user, group) = identity.on(mount);
            sources.push(mounts::Source {
                mount,
                user_namespace: self.user_namespace(user, group).await,
            });
        }
        mounts::preopens(&sources)
    }

    /// That containers can be created in a sandbox. Of another runtime's, only its maker knows.
    pub(super) fn check_ready(&self, sandbox: &PodSandbox) -> Result<(), RuntimeError> {
        let state = if sandbox.handler == HANDLER {
            let sandboxes = lock(&self.sandboxes);
            let known = sandboxes.get(&sandbox.id).map(|known| known.state);
            known.ok_or_else(|| RuntimeError::NotFound(format!("sandbox {}", sandbox.id)))?
        } else {
            sandbox.state
        };
        match state {
            PodSandboxState::Ready => Ok(()),
            PodSandboxState::NotReady => Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {} is not ready",
                sandbox.id
            ))),
        }
    }

    pub(super) fn find_created(
        &self,
        sandbox: &PodSandboxId,
        config: &ContainerConfig,
    ) -> Option<ContainerId> {
        let containers = lock(&self.containers);
        containers.iter().find_map(|(id, container)| {
            let record = lock(&container.record);
            let is_same = record.sandbox == *sandbox
                && record.config.name == config.name
                && record.config.attempt == config.attempt;
            is_same.then(|| id.clone())
        })
    }
}

/// The directory of the machine code, from which no way leads anywhere else.
pub(super) fn open_module(directory: &Path) -> Result<OwnedFd, RuntimeError> {
    mounts::copy_of_code(directory)
        .or_else(|_| File::open(directory).map(OwnedFd::from))
        .map_err(RuntimeError::io("compiled module"))
}
