//! Stage 2: from a fork of the supervisor to the app.
//!
//! ```text
//!  create  fork ─▶ init:  cgroup, mounts, root, devices, user ── Ready ──▶ (waits) ── go ──▶ become, execute
//!  exec    fork ─▶ exec:  cgroup, setns, terminal ───────────── Ready ──▶ (waits) ── go ──▶ become, execute
//! ```
//!
//! What goes wrong is told to stage 1 on a socket that closes when the app is executed: its end of file
//! is the news that it was. No path of the image is resolved before the process is inside its root, so
//! an image's links lead nowhere else.

mod idmap;
mod mounts;
mod user;

use std::{
    ffi::CString,
    fs,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::sched::CloneFlags;
use oci_spec::runtime::{Capability, Process, Spec};
use wherry_cgroup::Cgroups;

use crate::{
    bundle::{self, Bundle},
    protocol::{self, FailureKind, Identity, Stage2Message},
    seccomp, shm, sys,
};
pub(crate) use idmap::IdMap;

/// What went wrong, and what a caller can do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: FailureKind,
    message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The image and the config do not go together.
    fn invalid(message: impl Into<String>) -> Self {
        Self::new(FailureKind::InvalidArgument, message)
    }

    fn named<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |error| {
            let error = error.into();
            let kind = match error.raw_os_error() {
                Some(libc::ENOSPC | libc::ENOMEM | libc::EAGAIN) => FailureKind::ResourceExhausted,
                _ => FailureKind::Internal,
            };
            Self::new(kind, format!("{what}: {error}"))
        }
    }
}

/// What a container's first process is made from.
pub(crate) struct InitArguments {
    pub(crate) directory: PathBuf,
    pub(crate) tty: bool,
    pub(crate) cgroups: Cgroups,
    pub(crate) stage1: OwnedFd,
    pub(crate) stdin: Option<OwnedFd>,
    /// stdout and stderr, unless there is a terminal.
    pub(crate) output: Vec<OwnedFd>,
    /// The pod's `/dev/shm`.
    pub(crate) shm: Option<(RawFd, shm::Kind)>,
    /// The pod's user namespace.
    pub(crate) user_namespace: Option<RawFd>,
}

/// What a command beside the app is made from.
pub(crate) struct ExecArguments {
    pub(crate) directory: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) cgroups: Cgroups,
    pub(crate) identity: Identity,
    /// The app's process.
    pub(crate) target: i32,
    pub(crate) stage1: OwnedFd,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Descriptors after everything else of the supervisor has been closed.
struct Kept {
    stage1: OwnedFd,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    shm: Option<OwnedFd>,
    user_namespace: Option<OwnedFd>,
}

/// A process that is set up and only has to be told to go on.
struct Prepared {
    process: Process,
    args: Vec<String>,
    identity: Identity,
    filter: Option<Vec<u8>>,
    warnings: Vec<String>,
    terminal: Option<OwnedFd>,
}

/// Becomes the app of a container. Runs in a fresh fork.
pub(crate) fn init(arguments: InitArguments) -> ! {
    sys::reset_signals();
    hide();
    let mut output = arguments.output.iter();
    let [stdout, stderr] = [output.next(), output.next()];
    let kept = keep(
        &arguments.stage1,
        [arguments.stdin.as_ref(), stdout, stderr],
        [arguments.shm.map(|(fd, _)| fd), arguments.user_namespace],
    );
    let kept = match kept {
        Ok(kept) => kept,
        Err(_) => sys::exit(1),
    };
    let result = prepare_init(&arguments, &kept);
    finish(result, kept.stage1)
}

/// Becomes a command beside the app. Runs in a fresh fork, already in the container's process namespace.
pub(crate) fn exec(arguments: ExecArguments) -> ! {
    sys::reset_signals();
    hide();
    let streams = [
        arguments.stdin.as_ref(),
        arguments.stdout.as_ref(),
        arguments.stderr.as_ref(),
    ];
    let kept = match keep(&arguments.stage1, streams, [None, None]) {
        Ok(kept) => kept,
        Err(_) => sys::exit(1),
    };
    let result = prepare_exec(&arguments, &kept);
    finish(result, kept.stage1)
}

/// Until the app is executed the process still is the supervisor's image: nothing in the container may
/// trace it or look into it.
fn hide() {
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
}

fn keep(
    stage1: &OwnedFd,
    streams: [Option<&OwnedFd>; 3],
    shared: [Option<RawFd>; 2],
) -> io::Result<Kept> {
    let streams = streams.map(|stream| stream.map(AsRawFd::as_raw_fd));
    let wanted: Vec<RawFd> = [Some(stage1.as_raw_fd())]
        .into_iter()
        .chain(streams)
        .chain(shared)
        .flatten()
        .collect();
    let mut kept = sys::keep_only(&wanted)?.into_iter();
    let mut next = |is_there: bool| if is_there { kept.next() } else { None };
    let stage1 = next(true).ok_or(io::ErrorKind::NotFound)?;
    let [stdin, stdout, stderr] = streams.map(|stream| next(stream.is_some()));
    Ok(Kept {
        stage1,
        stdin,
        stdout,
        stderr,
        shm: next(shared[0].is_some()),
        user_namespace: next(shared[1].is_some()),
    })
}

/// Tells stage 1, waits for its word, and executes. Failures are told too.
fn finish(prepared: Result<Prepared, Failure>, stage1: OwnedFd) -> ! {
    let failure = match prepared {
        Ok(mut prepared) => {
            let message = Stage2Message::Ready {
                identity: prepared.identity.clone(),
                warnings: std::mem::take(&mut prepared.warnings),
            };
            let terminal = prepared.terminal.take();
            let fds: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
            if protocol::send(&stage1, &message, &fds).is_err() {
                sys::exit(1);
            }
            drop(fds);
            drop(terminal);
            let mut word = [0; 8];
            match rustix::io::retry_on_intr(|| rustix::io::read(&stage1, &mut word)) {
                Ok(count) if count > 0 => execute(prepared),
                // The supervisor is gone.
                _ => sys::exit(1),
            }
        }
        Err(failure) => failure,
    };
    let code = match failure.kind {
        FailureKind::CommandNotFound => 127,
        FailureKind::CommandNotExecutable => 126,
        _ => 1,
    };
    let _ = protocol::send(
        &stage1,
        &Stage2Message::Failed {
            kind: failure.kind,
            message: failure.message,
        },
        &[],
    );
    sys::exit(code)
}

fn read_bundle(directory: &Path) -> Result<(Spec, Process, Bundle), Failure> {
    let missing = |name: &str| {
        Failure::new(
            FailureKind::Internal,
            format!("{}: {name} is gone", directory.display()),
        )
    };
    let spec: Spec = bundle::read(&directory.join("config.json"))
        .map_err(Failure::named("OCI spec"))?
        .ok_or_else(|| missing("config.json"))?;
    let bundle: Bundle = bundle::read(&directory.join("bundle.json"))
        .map_err(Failure::named("bundle"))?
        .ok_or_else(|| missing("bundle.json"))?;
    let process = spec.process().clone().ok_or_else(|| missing("process"))?;
    Ok((spec, process, bundle))
}

fn read_filter(bundle: &Bundle) -> Result<Option<Vec<u8>>, Failure> {
    let Some(path) = &bundle.seccomp else {
        return Ok(None);
    };
    fs::read(path)
        .map(Some)
        .map_err(Failure::named(format!("seccomp filter {}", path.display())))
}

fn prepare_init(arguments: &InitArguments, kept: &Kept) -> Result<Prepared, Failure> {
    let _ = sys::die_with_parent();
    let InitArguments {
        directory,
        tty,
        cgroups,
        ..
    } = arguments;
    let (spec, mut process, bundle) = read_bundle(directory)?;
    let filter = read_filter(&bundle)?;
    let ids = id_map(&bundle, kept.user_namespace.as_ref())?;
    let mut warnings = Vec::new();
    cgroups
        .group(&bundle.cgroup)
        .join()
        .map_err(Failure::named("cgroup"))?;
    set_oom_score(process.oom_score_adj(), &mut warnings);
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).map_err(Failure::named("cgroup namespace"))?;
    let _ = nix::unistd::setsid();
    sys::join_session_keyring();
    // In a user namespace of its own there is nothing it could lack.
    if ids.is_none() {
        warn_of_missing_capabilities(&process, &mut warnings);
    }

    let shm = kept.shm.as_ref().zip(arguments.shm.map(|(_, kind)| kind));
    let shared = mounts::Shared {
        cgroups,
        shm,
        ids: ids.as_ref(),
    };
    mounts::enter_root(&spec, &bundle, directory, &shared, &mut warnings)?;
    let identity = user::identity(&bundle)?;
    if let Some(ids) = &ids {
        ids.verify(&identity)?;
    }
    let terminal = connect_streams(*tty, kept, &identity, ids.as_ref())?;
    if *tty {
        mounts::bind_console()?;
    }
    enter_working_dir(process.cwd(), true)?;
    mounts::seal(&spec)?;
    if let Some(ids) = &ids {
        ids.enter(true)?;
    }
    set_environment(&mut process, &identity);
    let args = process.args().clone().unwrap_or_default();
    Ok(Prepared {
        process,
        args,
        identity,
        filter,
        warnings,
        terminal,
    })
}

/// The pod's user namespace, where it has one.
fn id_map<'a>(
    bundle: &Bundle,
    namespace: Option<&'a OwnedFd>,
) -> Result<Option<IdMap<'a>>, Failure> {
    match (bundle.user_namespace, namespace) {
        (None, _) => Ok(None),
        (Some(range), Some(namespace)) => Ok(Some(IdMap::new(namespace, range))),
        // To run it as the node's root instead would be the opposite of what was asked.
        (Some(_), None) => Err(Failure::new(
            FailureKind::Internal,
            "the pod's user namespace is gone",
        )),
    }
}

fn warn_of_missing_capabilities(process: &Process, warnings: &mut Vec<String>) {
    let missing = capability_mask(process) & !permitted_capabilities().unwrap_or(u64::MAX);
    if missing == 0 || is_everything(process) {
        return;
    }
    let names: Vec<String> = caps::all()
        .into_iter()
        .filter(|capability| missing & capability.bitmask() != 0)
        .map(|capability| capability.to_string())
        .collect();
    warnings.push(format!(
        "capabilities that this node does not have: {}",
        names.join(", ")
    ));
}

fn prepare_exec(arguments: &ExecArguments, kept: &Kept) -> Result<Prepared, Failure> {
    let _ = sys::die_with_parent();
    let (_, mut process, bundle) = read_bundle(&arguments.directory)?;
    let filter = read_filter(&bundle)?;
    arguments
        .cgroups
        .group(&bundle.cgroup)
        .join()
        .map_err(Failure::named("cgroup"))?;
    set_oom_score(process.oom_score_adj(), &mut Vec::new());
    let namespace = |kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", arguments.target);
        fs::File::open(&path).map_err(Failure::named(path))
    };
    let (cgroup, mount) = (namespace("cgroup")?, namespace("mnt")?);
    let user = bundle
        .user_namespace
        .map(|_| namespace("user").map(OwnedFd::from))
        .transpose()?;
    let ids = id_map(&bundle, user.as_ref())?;
    nix::sched::setns(cgroup, CloneFlags::CLONE_NEWCGROUP)
        .map_err(Failure::named("enter cgroup namespace"))?;
    nix::sched::setns(mount, CloneFlags::CLONE_NEWNS)
        .map_err(Failure::named("enter mount namespace"))?;
    let _ = nix::unistd::setsid();
    sys::join_session_keyring();
    let identity = arguments.identity.clone();
    let terminal = connect_streams(arguments.tty, kept, &identity, ids.as_ref())?;
    enter_working_dir(process.cwd(), false)?;
    if let Some(ids) = &ids {
        ids.enter(false)?;
    }
    set_environment(&mut process, &identity);
    if arguments.tty {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        process.set_env(Some(env));
    }
    Ok(Prepared {
        process,
        args: arguments.args.clone(),
        identity,
        filter,
        warnings: Vec::new(),
        terminal,
    })
}

fn set_oom_score(wanted: Option<i32>, warnings: &mut Vec<String>) {
    let Some(wanted) = wanted else { return };
    if let Err(error) = fs::write("/proc/self/oom_score_adj", wanted.to_string()) {
        warnings.push(format!("oom_score_adj {wanted}: {error}"));
    }
}

/// Connects stdin, stdout and stderr, to a new terminal if asked for; answers that terminal's other end.
fn connect_streams(
    tty: bool,
    kept: &Kept,
    identity: &Identity,
    ids: Option<&IdMap<'_>>,
) -> Result<Option<OwnedFd>, Failure> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(Failure::named("/dev/null"))?;
    let replace = |fd: &OwnedFd, target| {
        sys::replace_fd(fd.as_fd(), target).map_err(Failure::named("streams"))
    };
    let owner = ids.map_or(identity.uid, |ids| ids.to_host(identity.uid));
    let owner = (Some(rustix::fs::Uid::from_raw(owner)), None);
    if tty {
        let (ours, theirs) = open_terminal().map_err(Failure::named("terminal"))?;
        // Best effort, as with pipes below: without it a program may not open /dev/tty again.
        let _ = rustix::fs::fchown(&theirs, owner.0, owner.1);
        for target in 0..3 {
            replace(&theirs, target)?;
        }
        sys::set_controlling_terminal(theirs.as_fd()).map_err(Failure::named("terminal"))?;
        return Ok(Some(ours));
    }
    let null = OwnedFd::from(null);
    for (stream, target) in [(&kept.stdin, 0), (&kept.stdout, 1), (&kept.stderr, 2)] {
        match stream {
            Some(fd) => {
                // So that the user may open /dev/stdout: a pipe has an owner like any file.
                let _ = rustix::fs::fchown(fd, owner.0, owner.1);
                replace(fd, target)?;
            }
            None => replace(&null, target)?,
        }
    }
    Ok(None)
}

fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::{
        fs::{Mode, OFlags, open},
        pty::{ptsname, unlockpt},
    };
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    // The container's own: its number is one that the container sees.
    let ours = open("/dev/pts/ptmx", flags, Mode::empty())?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = open(name, flags, Mode::empty())?;
    Ok((ours, theirs))
}

fn enter_working_dir(cwd: &Path, create: bool) -> Result<(), Failure> {
    if create {
        match fs::metadata(cwd) {
            Ok(found) if !found.is_dir() => {
                return Err(Failure::invalid(format!(
                    "mkdir {}: not a directory",
                    cwd.display()
                )));
            }
            Ok(_) => {}
            Err(_) => fs::create_dir_all(cwd).map_err(|error| match error.kind() {
                io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                    Failure::invalid(format!("mkdir {}: not a directory", cwd.display()))
                }
                _ => Failure::named(format!("mkdir {}", cwd.display()))(error),
            })?,
        }
    }
    // Root may be kept out where the user is let in (NFS): then become() tries again.
    match std::env::set_current_dir(cwd) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            Err(Failure::named(format!(
                "chdir to cwd (\"{}\") set in config.json failed",
                cwd.display()
            ))(error))
        }
        _ => Ok(()),
    }
}

fn set_environment(process: &mut Process, identity: &Identity) {
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
    process.set_env(Some(env));
}

/// Takes on the container's identity and executes. Comes back only with what went wrong.
fn execute(prepared: Prepared) -> Failure {
    if let Err(failure) = become_user(&prepared) {
        return failure;
    }
    let env = prepared.process.env().clone().unwrap_or_default();
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    let Some(name) = prepared.args.first() else {
        return Failure::invalid("no command specified");
    };
    let program = match find_program(name, path) {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let strings = |list: &[String]| -> Vec<CString> {
        list.iter()
            .filter_map(|text| CString::new(text.as_bytes()).ok())
            .collect()
    };
    let Ok(program) = CString::new(program.as_os_str().as_bytes()) else {
        return Failure::invalid(format!("exec: \"{name}\": holds a NUL byte"));
    };
    if let Err(error) = sys::close_others_on_exec() {
        return Failure::named("close descriptors")(error);
    }
    let Err(error) = nix::unistd::execve(&program, &strings(&prepared.args), &strings(&env));
    let kind = match error {
        nix::errno::Errno::ENOENT => FailureKind::CommandNotFound,
        _ => FailureKind::CommandNotExecutable,
    };
    Failure::new(
        kind,
        format!("exec {}: {}", program.to_string_lossy(), describe(error)),
    )
}

/// Finds an executable, with runc's words where there is none.
fn find_program(name: &str, path: &str) -> Result<PathBuf, Failure> {
    let not_found = || {
        let message = format!("exec: \"{name}\": executable file not found in $PATH");
        Failure::new(FailureKind::CommandNotFound, message)
    };
    if name.contains('/') {
        return match fs::metadata(name) {
            Ok(found) if found.is_dir() => Err(Failure::new(
                FailureKind::CommandNotExecutable,
                format!("exec: \"{name}\": is a directory"),
            )),
            Ok(found) if found.permissions().mode() & 0o111 == 0 => Err(Failure::new(
                FailureKind::CommandNotExecutable,
                format!("exec: \"{name}\": permission denied"),
            )),
            Ok(_) => Ok(name.into()),
            Err(error) => {
                let error =
                    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENOENT));
                let message = format!("exec: \"{name}\": stat {name}: {}", describe(error));
                Err(Failure::new(FailureKind::CommandNotFound, message))
            }
        };
    }
    if name.is_empty() {
        return Err(not_found());
    }
    path.split(':')
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
        .find(|candidate| {
            fs::metadata(candidate)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
        .ok_or_else(not_found)
}

fn describe(error: nix::errno::Errno) -> String {
    match error {
        nix::errno::Errno::ENOENT => "no such file or directory".to_owned(),
        nix::errno::Errno::EACCES => "permission denied".to_owned(),
        nix::errno::Errno::ENOEXEC => "exec format error".to_owned(),
        other => other.desc().to_lowercase(),
    }
}

fn become_user(prepared: &Prepared) -> Result<(), Failure> {
    let Prepared {
        process,
        identity,
        filter,
        ..
    } = prepared;
    let no_new_privs = process.no_new_privileges().unwrap_or(false);
    let install = |filter: &Option<Vec<u8>>| match filter {
        Some(program) => seccomp::install(program).map_err(Failure::named("seccomp filter")),
        None => Ok(()),
    };
    // Loading a filter needs CAP_SYS_ADMIN or no_new_privs; with the latter it is the last thing done.
    if !no_new_privs {
        install(filter)?;
    }
    if let Some(profile) = process.apparmor_profile() {
        let word = format!("exec {profile}");
        // The first is AppArmor's own (5.8); the second may be another security module's.
        fs::write("/proc/thread-self/attr/apparmor/exec", &word)
            .or_else(|_| fs::write("/proc/thread-self/attr/exec", &word))
            .map_err(Failure::named(format!("apparmor profile {profile}")))?;
    }
    let mask = capability_mask(process);
    sys::prctl(libc::PR_SET_KEEPCAPS, 1).map_err(Failure::named("keep capabilities"))?;
    for capability in 0..64 {
        match sys::prctl(libc::PR_CAPBSET_READ, capability) {
            Err(_) => break,
            Ok(1) if mask & 1 << capability == 0 => {
                sys::prctl(libc::PR_CAPBSET_DROP, capability)
                    .map_err(Failure::named("bounding set"))?;
            }
            Ok(_) => {}
        }
    }
    let groups: Vec<nix::unistd::Gid> = identity
        .groups
        .iter()
        .map(|gid| nix::unistd::Gid::from_raw(*gid))
        .collect();
    nix::unistd::setgroups(&groups).map_err(Failure::named("supplementary groups"))?;
    let gid = nix::unistd::Gid::from_raw(identity.gid);
    nix::unistd::setresgid(gid, gid, gid).map_err(Failure::named(format!("group {gid}")))?;
    let uid = nix::unistd::Uid::from_raw(identity.uid);
    nix::unistd::setresuid(uid, uid, uid).map_err(Failure::named(format!("user {uid}")))?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0).map_err(Failure::named("keep capabilities"))?;
    // The node may lack some of them, and then they are nobody's to give.
    let permitted = permitted_capabilities().unwrap_or(u64::MAX);
    sys::set_capabilities(mask & permitted).map_err(Failure::named("capabilities"))?;
    // Changing the user has cleared it.
    let _ = sys::die_with_parent();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let cwd = process.cwd();
    std::env::set_current_dir(cwd).map_err(|error| {
        Failure::new(
            FailureKind::CommandNotExecutable,
            format!(
                "chdir to cwd (\"{}\") set in config.json failed: {error}",
                cwd.display()
            ),
        )
    })?;
    if no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(Failure::named("no_new_privs"))?;
        install(filter)?;
    }
    Ok(())
}

/// The capabilities of the spec as the kernel counts them.
fn capability_mask(process: &Process) -> u64 {
    let index = |capability: &Capability| {
        let name = serde_json::to_value(capability).ok()?;
        name.as_str()?
            .parse::<caps::Capability>()
            .ok()
            .map(|found| found.index())
    };
    let sets = process.capabilities().as_ref();
    let held = sets.and_then(|sets| sets.effective().as_ref());
    held.into_iter()
        .flatten()
        .filter_map(index)
        .fold(0, |mask, index| mask | 1 << index)
}

/// Whether it is to hold whatever there is, so that nothing in particular can be missing.
fn is_everything(process: &Process) -> bool {
    capability_mask(process).count_ones() >= 40
}

fn permitted_capabilities() -> Option<u64> {
    let mut text = String::new();
    fs::File::open("/proc/thread-self/status")
        .ok()?
        .read_to_string(&mut text)
        .ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}
