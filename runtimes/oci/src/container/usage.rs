//! What a container uses: its cgroup's counters and the size of its writable layer.

use super::*;

/// How old the size of a writable layer may be: counting walks all of it.
const LAYER_USAGE_AGE: Duration = Duration::from_secs(10);

/// Or so many times as long as counting took, if that is longer: large layers are counted seldom.
const LAYER_USAGE_PAUSE: u32 = 50;

/// What the writable layer held at a moment, and when to look again.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerUsage {
    again_at: Instant,
    bytes: u64,
    inodes: u64,
}

impl Inner {
    pub(crate) async fn container_stats(
        self: &Arc<Self>,
        id: &ContainerId,
    ) -> Result<ContainerStats, RuntimeError> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(RuntimeError::NotFound(format!(
                "container {id}: it does not run"
            )));
        }
        self.blocking(move |inner| {
            let mut stats = inner
                .cgroups
                .group(&container.file.cgroup)
                .stats()
                .map_err(RuntimeError::io(format!(
                    "cgroup {}",
                    container.file.cgroup
                )))?;
            let mut known = lock(&container.layer_usage);
            let usage = match *known {
                Some(usage) if Instant::now() < usage.again_at => usage,
                _ => LayerUsage::count(&inner.paths.container(&container.file.id).join("upper")),
            };
            *known = Some(usage);
            stats.writable_layer_bytes = usage.bytes;
            stats.writable_layer_inodes = Some(usage.inodes);
            Ok(stats)
        })
        .await
    }
}

impl LayerUsage {
    fn count(directory: &Path) -> Self {
        let began = Instant::now();
        let (mut bytes, mut inodes) = (0, 0);
        let mut directories = vec![directory.to_owned()];
        while let Some(directory) = directories.pop() {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let Ok(found) = entry.metadata() else {
                    continue;
                };
                bytes += found.blocks() * 512;
                inodes += 1;
                if found.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        let pause = LAYER_USAGE_AGE.max(began.elapsed() * LAYER_USAGE_PAUSE);
        Self {
            again_at: Instant::now() + pause,
            bytes,
            inodes,
        }
    }
}
