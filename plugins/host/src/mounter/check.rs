//! Whether a mounter may have what it asks for, and what that is in the node's words. Pure.

use crate::{Grants, VolumeError, named::NamedHosts};

/// Longest value of an option.
const VALUE_BYTES_MAX: usize = 1024;

/// What sources of a kind are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    /// A device that was attached in the same call.
    Device,
    /// `host:/path`, with the port that has to be granted.
    Host(u16),
    /// `address,address:/path`.
    Hosts(u16),
    /// Nothing but a name.
    Nothing,
}

/// A kind of file system that is known here.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) source: SourceKind,
    /// Done by this program of the node's, and not by its kernel.
    pub(crate) program: Option<&'static str>,
    /// Options that may be given; where it is mounted, and what would let others in, is not among them.
    options: &'static [&'static str],
}

const NFS_OPTIONS: &[&str] = &[
    "vers",
    "nfsvers",
    "minorversion",
    "proto",
    "port",
    "mountport",
    "mountproto",
    "rsize",
    "wsize",
    "timeo",
    "retrans",
    "soft",
    "softerr",
    "hard",
    "sec",
    "nolock",
    "lock",
    "noac",
    "ac",
    "actimeo",
    "acregmin",
    "acregmax",
    "acdirmin",
    "acdirmax",
    "lookupcache",
    "nconnect",
    "nosharecache",
    "noresvport",
    "resvport",
    "nocto",
    "cto",
    "local_lock",
];

/// Of those, the ones that lead to another port of the same host.
const PORT_OPTIONS: [&str; 2] = ["port", "mountport"];

const KINDS: &[Kind] = &[
    Kind {
        name: "nfs",
        source: SourceKind::Host(2049),
        program: None,
        options: NFS_OPTIONS,
    },
    Kind {
        name: "nfs4",
        source: SourceKind::Host(2049),
        program: None,
        options: NFS_OPTIONS,
    },
    Kind {
        name: "ceph",
        source: SourceKind::Hosts(6789),
        program: None,
        options: &[
            "name",
            "secret",
            "fs",
            "mds_namespace",
            "rsize",
            "wsize",
            "rasize",
            "noshare",
            "norbytes",
            "ms_mode",
        ],
    },
    Kind {
        name: "glusterfs",
        source: SourceKind::Host(24007),
        program: Some("glusterfs"),
        options: &[
            "log-level",
            "direct-io-mode",
            "backup-volfile-servers",
            "transport",
        ],
    },
    Kind {
        name: "ext4",
        source: SourceKind::Device,
        program: None,
        options: &[
            "data",
            "errors",
            "noload",
            "discard",
            "nodiscard",
            "commit",
            "barrier",
            "nobarrier",
        ],
    },
    Kind {
        name: "xfs",
        source: SourceKind::Device,
        program: None,
        options: &[
            "nouuid",
            "norecovery",
            "discard",
            "logbufs",
            "logbsize",
            "inode64",
        ],
    },
    Kind {
        name: "btrfs",
        source: SourceKind::Device,
        program: None,
        options: &["compress", "discard", "ssd", "nossd", "autodefrag"],
    },
    Kind {
        name: "tmpfs",
        source: SourceKind::Nothing,
        program: None,
        options: &["size", "nr_inodes", "mode", "noswap"],
    },
];

/// Options of the mount itself, which any kind has.
const COMMON: [&str; 7] = [
    "ro",
    "rw",
    "noexec",
    "noatime",
    "nodiratime",
    "relatime",
    "sync",
];

/// A mount that may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) kind: &'static str,
    pub(crate) source: String,
    pub(crate) program: Option<&'static str>,
    pub(crate) is_read_only: bool,
    /// `noexec`, `noatime`, … of the mount.
    pub(crate) flags: Vec<&'static str>,
    /// Of the file system: name and value.
    pub(crate) options: Vec<(String, String)>,
    /// Whom it talks to.
    pub(crate) hosts: Vec<(String, u16)>,
}

fn invalid<T>(why: String) -> Result<T, VolumeError> {
    Err(VolumeError::InvalidAttributes(why))
}

fn denied<T>(why: String) -> Result<T, VolumeError> {
    Err(VolumeError::Denied(why))
}

/// Whether a text can stand among options and arguments without becoming another one.
fn is_plain(text: &str) -> bool {
    text.len() <= VALUE_BYTES_MAX
        && !text
            .chars()
            .any(|c| c == ',' || c == '\\' || c.is_control() || c.is_whitespace())
}

/// What hosts a mounter may have the node talk to.
pub(crate) struct Hosts<'a> {
    pub(crate) grants: &'a Grants,
    pub(crate) named: &'a NamedHosts,
}

impl Hosts<'_> {
    /// Whether a host may be used; those that only the volume names must not be the node's own.
    pub(crate) fn allow(&self, host: &str, port: u16) -> Result<(), VolumeError> {
        if self.grants.allows_host(host, port) || self.named.has(host, port) {
            return Ok(());
        }
        denied(format!("{host}:{port} needs the grant hosts"))
    }

    /// Whether it is the volume alone that names a host.
    pub(crate) fn is_only_named(&self, host: &str, port: u16) -> bool {
        !self.grants.allows_host(host, port)
    }
}

/// `host`, `host:port`, `[address]:port`; the port is the kind's where none is given.
pub(crate) fn host_and_port(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (text, None),
        },
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || host.starts_with('-') || !host.chars().all(is_name) {
        return None;
    }
    let port = port.map_or(Ok(default), str::parse).ok()?;
    Some((host.to_owned(), port))
}

/// Checks a mount. `attached` are the devices of this call.
pub(crate) fn mount(
    kind: &str,
    source: &str,
    options: &[(String, String)],
    hosts: &Hosts<'_>,
    attached: &[String],
    is_read_only: bool,
) -> Result<Allowed, VolumeError> {
    let Some(known) = KINDS.iter().find(|known| known.name == kind) else {
        return invalid(format!(
            "kind {kind:?}: not a file system that is known here"
        ));
    };
    if !hosts
        .grants
        .mount_types
        .iter()
        .any(|granted| granted == kind)
    {
        return denied(format!("mounting {kind} needs the grant mountTypes"));
    }
    let mut allowed = Allowed {
        kind: known.name,
        source: source.to_owned(),
        program: known.program,
        is_read_only,
        flags: Vec::new(),
        options: Vec::new(),
        hosts: Vec::new(),
    };
    if !source
        .bytes()
        .all(|byte| (b' '..0x7f).contains(&byte) && byte != b'\\')
    {
        return invalid(format!("source {source:?}: control characters"));
    }
    match known.source {
        SourceKind::Device if !attached.iter().any(|device| device == source) => {
            return denied(format!(
                "source {source:?}: not a device that this call has attached"
            ));
        }
        SourceKind::Device => {}
        SourceKind::Nothing => known.name.clone_into(&mut allowed.source),
        SourceKind::Host(default) | SourceKind::Hosts(default) => {
            let bad = || invalid(format!("source {source:?}: not host:/path"));
            let asked = options.iter().find(|(name, _)| name == "port");
            let default = asked.map_or(Ok(default), |(_, port)| port.parse());
            let Ok(default) = default else {
                return invalid("option \"port\": no port".into());
            };
            let Some((names, path)) = source.split_once(":/") else {
                return bad();
            };
            if path.split('/').any(|part| part == "..") {
                return invalid(format!("source {source:?}: .."));
            }
            let names: Vec<_> = match known.source {
                SourceKind::Hosts(_) => names.split(',').collect(),
                _ => vec![names],
            };
            for name in names {
                let Some((host, port)) = host_and_port(name, default) else {
                    return bad();
                };
                // Nothing would tell the kernel or the program: it would go to the port that all have.
                if matches!(known.source, SourceKind::Host(_)) && port != default {
                    return invalid(format!("source {source:?}: {kind} is given no port there"));
                }
                hosts.allow(&host, port)?;
                allowed.hosts.push((host, port));
            }
        }
    }
    for (name, value) in options {
        if !is_plain(name) || !is_plain(value) || name.contains('=') {
            return invalid(format!(
                "option {name:?}: a comma, a blank or a control character"
            ));
        }
        if let Some(common) = COMMON.iter().find(|common| *common == name) {
            if !value.is_empty() {
                return invalid(format!("option {name:?} has no value"));
            }
            match *common {
                "ro" => allowed.is_read_only = true,
                "rw" => {}
                flag => allowed.flags.push(flag),
            }
        } else if known.options.contains(&name.as_str()) {
            if PORT_OPTIONS.contains(&name.as_str()) {
                let Ok(port) = value.parse() else {
                    return invalid(format!("option {name:?}: no port"));
                };
                for (host, _) in &allowed.hosts {
                    hosts.allow(host, port)?;
                }
            }
            allowed.options.push((name.clone(), value.clone()));
        } else {
            return invalid(format!("option {name:?}: not one that {kind} may be given"));
        }
    }
    if let Some((_, value)) = options
        .iter()
        .find(|(name, _)| name == "backup-volfile-servers")
    {
        for name in value.split(':') {
            hosts.allow(name, 24007)?;
            allowed.hosts.push((name.to_owned(), 24007));
        }
    }
    Ok(allowed)
}

/// A device that may be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Loop {
        file: String,
    },
    Iscsi {
        portal: String,
        target: String,
        lun: u32,
        interface: String,
        login: Option<(String, String)>,
    },
    Rbd {
        monitors: Vec<(String, u16)>,
        pool: String,
        image: String,
        user: String,
        key: String,
    },
}

/// Checks a device that is to be attached.
pub(crate) fn device(
    kind: &str,
    parameters: &[(String, String)],
    hosts: &Hosts<'_>,
) -> Result<Device, VolumeError> {
    let known: &[&str] = match kind {
        "loop" => &["file"],
        "iscsi" => &[
            "portal",
            "target",
            "lun",
            "interface",
            "username",
            "password",
        ],
        "rbd" => &["monitors", "pool", "image", "user", "key"],
        _ => return invalid(format!("device {kind:?}: not a kind that is known here")),
    };
    for (name, value) in parameters {
        if !known.contains(&name.as_str()) {
            return invalid(format!("device {kind}: {name:?} is not a parameter of it"));
        }
        if value.len() > VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            return invalid(format!("device {kind}: {name}: control characters"));
        }
    }
    let get = |name: &str| {
        let found = parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    };
    let required = |name: &str| {
        let missing = || format!("device {kind}: {name} is missing");
        let value = get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| VolumeError::InvalidAttributes(missing()))
    };
    let word = |name: &str, value: &str| {
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        match value.chars().all(is_good) && !value.starts_with('-') {
            true => Ok(value.to_owned()),
            false => invalid(format!("device {kind}: {name} {value:?}: not a name")),
        }
    };
    let grant = |what: &str| match hosts.grants.allows_device(kind, what) {
        true => Ok(()),
        false => denied(format!("device {kind}:{what} needs the grant devices")),
    };
    match kind {
        "loop" => {
            let file = required("file")?;
            let parts_are_plain = file
                .split('/')
                .skip(1)
                .all(|part| !matches!(part, "" | "." | ".."));
            if !file.starts_with('/') || !parts_are_plain {
                return invalid(format!(
                    "device loop: file {file:?}: not an absolute path without .."
                ));
            }
            grant(file)?;
            Ok(Device::Loop {
                file: file.to_owned(),
            })
        }
        "iscsi" => {
            let target = word("target", required("target")?)?;
            grant(&target)?;
            let portal = required("portal")?;
            let Some((host, port)) = host_and_port(portal, 3260) else {
                return invalid(format!("device iscsi: portal {portal:?}: not host:port"));
            };
            hosts.allow(&host, port)?;
            let lun = get("lun").unwrap_or("0");
            let lun = lun.parse().ok().filter(|lun| *lun <= 255);
            let Some(lun) = lun else {
                return invalid("device iscsi: lun: not a number from 0 to 255".into());
            };
            Ok(Device::Iscsi {
                portal: match host.contains(':') {
                    true => format!("[{host}]:{port}"),
                    false => format!("{host}:{port}"),
                },
                target,
                lun,
                interface: word("interface", get("interface").unwrap_or("default"))?,
                login: match (get("username"), get("password")) {
                    (Some(user), Some(password)) => Some((user.into(), password.into())),
                    (None, None) => None,
                    _ => return invalid("device iscsi: username and password go together".into()),
                },
            })
        }
        _ => {
            let pool = word("pool", get("pool").unwrap_or("rbd"))?;
            let image = word("image", required("image")?)?;
            grant(&format!("{pool}/{image}"))?;
            let mut monitors = Vec::new();
            for monitor in required("monitors")?.split(',') {
                let Some((host, port)) = host_and_port(monitor.trim(), 6789) else {
                    return invalid(format!("device rbd: monitor {monitor:?}: not host:port"));
                };
                hosts.allow(&host, port)?;
                monitors.push((host, port));
            }
            let key = get("key").unwrap_or_default();
            if !key.is_empty() && !is_plain(key) {
                return invalid("device rbd: key: not a key".into());
            }
            Ok(Device::Rbd {
                monitors,
                pool,
                image,
                user: word("user", get("user").unwrap_or("admin"))?,
                key: key.to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod tests;
