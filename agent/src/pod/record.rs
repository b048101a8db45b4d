//! What is kept of a pod on disk: the accepted object, and what a new agent could not find out otherwise.
//!
//! `<pods>/<uid>/pod.json` is the last accepted pod, written only when what matters of it changed.
//! `<pods>/<uid>/state.json` is the agent's own: counts, pauses, probe results, the last status. It is
//! renamed into place but not synced: losing it to a power cut costs a restart count, and saves flash.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Pod, PodStatus, ResourceRequirements};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wherry_runtime_api::{ContainerId, LinuxResources, PodUid};

use super::{
    resize::{Allocation, Progress},
    restart::Backoff,
    status::Verdict,
};

/// What a new agent could not find out otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// Highest attempt, by container name.
    pub(crate) attempts: BTreeMap<String, u32>,
    /// Sandboxes made so far.
    pub(crate) sandbox_attempts: u32,
    /// Pauses, by container name.
    pub(crate) backoffs: BTreeMap<String, Backoff>,
    /// Containers whose readiness probe last said yes.
    pub(crate) ready: BTreeSet<ContainerId>,
    /// Containers whose startup probe said yes.
    pub(crate) started: BTreeSet<ContainerId>,
    /// What `imageID` shows, by image ID.
    pub(crate) image_refs: BTreeMap<String, String>,
    /// The runtime of all containers, if a RuntimeClass says so.
    pub(crate) fixed_handler: Option<String>,
    /// The resources that were granted; what the spec asks for may be more.
    pub(crate) allocation: Option<Allocation>,
    /// The resources that containers were started with or given since, by container name.
    pub(crate) actuated: BTreeMap<String, ResourceRequirements>,
    /// Limits of the pod as a whole, if they were changed since its sandbox was made.
    pub(crate) pod_limits: Option<LinuxResources>,
    /// Where a change of resources is, if there is one.
    pub(crate) resize: Option<Progress>,
    /// What the runtime cannot give, and why: asked for again it is refused at once.
    pub(crate) unsupported: Option<(Allocation, String)>,
    /// The pod as a whole failed.
    pub(crate) verdict: Option<Verdict>,
    /// Nothing of it will run again.
    pub(crate) is_terminal: bool,
    /// The last status.
    pub(crate) status: Option<PodStatus>,
}

const POD: &str = "pod.json";
const STATE: &str = "state.json";

/// Whether two versions of a pod differ in what has to survive a restart.
pub(crate) fn differs(a: &Pod, b: &Pod) -> bool {
    a.spec != b.spec
        || a.metadata.labels != b.metadata.labels
        || a.metadata.annotations != b.metadata.annotations
        || a.metadata.deletion_timestamp != b.metadata.deletion_timestamp
        || a.metadata.deletion_grace_period_seconds != b.metadata.deletion_grace_period_seconds
}

/// Writes the accepted pod, synced.
pub(crate) fn save_pod(dir: &Path, pod: &Pod) -> io::Result<()> {
    let plain = Pod {
        status: None,
        ..pod.clone()
    };
    write(&dir.join(POD), &plain, true)
}

/// Writes the agent's own state.
pub(crate) fn save_state(dir: &Path, record: &Record) -> io::Result<()> {
    write(&dir.join(STATE), record, false)
}

fn write<T: Serialize>(path: &Path, value: &T, synced: bool) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(io::BufWriter::new(file.as_file_mut()), value)?;
    if synced {
        file.as_file().sync_data()?;
    }
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// A pod's directory, read back. A file that cannot be read is an error; one that is not there is not.
pub(crate) fn load(dir: &Path) -> io::Result<(Option<Pod>, Record)> {
    Ok((
        read(&dir.join(POD))?,
        read(&dir.join(STATE))?.unwrap_or_default(),
    ))
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Directories of pods, by uid.
pub(crate) fn directories(pods_dir: &Path) -> io::Result<Vec<(PodUid, PathBuf)>> {
    let entries = match fs::read_dir(pods_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push((
                PodUid::new(entry.file_name().to_string_lossy()),
                entry.path(),
            ));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_read_back_and_nothing_is_an_empty_record() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join("uid-1");
        assert_eq!(
            load(&dir).expect("an absent directory is no error"),
            (None, Record::default())
        );
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".into());
        save_pod(&dir, &pod).expect("writable");
        let record = Record {
            attempts: [("a".to_owned(), 3)].into(),
            ..Record::default()
        };
        save_state(&dir, &record).expect("writable");
        assert_eq!(load(&dir).expect("readable"), (Some(pod), record));
        let uids: Vec<_> = directories(root.path())
            .expect("readable")
            .into_iter()
            .map(|(uid, _)| uid)
            .collect();
        assert_eq!(uids, [PodUid::new("uid-1")]);
    }

    #[test]
    fn a_status_alone_is_no_reason_to_write() {
        let pod = Pod::default();
        let mut other = pod.clone();
        other.status = Some(PodStatus::default());
        other.metadata.resource_version = Some("7".into());
        assert!(!differs(&pod, &other));
        other.metadata.deletion_grace_period_seconds = Some(1);
        assert!(differs(&pod, &other));
    }
}
