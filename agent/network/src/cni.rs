//! Pods' network by plugins of the CNI specification instead of the node's own: whatever is in a directory.
//!
//! What was asked of plugins is written down before they are called, with the configuration of that moment: after a
//! crash, or when the configuration has become another, what was made is unmade by those who made it.

mod conf;

use std::{
    collections::HashSet,
    fs, io,
    net::IpAddr,
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};
use tracing::{debug, info, warn};

use self::conf::ConfList;
pub use self::conf::PortMapping;
use crate::{
    NetworkError,
    netlink::{self, Namespace},
};

/// The pod's interface.
const INSIDE: &str = "eth0";
/// Longest run of a plugin.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Where plugins and their configuration are.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// Where it is kept what plugins were asked.
    pub dir: PathBuf,
    /// Configuration lists; the first by name is used (`--cni-conf-dir`).
    pub conf_dir: PathBuf,
    /// Plugins (`--cni-bin-dir`).
    pub bin_dirs: Vec<PathBuf>,
}

/// A pod, as plugins are told of it.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Its ports of the node.
    pub ports: Vec<PortMapping>,
}

/// What plugins were asked for a pod.
#[derive(Debug, Serialize, Deserialize)]
struct Attachment {
    conf: ConfList,
    bin_dirs: Vec<PathBuf>,
    netns: PathBuf,
    /// The inode of the namespace. The path has the number of a process in it, which another may have by and by.
    #[serde(default)]
    netns_inode: Option<u64>,
    args: String,
    ports: Vec<PortMapping>,
    /// What the last of them answered; `None` while it is not known whether all were called.
    result: Option<Value>,
}

impl Attachment {
    fn is_netns_there(&self) -> bool {
        let found = fs::metadata(&self.netns);
        found.is_ok_and(|found| self.netns_inode.is_none_or(|inode| found.ino() == inode))
    }
}

/// The plugins' network of one node.
///
/// Calls for one pod must not overlap; calls for different pods may.
pub struct CniNetwork {
    config: CniConfig,
}

impl CniNetwork {
    /// A network whose plugins are looked for when a pod is attached.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(config: CniConfig) -> Result<Self, NetworkError> {
        let dir = config.dir.display().to_string();
        fs::create_dir_all(&config.dir).map_err(NetworkError::io(dir))?;
        Ok(Self { config })
    }

    /// Connects the network namespace at `netns` and answers the pod's addresses, IPv4 first. Repeatable: what is
    /// there is checked, and made anew if its plugins do not find it in order.
    ///
    /// # Errors
    /// [`NetworkError::Cni`]: no configuration, no such plugin, or what a plugin says.
    ///
    /// # Cancel safety
    /// What has been made is known, and unmade before the next try or by [`Self::detach`].
    pub async fn attach(&self, pod: &Member, netns: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        if let Some(found) = self.read(&pod.uid)? {
            match &found.result {
                Some(result) if found.netns == netns && check(&pod.uid, &found).await => {
                    return Ok(conf::addresses(result));
                }
                _ => self.detach(&pod.uid).await?,
            }
        }
        let (path, list) = self.conf()?;
        let namespace = Namespace::open(netns)?;
        let inside = netlink::connect_inside(&namespace).await?;
        netlink::set_up(&inside, "lo").await?;
        let mut attachment = Attachment {
            conf: list,
            bin_dirs: self.config.bin_dirs.clone(),
            netns: netns.to_owned(),
            netns_inode: Some(namespace.inode()?),
            args: arguments(pod),
            ports: pod.ports.clone(),
            result: None,
        };
        // Nothing is made where something is missing.
        for index in 0..attachment.conf.plugins.len() {
            let (kind, _) = attachment.conf.request(index, &[], None);
            program(&attachment, &kind, "ADD")?;
        }
        self.write(&pod.uid, &attachment)?;
        let mut result = None;
        for index in 0..attachment.conf.plugins.len() {
            let answered = call("ADD", &pod.uid, &attachment, index, result.as_ref()).await;
            match answered {
                Ok(answered) => result = answered.or(result),
                Err(error) => {
                    // The specification asks for it, whichever of them failed.
                    self.detach(&pod.uid).await?;
                    return Err(error);
                }
            }
        }
        let result = result.unwrap_or_default();
        let addresses = conf::addresses(&result);
        if addresses.is_empty() {
            self.detach(&pod.uid).await?;
            let path = path.display();
            return Err(NetworkError::Cni(format!(
                "{path}: its plugins gave no address"
            )));
        }
        attachment.result = Some(result);
        self.write(&pod.uid, &attachment)?;
        debug!(pod = pod.uid, ?addresses, "Pod attached by plugins");
        Ok(addresses)
    }

    /// Lets the plugins unmake what they made. Repeatable; never attached: `Ok`.
    ///
    /// # Errors
    /// What a plugin says; the rest have been called, and it is known for the next try. Of a pod that never was attached
    /// whole it is only logged.
    pub async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let Some(attachment) = self.read(uid)? else {
            return Ok(());
        };
        let mut failed = None;
        for index in (0..attachment.conf.plugins.len()).rev() {
            let previous = attachment.result.as_ref();
            if let Err(error) = call("DEL", uid, &attachment, index, previous).await {
                failed = failed.or(Some(error));
            }
        }
        if let Some(error) = failed {
            if attachment.result.is_some() {
                return Err(error);
            }
            // It never came to be, with a configuration that may have been wrong for good.
            warn!(pod = uid, %error, "What a plugin made of a pod's network may be left over");
        }
        let path = self.path(uid);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::io(path.display().to_string())(error))
            }
            _ => Ok(()),
        }
    }

    /// Detaches every pod that is not in `live`.
    ///
    /// # Errors
    /// The first, after the others have been tried.
    pub async fn retain(&self, live: &HashSet<String>) -> Result<(), NetworkError> {
        let mut failed = None;
        for uid in self.known()? {
            if !live.contains(&uid)
                && let Err(error) = self.detach(&uid).await
            {
                warn!(pod = %uid, %error, "Pod not detached");
                failed = failed.or(Some(error));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Detaches every pod.
    ///
    /// # Errors
    /// As [`Self::retain`].
    pub async fn down(self) -> Result<(), NetworkError> {
        self.retain(&HashSet::new()).await
    }

    /// Pods that something may have been made for.
    fn known(&self) -> Result<Vec<String>, NetworkError> {
        let dir = &self.config.dir;
        let failed = || NetworkError::io(dir.display().to_string());
        let mut known = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            known.extend(
                name.to_str()
                    .and_then(|name| name.strip_suffix(".json"))
                    .map(String::from),
            );
        }
        Ok(known)
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.config.dir.join(format!("{uid}.json"))
    }

    fn read(&self, uid: &str) -> Result<Option<Attachment>, NetworkError> {
        let path = self.path(uid);
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(attachment) => Ok(Some(attachment)),
                Err(error) => Err(NetworkError::Cni(format!("{}: {error}", path.display()))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NetworkError::io(path.display().to_string())(error)),
        }
    }

    /// Whole, or not at all.
    fn write(&self, uid: &str, attachment: &Attachment) -> Result<(), NetworkError> {
        let is_name = !uid.is_empty() && uid.len() < 200 && !uid.contains(['/', '\0']);
        if !is_name {
            return Err(NetworkError::InvalidConfig(format!(
                "{uid:?} cannot be a pod's uid"
            )));
        }
        let path = self.path(uid);
        let failed = || NetworkError::io(path.display().to_string());
        let bytes = serde_json::to_vec(attachment)
            .map_err(|error| NetworkError::Cni(format!("{}: {error}", path.display())))?;
        let temporary = path.with_extension("new");
        let written = || {
            fs::write(&temporary, bytes)?;
            fs::File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, &path)
        };
        written().map_err(failed())
    }

    /// The first configuration of the directory.
    fn conf(&self) -> Result<(PathBuf, ConfList), NetworkError> {
        let dir = &self.config.conf_dir;
        let in_dir = |why: String| NetworkError::Cni(format!("{}: {why}", dir.display()));
        let entries = fs::read_dir(dir).map_err(|error| in_dir(error.to_string()))?;
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let extension = path.extension().and_then(|extension| extension.to_str());
                matches!(extension, Some("conf" | "conflist" | "json"))
            })
            .collect();
        paths.sort();
        let Some(path) = paths.into_iter().next() else {
            return Err(in_dir("no network configuration is there yet".into()));
        };
        let bytes = fs::read(&path).map_err(NetworkError::io(path.display().to_string()))?;
        match ConfList::parse(&bytes) {
            Ok(list) => Ok((path, list)),
            Err(why) => Err(NetworkError::Cni(format!("{}: {why}", path.display()))),
        }
    }
}

/// `CNI_ARGS`, with the keys that every Kubernetes runtime gives.
fn arguments(pod: &Member) -> String {
    let (uid, name, namespace) = (&pod.uid, &pod.name, &pod.namespace);
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={uid};K8S_POD_UID={uid}"
    )
}

/// Whether the plugins find what they made in order.
async fn check(uid: &str, attachment: &Attachment) -> bool {
    if !attachment.conf.can_check() {
        return true;
    }
    for index in 0..attachment.conf.plugins.len() {
        let previous = attachment.result.as_ref();
        if let Err(error) = call("CHECK", uid, attachment, index, previous).await {
            info!(pod = uid, %error, "The pod's network is not in order and is made anew");
            return false;
        }
    }
    true
}

fn program(attachment: &Attachment, kind: &str, command: &str) -> Result<PathBuf, NetworkError> {
    let dirs = &attachment.bin_dirs;
    let mut places = dirs.iter().map(|dir| dir.join(kind));
    places.find(|path| path.is_file()).ok_or_else(|| {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let dirs = dirs.join(", ");
        NetworkError::Cni(format!("plugin {kind}, {command}: it is not in {dirs}"))
    })
}

/// Calls one plugin; its answer, if it gives one.
async fn call(
    command: &str,
    uid: &str,
    attachment: &Attachment,
    index: usize,
    previous: Option<&Value>,
) -> Result<Option<Value>, NetworkError> {
    let (kind, request) = attachment.conf.request(index, &attachment.ports, previous);
    let failed = |why: String| NetworkError::Cni(format!("plugin {kind}, {command}: {why}"));
    let program = program(attachment, &kind, command)?;
    // A namespace that has gone has taken its end with it; plugins then clean up the rest.
    let netns = if command == "DEL" && !attachment.is_netns_there() {
        Path::new("")
    } else {
        &attachment.netns
    };
    let path = std::env::join_paths(&attachment.bin_dirs).unwrap_or_default();
    let mut process = Command::new(program);
    process
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", uid)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", INSIDE)
        .env("CNI_ARGS", &attachment.args)
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let run = async {
        let mut child = process.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read what it is told says why it does not.
            let _ = stdin.write_all(&serde_json::to_vec(&request)?).await;
        }
        child.wait_with_output().await
    };
    let output = match timeout(PLUGIN_TIMEOUT, run).await {
        Ok(output) => output.map_err(|error| failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("no answer within {PLUGIN_TIMEOUT:?}"))),
    };
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let why = conf::failure(&output.stdout).unwrap_or_else(|| match output.status.signal() {
            Some(signal) => format!("ended by signal {signal}"),
            None => stderr
                .lines()
                .next()
                .unwrap_or("failed without a word")
                .to_owned(),
        });
        return Err(failed(why));
    }
    if command != "ADD" || output.stdout.trim_ascii().is_empty() {
        return Ok(None);
    }
    let answer = serde_json::from_slice(&output.stdout);
    answer
        .map(Some)
        .map_err(|error| failed(format!("its answer is no JSON: {error}")))
}

#[cfg(test)]
mod tests;
