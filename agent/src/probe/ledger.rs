//! Histories of probes, kept for the next agent: a small file each, below the run directory, which a reboot empties as
//! it does the containers.
//!
//! ```text
//! <run>/probes/<pod uid>/<container id>.<kind>
//! ```
//! One is written when it says something else, and otherwise now and then for its time.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::debug;
use wherry_runtime_api::{ContainerId, PodUid};

use super::{History, ProbeKind};

/// How often a history is written that changes in nothing but its time.
const TIME_WRITTEN_EVERY: Duration = Duration::from_secs(10);

/// The histories of all pods.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    dir: PathBuf,
}

/// A name that is one in the file system too.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

impl Ledger {
    /// Histories below a run directory.
    pub(crate) fn new(run: &Path) -> Self {
        Self {
            dir: run.join("probes"),
        }
    }

    fn path(&self, uid: &PodUid, id: &ContainerId, kind: ProbeKind) -> Option<PathBuf> {
        let (uid, id) = (uid.as_str(), id.as_str());
        let kind = kind.as_str().to_lowercase();
        (is_name(uid) && is_name(id)).then(|| self.dir.join(uid).join(format!("{id}.{kind}")))
    }

    /// What an agent before this one has kept, if it can be read.
    pub(crate) fn load(&self, uid: &PodUid, id: &ContainerId, kind: ProbeKind) -> Option<History> {
        let text = fs::read(self.path(uid, id, kind)?).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// A page of it for one probe.
    pub(crate) fn page(&self, uid: &PodUid, id: &ContainerId, kind: ProbeKind) -> Page {
        Page {
            path: self.path(uid, id, kind),
            kept: self.load(uid, id, kind),
        }
    }

    /// Forgets one probe's.
    pub(crate) fn forget(&self, uid: &PodUid, id: &ContainerId, kind: ProbeKind) {
        if let Some(path) = self.path(uid, id, kind) {
            let _ = fs::remove_file(path);
        }
    }

    /// Forgets those of all other pods.
    pub(crate) fn retain(&self, keep: &HashSet<&str>) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if !entry
                .file_name()
                .to_str()
                .is_some_and(|uid| keep.contains(uid))
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Where one probe's history is kept.
pub(crate) struct Page {
    path: Option<PathBuf>,
    kept: Option<History>,
}

impl Page {
    /// What is kept.
    pub(crate) fn history(&self) -> Option<History> {
        self.kept
    }

    /// Keeps a history, should that be worth a write.
    pub(crate) fn keep(&mut self, history: History) {
        let is_kept = self.kept.is_some_and(|kept| {
            kept.is_like(&history) && history.age_of(&kept) < TIME_WRITTEN_EVERY
        });
        let Some(path) = self.path.as_ref().filter(|_| !is_kept) else {
            return;
        };
        match write(path, &history) {
            Ok(()) => self.kept = Some(history),
            Err(error) => debug!(path = %path.display(), %error, "Probe's history not kept"),
        }
    }
}

fn write(path: &Path, history: &History) -> io::Result<()> {
    let text = serde_json::to_vec(history)?;
    let new = path.with_added_extension("new");
    match fs::write(&new, &text) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            fs::write(&new, &text)?;
        }
        other => other?,
    }
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use k8s_openapi::api::core::v1::Probe;
    use wherry_plugin_host::ProbeResult;

    use super::*;
    use crate::probe::Counter;

    #[test]
    fn a_history_is_found_by_the_next_agent_and_gone_with_its_probe_and_its_pod() {
        let run = tempfile::tempdir().expect("a directory");
        let ledger = Ledger::new(run.path());
        let (uid, id) = (PodUid::from("u-1"), ContainerId::from("c"));
        let mut counter = Counter::new(&Probe::default(), Some(true), None);
        counter.record(ProbeResult::Failure, SystemTime::now());
        ledger
            .page(&uid, &id, ProbeKind::Liveness)
            .keep(counter.history());
        let next = Ledger::new(run.path());
        let load = |kind| next.load(&uid, &id, kind);
        assert_eq!(load(ProbeKind::Liveness), Some(counter.history()));
        assert_eq!(load(ProbeKind::Readiness), None);
        next.forget(&uid, &id, ProbeKind::Liveness);
        assert_eq!(load(ProbeKind::Liveness), None);
        next.page(&uid, &id, ProbeKind::Startup)
            .keep(counter.history());
        next.retain(&["u-1"].into());
        assert_eq!(load(ProbeKind::Startup), Some(counter.history()));
        next.retain(&HashSet::new());
        assert_eq!(load(ProbeKind::Startup), None);
        // Not a path's part: nothing is kept, and nothing is written elsewhere.
        let odd = ContainerId::from("../../c");
        next.page(&uid, &odd, ProbeKind::Startup)
            .keep(counter.history());
        assert_eq!(next.load(&uid, &odd, ProbeKind::Startup), None);
    }

    #[test]
    fn steady_results_are_written_for_their_time_and_no_oftener() {
        let run = tempfile::tempdir().expect("a directory");
        let ledger = Ledger::new(run.path());
        let (uid, id) = (PodUid::from("u"), ContainerId::from("c"));
        let mut page = ledger.page(&uid, &id, ProbeKind::Readiness);
        let mut counter = Counter::new(&Probe::default(), None, None);
        let mut writes = 0;
        for second in 0..100 {
            let now = UNIX_EPOCH + Duration::from_secs(second);
            counter.record(ProbeResult::Success, now);
            let before = page.history();
            page.keep(counter.history());
            writes += u32::from(page.history() != before);
        }
        assert_eq!(writes, 10);
    }
}
