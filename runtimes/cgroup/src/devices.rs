//! Which devices a group's processes may open: rules, and on v2 the BPF program they become.

use std::{fs, io, os::fd::AsRawFd, path::Path};

/// Character or block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character.
    Char,
    /// Block.
    Block,
}

/// Devices that may be used, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// Out of `rwm`.
    pub access: String,
}

impl DeviceRule {
    const fn number(value: Option<u32>) -> i64 {
        match value {
            Some(value) => value as i64,
            None => -1,
        }
    }

    /// What every container may use: Docker's list. Nodes of all kinds can be made, not opened.
    pub fn defaults() -> Vec<Self> {
        let any = |kind, access: &str| Self {
            kind,
            major: None,
            minor: None,
            access: access.to_owned(),
        };
        let char = |major, minor| Self {
            kind: DeviceKind::Char,
            major: Some(major),
            minor,
            access: "rwm".to_owned(),
        };
        vec![
            any(DeviceKind::Char, "m"),
            any(DeviceKind::Block, "m"),
            char(1, Some(3)),
            char(1, Some(5)),
            char(1, Some(7)),
            char(1, Some(8)),
            char(1, Some(9)),
            char(5, Some(0)),
            char(5, Some(1)),
            char(5, Some(2)),
            char(136, None),
        ]
    }
}

impl std::fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part =
            |value: Option<u32>| value.map_or_else(|| "*".to_owned(), |value| value.to_string());
        let kind = match self.kind {
            DeviceKind::Char => 'c',
            DeviceKind::Block => 'b',
        };
        write!(
            f,
            "{kind} {}:{} {}",
            part(self.major),
            part(self.minor),
            self.access
        )
    }
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
) -> Instruction {
    Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    }
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_IMMEDIATE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const MOVE_REGISTER: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const AND_IMMEDIATE: u8 = 0x57; // BPF_ALU64 | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x77; // BPF_ALU64 | BPF_RSH | BPF_K
const JUMP_UNEQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// Compiles rules: any that matches allows, else the answer is no.
///
/// The context is `struct bpf_cgroup_dev_ctx { u32 access_type, major, minor }`, where the low half of
/// `access_type` is the kind (1 block, 2 char) and the high half what is wanted (1 mknod, 2 read, 4 write).
fn compile(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND_IMMEDIATE, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = match rule.kind {
            DeviceKind::Block => 1,
            DeviceKind::Char => 2,
        };
        let allowed = rule.access.chars().fold(0, |bits, letter| {
            bits | match letter {
                'm' => 1,
                'r' => 2,
                'w' => 4,
                _ => 0,
            }
        });
        let mut block = vec![
            instruction(JUMP_UNEQUAL, 2, 0, 0, kind),
            // Whatever is wanted beyond what is allowed must be nothing.
            instruction(MOVE_REGISTER, 0, 3, 0, 0),
            instruction(AND_IMMEDIATE, 0, 0, 0, !allowed & 7),
            instruction(JUMP_UNEQUAL, 0, 0, 0, 0),
        ];
        for (register, value) in [
            (4, DeviceRule::number(rule.major)),
            (5, DeviceRule::number(rule.minor)),
        ] {
            if let Ok(value) = i32::try_from(value)
                && value >= 0
            {
                block.push(instruction(JUMP_UNEQUAL, register, 0, 0, value));
            }
        }
        block.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, 1));
        block.push(instruction(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (index, step) in block.iter_mut().enumerate() {
            if step.code == JUMP_UNEQUAL {
                step.offset =
                    i16::try_from(length - index - 1).expect("a rule is under ten instructions");
            }
        }
        program.extend(block);
    }
    program.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The start of `union bpf_attr` for loading.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The start of `union bpf_attr` for attaching.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    program_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_fd: u32,
}

/// Puts a program for `rules` on a v2 group; it goes when the group goes.
pub(super) fn attach(directory: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    use std::os::fd::{FromRawFd, OwnedFd};
    let group = fs::File::open(directory)?;
    let program = compile(rules);
    let load = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes and what they point to outlive the call, and their size is given.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const load,
            size_of::<LoadAttributes>(),
        )
    };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(
            error.kind(),
            format!("load the device program: {error}"),
        ));
    }
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attach = AttachAttributes {
        target_fd: group.as_raw_fd() as u32,
        program_fd: fd.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
        replace_fd: 0,
    };
    // SAFETY: as above.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            size_of::<AttachAttributes>(),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(
            error.kind(),
            format!("{}: attach: {error}", directory.display()),
        ));
    }
    Ok(())
}
