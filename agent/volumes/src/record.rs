//! What is remembered of a plugin's volume, beside the volumes of its pod: written before the plugin is asked, so that
//! whatever it did can be undone without it.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The directory of records, below `<pod>/volumes`.
const DIR: &str = "wherry.dev~plugins";

/// A plugin's volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Who gave it.
    pub(crate) plugin: String,
    /// Where it is.
    pub(crate) target: PathBuf,
    /// What its content was made of, for a populator that has written it.
    #[serde(default)]
    pub(crate) version: Option<String>,
    /// When that was, or was last found to be still so.
    #[serde(default)]
    pub(crate) populated_at: Option<Timestamp>,
    /// Asked again after so many seconds; 0: never.
    #[serde(default)]
    pub(crate) refresh_seconds: u32,
}

impl Record {
    fn path(volumes: &Path, name: &str) -> PathBuf {
        volumes.join(DIR).join(format!("{name}.json"))
    }

    /// What is remembered of a volume; what cannot be read counts as nothing.
    pub(crate) fn read(volumes: &Path, name: &str) -> Option<Self> {
        let text = fs::read(Self::path(volumes, name)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Remembers.
    pub(crate) fn write(&self, volumes: &Path, name: &str) -> io::Result<()> {
        let directory = volumes.join(DIR);
        fs::create_dir_all(&directory)?;
        let mut file = tempfile::NamedTempFile::new_in(&directory)?;
        serde_json::to_writer(&mut file, self)?;
        file.flush()?;
        file.persist(Self::path(volumes, name))?;
        Ok(())
    }

    /// All of a pod.
    pub(crate) fn all(volumes: &Path) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(volumes.join(DIR)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut records = Vec::new();
        for entry in entries {
            let text = fs::read(entry?.path())?;
            records.extend(serde_json::from_slice(&text).ok());
        }
        Ok(records)
    }

    /// When it is to be asked for again; `None`: never.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        let seconds = (self.refresh_seconds > 0).then_some(i64::from(self.refresh_seconds))?;
        let span = jiff::SignedDuration::from_secs(seconds);
        self.populated_at?.checked_add(span).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_due_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut record = Record {
            plugin: "git".into(),
            target: "/x".into(),
            version: Some("v".into()),
            populated_at: Some(at(100)),
            refresh_seconds: 60,
        };
        assert_eq!(Record::all(directory.path()).unwrap(), []);
        record.write(directory.path(), "v").unwrap();
        assert_eq!(Record::read(directory.path(), "v"), Some(record.clone()));
        assert_eq!(Record::all(directory.path()).unwrap().len(), 1);
        assert_eq!(record.due(), Some(at(160)));
        record.refresh_seconds = 0;
        assert_eq!(record.due(), None);
        let older: Record = serde_json::from_str(r#"{"plugin":"a","target":"/x"}"#).unwrap();
        assert_eq!(older.version, None);
    }
}
