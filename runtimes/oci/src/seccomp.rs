//! System call filters: profiles in Docker's JSON form, the runtime's default, and the BPF they become.
//!
//! Stage 0 compiles, stage 2 loads what it finds in a file, so a supervisor knows nothing of profiles.
//! Programs of another architecture than the machine's (32-bit ones) get the default action.
//! (seccompiler knows one action for all matches of a filter, and profiles need several.)

mod default;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
};

use serde::Deserialize;

/// A profile in Docker's form. Fields that have no meaning here (`archMap`, …) are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Profile {
    default_action: Action,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    name: Option<String>,
    action: Action,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "null_as_default")]
    args: Vec<Condition>,
    #[serde(default, deserialize_with = "null_as_default")]
    includes: Selector,
    #[serde(default, deserialize_with = "null_as_default")]
    excludes: Selector,
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// When a rule counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Selector {
    caps: Vec<String>,
    arches: Vec<String>,
}

/// Holds for one argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// `value` is the mask, `value_two` what must be left.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

impl Action {
    fn code(self, errno: Option<u32>) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Errno => libc::SECCOMP_RET_ERRNO | (errno.unwrap_or(libc::EPERM as u32) & 0xffff),
            Self::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Self::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
            Self::Trap => libc::SECCOMP_RET_TRAP,
            Self::Trace => libc::SECCOMP_RET_TRACE | (errno.unwrap_or(0) & 0xffff),
            Self::Log => libc::SECCOMP_RET_LOG,
        }
    }
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// It cannot be read, for instance because it is not there.
    #[error("seccomp profile {path}: {source}")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    /// It is no profile.
    #[error("seccomp profile {path}: {source}")]
    Parse {
        path: String,
        #[source]
        source: serde_json::Error,
    },
    /// The kernel takes no more than 4096 instructions.
    #[error("seccomp profile: {0} instructions are more than the kernel takes")]
    TooLong(usize),
}

impl Profile {
    /// The runtime's own.
    pub(crate) fn runtime_default() -> Self {
        default::profile()
    }

    /// Reads a profile on the node.
    pub(crate) fn load(path: &Path) -> Result<Self, SeccompError> {
        let text = std::fs::read(path).map_err(|source| SeccompError::Read {
            path: path.display().to_string(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| SeccompError::Parse {
            path: path.display().to_string(),
            source,
        })
    }

    /// Compiles it for a container that holds these capabilities (`CAP_…`): bytes of `sock_filter`s.
    pub(crate) fn compile(&self, capabilities: &HashSet<String>) -> Result<Vec<u8>, SeccompError> {
        let fallback = self.default_action.code(self.default_errno_ret);
        let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
        for rule in self
            .syscalls
            .iter()
            .filter(|rule| rule.counts(capabilities))
        {
            for name in rule.names.iter().chain(&rule.name) {
                let Some(number) = table::number(name) else {
                    continue;
                };
                let call = calls.entry(number).or_default();
                let code = rule.action.code(rule.errno_ret);
                if rule.args.is_empty() {
                    call.always = Some(code);
                } else {
                    call.when.insert((rule.args.clone(), code));
                }
            }
        }
        let mut program = vec![
            load(OFFSET_ARCH),
            jump(libc::BPF_JEQ, ARCH, 1, 0),
            give(fallback),
            load(OFFSET_NUMBER),
            // x32 calls carry a bit that no call of the table has.
            jump(libc::BPF_JGE, 0x4000_0000, 0, 1),
            give(fallback),
        ];
        for (number, call) in calls {
            let body = call.body(fallback);
            let skip = u8::try_from(body.len());
            match skip {
                Ok(skip) => program.push(jump(libc::BPF_JEQ, number, 0, skip)),
                // Conditional jumps reach 255 instructions; a plain one carries on.
                Err(_) => {
                    program.push(jump(libc::BPF_JEQ, number, 1, 0));
                    program.push(statement(libc::BPF_JMP | libc::BPF_JA, body.len() as u32));
                }
            }
            program.extend(body);
        }
        program.push(give(fallback));
        if program.len() > libc::BPF_MAXINSNS as usize {
            return Err(SeccompError::TooLong(program.len()));
        }
        Ok(program.iter().flat_map(to_bytes).collect())
    }
}

impl Rule {
    fn counts(&self, capabilities: &HashSet<String>) -> bool {
        let is_here = |arches: &[String]| arches.iter().any(|arch| arch == ARCH_NAME);
        (self.includes.caps.is_empty()
            || self
                .includes
                .caps
                .iter()
                .any(|cap| capabilities.contains(cap)))
            && (self.includes.arches.is_empty() || is_here(&self.includes.arches))
            && !self
                .excludes
                .caps
                .iter()
                .any(|cap| capabilities.contains(cap))
            && !is_here(&self.excludes.arches)
    }
}

/// What a profile says of one system call.
#[derive(Default)]
struct Call {
    always: Option<u32>,
    when: BTreeSet<(Vec<Condition>, u32)>,
}

impl Call {
    fn body(&self, fallback: u32) -> Vec<libc::sock_filter> {
        if let Some(code) = self.always {
            return vec![give(code)];
        }
        let mut body = Vec::new();
        for (conditions, code) in &self.when {
            let mut tests: Vec<Test> = conditions.iter().flat_map(Condition::tests).collect();
            tests.push(Test::Instruction(give(*code)));
            let length = tests.len();
            for (index, test) in tests.into_iter().enumerate() {
                let to_next_rule = u8::try_from(length - index - 1).unwrap_or(u8::MAX);
                body.push(match test {
                    Test::Instruction(instruction) => instruction,
                    Test::Jump {
                        operator,
                        value,
                        on_true,
                        on_false,
                    } => jump(
                        operator,
                        value,
                        on_true.resolve(to_next_rule),
                        on_false.resolve(to_next_rule),
                    ),
                });
            }
        }
        body.push(give(fallback));
        body
    }
}

/// An instruction whose way out of the rule is not known yet.
enum Test {
    Instruction(libc::sock_filter),
    Jump {
        operator: u32,
        value: u32,
        on_true: Target,
        on_false: Target,
    },
}

enum Target {
    /// So many instructions on.
    Skip(u8),
    /// The rule does not hold.
    NextRule,
}

impl Target {
    fn resolve(self, to_next_rule: u8) -> u8 {
        match self {
            Self::Skip(count) => count,
            Self::NextRule => to_next_rule,
        }
    }
}

impl Condition {
    /// Compares 64 bits by halves: the machine has 32-bit registers.
    fn tests(&self) -> Vec<Test> {
        use Target::{NextRule, Skip};
        let (low_offset, high_offset) = (
            OFFSET_ARGS + self.index.min(5) * 8,
            OFFSET_ARGS + self.index.min(5) * 8 + 4,
        );
        let (low, high) = (self.value as u32, (self.value >> 32) as u32);
        let test = |operator, value, on_true, on_false| Test::Jump {
            operator,
            value,
            on_true,
            on_false,
        };
        let (load_low, load_high) = (
            Test::Instruction(load(low_offset)),
            Test::Instruction(load(high_offset)),
        );
        match self.op {
            Operator::Equal => vec![
                load_high,
                test(libc::BPF_JEQ, high, Skip(0), NextRule),
                load_low,
                test(libc::BPF_JEQ, low, Skip(0), NextRule),
            ],
            Operator::NotEqual => vec![
                load_high,
                test(libc::BPF_JEQ, high, Skip(0), Skip(2)),
                load_low,
                test(libc::BPF_JEQ, low, NextRule, Skip(0)),
            ],
            Operator::MaskedEqual => {
                let (low_two, high_two) = (self.value_two as u32, (self.value_two >> 32) as u32);
                let mask = |value| {
                    Test::Instruction(statement(
                        libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
                        value,
                    ))
                };
                vec![
                    load_high,
                    mask(high),
                    test(libc::BPF_JEQ, high_two, Skip(0), NextRule),
                    load_low,
                    mask(low),
                    test(libc::BPF_JEQ, low_two, Skip(0), NextRule),
                ]
            }
            Operator::Greater | Operator::GreaterOrEqual => vec![
                load_high,
                test(libc::BPF_JGT, high, Skip(3), Skip(0)),
                test(libc::BPF_JEQ, high, Skip(0), NextRule),
                load_low,
                test(
                    if self.op == Operator::Greater {
                        libc::BPF_JGT
                    } else {
                        libc::BPF_JGE
                    },
                    low,
                    Skip(0),
                    NextRule,
                ),
            ],
            Operator::Less | Operator::LessOrEqual => vec![
                load_high,
                test(libc::BPF_JGT, high, NextRule, Skip(0)),
                test(libc::BPF_JEQ, high, Skip(0), Skip(2)),
                load_low,
                test(
                    if self.op == Operator::Less {
                        libc::BPF_JGE
                    } else {
                        libc::BPF_JGT
                    },
                    low,
                    NextRule,
                    Skip(0),
                ),
            ],
        }
    }
}

// Offsets in `struct seccomp_data`; both supported machines are little-endian.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "x86_64")]
const ARCH_NAME: &str = "amd64";
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64
#[cfg(target_arch = "aarch64")]
const ARCH_NAME: &str = "arm64";

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn load(offset: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

const fn give(code: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, code)
}

const fn jump(operator: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_JMP | operator | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    }
}

fn to_bytes(instruction: &libc::sock_filter) -> [u8; 8] {
    let [code_0, code_1] = instruction.code.to_ne_bytes();
    let [k_0, k_1, k_2, k_3] = instruction.k.to_ne_bytes();
    [
        code_0,
        code_1,
        instruction.jt,
        instruction.jf,
        k_0,
        k_1,
        k_2,
        k_3,
    ]
}

/// Loads a compiled filter into the calling thread. It needs `no_new_privs` or `CAP_SYS_ADMIN`.
pub(crate) fn install(program: &[u8]) -> std::io::Result<()> {
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let filter = libc::sock_fprog {
        len: instructions.len() as u16,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: the program outlives the call, which copies it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const filter,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests;
