//! Files that the agent makes for a pod: `/etc/hosts`, `/etc/resolv.conf`, logs, last words.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;
use wherry_runtime_api::{ContainerExit, ContainerStatus};

use super::{names, spec};

/// Last words kept (`MaxContainerTerminationMessageLength`).
pub(crate) const TERMINATION_MESSAGE_BYTES_MAX: usize = 4096;
/// With `FallbackToLogsOnError`: bytes and lines of the log.
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;

/// Where the last words of an attempt are on the host.
pub(crate) fn termination_message(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir
        .join("containers")
        .join(container)
        .join(attempt.to_string())
}

/// What the files of a pod are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Etc<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// Its addresses.
    pub(crate) ips: &'a [std::net::IpAddr],
    /// The cluster's DNS.
    pub(crate) dns: &'a names::ClusterDns,
}

/// What was made of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    /// Container and host paths.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// Reasons and messages of events: what of the pod's DNS was not done.
    pub(crate) warnings: Vec<(&'static str, String)>,
}

/// Writes `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname` of a pod.
pub(crate) fn write_etc(pod_dir: &Path, etc: Etc<'_>) -> io::Result<Made> {
    fs::create_dir_all(pod_dir)?;
    let is_host_network = spec(etc.pod).host_network == Some(true);
    let node_file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let node_hosts = is_host_network.then(|| node_file("/etc/hosts"));
    let hosts = names::hosts_file(etc.pod, etc.ips, &etc.dns.domain, node_hosts.as_deref());
    let resolv = names::resolv_conf(etc.pod, etc.dns, &node_file("/etc/resolv.conf"));
    let mut files = vec![
        ("/etc/hosts", "etc-hosts", hosts),
        ("/etc/resolv.conf", "resolv.conf", resolv.text),
    ];
    if !is_host_network {
        let (name, _) = names::hostname(etc.pod, &etc.dns.domain);
        files.push(("/etc/hostname", "hostname", format!("{name}\n")));
    }
    let mut made = Vec::new();
    for (container_path, name, text) in files {
        let path = pod_dir.join(name);
        // In place: containers that run have this very file mounted.
        if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        made.push((container_path.into(), path));
    }
    Ok(Made {
        files: made,
        warnings: resolv.warnings,
    })
}

/// Makes what an attempt needs before it is created: its log directory and the file for its last words.
pub(crate) fn prepare_attempt(message: &Path, log_path: &Path) -> io::Result<()> {
    if let Some(dir) = message.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o666)
        .open(message)?;
    // Whoever the container runs as may write them.
    fs::set_permissions(message, fs::Permissions::from_mode(0o666))?;
    match log_path.parent() {
        Some(dir) => fs::create_dir_all(dir),
        None => Ok(()),
    }
}

/// The last words of an exited container, by its policy. Empty if there are none.
pub(crate) fn last_words(
    pod_dir: &Path,
    status: &ContainerStatus,
    exit: &ContainerExit,
    policy: Option<&str>,
) -> String {
    let path = termination_message(pod_dir, &status.name, status.attempt);
    let words = read_end(&path, TERMINATION_MESSAGE_BYTES_MAX).unwrap_or_default();
    if !words.is_empty() || policy != Some("FallbackToLogsOnError") || exit.exit_code == 0 {
        return words;
    }
    let log = read_end(&status.log_path, LOG_BYTES_MAX * 4).unwrap_or_default();
    last_lines(&log)
}

/// The last lines of a log in CRI format, without its stamps. Pure.
fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log
        .lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .collect();
    let mut text = String::new();
    for line in &lines[lines.len().saturating_sub(LOG_LINES_MAX)..] {
        text.push_str(line);
        text.push('\n');
    }
    let mut cut = text.len().saturating_sub(LOG_BYTES_MAX);
    while !text.is_char_boundary(cut) {
        cut += 1;
    }
    text.split_off(cut)
}

/// The end of a file.
fn read_end(path: &Path, bytes_max: usize) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    // A container may have put anything there: no links, no waiting on pipes.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max as u64)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Removes the log of an attempt with what was rotated away, and its last words.
pub(crate) fn remove_attempt(pod_dir: &Path, status: &ContainerStatus) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_file(termination_message(
        pod_dir,
        &status.name,
        status.attempt,
    )))?;
    gone(fs::remove_file(&status.log_path))?;
    for rotated in wherry_log::rotated(&status.log_path)? {
        gone(fs::remove_file(rotated))?;
    }
    Ok(())
}

/// Removes what is left of a pod: its logs and its directory. Volumes are unmounted before.
pub(crate) fn remove_pod(pod_dir: &Path, log_dir: &Path) -> io::Result<()> {
    for dir in [log_dir, pod_dir] {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes log directories of pods that are not `live`.
pub(crate) fn sweep_logs(root: &Path, live: &HashSet<String>) -> io::Result<()> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name
            .rsplit_once('_')
            .is_some_and(|(_, uid)| !live.contains(uid))
        {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_stands_in_for_last_words() {
        let log = "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two words\n";
        assert_eq!(last_lines(log), "one\ntwo words\n");
        let long: String = (0..200).map(|n| format!("t s F {n}\n")).collect();
        assert_eq!(last_lines(&long).lines().count(), LOG_LINES_MAX);
    }
}
