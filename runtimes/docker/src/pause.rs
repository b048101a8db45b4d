//! The pause image: one static program of a few hundred bytes that holds a pod's namespaces.
//!
//! ```text
//!  block SIGINT, SIGTERM and SIGCHLD
//!  wait for one of them ── SIGCHLD ──▶ reap what has ended (the pod may share its process namespace), and wait again
//!                       └─ else ─────▶ exit(0)
//! ```
//!
//! It is written here as machine code: the program `wherry` is too large to be held in memory once for each pod, and a
//! second compiler or a registry at run time would be more to go wrong than a hundred bytes. Blocked signals reach even
//! the first process of a namespace, which the kernel otherwise protects from those it has no handler for.

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::archive::{self, ArchiveImage, Layer};

/// What the image is called. Containers are made of its ID, so that a stranger's image of this name does no harm.
pub(crate) const NAME: &str = "wherry/pause:1";

/// Where the program is loaded; any address will do.
const BASE: u64 = 0x40_0000;
const ELF_HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const CODE: &[u8] = &[
    0xb8, 0x0e, 0x00, 0x00, 0x00, // mov eax, 14 (rt_sigprocmask)
    0x31, 0xff, // xor edi, edi (SIG_BLOCK)
    0x48, 0x8d, 0x35, 0x52, 0x00, 0x00, 0x00, // lea rsi, [mask]
    0x31, 0xd2, // xor edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov r10d, 8
    0x0f, 0x05, // syscall
    0xb8, 0x80, 0x00, 0x00, 0x00, // wait: mov eax, 128 (rt_sigtimedwait)
    0x48, 0x8d, 0x3d, 0x3c, 0x00, 0x00, 0x00, // lea rdi, [mask]
    0x31, 0xf6, // xor esi, esi
    0x31, 0xd2, // xor edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov r10d, 8
    0x0f, 0x05, // syscall
    0x83, 0xf8, 0x11, // cmp eax, 17 (SIGCHLD)
    0x74, 0x0d, // je reap
    0x85, 0xc0, // test eax, eax
    0x78, 0xdf, // js wait (interrupted)
    0xb8, 0xe7, 0x00, 0x00, 0x00, // mov eax, 231 (exit_group)
    0x31, 0xff, // xor edi, edi
    0x0f, 0x05, // syscall
    0xb8, 0x3d, 0x00, 0x00, 0x00, // reap: mov eax, 61 (wait4)
    0xbf, 0xff, 0xff, 0xff, 0xff, // mov edi, -1 (any child)
    0x31, 0xf6, // xor esi, esi
    0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, 1 (WNOHANG)
    0x45, 0x31, 0xd2, // xor r10d, r10d
    0x0f, 0x05, // syscall
    0x85, 0xc0, // test eax, eax
    0x7f, 0xe6, // jg reap
    0xeb, 0xba, // jmp wait
    0x66, 0x90, // nop
    0x02, 0x40, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, // mask: SIGINT, SIGTERM, SIGCHLD
];

#[cfg(target_arch = "aarch64")]
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x00, 0x00, 0x80, 0xd2, // mov x0, #0 (SIG_BLOCK)
    0x61, 0x03, 0x00, 0x10, // adr x1, mask
    0x02, 0x00, 0x80, 0xd2, // mov x2, #0
    0x03, 0x01, 0x80, 0xd2, // mov x3, #8
    0xe8, 0x10, 0x80, 0xd2, // mov x8, #135 (rt_sigprocmask)
    0x01, 0x00, 0x00, 0xd4, // svc #0
    0xc0, 0x02, 0x00, 0x10, // wait: adr x0, mask
    0x01, 0x00, 0x80, 0xd2, // mov x1, #0
    0x02, 0x00, 0x80, 0xd2, // mov x2, #0
    0x03, 0x01, 0x80, 0xd2, // mov x3, #8
    0x28, 0x11, 0x80, 0xd2, // mov x8, #137 (rt_sigtimedwait)
    0x01, 0x00, 0x00, 0xd4, // svc #0
    0x1f, 0x44, 0x00, 0x71, // cmp w0, #17 (SIGCHLD)
    0xa0, 0x00, 0x00, 0x54, // b.eq reap
    0x00, 0xff, 0xff, 0x37, // tbnz w0, #31, wait (interrupted)
    0x00, 0x00, 0x80, 0xd2, // mov x0, #0
    0xc8, 0x0b, 0x80, 0xd2, // mov x8, #94 (exit_group)
    0x01, 0x00, 0x00, 0xd4, // svc #0
    0x00, 0x00, 0x80, 0x92, // reap: mov x0, #-1 (any child)
    0x01, 0x00, 0x80, 0xd2, // mov x1, #0
    0x22, 0x00, 0x80, 0xd2, // mov x2, #1 (WNOHANG)
    0x03, 0x00, 0x80, 0xd2, // mov x3, #0
    0x88, 0x20, 0x80, 0xd2, // mov x8, #260 (wait4)
    0x01, 0x00, 0x00, 0xd4, // svc #0
    0x1f, 0x00, 0x00, 0x71, // cmp w0, #0
    0x2c, 0xff, 0xff, 0x54, // b.gt reap
    0xec, 0xff, 0xff, 0x17, // b wait
    0x1f, 0x20, 0x03, 0xd5, // nop
    0x02, 0x40, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, // mask: SIGINT, SIGTERM, SIGCHLD
];

/// The program as an ELF file with one segment, the file itself.
pub(crate) fn program() -> Vec<u8> {
    let start = ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES;
    let size = start + CODE.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    file.resize(16, 0);
    for half in [2, MACHINE] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for word in [BASE + start, ELF_HEADER_BYTES, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [
        ELF_HEADER_BYTES as u16,
        PROGRAM_HEADER_BYTES as u16,
        1,
        0,
        0,
        0,
    ] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    file.extend(1_u32.to_le_bytes());
    file.extend(5_u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    file
}

/// The image's ID and the archive that the engine loads it from; always the same bytes.
pub(crate) fn image() -> (String, Vec<u8>) {
    let layer = archive::tar(&[("pause", &program(), 0o755)]);
    let diff_id = format!("sha256:{:x}", Sha256::digest(&layer));
    let config = json!({
        "architecture": archive::architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/pause"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    })
    .to_string()
    .into_bytes();
    let id = format!("sha256:{:x}", Sha256::digest(&config));
    let archive = archive::docker_archive(&[ArchiveImage {
        names: vec![NAME.to_owned()],
        config,
        layers: vec![Layer {
            diff_id,
            tar: layer,
        }],
    }]);
    (id, archive)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::{
        fs, os::unix::fs::PermissionsExt, os::unix::process::ExitStatusExt, process::Command,
    };

    use super::*;

    #[test]
    fn the_program_runs_and_exits_when_asked_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pause");
        fs::write(&path, program()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        // Until it waits for the signal it would be killed by it.
        let waits = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            assert!(!stat.contains("(pause) Z"), "it has ended by itself");
            stat.contains("(pause) S")
        };
        while !waits() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        nix::sys::signal::kill(pid, nix::sys::signal::SIGCHLD).unwrap();
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }

    #[test]
    fn the_image_is_the_same_every_time() {
        assert_eq!(image(), image());
        assert!(image().0.starts_with("sha256:"));
    }
}
