//! Making a container: its directory, root, cgroup and specification.

use super::{
    devices::{devices, parse_rule},
    *,
};

impl Inner {
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox: &PodSandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let sandbox = self.sandbox(sandbox)?;
        let _turn = self.turn(sandbox.file.config.uid.as_str()).await;
        let existing = self
            .containers_of(&sandbox.file.id)
            .into_iter()
            .find(|container| {
                container.file.name == config.name && container.file.attempt == config.attempt
            });
        if !sandbox.is_ready() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {} is not ready",
                sandbox.file.id
            )));
        }
        let container = match existing {
            Some(container) if rank(&container.record.borrow().state) > 1 => {
                return Ok(container.file.id.clone());
            }
            Some(container) => container,
            None => {
                let sandbox = sandbox.clone();
                self.blocking(move |inner| inner.prepare_container(&sandbox, config))
                    .await?
            }
        };
        let id = container.file.id.clone();
        if let Err(error) = self.ensure_created(&container).await {
            // Tell the caller what went wrong, and leave nothing that would be found again.
            if let Err(error) = self.remove_container(&id).await {
                tracing::warn!(container = %id, %error, "Half-made container stays");
            }
            return Err(error);
        }
        Ok(id)
    }

    /// Has stage 1 make the container's process, unless it has.
    pub(super) async fn ensure_created(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), RuntimeError> {
        {
            let container = container.clone();
            // The group may be missing, if the agent was killed just before it was made.
            self.blocking(move |inner| inner.make_group(&container))
                .await?;
        }
        let what = format!("create container {}", container.file.name);
        let create = container.to_create(self.paths.container(&container.file.id));
        let directory = self.paths.pod(&container.file.sandbox);
        let op = match &container.file.pid_target {
            Some(target) => Op::CreateBeside {
                container: create,
                target: target.to_string(),
            },
            None => Op::Create(create),
        };
        let (reply, _, _) = client::call(&directory, &what, op, &[]).await?;
        if let Reply::Container(record) = reply {
            self.apply(container, record);
        }
        Ok(())
    }

    fn make_group(&self, container: &Container) -> Result<(), RuntimeError> {
        let what = || format!("cgroup {}", container.file.cgroup);
        let path = self
            .paths
            .container(&container.file.id)
            .join("resources.json");
        let (resources, devices): (LinuxResources, Option<Vec<String>>) = bundle::read(&path)
            .map_err(RuntimeError::io(what()))?
            .unwrap_or_default();
        let group = self.cgroups.group(&container.file.cgroup);
        let rules = devices.map(|rules| {
            rules
                .iter()
                .filter_map(|rule| parse_rule(rule))
                .collect::<Vec<_>>()
        });
        let make = || -> io::Result<()> {
            group.create()?;
            *lock(&container.limit_warnings) = group.set(&resources)?;
            // As kubelets do on v2: a container short of a process is worse than one that starts again.
            group.end_together()?;
            group.set_devices(rules.as_deref())
        };
        make().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => RuntimeError::InvalidArgument(error.to_string()),
            _ => RuntimeError::io(what())(error),
        })
    }

    /// Writes the container's directory.
    fn prepare_container(
        &self,
        sandbox: &Arc<Sandbox>,
        config: ContainerConfig,
    ) -> Result<Arc<Container>, RuntimeError> {
        let pod = &sandbox.file.config;
        spec::verify_supported(pod, &config, self.features, &AppArmor::find())?;
        let image = self
            .images
            .image(&config.image_id)
            .map_err(|error| RuntimeError::Internal(error.to_string()))?
            .ok_or_else(|| RuntimeError::ImageNotFound(config.image_id.clone()))?;
        if image.wasm.is_some() {
            return Err(RuntimeError::InvalidArgument(format!(
                "image {}: holds a Wasm module and no root file system",
                config.image
            )));
        }
        spec::verify_run_as_non_root(pod, &config, image.config.user.as_deref())?;

        let id = ContainerId::new(new_id());
        let cgroup = format!("{}/{id}", pod.cgroup_parent.trim_end_matches('/'));
        let (devices, rules) = devices(&config)?;
        let spec = spec::build(pod, &config, &defaults(&image), &devices, &cgroup)?;
        let seccomp = self.filter(&config, &spec, &id)?;
        let bundle = Bundle {
            layers: image.layers.clone(),
            user: image.config.user.clone(),
            run_as_user: config.security.run_as_user,
            run_as_group: config.security.run_as_group,
            supplemental_groups: config.security.supplemental_groups.clone(),
            seccomp,
            cgroup: cgroup.clone(),
            pod_shm: pod.namespaces.ipc != NamespaceMode::Node,
            image_volumes: image_volumes(&image.config.volumes, &config.mounts),
            user_namespace: pod.user_namespace,
        };
        let file = ContainerFile {
            id: id.clone(),
            sandbox: sandbox.file.id.clone(),
            pod: pod.uid.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: config.image_id.clone(),
            created_at: SystemTime::now(),
            cgroup,
            log_path: config.log_path.clone(),
            log_rotation: config.log_rotation,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            own_pid_namespace: pod.namespaces.pid == NamespaceMode::Container
                && config.pid_target.is_none(),
            pid_target: config.pid_target.clone(),
            stop_signal: config
                .stop_signal
                .or_else(|| stop_signal(&image))
                .unwrap_or(libc::SIGTERM),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            warnings: Vec::new(),
        };
        let what = || format!("container {}", config.name);
        let staging = self.paths.containers().join(format!(".{id}"));
        let rules: Option<Vec<String>> =
            rules.map(|rules| rules.iter().map(ToString::to_string).collect());
        let fill = || -> io::Result<()> {
            for directory in ["upper", "work", "rootfs"] {
                fs::create_dir_all(staging.join(directory))?;
            }
            // The upper directory is the root's own node: everybody may enter it.
            fs::set_permissions(
                staging.join("upper"),
                std::os::unix::fs::PermissionsExt::from_mode(0o755),
            )?;
            if let Some(UserNamespace { host_id, .. }) = pod.user_namespace {
                std::os::unix::fs::chown(staging.join("upper"), Some(host_id), Some(host_id))?;
            }
            bundle::write(&staging.join("config.json"), &spec)?;
            bundle::write(&staging.join("bundle.json"), &bundle)?;
            bundle::write(
                &staging.join("resources.json"),
                &(&config.resources, &rules),
            )?;
            bundle::write(&staging.join("container.json"), &file)
        };
        let result = fill().map_err(RuntimeError::io(what())).and_then(|()| {
            // Before the directory counts: a container without its image cannot be.
            self.images
                .lease(&config.image_id, id.as_str())
                .map_err(|_| RuntimeError::ImageNotFound(config.image_id.clone()))?;
            fs::rename(&staging, self.paths.container(&id)).map_err(RuntimeError::io(what()))
        });
        if let Err(error) = result {
            let _ = self.images.release(id.as_str());
            let _ = self.discard(&staging);
            return Err(error);
        }
        let container = Container::new(file, ContainerState::Created);
        self.state().containers.insert(id, container.clone());
        Ok(container)
    }

    /// The compiled system call filter for a container; filters of the default profile are shared.
    fn filter(
        &self,
        config: &ContainerConfig,
        spec: &Spec,
        id: &ContainerId,
    ) -> Result<Option<PathBuf>, RuntimeError> {
        if config.security.privileged {
            return Ok(None);
        }
        let capabilities = capability_names(spec);
        let invalid =
            |error: crate::seccomp::SeccompError| RuntimeError::InvalidArgument(error.to_string());
        let (profile, path) = match &config.security.seccomp {
            SeccompProfile::Unconfined => return Ok(None),
            SeccompProfile::Localhost(path) => {
                // Below the container's future directory, which does not exist yet: shared by name instead.
                (
                    Profile::load(path).map_err(invalid)?,
                    self.paths.seccomp().join(format!("{id}.bpf")),
                )
            }
            SeccompProfile::RuntimeDefault => {
                let mut names: Vec<&str> = capabilities.iter().map(String::as_str).collect();
                names.sort_unstable();
                let key = names.join(",");
                let mut known = self
                    .filters
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                if let Some(path) = known.get(&key) {
                    return Ok(Some(path.clone()));
                }
                let path = self
                    .paths
                    .seccomp()
                    .join(format!("default-{}.bpf", new_id()));
                let program = Profile::runtime_default()
                    .compile(&capabilities)
                    .map_err(invalid)?;
                bundle::write_bytes(&path, &program).map_err(RuntimeError::io("seccomp filter"))?;
                known.insert(key, path.clone());
                return Ok(Some(path));
            }
        };
        let program = profile.compile(&capabilities).map_err(invalid)?;
        bundle::write_bytes(&path, &program).map_err(RuntimeError::io("seccomp filter"))?;
        Ok(Some(path))
    }
}

fn capability_names(spec: &Spec) -> HashSet<String> {
    let sets = spec
        .process()
        .as_ref()
        .and_then(|process| process.capabilities().clone());
    sets.and_then(|sets| sets.bounding().clone())
        .unwrap_or_default()
        .iter()
        .filter_map(|capability| Some(serde_json::to_value(capability).ok()?.as_str()?.to_owned()))
        .collect()
}

fn defaults(image: &StoredImage) -> ImageDefaults {
    let config = &image.config;
    ImageDefaults {
        entrypoint: config.entrypoint.clone(),
        command: config.cmd.clone(),
        env: config
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        working_dir: config.working_dir.clone(),
    }
}

/// The image's volumes that the pod mounts nothing at, in the order they can be made.
fn image_volumes(declared: &[String], mounts: &[Mount]) -> Vec<PathBuf> {
    let mut volumes: Vec<PathBuf> = declared
        .iter()
        .map(|path| Path::new("/").join(path))
        .filter(|path| {
            mounts
                .iter()
                .all(|mount| !path.starts_with(&mount.container_path))
        })
        .collect();
    volumes.sort();
    volumes
}

/// `SIGQUIT`, `QUIT` or `3`.
fn stop_signal(image: &StoredImage) -> Option<i32> {
    let name = image.config.stop_signal.as_deref()?.trim();
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    if let Some(offset) = full.strip_prefix("SIGRTMIN+") {
        return offset
            .parse::<i32>()
            .ok()
            .map(|offset| libc::SIGRTMIN() + offset);
    }
    full.parse::<Signal>().ok().map(|signal| signal as i32)
}
