//! What is known of Services, on disk: an agent that starts while there is no API server goes on with it.
//!
//! ```text
//! {"version":1,"node":"n1","lines":2}
//! {"service":{"namespace":"ns","name":"web","is":{…}}}
//! {"slice":{"namespace":"ns","service":"web","name":"web-x7","is":{…}}}
//! ```
//!
//! Written whole beside its place and renamed, a second after something changed and only once everything has been
//! listed. Where Services change without end, not every change is written: [`Budget`] is kinder to flash than to news.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    index::{Index, Snapshot},
    object::{Service, ServiceKey, Slice},
};

/// Of the form. What has another is not read: the API server knows better anyway.
const VERSION: u32 = 1;
/// What changes meanwhile is written together.
const PAUSE: Duration = Duration::from_secs(1);
/// Before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// Bytes that may be written at once, and after that in a second: 97 MB on a day on which Services never rest.
const BURST_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
const BYTES_PER_SECOND: f64 = 1024.0;

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    /// Whose endpoints count as local.
    #[serde(default)]
    node: String,
    /// How many lines come after this one.
    #[serde(default)]
    lines: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Put<'a> {
    Service {
        namespace: &'a str,
        name: &'a str,
        is: &'a Service,
    },
    Slice {
        namespace: &'a str,
        service: &'a str,
        name: &'a str,
        is: &'a Slice,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Got {
    Service {
        namespace: String,
        name: String,
        is: Service,
    },
    Slice {
        namespace: String,
        service: String,
        name: String,
        is: Slice,
    },
}

/// What was read.
#[derive(Default)]
struct Read {
    services: Vec<(ServiceKey, Service)>,
    slices: Vec<(ServiceKey, String, Slice)>,
}

/// How much may be written.
struct Budget {
    /// Bytes written, less those that time has forgiven.
    spent: f64,
    at: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            spent: 0.0,
            at: now,
        }
    }

    fn spend(&mut self, bytes: u64, now: Instant) {
        let forgiven = now.duration_since(self.at).as_secs_f64() * BYTES_PER_SECOND;
        self.spent = (self.spent - forgiven).max(0.0) + bytes as f64;
        self.at = now;
    }

    /// When something may be written again.
    fn free_at(&self) -> Instant {
        let over = (self.spent - BURST_BYTES).max(0.0);
        self.at + Duration::from_secs_f64(over / BYTES_PER_SECOND)
    }
}

/// The file of one node.
pub struct Kept {
    path: PathBuf,
    node: String,
    pause: Duration,
}

impl Kept {
    /// What node `node` keeps at `path`.
    pub fn new(path: PathBuf, node: &str) -> Self {
        Self {
            path,
            node: node.into(),
            pause: PAUSE,
        }
    }

    /// Puts what the agent before this one knew into an index that knows nothing yet. What cannot be read is left alone.
    pub fn load(&self, index: &Index) {
        match read(&self.path, &self.node) {
            Ok(Some(Read { services, slices })) => {
                info!(
                    services = services.len(),
                    slices = slices.len(),
                    "Services as they were last known"
                );
                index.load(services, slices);
            }
            Ok(None) => {}
            Err(error) => {
                warn!(path = %self.path.display(), %error, "What was known of Services cannot be read");
            }
        }
    }

    /// Keeps the file as the index is, until shutdown, and once more then.
    pub async fn run(&self, index: &Index, shutdown: &CancellationToken) {
        let mut versions = index.subscribe();
        let mut budget = Budget::new(Instant::now());
        // What has been loaded is there already.
        let mut kept = index.edits();
        let mut retry: Option<Instant> = None;
        loop {
            let is_ending = tokio::select! {
                () = shutdown.cancelled() => true,
                changed = versions.changed() => changed.is_err(),
                () = async { match retry {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                } } => false,
            };
            if !index.is_complete() || index.edits() == kept {
                if is_ending {
                    return;
                }
                continue;
            }
            if !is_ending {
                let due = (Instant::now() + self.pause).max(budget.free_at());
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = sleep_until(retry.map_or(due, |at| at.max(due))) => {}
                }
            }
            let snapshot = index.snapshot();
            let edits = snapshot.edits;
            match self.write(snapshot).await {
                Ok(bytes) => {
                    budget.spend(bytes, Instant::now());
                    (kept, retry) = (edits, None);
                }
                Err(error) => {
                    if retry.is_none() {
                        warn!(path = %self.path.display(), %error, "Services are not kept; an agent that starts without an API server will not know them");
                    }
                    retry = Some(Instant::now() + RETRY);
                }
            }
            if is_ending {
                return;
            }
        }
    }

    async fn write(&self, snapshot: Snapshot) -> io::Result<u64> {
        let (path, node) = (self.path.clone(), self.node.clone());
        tokio::task::spawn_blocking(move || write(&path, &node, &snapshot))
            .await
            .map_err(io::Error::other)?
    }
}

/// Writes the file; gives its length in bytes.
fn write(path: &Path, node: &str, snapshot: &Snapshot) -> io::Result<u64> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let new = path.with_extension("new");
    let mut file = BufWriter::new(File::create(&new)?);
    let header = Header {
        version: VERSION,
        node: node.into(),
        lines: snapshot.services.len() + snapshot.slices.len(),
    };
    line(&mut file, &header)?;
    for (key, service) in &snapshot.services {
        let put = Put::Service {
            namespace: &key.namespace,
            name: &key.name,
            is: service,
        };
        line(&mut file, &put)?;
    }
    for (key, name, slice) in &snapshot.slices {
        let put = Put::Slice {
            namespace: &key.namespace,
            service: &key.name,
            name,
            is: slice,
        };
        line(&mut file, &put)?;
    }
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_data()?;
    fs::rename(&new, path)?;
    Ok(file.metadata()?.len())
}

fn line(file: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *file, value)?;
    file.write_all(b"\n")
}

/// Reads the file; `None` if there is none, or it is of another version or node.
fn read(path: &Path, node: &str) -> io::Result<Option<Read>> {
    let file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut lines = file.lines();
    let header = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let header: Header = serde_json::from_str(&header)?;
    if header.version != VERSION || header.node != node {
        return Ok(None);
    }
    let mut found = Read::default();
    for line in lines {
        match serde_json::from_str(&line?)? {
            Got::Service {
                namespace,
                name,
                is,
            } => {
                let key = ServiceKey::new(&namespace, &name);
                found.services.push((key, is));
            }
            Got::Slice {
                namespace,
                service,
                name,
                is,
            } => {
                let key = ServiceKey::new(&namespace, &service);
                found.slices.push((key, name, is));
            }
        }
    }
    if found.services.len() + found.slices.len() != header.lines {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it ends too early",
        ));
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests;
