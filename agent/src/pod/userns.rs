//! User namespaces of pods with `hostUsers: false`: ranges of the node's IDs that no two pods share.
//!
//! A range is written into the pod's directory before anything is made with it, and is free again
//! when that directory is gone. So a new agent finds the ranges of the one before it on the disk.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use wherry_runtime_api::{PodUid, UserNamespace};

use super::record;

/// IDs in one range; Kubernetes' number, so that every ID of 16 bits is there.
pub(crate) const IDS_PER_POD: u32 = 65_536;
/// In a pod's directory.
const FILE: &str = "userns";
/// Whose lines count in `/etc/subuid` and `/etc/subgid`.
const OWNER: &str = "kubelet";

/// The node's IDs that ranges are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    first: u32,
    count: u32,
}

impl Pool {
    /// What the node sets apart for the kubelet's pods, else one range for each pod it may have,
    /// above the node's own.
    pub(crate) fn of_node(max_pods: u32) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/etc/subuid"), &read("/etc/subgid")).unwrap_or(Self {
            first: IDS_PER_POD,
            count: max_pods.clamp(1, u32::MAX / IDS_PER_POD - 1),
        })
    }

    /// The same IDs have to be set apart for users and groups, in whole ranges. Pure.
    fn parse(subuid: &str, subgid: &str) -> Option<Self> {
        let of = |text: &str| {
            let line = text.lines().find_map(|line| {
                let (name, range) = line.trim().split_once(':')?;
                (name == OWNER).then_some(range)
            })?;
            let (first, length) = line.split_once(':')?;
            Some((first.parse::<u32>().ok()?, length.parse::<u32>().ok()?))
        };
        let (first, length) = of(subuid).filter(|range| of(subgid) == Some(*range))?;
        let count = length / IDS_PER_POD;
        let is_whole = first >= IDS_PER_POD
            && first.is_multiple_of(IDS_PER_POD)
            && first.checked_add(length).is_some();
        (is_whole && count > 0).then_some(Self { first, count })
    }

    fn ranges(self) -> impl Iterator<Item = u32> {
        (0..self.count).map(move |index| self.first + index * IDS_PER_POD)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct OnDisk {
    host_id: u32,
    length: u32,
}

/// Hands out ranges.
#[derive(Debug)]
pub(crate) struct UserNamespaces {
    pool: Pool,
    pods_dir: PathBuf,
    taken: Mutex<BTreeMap<PodUid, UserNamespace>>,
}

impl UserNamespaces {
    /// Takes over the ranges that the pods in `pods_dir` have.
    ///
    /// # Errors
    /// A directory or a range cannot be read: giving that range away again would join two pods.
    pub(crate) fn open(pool: Pool, pods_dir: &Path) -> io::Result<Self> {
        let mut taken = BTreeMap::new();
        for (uid, dir) in record::directories(pods_dir)? {
            let bytes = match fs::read(dir.join(FILE)) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let OnDisk { host_id, length } = serde_json::from_slice(&bytes)?;
            taken.insert(uid, UserNamespace { host_id, length });
        }
        Ok(Self {
            pool,
            pods_dir: pods_dir.into(),
            taken: Mutex::new(taken),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodUid, UserNamespace>> {
        // Every change is one insert or remove.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod's range, on disk when this answers. Repeatable.
    ///
    /// # Errors
    /// Every range is taken, or the disk does not take it.
    pub(crate) fn allocate(&self, uid: &PodUid) -> io::Result<UserNamespace> {
        let mut taken = self.lock();
        if let Some(range) = taken.get(uid) {
            return Ok(*range);
        }
        let overlaps = |first: u32| {
            taken.values().any(|other| {
                u64::from(first) < u64::from(other.host_id) + u64::from(other.length)
                    && u64::from(other.host_id) < u64::from(first) + u64::from(IDS_PER_POD)
            })
        };
        let host_id = self.pool.ranges().find(|first| !overlaps(*first));
        let host_id = host_id.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::StorageFull,
                "could not find an empty slot to allocate a user namespace",
            )
        })?;
        let range = UserNamespace {
            host_id,
            length: IDS_PER_POD,
        };
        let dir = self.pods_dir.join(uid.as_str());
        fs::create_dir_all(&dir)?;
        let mut file = tempfile::NamedTempFile::new_in(&dir)?;
        serde_json::to_writer(
            file.as_file_mut(),
            &OnDisk {
                host_id,
                length: IDS_PER_POD,
            },
        )?;
        file.as_file_mut().flush()?;
        file.as_file().sync_data()?;
        file.persist(dir.join(FILE)).map_err(|error| error.error)?;
        taken.insert(uid.clone(), range);
        Ok(range)
    }

    /// Gives a pod's range back; its directory is gone already.
    pub(crate) fn release(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Pool = Pool {
        first: 65_536,
        count: 3,
    };

    #[test]
    fn ranges_never_overlap_survive_a_restart_and_come_back() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let users = UserNamespaces::open(POOL, root.path()).expect("empty");
        let [a, b, c, d] = ["a", "b", "c", "d"].map(PodUid::from);
        let first = users.allocate(&a).expect("room");
        let second = users.allocate(&b).expect("room");
        assert_eq!((first.host_id, second.host_id), (65_536, 131_072));
        assert_eq!(users.allocate(&a).expect("the same again"), first);
        let users = UserNamespaces::open(POOL, root.path()).expect("readable");
        assert_eq!(users.allocate(&b).expect("the same again"), second);
        assert_eq!(users.allocate(&c).expect("room").host_id, 196_608);
        users.allocate(&d).expect_err("none is left");
        fs::remove_dir_all(root.path().join("a")).expect("there");
        users.release(&a);
        assert_eq!(users.allocate(&d).expect("one is free"), first);
    }

    #[test]
    fn what_the_node_sets_apart_is_used_if_it_is_whole() {
        let parse = |uid: &str, gid: &str| Pool::parse(uid, gid).map(|p| (p.first, p.count));
        let line = "root:1:2\nkubelet:131072:131072\n";
        assert_eq!(parse(line, line), Some((131_072, 2)));
        assert_eq!(parse(line, ""), None);
        assert_eq!(parse(line, "kubelet:196608:131072"), None);
        let odd = "kubelet:100000:131072";
        assert_eq!(parse(odd, odd), None);
        let low = "kubelet:0:131072";
        assert_eq!(parse(low, low), None);
    }
}
