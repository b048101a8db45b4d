//! The acts of one call, and undoing them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use crate::{
    Grants, VolumeError,
    named::{self, NamedHosts},
    protocol::{MountAsk, ResolveError},
    volume::VolumeRequest,
};

use super::{
    check::{self, Allowed, Device, Hosts},
    record::{Record, Records, Undo},
    system::{MountCall, System},
};

/// Acts of one call.
const ACTS_MAX: usize = 16;
/// Loop devices that are tried, should others take them meanwhile.
const LOOP_ATTEMPTS_MAX: usize = 8;
/// What a device's beginning is looked at for; every file system and partition table says something there.
const LOOKED_AT_BYTES: usize = 1 << 20;

/// What a call may do and has done.
pub(crate) struct Acts<'a> {
    system: &'a dyn System,
    records: &'a Records,
    grants: &'a Grants,
    named: NamedHosts,
    request: &'a VolumeRequest,
    record: Record,
    attached: Vec<String>,
    count: usize,
}

fn other(what: &str, error: impl std::fmt::Display) -> VolumeError {
    VolumeError::Other(format!("{what}: {error}"))
}

/// An error of the kernel or a program, in words that say what can be done.
fn said(what: &str, error: &io::Error) -> VolumeError {
    let text = format!("{what}: {error}");
    match error.raw_os_error().map(nix::errno::Errno::from_raw) {
        Some(nix::errno::Errno::ENODEV) => VolumeError::Unavailable(format!(
            "{what}: this node's kernel has no such file system"
        )),
        Some(nix::errno::Errno::ENOENT) => VolumeError::NotFound(text),
        Some(nix::errno::Errno::EACCES | nix::errno::Errno::EPERM) => {
            VolumeError::Unauthorized(text)
        }
        _ if error.kind() == io::ErrorKind::NotFound => VolumeError::NotFound(text),
        _ => VolumeError::Unavailable(text),
    }
}

impl<'a> Acts<'a> {
    pub(crate) fn new(
        system: &'a dyn System,
        records: &'a Records,
        grants: &'a Grants,
        named: NamedHosts,
        request: &'a VolumeRequest,
        record: Record,
    ) -> Self {
        Self {
            system,
            records,
            grants,
            named,
            request,
            record,
            attached: Vec::new(),
            count: 0,
        }
    }

    pub(crate) fn finish(self) -> Record {
        self.record
    }

    fn hosts(&self) -> Hosts<'_> {
        Hosts {
            grants: self.grants,
            named: &self.named,
        }
    }

    /// Does what the guest asks; answers a device's path, or nothing.
    pub(crate) async fn perform(&mut self, ask: MountAsk) -> Result<String, VolumeError> {
        self.count += 1;
        if self.count > ACTS_MAX {
            let why = format!("more than {ACTS_MAX} acts in one call");
            return Err(VolumeError::Denied(why));
        }
        // A volume that is mounted is made larger, and nothing else.
        if self.record.is_complete != matches!(ask, MountAsk::Grow { .. }) {
            let why = match self.record.is_complete {
                true => "only grow is there for a volume that is mounted",
                false => "grow is for a volume that is mounted",
            };
            return Err(VolumeError::Denied(why.into()));
        }
        match ask {
            MountAsk::Mount {
                kind,
                source,
                options,
            } => {
                if self.record.is_mounted() {
                    let why = "a volume is mounted once".to_owned();
                    return Err(VolumeError::InvalidAttributes(why));
                }
                let mut options = options;
                for option in &self.request.mount_options {
                    let (name, value) = option.split_once('=').unwrap_or((option, ""));
                    options.push((name.to_owned(), value.to_owned()));
                }
                let hosts = self.hosts();
                let is_read_only = self.request.is_read_only;
                let allowed = check::mount(
                    &kind,
                    &source,
                    &options,
                    &hosts,
                    &self.attached,
                    is_read_only,
                )?;
                self.mount(allowed).await.map(|()| String::new())
            }
            MountAsk::Attach { kind, parameters } => {
                let device = check::device(&kind, &parameters, &self.hosts())?;
                let path = self.attach(device).await?;
                self.attached.push(path.clone());
                Ok(path)
            }
            MountAsk::Format { device, kind } => self.format(&device, &kind).await,
            MountAsk::Grow { bytes } => self.grow(bytes).await.map(|held| held.to_string()),
        }
    }

    /// Makes the device that the record is of larger, and then the file system on it.
    async fn grow(&mut self, bytes: u64) -> Result<u64, VolumeError> {
        let target = self.record.target.clone();
        let what = format!("grow {}", self.request.name);
        if self.request.is_read_only {
            let why = format!("{what}: nobody may write there");
            return Err(VolumeError::InvalidAttributes(why));
        }
        let mounted = self.system.mounted(&target).await;
        let mounted = mounted.map_err(|error| said(&what, &error))?;
        let (kind, device) = mounted.ok_or_else(|| other(&what, "nothing is mounted"))?;
        let is_disk = |undo: &&Undo| !matches!(undo, Undo::Unmount);
        match self.record.done.iter().rev().find(is_disk) {
            Some(Undo::Loop { device, file }) => {
                // What may be attached is not what it was, perhaps.
                check::device("loop", &[("file".into(), file.clone())], &self.hosts())?;
                let (device, file) = (device.clone(), file.clone());
                self.system
                    .check_image(&file)
                    .map_err(|error| said(&what, &error))?;
                let lengthened = self.system.lengthen(&file, bytes).await;
                lengthened.map_err(|error| said(&what, &error))?;
                let looked = words(["--set-capacity", &device]);
                self.run(&what, "losetup", &looked).await?;
            }
            Some(Undo::Iscsi { portal, target }) => {
                let again = words(["-m", "node", "-T", target, "-p", portal, "-R"]);
                self.run(&what, "iscsiadm", &again).await?;
            }
            // The kernel hears of it by itself.
            Some(Undo::Rbd { .. }) => {}
            Some(Undo::Unmount) | None => {
                let why = format!("{what}: {kind} {device} is no disk of this node");
                return Err(VolumeError::InvalidAttributes(why));
            }
        }
        let size = words(["--getsize64", &device]);
        let size = self.run(&what, "blockdev", &size).await?;
        let held: u64 = size.trim().parse().map_err(|error| other(&what, error))?;
        if held < bytes {
            let why = format!("{what}: {device} holds {held} bytes where it comes from");
            return Err(VolumeError::Unavailable(why));
        }
        let target = target.to_string_lossy();
        let (program, arguments) = match kind.as_str() {
            "ext2" | "ext3" | "ext4" => ("resize2fs", words([device.as_str()])),
            "xfs" => ("xfs_growfs", words([&*target])),
            "btrfs" => ("btrfs", words(["filesystem", "resize", "max", &*target])),
            _ => {
                let why = format!("{what}: a file system of kind {kind} cannot be made larger");
                return Err(VolumeError::InvalidAttributes(why));
            }
        };
        self.run(&what, program, &arguments).await?;
        Ok(held)
    }

    async fn run(
        &self,
        what: &str,
        program: &str,
        arguments: &[String],
    ) -> Result<String, VolumeError> {
        let ran = self.system.run(program, arguments).await;
        ran.map_err(|error| missing_program(program, what, &error))
    }

    /// Writes what has to be undone, before it is done.
    fn note(&mut self, undo: Undo) -> Result<(), VolumeError> {
        self.record.done.push(undo);
        let written = self.records.write(&self.record);
        written.map_err(|error| other("record", error))
    }

    async fn addresses(&self, hosts: &[(String, u16)]) -> Result<Vec<IpAddr>, VolumeError> {
        let mut found = Vec::new();
        for (host, port) in hosts {
            let resolved = self.system.resolve(host, *port).await;
            let resolved = resolved.map_err(|error| said(&format!("look up {host}"), &error))?;
            let resolved = match self.hosts().is_only_named(host, *port) {
                true => named::keep_outside(host, resolved).map_err(|error| match error {
                    ResolveError::Denied(why) | ResolveError::NotFound(why) => {
                        VolumeError::Denied(why)
                    }
                })?,
                false => resolved,
            };
            let first = resolved.into_iter().next();
            found.push(first.ok_or_else(|| other(host, "no address"))?);
        }
        Ok(found)
    }

    async fn mount(&mut self, allowed: Allowed) -> Result<(), VolumeError> {
        let addresses = self.addresses(&allowed.hosts).await?;
        let what = format!("mount {} {}", allowed.kind, allowed.source);
        self.note(Undo::Unmount)?;
        let target = self.record.target.clone();
        if let Some(program) = allowed.program {
            let arguments = gluster(&allowed, &target.to_string_lossy());
            let ran = self.system.run(program, &arguments).await;
            return match ran {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let why = format!("{what}: the program {program} is not on this node");
                    Err(VolumeError::Unavailable(why))
                }
                Err(error) => Err(said(&what, &error)),
            };
        }
        let call = in_kernels_words(&allowed, &addresses);
        let mounted = self.system.mount(&call, &target).await;
        mounted.map_err(|error| said(&what, &error))
    }

    async fn attach(&mut self, device: Device) -> Result<String, VolumeError> {
        match device {
            Device::Loop { file } => {
                let is_read_only = self.request.is_read_only;
                let what = format!("attach {file}");
                self.system
                    .check_image(&file)
                    .map_err(|error| said(&what, &error))?;
                if let Some(device) = self.shared(&file).await? {
                    let undo = Undo::Loop {
                        device: device.clone(),
                        file,
                    };
                    self.note(undo)?;
                    return Ok(device);
                }
                let mut attempts = 0;
                loop {
                    let free = self.system.run("losetup", &words(["--find"])).await;
                    let device = free.map_err(|error| said(&what, &error))?.trim().to_owned();
                    self.note(Undo::Loop {
                        device: device.clone(),
                        file: file.clone(),
                    })?;
                    let mut arguments = words([device.as_str(), file.as_str()]);
                    if is_read_only {
                        arguments.insert(0, "--read-only".into());
                    }
                    attempts += 1;
                    match self.system.run("losetup", &arguments).await {
                        Ok(_) => return Ok(device),
                        // Somebody else on this node was faster.
                        Err(error)
                            if attempts < LOOP_ATTEMPTS_MAX
                                && error.to_string().contains("busy") =>
                        {
                            self.record.done.pop();
                        }
                        Err(error) => return Err(said(&what, &error)),
                    }
                }
            }
            Device::Iscsi {
                portal,
                target,
                lun,
                interface,
                login,
            } => {
                let what = format!("iscsi {target} at {portal}");
                let (host, port) =
                    check::host_and_port(&portal, 3260).ok_or_else(|| other(&what, "no portal"))?;
                // By address: what is logged in to is what was checked.
                let ip = self.addresses(&[(host, port)]).await?;
                let portal = ip.first().map(|ip| SocketAddr::new(*ip, port).to_string());
                let portal = portal.unwrap_or(portal_of_nobody());
                self.note(Undo::Iscsi {
                    portal: portal.clone(),
                    target: target.clone(),
                })?;
                let node = ["-m", "node", "-T", &target, "-p", &portal];
                let mut steps = vec![words(node), words(node)];
                steps[0].extend(words(["-I", &interface, "-o", "new"]));
                if let Some((user, password)) = login {
                    for (name, value) in [
                        ("node.session.auth.authmethod", "CHAP"),
                        ("node.session.auth.username", &user),
                        ("node.session.auth.password", &password),
                    ] {
                        let mut step = words(node);
                        step.extend(words(["-o", "update", "-n", name, "-v", value]));
                        let last = steps.len() - 1;
                        steps.insert(last, step);
                    }
                }
                let last = steps.len() - 1;
                steps[last].push("--login".into());
                for step in steps {
                    let ran = self.system.run("iscsiadm", &step).await;
                    ran.map_err(|error| missing_program("iscsiadm", &what, &error))?;
                }
                let path = format!("/dev/disk/by-path/ip-{portal}-iscsi-{target}-lun-{lun}");
                let appeared = self.system.device(&path).await;
                appeared.map_err(|error| said(&what, &error))
            }
            Device::Rbd {
                monitors,
                pool,
                image,
                user,
                key,
            } => {
                let spec = format!("{pool}/{image}");
                let what = format!("rbd {spec}");
                let addresses = self.addresses(&monitors).await?;
                let monitors: Vec<_> = addresses
                    .iter()
                    .zip(&monitors)
                    .map(|(ip, (_, port))| SocketAddr::new(*ip, *port).to_string())
                    .collect();
                self.note(Undo::Rbd { spec })?;
                let secret = match key.is_empty() {
                    true => String::new(),
                    false => format!(",secret={key}"),
                };
                let line = format!(
                    "{} name={user}{secret} {pool} {image} -",
                    monitors.join(",")
                );
                let added = self.system.write("/sys/bus/rbd/add", &line).await;
                added.map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => VolumeError::Unavailable(format!(
                        "{what}: this node's kernel has no RADOS block devices"
                    )),
                    _ => said(&what, &error),
                })?;
                let path = format!("/dev/rbd/{pool}/{image}");
                let appeared = self.system.device(&path).await;
                appeared.map_err(|error| said(&what, &error))
            }
        }
    }

    /// The device that a file is attached as already, for another volume's directory. Two devices of one file would
    /// each write what the other does not know of.
    async fn shared(&self, file: &str) -> Result<Option<String>, VolumeError> {
        let what = format!("attach {file}");
        let io = |error: io::Error| said(&what, &error);
        for record in self.records.all() {
            let found = record.loops().find(|(_, of)| *of == file);
            let Some((device, _)) = found.filter(|_| record.target != self.record.target) else {
                continue;
            };
            if self.system.loop_file(device).await.map_err(io)?.as_deref() != Some(file) {
                continue;
            }
            let name = device.trim_start_matches("/dev/");
            let is_read_only = self.system.read(&format!("/sys/block/{name}/ro"), 1).await;
            if !self.request.is_read_only && is_read_only.map_err(io)? == b"1" {
                let why = format!(
                    "{what}: another volume of this node has it as {device}, and nobody may write there"
                );
                return Err(VolumeError::Unavailable(why));
            }
            return Ok(Some(device.to_owned()));
        }
        match self.system.loops_of(file).await.map_err(io)?.first() {
            None => Ok(None),
            Some(device) => Err(VolumeError::Unavailable(format!(
                "{what}: it is attached as {device}, and not by this node's volumes"
            ))),
        }
    }

    async fn format(&mut self, device: &str, kind: &str) -> Result<String, VolumeError> {
        let what = format!("format {device}");
        if !self.attached.iter().any(|attached| attached == device) {
            let why = format!("{what}: not a device that this call has attached");
            return Err(VolumeError::Denied(why));
        }
        let (program, arguments): (_, &[&str]) = match kind {
            "ext4" => ("mkfs.ext4", &["-q", "-F", "-m", "0"]),
            "xfs" => ("mkfs.xfs", &["-q"]),
            _ => {
                let why = format!("{what}: {kind:?}: neither ext4 nor xfs");
                return Err(VolumeError::InvalidAttributes(why));
            }
        };
        let begin = self.system.read(device, LOOKED_AT_BYTES).await;
        let begin = begin.map_err(|error| said(&what, &error))?;
        if begin.iter().any(|byte| *byte != 0) {
            // It holds something, whatever that is.
            return Ok(String::new());
        }
        let mut arguments = words(arguments.iter().copied());
        arguments.push(device.to_owned());
        let made = self.system.run(program, &arguments).await;
        made.map_err(|error| missing_program(program, &what, &error))?;
        Ok(String::new())
    }
}

fn portal_of_nobody() -> String {
    "0.0.0.0:0".into()
}

fn missing_program(program: &str, what: &str, error: &io::Error) -> VolumeError {
    match error.kind() {
        io::ErrorKind::NotFound => {
            VolumeError::Unavailable(format!("{what}: the program {program} is not on this node"))
        }
        _ => said(what, error),
    }
}

fn words<'b>(words: impl IntoIterator<Item = &'b str>) -> Vec<String> {
    words.into_iter().map(str::to_owned).collect()
}

/// A mount as the kernel is told, with the addresses that names stand for.
pub(super) fn in_kernels_words(allowed: &Allowed, addresses: &[IpAddr]) -> MountCall {
    let mut data: Vec<_> = allowed
        .options
        .iter()
        .map(|(name, value)| match value.is_empty() {
            true => name.clone(),
            false => format!("{name}={value}"),
        })
        .collect();
    let mut source = allowed.source.clone();
    match (allowed.kind, addresses) {
        ("nfs" | "nfs4", [address, ..]) => data.push(format!("addr={address}")),
        ("ceph", [_, ..]) => {
            let monitors: Vec<_> = addresses
                .iter()
                .zip(&allowed.hosts)
                .map(|(ip, (_, port))| SocketAddr::new(*ip, *port).to_string())
                .collect();
            let path = allowed.source.split_once(":/").map_or("", |(_, path)| path);
            source = format!("{}:/{path}", monitors.join(","));
        }
        _ => {}
    }
    MountCall {
        kind: allowed.kind.to_owned(),
        source,
        is_read_only: allowed.is_read_only,
        flags: allowed.flags.clone(),
        data: data.join(","),
    }
}

pub(super) fn gluster(allowed: &Allowed, target: &str) -> Vec<String> {
    let path = allowed.source.split_once(":/").map_or("", |(_, path)| path);
    let mut arguments = Vec::new();
    for (host, _) in &allowed.hosts {
        arguments.push(format!("--volfile-server={host}"));
    }
    arguments.push(format!("--volfile-id={path}"));
    for (name, value) in &allowed.options {
        match name.as_str() {
            "backup-volfile-servers" => {}
            "transport" => arguments.push(format!("--volfile-server-transport={value}")),
            _ => arguments.push(format!("--{name}={value}")),
        }
    }
    if allowed.is_read_only {
        arguments.push("--read-only".into());
    }
    arguments.push("--fuse-mountopts=nosuid,nodev".into());
    arguments.push(target.to_owned());
    arguments
}

/// Undoes what a record says, the last first, and the record. What was never done is no error.
pub(crate) async fn undo(
    system: &dyn System,
    records: &Records,
    mut record: Record,
) -> io::Result<()> {
    while let Some(last) = record.done.last() {
        match last {
            Undo::Unmount => system.unmount(&record.target).await?,
            Undo::Loop { device, file } => {
                let others = records.all();
                let is_shared = others
                    .iter()
                    .filter(|other| other.target != record.target)
                    .any(|other| {
                        other
                            .loops()
                            .any(|found| found == (device.as_str(), file.as_str()))
                    });
                // Somebody else's by now, if it is of another file. This one may have been removed meanwhile.
                let found = system.loop_file(device).await?.unwrap_or_default();
                let found = found.strip_suffix(" (deleted)").unwrap_or(&found);
                if !is_shared && found == file {
                    system.run("losetup", &words(["--detach", device])).await?;
                }
            }
            Undo::Iscsi { portal, target } => {
                let node = ["-m", "node", "-T", target, "-p", portal];
                for end in [&["--logout"][..], &["-o", "delete"]] {
                    let mut step = words(node);
                    step.extend(words(end.iter().copied()));
                    // Logged out already, or never in.
                    let _ = system.run("iscsiadm", &step).await;
                }
            }
            Undo::Rbd { spec } => {
                if let Some(number) = system.rbd_number(spec).await? {
                    system.write("/sys/bus/rbd/remove", &number).await?;
                }
            }
        }
        record.done.pop();
        record.is_complete = false;
        records.write(&record)?;
    }
    records.remove(&record.target)
}
