#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

/// Runs a program as the kernel would, on a system call with these arguments.
fn judge(program: &[u8], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let bytes = &program[at * 8..at * 8 + 8];
        let code = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        let (on_true, on_false) = (usize::from(bytes[2]), usize::from(bytes[3]));
        let k = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        at += 1;
        match code & 0x07 {
            libc::BPF_LD => {
                let offset = k as usize;
                accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            libc::BPF_ALU => accumulator &= k,
            libc::BPF_RET => return k,
            libc::BPF_JMP if code & 0xf0 == libc::BPF_JA => at += k as usize,
            libc::BPF_JMP => {
                let holds = match code & 0xf0 {
                    libc::BPF_JEQ => accumulator == k,
                    libc::BPF_JGT => accumulator > k,
                    libc::BPF_JGE => accumulator >= k,
                    other => panic!("jump {other:#x}"),
                };
                at += if holds { on_true } else { on_false };
            }
            other => panic!("instruction {other:#x}"),
        }
    }
}

const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn default_for(capabilities: &[&str]) -> Vec<u8> {
    let held = capabilities.iter().map(ToString::to_string).collect();
    Profile::runtime_default().compile(&held).unwrap()
}

fn first(number: libc::c_long, arg: u64) -> (u32, [u64; 6]) {
    (number as u32, [arg, 0, 0, 0, 0, 0])
}

#[test]
fn the_default_profile_is_dockers_for_an_ordinary_container() {
    let program = default_for(&["CAP_SYS_CHROOT"]);
    for ((number, args), expected) in [
        (first(libc::SYS_read, 0), ALLOW),
        (first(libc::SYS_execve, 0), ALLOW),
        (first(libc::SYS_ptrace, 0), ALLOW),
        (first(libc::SYS_chroot, 0), ALLOW),
        (first(libc::SYS_mount, 0), EPERM),
        (first(libc::SYS_bpf, 0), EPERM),
        (first(libc::SYS_keyctl, 0), EPERM),
        (first(libc::SYS_io_uring_setup, 0), EPERM),
        (first(libc::SYS_clone3, 0), ENOSYS),
        (first(libc::SYS_clone, libc::SIGCHLD as u64), ALLOW),
        (
            first(libc::SYS_clone, libc::CLONE_NEWUSER as u64 | 17),
            EPERM,
        ),
        (first(libc::SYS_personality, 0), ALLOW),
        (first(libc::SYS_personality, 0xffff_ffff), ALLOW),
        (first(libc::SYS_personality, 0x0040_0000), EPERM),
        (first(libc::SYS_socket, libc::AF_INET as u64), ALLOW),
        (first(libc::SYS_socket, libc::AF_VSOCK as u64), EPERM),
        ((9999, [0; 6]), EPERM),
        ((0x4000_0000, [0; 6]), EPERM),
    ] {
        assert_eq!(
            judge(&program, ARCH, number, args),
            expected,
            "call {number} {args:x?}"
        );
    }
    // A 32-bit program.
    assert_eq!(
        judge(&program, 0x4000_0003, libc::SYS_read as u32, [0; 6]),
        EPERM
    );
}

#[test]
fn a_capability_lets_its_calls_through() {
    let program = default_for(&["CAP_SYS_ADMIN"]);
    for (number, arg) in [
        (libc::SYS_mount, 0),
        (libc::SYS_bpf, 0),
        (libc::SYS_clone3, 0),
        (libc::SYS_clone, libc::CLONE_NEWUSER as u64),
        (libc::SYS_unshare, 0),
    ] {
        assert_eq!(
            judge(&program, ARCH, number as u32, [arg, 0, 0, 0, 0, 0]),
            ALLOW,
            "call {number}"
        );
    }
    assert_eq!(
        judge(&program, ARCH, libc::SYS_keyctl as u32, [0; 6]),
        EPERM
    );
    assert_eq!(
        judge(&program, ARCH, libc::SYS_chroot as u32, [0; 6]),
        EPERM
    );
}

#[test]
fn every_operator_compares_64_bits() {
    const BIG: u64 = 0x0000_0001_0000_0005;
    for (operator, value_two, holding, failing) in [
        (
            "SCMP_CMP_EQ",
            0,
            vec![BIG],
            vec![5, BIG + 1, BIG + (1 << 33)],
        ),
        ("SCMP_CMP_NE", 0, vec![5, BIG + 1, 0], vec![BIG]),
        (
            "SCMP_CMP_LT",
            0,
            vec![0, 7, BIG - 1],
            vec![BIG, BIG + 1, u64::MAX],
        ),
        ("SCMP_CMP_LE", 0, vec![0, 7, BIG], vec![BIG + 1, u64::MAX]),
        (
            "SCMP_CMP_GT",
            0,
            vec![BIG + 1, u64::MAX, 1 << 33],
            vec![BIG, 7],
        ),
        (
            "SCMP_CMP_GE",
            0,
            vec![BIG, u64::MAX, 1 << 33],
            vec![BIG - 1, 7],
        ),
        (
            "SCMP_CMP_MASKED_EQ",
            0x1_0000_0001_u64,
            vec![0x1_0000_0001, BIG - 4 + 2],
            vec![5, 1],
        ),
    ] {
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_KILL_PROCESS","syscalls":[{{"names":["read","no_such_call"],
            "action":"SCMP_ACT_ALLOW","args":[{{"index":2,"value":{BIG},"valueTwo":{value_two},"op":"{operator}"}}]}}]}}"#
        );
        let profile: Profile = serde_json::from_str(&text).unwrap();
        let program = profile.compile(&HashSet::new()).unwrap();
        let read = |value| {
            judge(
                &program,
                ARCH,
                libc::SYS_read as u32,
                [0, 0, value, 0, 0, 0],
            )
        };
        for value in holding {
            assert_eq!(read(value), ALLOW, "{operator} {value:#x}");
        }
        for value in failing {
            assert_eq!(
                read(value),
                libc::SECCOMP_RET_KILL_PROCESS,
                "{operator} {value:#x}"
            );
        }
    }
}

#[test]
fn rules_for_one_call_are_alternatives_and_conditions_of_one_rule_are_not() {
    let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
        {"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}]},
        {"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":9,"op":"SCMP_CMP_EQ"}]}]}"#;
    let profile: Profile = serde_json::from_str(text).unwrap();
    let program = profile.compile(&HashSet::new()).unwrap();
    let read = |a, b| judge(&program, ARCH, libc::SYS_read as u32, [a, b, 0, 0, 0, 0]);
    assert_eq!(read(1, 2), ALLOW);
    assert_eq!(read(1, 3), ENOSYS);
    assert_eq!(read(9, 3), libc::SECCOMP_RET_LOG);
}

#[test]
fn calls_that_are_refused_exist() {
    // A misspelt name would be allowed.
    for name in [
        "mount",
        "keyctl",
        "io_uring_setup",
        "unshare",
        "setns",
        "open_by_handle_at",
        "userfaultfd",
    ] {
        assert!(table::number(name).is_some(), "{name}");
    }
}
