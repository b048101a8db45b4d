//! Which pod has which address, as the names of empty files: `<dir>/10.88.0.7@<uid>`.
//!
//! A name is there or not, so there is nothing to tear, and reserving writes one directory entry.
//! What a power cut takes back were addresses of pods that it ended as well.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, OpenOptions},
    io,
    net::IpAddr,
    path::PathBuf,
};

use tracing::warn;

use crate::{Cidr, NetworkError};

/// Reservations of one node.
pub(crate) struct Addresses {
    dir: PathBuf,
    ranges: Vec<Range>,
    by_uid: HashMap<String, Vec<IpAddr>>,
}

struct Range {
    cidr: Cidr,
    taken: BTreeSet<u32>,
    /// Where the next search starts, so that an address rests before it is given again.
    next: u32,
}

impl Addresses {
    /// Reads what is reserved, making the directory if it is not there. Addresses outside of the
    /// ranges are given up.
    pub(crate) fn open(dir: PathBuf, cidrs: &[Cidr]) -> Result<Self, NetworkError> {
        let io = |path: &PathBuf| NetworkError::io(path.display().to_string());
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        let ranges = cidrs.iter().map(|cidr| Range::new(*cidr)).collect();
        let mut addresses = Self {
            dir,
            ranges,
            by_uid: HashMap::new(),
        };
        for entry in fs::read_dir(&addresses.dir).map_err(io(&addresses.dir))? {
            let entry = entry.map_err(io(&addresses.dir))?;
            let name = entry.file_name();
            let parsed = name.to_str().and_then(|name| name.split_once('@'));
            let parsed = parsed.and_then(|(address, uid)| Some((address.parse().ok()?, uid)));
            match parsed {
                Some((address, uid)) if addresses.take(address) => {
                    addresses
                        .by_uid
                        .entry(uid.to_owned())
                        .or_default()
                        .push(address);
                }
                _ => {
                    warn!(path = %entry.path().display(), "Reservation is no good and is given up");
                    remove(&entry.path())?;
                }
            }
        }
        for addresses in addresses.by_uid.values_mut() {
            addresses.sort();
        }
        for range in &mut addresses.ranges {
            range.next = range.taken.last().map_or(range.next, |last| last + 1);
        }
        Ok(addresses)
    }

    fn take(&mut self, address: IpAddr) -> bool {
        self.ranges.iter_mut().any(|range| range.take(address))
    }

    /// One address of each range for a pod: those it has, and new ones where it has none.
    pub(crate) fn reserve(&mut self, uid: &str) -> Result<Vec<IpAddr>, NetworkError> {
        let is_file_name = !uid.is_empty() && uid.len() < 200 && !uid.contains(['/', '\0']);
        if !is_file_name {
            return Err(NetworkError::InvalidConfig(format!(
                "{uid:?} cannot be a pod's uid"
            )));
        }
        let mut has = self.by_uid.get(uid).cloned().unwrap_or_default();
        for range in &mut self.ranges {
            if has.iter().any(|address| range.cidr.contains(*address)) {
                continue;
            }
            let offset = range.free().ok_or(NetworkError::Exhausted(range.cidr))?;
            let address = range.cidr.nth(offset);
            let path = self.dir.join(format!("{address}@{uid}"));
            let made = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path);
            made.map_err(NetworkError::io(path.display().to_string()))?;
            range.taken.insert(offset);
            range.next = offset + 1;
            has.push(address);
            self.by_uid.insert(uid.to_owned(), has.clone());
        }
        Ok(has)
    }

    /// What a pod has.
    pub(crate) fn of(&self, uid: &str) -> Vec<IpAddr> {
        self.by_uid.get(uid).cloned().unwrap_or_default()
    }

    /// Gives a pod's addresses back.
    pub(crate) fn release(&mut self, uid: &str) -> Result<(), NetworkError> {
        let Some(has) = self.by_uid.get(uid) else {
            return Ok(());
        };
        for address in has {
            remove(&self.dir.join(format!("{address}@{uid}")))?;
        }
        for address in self.by_uid.remove(uid).unwrap_or_default() {
            self.ranges
                .iter_mut()
                .for_each(|range| range.give_back(address));
        }
        Ok(())
    }

    /// Every pod with what it has, in order.
    pub(crate) fn all(&self) -> BTreeMap<String, Vec<IpAddr>> {
        self.by_uid
            .iter()
            .map(|(uid, has)| (uid.clone(), has.clone()))
            .collect()
    }
}

impl Range {
    fn new(cidr: Cidr) -> Self {
        Self {
            cidr,
            taken: BTreeSet::new(),
            next: cidr.pod_offsets().start,
        }
    }

    fn take(&mut self, address: IpAddr) -> bool {
        let offset = self
            .cidr
            .offset(address)
            .filter(|offset| self.cidr.pod_offsets().contains(offset));
        offset.is_some_and(|offset| self.taken.insert(offset))
    }

    fn give_back(&mut self, address: IpAddr) {
        if let Some(offset) = self.cidr.offset(address) {
            self.taken.remove(&offset);
        }
    }

    /// The first free offset from `next` on, going round.
    fn free(&self) -> Option<u32> {
        let all = self.cidr.pod_offsets();
        let start = self.next.clamp(all.start, all.end);
        self.gap(start, all.end)
            .or_else(|| self.gap(all.start, start))
    }

    /// The first offset of a span that is not taken.
    fn gap(&self, start: u32, end: u32) -> Option<u32> {
        let mut candidate = start;
        for taken in self.taken.range(start..end) {
            if *taken != candidate {
                break;
            }
            candidate += 1;
        }
        (candidate < end).then_some(candidate)
    }
}

fn remove(path: &std::path::Path) -> Result<(), NetworkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::io(path.display().to_string())(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(dir: &std::path::Path, cidrs: &[&str]) -> Addresses {
        let cidrs: Vec<Cidr> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        Addresses::open(dir.join("addresses"), &cidrs).unwrap()
    }

    fn text(addresses: Vec<IpAddr>) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_keeps_its_addresses_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let cidrs = ["10.88.0.0/24", "fd00::/64"];
        let mut addresses = open(dir.path(), &cidrs);
        assert_eq!(
            text(addresses.reserve("a").unwrap()),
            ["10.88.0.2", "fd00::2"]
        );
        assert_eq!(
            text(addresses.reserve("b").unwrap()),
            ["10.88.0.3", "fd00::3"]
        );
        let mut addresses = open(dir.path(), &cidrs);
        assert_eq!(text(addresses.of("a")), ["10.88.0.2", "fd00::2"]);
        assert_eq!(
            text(addresses.reserve("a").unwrap()),
            ["10.88.0.2", "fd00::2"]
        );
        assert_eq!(
            text(addresses.reserve("c").unwrap()),
            ["10.88.0.4", "fd00::4"]
        );
        addresses.release("a").unwrap();
        addresses.release("a").unwrap();
        let addresses = open(dir.path(), &cidrs);
        assert_eq!(addresses.all().into_keys().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn an_address_rests_before_it_is_given_again_and_the_last_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut addresses = open(dir.path(), &["10.88.0.0/29"]);
        for uid in ["a", "b"] {
            addresses.reserve(uid).unwrap();
        }
        addresses.release("a").unwrap();
        assert_eq!(text(addresses.reserve("c").unwrap()), ["10.88.0.4"]);
        for uid in ["d", "e"] {
            addresses.reserve(uid).unwrap();
        }
        assert_eq!(text(addresses.reserve("f").unwrap()), ["10.88.0.2"]);
        assert_eq!(
            addresses.reserve("g").unwrap_err().to_string(),
            "no address is free in pod CIDR 10.88.0.0/29"
        );
        addresses.release("b").unwrap();
        assert_eq!(text(addresses.reserve("g").unwrap()), ["10.88.0.3"]);
    }

    #[test]
    fn what_is_outside_or_no_reservation_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), &["10.88.0.0/24"]).reserve("a").unwrap();
        let files = dir.path().join("addresses");
        for name in [
            "10.99.0.2@b",
            "10.88.0.1@gateway",
            "rubbish",
            "10.88.0.2@twice",
        ] {
            fs::write(files.join(name), "").unwrap();
        }
        let addresses = open(dir.path(), &["10.88.0.0/24"]);
        assert_eq!(addresses.all().len(), 1);
        assert_eq!(fs::read_dir(files).unwrap().count(), 1);
    }

    #[test]
    fn a_uid_cannot_name_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut addresses = open(dir.path(), &["10.88.0.0/24"]);
        for uid in ["", "../x", "a/b"] {
            assert!(addresses.reserve(uid).is_err(), "{uid:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn no_two_pods_ever_have_one_address(steps in proptest::collection::vec((0..12u8, any::<bool>(), 0..16u8), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let mut addresses = open(dir.path(), &["10.88.0.0/28"]);
            for (pod, is_reserve, restart) in steps {
                if restart == 0 {
                    addresses = open(dir.path(), &["10.88.0.0/28"]);
                }
                let uid = format!("pod-{pod}");
                if is_reserve {
                    let before = addresses.of(&uid);
                    let now = addresses.reserve(&uid).unwrap();
                    prop_assert!(before.is_empty() || before == now);
                } else {
                    addresses.release(&uid).unwrap();
                }
                let all: Vec<IpAddr> = addresses.all().into_values().flatten().collect();
                let distinct: BTreeSet<_> = all.iter().collect();
                prop_assert_eq!(distinct.len(), all.len());
            }
        }
    }
}
