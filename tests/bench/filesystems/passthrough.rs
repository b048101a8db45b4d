//! A FUSE server without a plugin, for comparison: what the kernel asks is done to a directory at once, on one thread, as
//! the smallest server would that is written for it. It knows no links, no rights and no renaming.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, IoSlice, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use anyhow::Result;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// Most bytes of a read or a write: what the kernel asks for at most.
const DATA_BYTES_MAX: usize = 1 << 20;
const HEADER_BYTES: usize = 40;
/// `ASYNC_READ`, `BIG_WRITES`, `DO_READDIRPLUS`, `READDIRPLUS_AUTO`, `PARALLEL_DIROPS`, `MAX_PAGES`.
const FLAGS: u32 = 1 | 1 << 5 | 1 << 13 | 1 << 14 | 1 << 18 | 1 << 22;
/// Seconds that the kernel may remember what it was told.
const VALID: u64 = 60;

/// A mount that is served by a thread until this is dropped.
pub(crate) struct Passthrough {
    at: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Passthrough {
    pub(crate) fn mount(backing: &Path, at: &Path) -> Result<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={DATA_BYTES_MAX}",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("bench"),
            at,
            Some("fuse.bench"),
            flags,
            Some(options.as_str()),
        )?;
        let mut server = Server {
            device,
            nodes: HashMap::from([(1, backing.to_owned())]),
            numbers: HashMap::new(),
            files: HashMap::new(),
            directories: HashMap::new(),
            next: 2,
        };
        Ok(Self {
            at: at.to_owned(),
            server: Some(thread::spawn(move || server.run())),
        })
    }

    pub(crate) fn at(&self) -> &Path {
        &self.at
    }
}

impl Drop for Passthrough {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

struct Server {
    device: File,
    nodes: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    files: HashMap<u64, File>,
    /// What an open directory lists.
    directories: HashMap<u64, Vec<(String, PathBuf)>>,
    next: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_ne_bytes)
}

fn name(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn words(answer: &mut Vec<u8>, words: &[u64]) {
    words
        .iter()
        .for_each(|word| answer.extend(word.to_ne_bytes()));
}

fn half_words(answer: &mut Vec<u8>, words: &[u32]) {
    words
        .iter()
        .for_each(|word| answer.extend(word.to_ne_bytes()));
}

fn attributes(answer: &mut Vec<u8>, node: u64, found: &Metadata) {
    let times = [found.atime(), found.mtime(), found.ctime()].map(|time| time as u64);
    words(answer, &[node, found.size(), found.blocks()]);
    words(answer, &times);
    let nanoseconds = [found.atime_nsec(), found.mtime_nsec(), found.ctime_nsec()];
    half_words(answer, &nanoseconds.map(|part| part as u32));
    half_words(
        answer,
        &[found.mode(), 1, found.uid(), found.gid(), 0, 4096, 0],
    );
}

fn entry(answer: &mut Vec<u8>, node: u64, found: &Metadata) {
    words(answer, &[node, 0, VALID, VALID, 0]);
    attributes(answer, node, found);
}

impl Server {
    fn run(&mut self) {
        let mut buffer = vec![0; DATA_BYTES_MAX + 2 * 4096];
        loop {
            let bytes = match self.device.read(&mut buffer) {
                Ok(bytes) => bytes,
                Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return,
                Err(_) => continue,
            };
            let request = &buffer[..bytes];
            let (opcode, unique, node) =
                (u32_at(request, 4), u64_at(request, 8), u64_at(request, 16));
            let body = request.get(HEADER_BYTES..).unwrap_or_default();
            // FORGET, INTERRUPT, BATCH_FORGET
            if matches!(opcode, 2 | 36 | 42) {
                continue;
            }
            let mut answer = Vec::new();
            let error = match self.answer(opcode, node, body, &mut answer) {
                Ok(()) => 0,
                Err(error) => {
                    answer.clear();
                    -error.raw_os_error().unwrap_or(Errno::EIO as i32)
                }
            };
            let mut header = Vec::with_capacity(16);
            half_words(&mut header, &[16 + answer.len() as u32, error as u32]);
            words(&mut header, &[unique]);
            let parts = [IoSlice::new(&header), IoSlice::new(&answer)];
            // Nobody waits any more.
            let _ = self.device.write_vectored(&parts);
        }
    }

    fn path(&self, node: u64) -> io::Result<&Path> {
        let path = self.nodes.get(&node).ok_or(Errno::ESTALE)?;
        Ok(path)
    }

    fn number(&mut self, path: PathBuf) -> u64 {
        if let Some(number) = self.numbers.get(&path) {
            return *number;
        }
        self.next += 1;
        self.nodes.insert(self.next, path.clone());
        self.numbers.insert(path, self.next);
        self.next
    }

    fn keep(&mut self, file: File) -> u64 {
        self.next += 1;
        self.files.insert(self.next, file);
        self.next
    }

    fn answer(
        &mut self,
        opcode: u32,
        node: u64,
        body: &[u8],
        answer: &mut Vec<u8>,
    ) -> io::Result<()> {
        let handle = u64_at(body, 0);
        match opcode {
            // LOOKUP
            1 => {
                let path = self.path(node)?.join(name(body));
                let found = fs::symlink_metadata(&path)?;
                entry(answer, self.number(path), &found);
            }
            // GETATTR, SETATTR
            3 | 4 => {
                let path = self.path(node)?;
                if opcode == 4 && u32_at(body, 0) & 8 != 0 {
                    OpenOptions::new()
                        .write(true)
                        .open(path)?
                        .set_len(u64_at(body, 16))?;
                }
                let found = fs::symlink_metadata(path)?;
                words(answer, &[VALID, 0]);
                attributes(answer, node, &found);
            }
            // MKDIR
            9 => {
                let path = self
                    .path(node)?
                    .join(name(body.get(8..).unwrap_or_default()));
                fs::create_dir(&path)?;
                let found = fs::symlink_metadata(&path)?;
                entry(answer, self.number(path), &found);
            }
            // UNLINK
            10 => {
                let path = self.path(node)?.join(name(body));
                fs::remove_file(&path)?;
                if let Some(number) = self.numbers.remove(&path) {
                    self.nodes.remove(&number);
                }
            }
            // OPEN: what the kernel knows of the file stays.
            14 => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(self.path(node)?)?;
                words(answer, &[self.keep(file), 2]);
            }
            // READ
            15 => {
                let file = self.files.get(&handle).ok_or(Errno::EBADF)?;
                answer.resize(u32_at(body, 16) as usize, 0);
                let read = file.read_at(answer, u64_at(body, 8))?;
                answer.truncate(read);
            }
            // WRITE
            16 => {
                let file = self.files.get(&handle).ok_or(Errno::EBADF)?;
                let bytes = u32_at(body, 16);
                let data = body.get(40..40 + bytes as usize).ok_or(Errno::EINVAL)?;
                file.write_all_at(data, u64_at(body, 8))?;
                half_words(answer, &[bytes, 0]);
            }
            // STATFS
            17 => answer.resize(80, 0),
            // RELEASE
            18 => drop(self.files.remove(&handle)),
            // INIT
            26 => {
                let most = DATA_BYTES_MAX as u32;
                half_words(answer, &[7, 31, u32_at(body, 8), FLAGS & u32_at(body, 12)]);
                half_words(answer, &[16 | 12 << 16, most, 1, most / 4096]);
                answer.resize(64, 0);
            }
            // OPENDIR
            27 => {
                let mut listed = Vec::new();
                for found in fs::read_dir(self.path(node)?)? {
                    let found = found?;
                    listed.push((
                        found.file_name().to_string_lossy().into_owned(),
                        found.path(),
                    ));
                }
                self.next += 1;
                self.directories.insert(self.next, listed);
                words(answer, &[self.next, 0]);
            }
            // READDIR, READDIRPLUS
            28 | 44 => self.list(opcode == 44, handle, body, answer)?,
            // RELEASEDIR
            29 => drop(self.directories.remove(&handle)),
            // CREATE
            35 => {
                let path = self
                    .path(node)?
                    .join(name(body.get(16..).unwrap_or_default()));
                let mut options = OpenOptions::new();
                let file = options
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&path)?;
                let found = file.metadata()?;
                entry(answer, self.number(path), &found);
                words(answer, &[self.keep(file), 2]);
            }
            // DESTROY
            38 => {}
            _ => return Err(Errno::ENOSYS.into()),
        }
        Ok(())
    }

    fn list(
        &mut self,
        plus: bool,
        handle: u64,
        body: &[u8],
        answer: &mut Vec<u8>,
    ) -> io::Result<()> {
        let (offset, bytes_max) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
        let listed = self.directories.get(&handle).ok_or(Errno::EBADF)?;
        let rest: Vec<_> = listed.iter().skip(offset).cloned().collect();
        for (next, (name, path)) in (offset as u64 + 1..).zip(rest) {
            let length = answer.len();
            let found = fs::symlink_metadata(&path)?;
            let number = self.number(path);
            if plus {
                entry(answer, number, &found);
            }
            words(answer, &[number, next]);
            half_words(answer, &[name.len() as u32, (found.mode() >> 12) & 15]);
            answer.extend(name.as_bytes());
            answer.resize(answer.len().next_multiple_of(8), 0);
            if answer.len() > bytes_max {
                answer.truncate(length);
                break;
            }
        }
        Ok(())
    }
}
