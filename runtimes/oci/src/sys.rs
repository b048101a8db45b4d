//! System calls that no crate in the tree wraps, and the few that must not run after a fork with
//! more than the plain call. Everything unsafe of stage 1 and 2 is here.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Forks with namespace flags; 0 is the child. Only for processes with one thread.
pub(crate) fn fork(namespaces: libc::c_int) -> io::Result<i32> {
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of everything, and as there is
    // one thread no lock can be held in it.
    let pid = unsafe { libc::syscall(libc::SYS_clone, namespaces | libc::SIGCHLD, 0, 0, 0, 0) };
    Ok(check(pid)? as i32)
}

/// Gives a child in a new user namespace its IDs: 0 to `length` − 1 are `host_id` and up.
pub(crate) fn map_ids(child: i32, host_id: u32, length: u32) -> io::Result<()> {
    for name in ["uid_map", "gid_map"] {
        let path = format!("/proc/{child}/{name}");
        std::fs::write(&path, format!("0 {host_id} {length}\n"))
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    }
    Ok(())
}

/// Ends a forked child without running destructors that belong to the parent.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process; nothing can be unsound afterwards.
    unsafe { libc::_exit(code) }
}

/// Asks for SIGKILL when the parent ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).map(drop)
}

/// Calls `prctl` with one argument.
pub(crate) fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the options used here take a number and no pointer.
    let result = unsafe { libc::prctl(option, argument, 0, 0, 0) };
    Ok(check(libc::c_long::from(result))? as i32)
}

/// Names the calling thread, for `ps` and `top`.
pub(crate) fn set_process_name(name: &CStr) {
    // SAFETY: the name is NUL-terminated; the kernel copies 16 bytes at most.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Puts descriptors at 3, 4, …, and closes every other above 2. What they were is left as it is.
pub(crate) fn keep_only(fds: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    // Out of the way first: one may be in another's place.
    const AWAY: libc::c_int = 512;
    let mut away = Vec::with_capacity(fds.len());
    for fd in fds {
        // SAFETY: plain descriptor arithmetic.
        away.push(check(unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, AWAY) }.into())? as RawFd);
    }
    let mut kept = Vec::with_capacity(fds.len());
    for (index, fd) in away.iter().enumerate() {
        let target = 3 + index as RawFd;
        // SAFETY: whoever owned `target` in this forked child never runs again.
        check(unsafe { libc::dup3(*fd, target, libc::O_CLOEXEC) }.into())?;
        // SAFETY: it has just been made and is owned by nobody else.
        kept.push(unsafe { OwnedFd::from_raw_fd(target) });
    }
    // SAFETY: as above; their owners are the parent's, copied and never dropped here.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3 + fds.len(), libc::c_uint::MAX, 0) })?;
    Ok(kept)
}

/// Closes everything but stdin, stdout and stderr: what a parent did not mean to pass on.
pub(crate) fn close_others() -> io::Result<()> {
    // SAFETY: called first thing in a process, when nothing in Rust owns a descriptor yet.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) }).map(drop)
}

/// Everything but stdin, stdout and stderr is closed when a program is executed.
pub(crate) fn close_others_on_exec() -> io::Result<()> {
    // SAFETY: sets a flag on descriptors.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Replaces a standard descriptor.
pub(crate) fn replace_fd(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: standard descriptors have no owner in Rust.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into()).map(drop)
}

/// Takes a standard descriptor's object under a higher number that is closed on exec.
pub(crate) fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor that nobody else knows.
    unsafe {
        let copy = check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3).into())? as RawFd;
        Ok(OwnedFd::from_raw_fd(copy))
    }
}

/// Every signal as it was at birth, none blocked.
pub(crate) fn reset_signals() {
    // SAFETY: the structure is zeroed, which is SIG_DFL without flags; uncatchable signals fail, which is fine.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=libc::SIGRTMAX() {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// `struct mount_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountAttributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) user_namespace: u64,
}

/// Changes attributes of a mount, or of all below it too.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attributes: MountAttributes,
) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and structure outlive the call, and the structure's size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })
    .map(drop)
}

/// Sets the capabilities of the calling thread: effective and permitted alike, none inheritable.
pub(crate) fn set_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let half = |bits: u32| Data {
        effective: bits,
        permitted: bits,
        inheritable: 0,
    };
    let data = [half(mask as u32), half((mask >> 32) as u32)];
    // SAFETY: version 3 takes two structures, which outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Whom files belong to that the calling thread makes from now on. Takes capabilities over files out of its
/// effective set.
pub(crate) fn set_fs_owner(id: u32) {
    // SAFETY: both take a number; neither can fail for the node's root.
    unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
    }
}

/// A session keyring of its own; where the kernel has none, nothing is lost.
pub(crate) fn join_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
}

/// Makes a terminal the controlling one of the calling session.
pub(crate) fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a number.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Sets a terminal's size in characters.
pub(crate) fn set_terminal_size(
    terminal: BorrowedFd<'_>,
    width: u16,
    height: u16,
) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure outlives the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())
        .map(drop)
}

/// Brings the loopback interface of the calling process' network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: an all-zero request is valid, and it outlives the calls.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        check(
            libc::ioctl(
                socket.as_raw_fd(),
                libc::SIOCGIFFLAGS as _,
                &raw mut request,
            )
            .into(),
        )?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(
            libc::ioctl(
                socket.as_raw_fd(),
                libc::SIOCSIFFLAGS as _,
                &raw const request,
            )
            .into(),
        )?;
    }
    Ok(())
}

/// Waits until one of the descriptors is ready, for ever.
pub(crate) fn poll(fds: &mut [libc::pollfd]) -> io::Result<()> {
    // SAFETY: the slice is valid for the call.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) }.into()) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other.map(drop),
    }
}

/// A descriptor that is readable when a child has ended. The signal is blocked from here on.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before it is used; the descriptor is new.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        // Nobody stops a supervisor by accident: its pod would go with it.
        for signal in [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGPIPE,
            libc::SIGQUIT,
        ] {
            libc::signal(signal, libc::SIG_IGN);
        }
        let fd = check(
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into(),
        )?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Gives memory that starting up took back to the system.
pub(crate) fn trim_memory() {
    // SAFETY: has no preconditions.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
