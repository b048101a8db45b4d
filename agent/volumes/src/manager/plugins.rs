//! Volumes that plugins give: asked for, shown, asked for again, given back.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use tracing::{debug, warn};
use wherry_plugin_host::{
    World,
    volume::{VolumeFailure, VolumePlugins, VolumeRequest},
};

use super::{Inner, PodContext, VolumeManager, uid, volumes};
use crate::{
    SetUpError, VolumeError, VolumeEvent, atomic, claim, mounts,
    ownership::{self, Access},
    plan::{self, Plan},
    plugin::PluginVolume,
    record::Record,
};

/// Between events that say how far a populator is.
const PROGRESS_PERIOD: Duration = Duration::from_secs(15);

impl Inner {
    fn plugins(&self) -> Result<&dyn VolumePlugins, SetUpError> {
        let plugins = self.config.plugins.as_deref();
        plugins.ok_or_else(|| SetUpError::Unsupported("plugin".into()))
    }

    /// The pod and the secret that go with a request.
    async fn request(
        &self,
        pod: &Pod,
        volume: &str,
        asked: &PluginVolume,
    ) -> Result<VolumeRequest, SetUpError> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut request = asked.request(volume, plan::fs_group(pod));
        if let Some((of, name)) = &asked.secret {
            let of = of.as_ref().unwrap_or(&namespace);
            let secret = self.source.secret(of, name).await;
            let secret = secret.map_err(SetUpError::Unavailable)?;
            let Some(secret) = secret else {
                return Err(SetUpError::NotFound(format!("secret \"{name}\" not found")));
            };
            request.credentials = (secret.data.into_iter().flatten())
                .map(|(key, value)| (key, value.0))
                .collect::<BTreeMap<_, _>>();
        }
        request.namespace = namespace;
        request.pod = pod.metadata.name.clone().unwrap_or_default();
        uid(pod).clone_into(&mut request.pod_uid);
        Ok(request)
    }

    /// Has a plugin's volume at `dir`. What is there stays as it is, whether the plugin can be called now or not.
    pub(super) async fn set_up_plugin(
        &self,
        pod: &Pod,
        volume: &str,
        dir: &Path,
        asked: &PluginVolume,
    ) -> Result<(), SetUpError> {
        let plugins = self.plugins()?;
        let io = |error| SetUpError::io(dir.display().to_string())(error);
        let all = self.volumes_dir(uid(pod)).map_err(io)?;
        fs::create_dir_all(dir).map_err(io)?;
        if atomic::is_written(dir) {
            return Ok(());
        }
        let world = match plugins.world(&asked.plugin) {
            Some(world) => world,
            None if mounts::is_mount_point(dir).map_err(io)? => return Ok(()),
            None => return Err(VolumeFailure::NotInstalled(asked.plugin.clone()).into()),
        };
        let request = self.request(pod, volume, asked).await?;
        let record = Record {
            plugin: asked.plugin.clone(),
            target: dir.to_owned(),
            ..Record::default()
        };
        record.write(&all, volume).map_err(io)?;
        match world {
            World::Populator => {
                self.populate(pod, &request, dir, record).await?;
                Ok(())
            }
            World::Probe | World::Mounter | World::Filesystem => {
                Ok(plugins.publish(&request, dir).await?)
            }
        }
    }

    /// Has a volume's content written and shows it, should it be another than the record's. Answers the new record.
    async fn populate(
        &self,
        pod: &Pod,
        request: &VolumeRequest,
        dir: &Path,
        record: Record,
    ) -> Result<Record, SetUpError> {
        let io = |error| SetUpError::io(dir.display().to_string())(error);
        let staged = atomic::new_version(dir).map_err(io)?;
        let told = Mutex::new(Instant::now());
        let progress = |done: u64, total: u64| {
            let mut told = told
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if told.elapsed() >= PROGRESS_PERIOD {
                *told = Instant::now();
                self.tell(pod, VolumeEvent::populating(request, done, total));
            }
        };
        let current = record.version.as_deref();
        let populated = self
            .plugins()?
            .populate(request, staged.path(), current, &progress)
            .await?;
        let is_new = current != Some(populated.version.as_str());
        let record = Record {
            version: Some(populated.version),
            populated_at: Some(Timestamp::now()),
            refresh_seconds: populated.refresh_seconds,
            ..record
        };
        let (target, name, fs_group) = (dir.to_owned(), request.name.clone(), request.fs_group);
        let all = self.volumes_dir(uid(pod)).map_err(io)?;
        let access = match request.is_read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        let kept = record.clone();
        let shown = tokio::task::spawn_blocking(move || {
            if is_new {
                if let Some(group) = fs_group {
                    ownership::give_to_group(staged.path(), group, access)?;
                }
                atomic::show(&target, staged)?;
            }
            kept.write(&all, &name)
        });
        let shown = shown.await.unwrap_or_else(|error| Err(error.into()));
        shown.map_err(io)?;
        if is_new {
            self.tell(pod, VolumeEvent::populated(request, &record));
        }
        Ok(record)
    }

    fn tell(&self, pod: &Pod, event: VolumeEvent) {
        if let Some(events) = &self.config.events {
            events.tell(pod, event);
        }
    }

    /// Gives back what plugins gave to a pod. Goes on past what fails.
    pub(super) async fn give_back(&self, volumes: &Path) -> Result<(), (PathBuf, String)> {
        let Some(plugins) = &self.config.plugins else {
            return Ok(());
        };
        let records = Record::all(volumes);
        let records = records.map_err(|error| (volumes.to_owned(), error.to_string()))?;
        let mut failed = None;
        for record in records {
            if let Err(error) = plugins.unpublish(&record.target).await {
                failed.get_or_insert((record.target, error.to_string()));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

impl VolumeManager {
    /// Has the volume of a claim, which is mounted for a pod, hold at least so many bytes; answers how many it holds then.
    /// Repeatable, and without harm while the pod uses it.
    ///
    /// # Errors
    /// [`VolumeError::NotMounted`] before the pod has it. Else why it cannot be made larger, now or at all
    /// ([`VolumeError::is_unsupported`]).
    pub async fn expand(
        &self,
        pod: &Pod,
        claim: &str,
        bytes: u64,
        context: &PodContext,
    ) -> Result<u64, VolumeError> {
        let not_mounted = || VolumeError::not_mounted(pod, claim);
        let is_of_claim =
            |volume: &&Volume| claim::of(pod, volume).is_some_and(|found| found.name == claim);
        let volume = volumes(pod).find(is_of_claim).ok_or_else(not_mounted)?;
        let planned = self.inner.plan(pod, volume, context).await?;
        let named = |cause: SetUpError| VolumeError::Expand {
            volume: volume.name.clone(),
            cause,
        };
        let Plan::Plugin(asked) = &planned.plan else {
            let kind = "PersistentVolumes of this kind".to_owned();
            return Err(named(SetUpError::CannotExpand(kind)));
        };
        let dir = self.inner.dir(uid(pod), volume, &planned.plan);
        let dir = dir.map_err(named)?;
        let expanded = async {
            let request = self.inner.request(pod, &volume.name, asked).await?;
            let expanded = self.inner.plugins()?.expand(&request, &dir, bytes).await;
            expanded.map_err(SetUpError::from)
        };
        match expanded.await {
            Err(SetUpError::Plugin(VolumeFailure::NotMounted { .. })) => Err(not_mounted()),
            expanded => expanded.map_err(named),
        }
    }

    /// Asks populators again for content whose time has come, and shows what is new all at once. Answers when the next
    /// is due; `None`: never. Volumes that [`Self::mount`] has not set up are left alone.
    ///
    /// # Errors
    /// The first volume that could not be renewed, after the others have been; it shows what it did.
    pub async fn repopulate(
        &self,
        pod: &Pod,
        context: &PodContext,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, VolumeError> {
        let mut next: Option<Timestamp> = None;
        let mut failed = None;
        for volume in volumes(pod) {
            match self.repopulate_one(pod, volume, context, now).await {
                Ok(due) => next = next.into_iter().chain(due).min(),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(next), Err)
    }

    async fn repopulate_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        context: &PodContext,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, VolumeError> {
        let named = |cause: SetUpError| cause.in_volume(&volume.name);
        plan::check_name(&volume.name).map_err(named)?;
        let all = self
            .inner
            .volumes_dir(uid(pod))
            .map_err(|error| named(SetUpError::io("volumes")(error)))?;
        let Some(record) = Record::read(&all, &volume.name) else {
            return Ok(None);
        };
        let due = match record.due() {
            Some(due) if due <= now && atomic::is_written(&record.target) => due,
            due => return Ok(due),
        };
        debug!(pod = uid(pod), volume = %volume.name, %due, "Asking the plugin again");
        let planned = self.inner.plan(pod, volume, context).await?;
        let Plan::Plugin(asked) = &planned.plan else {
            return Ok(None);
        };
        let renewed = async {
            let request = self.inner.request(pod, &volume.name, asked).await?;
            let target = record.target.clone();
            self.inner.populate(pod, &request, &target, record).await
        };
        match renewed.await {
            Ok(record) => Ok(record.due()),
            Err(error) => {
                warn!(pod = uid(pod), volume = %volume.name, %error, "Volume keeps what it has");
                Err(named(error))
            }
        }
    }
}
