//! The default profile: what Docker's allows, by what it leaves out.
//!
//! Docker lists some 350 allowed calls, which are all calls of its day except those below. A call that
//! the table does not know (a newer kernel's) is refused with EPERM.

use super::{Action, Condition, Operator, Profile, Rule, Selector, table};

/// Never allowed, whatever the container holds.
const REFUSED: &[&str] = &[
    "_sysctl",
    "add_key",
    "afs_syscall",
    "create_module",
    "get_kernel_syms",
    "getpmsg",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "migrate_pages",
    "move_pages",
    "nfsservctl",
    "pivot_root",
    "putpmsg",
    "query_module",
    "request_key",
    "security",
    "swapoff",
    "swapon",
    "sysfs",
    "tuxcall",
    "uselib",
    "userfaultfd",
    "ustat",
    "vserver",
];

/// Allowed to who holds one of the capabilities.
const GATED: &[(&[&str], &[&str])] = &[
    (&["CAP_DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (
        &["CAP_SYS_ADMIN"],
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "umount2",
            "unshare",
        ],
    ),
    (&["CAP_SYS_ADMIN", "CAP_BPF"], &["bpf"]),
    (&["CAP_SYS_ADMIN", "CAP_PERFMON"], &["perf_event_open"]),
    (&["CAP_SYS_ADMIN", "CAP_SYSLOG"], &["syslog"]),
    (&["CAP_SYS_BOOT"], &["reboot"]),
    (&["CAP_SYS_CHROOT"], &["chroot"]),
    (
        &["CAP_SYS_MODULE"],
        &["delete_module", "finit_module", "init_module"],
    ),
    (
        &["CAP_SYS_NICE"],
        &[
            "get_mempolicy",
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ],
    ),
    (&["CAP_SYS_PACCT"], &["acct"]),
    (
        &["CAP_SYS_PTRACE"],
        &["kcmp", "pidfd_getfd", "process_madvise"],
    ),
    (&["CAP_SYS_RAWIO"], &["ioperm", "iopl"]),
    (&["CAP_SYS_TIME"], &["clock_settime", "settimeofday"]),
    (&["CAP_SYS_TTY_CONFIG"], &["vhangup"]),
];

/// The flags of clone(2) that make namespaces.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// Execution domains that change nothing dangerous: Linux, Linux 32-bit, and asking.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

pub(super) fn profile() -> Profile {
    let special = ["clone", "clone3", "personality", "socket"];
    let mut syscalls = vec![allow(
        table::names()
            .filter(|name| {
                !special.contains(name)
                    && !REFUSED.contains(name)
                    && !GATED.iter().any(|(_, names)| names.contains(name))
            })
            .map(str::to_owned)
            .collect(),
    )];
    for (capabilities, names) in GATED {
        let mut rule = allow(names.iter().map(|name| (*name).to_owned()).collect());
        rule.includes.caps = capabilities.iter().map(|name| (*name).to_owned()).collect();
        syscalls.push(rule);
    }
    for value in PERSONALITIES {
        syscalls.push(Rule {
            args: vec![Condition {
                index: 0,
                value,
                value_two: 0,
                op: Operator::Equal,
            }],
            ..allow(vec!["personality".to_owned()])
        });
    }
    syscalls.push(Rule {
        args: vec![Condition {
            index: 0,
            value: libc::AF_VSOCK as u64,
            value_two: 0,
            op: Operator::NotEqual,
        }],
        ..allow(vec!["socket".to_owned()])
    });
    let admin = Selector {
        caps: vec!["CAP_SYS_ADMIN".to_owned()],
        arches: Vec::new(),
    };
    syscalls.push(Rule {
        includes: admin.clone(),
        ..allow(vec!["clone".to_owned(), "clone3".to_owned()])
    });
    syscalls.push(Rule {
        args: vec![Condition {
            index: 0,
            value: CLONE_NAMESPACES,
            value_two: 0,
            op: Operator::MaskedEqual,
        }],
        excludes: admin.clone(),
        ..allow(vec!["clone".to_owned()])
    });
    // Its flags are behind a pointer; ENOSYS makes C libraries fall back to clone.
    syscalls.push(Rule {
        action: Action::Errno,
        errno_ret: Some(libc::ENOSYS as u32),
        excludes: admin,
        ..allow(vec!["clone3".to_owned()])
    });
    Profile {
        default_action: Action::Errno,
        default_errno_ret: Some(libc::EPERM as u32),
        syscalls,
    }
}

fn allow(names: Vec<String>) -> Rule {
    Rule {
        names,
        name: None,
        action: Action::Allow,
        errno_ret: None,
        args: Vec::new(),
        includes: Selector::default(),
        excludes: Selector::default(),
    }
}
