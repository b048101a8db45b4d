//! File systems that plugins serve: what their calls take through the kernel, the volume server and a worker, beside a
//! FUSE server without a plugin and a file system of the kernel's own; and how long plugins take to fill a volume and to
//! be compiled.
//!
//! The server, the worker and the compiler are the release's; the calls are made, and the FUSE server beside it is run,
//! by this process, which is built as the tests are and spends its time in system calls. Reads are measured after the
//! kernel was told to forget the file: what is in its page cache it reads from every file system alike.

mod passthrough;
mod site;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use tokio::runtime::Runtime;
use wherry_plugin_host::{
    FailurePolicy, Grants, HostConfig, Limits, PluginHost, PluginSpec,
    filesystem::{FilesystemVolumes, REQUEST_TIMEOUT},
    volume::{VolumeMounts, VolumeRequest},
};
use wherry_tests::made_by_run_sh;

use self::{passthrough::Passthrough, site::Site};
use crate::host::{fine_row, rate_row};

/// Bytes of a file that is read or written by calls of 1 MiB.
const FILE_BYTES: usize = 32 << 20;
/// The same by calls of 4 KiB.
const SMALL_CALLS_BYTES: usize = 8 << 20;
/// Files that are written and read.
const FILES: usize = 7;
/// Calls of each kind whose latency is taken.
const CALLS: usize = 1000;
/// Files of the directory that is listed, and of those that are opened.
const SMALL_FILES: usize = 1000;
/// Times that it is listed.
const LISTS: usize = 50;
/// Files of the archive.
const ARCHIVED: usize = 10_000;
/// Times that it is unpacked. Nothing is removed meanwhile: ext4 looks long for inodes that were not in use just now.
const UNPACKED: usize = 3;
/// Plugins that are compiled, of each size.
const COMPILED: usize = 3;

pub(crate) fn run() -> Result<()> {
    // Servers on this thread's loopback are nobody else's, and workers reach no others.
    let measured = thread::spawn(|| -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("a network of its own")?;
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()?;
        ensure!(up.success(), "ip link set lo up");
        measure()
    });
    measured
        .join()
        .map_err(|_| anyhow::anyhow!("it panicked"))?
}

/// A directory of a file system, and what people call that.
struct Place {
    name: &'static str,
    at: PathBuf,
}

fn measure() -> Result<()> {
    let node = Node::open()?;
    let backing = node.directory.path().join("backing");
    fs::create_dir(&backing)?;
    let of_kernel = Tmpfs::mount(&backing)?;
    let native = Passthrough::mount(&backing, &node.target("passthrough")?)?;
    let site = Site::start(FILE_BYTES, FILES, SMALL_FILES)?;
    let memfs = node.publish("memfs", &[("size", "256Mi")])?;
    let url = format!("http://{}/", site.address);
    let httpfs = node.publish(
        "httpfs",
        &[("url", &url), ("size", "512Mi"), ("cacheSeconds", "3600")],
    )?;
    let writable = [
        Place {
            name: "memfs",
            at: memfs.clone(),
        },
        Place {
            name: "FUSE passthrough to tmpfs",
            at: native.at().to_owned(),
        },
        Place {
            name: "tmpfs",
            at: backing.clone(),
        },
    ];

    println!("| Throughput | Median | Spread (p10–p90) | n |\n|---|---|---|---|");
    for place in &writable {
        throughput(place)?;
    }
    from_http(&httpfs)?;

    println!("\n| Latency | Median | Spread (p10–p90) | p99 | n |\n|---|---|---|---|---|");
    for place in &writable {
        // One is seen through another.
        let small = place
            .at
            .join(format!("small in {}", place.name.replace(' ', "-")));
        fs::create_dir(&small)?;
        for n in 0..SMALL_FILES {
            fs::write(small.join(format!("file-{n}")), [7; 4096])?;
        }
        latency(place.name, &small)?;
        made_and_removed(place)?;
    }
    latency("httpfs", &httpfs.join("small"))?;
    populated(&node, &site)?;
    compiled(&node)?;
    node.print_counted();

    for at in [memfs, httpfs] {
        node.unpublish(&at)?;
    }
    drop(native);
    drop(of_kernel);
    Ok(())
}

/// How fast a file is written and read from its beginning to its end.
fn throughput(place: &Place) -> Result<()> {
    let path = place.at.join("file");
    for (call_bytes, bytes, calls) in [
        (1 << 20, FILE_BYTES, "1 MiB"),
        (4096, SMALL_CALLS_BYTES, "4 KiB"),
    ] {
        let data = vec![7; call_bytes];
        let mut took = Vec::new();
        for _ in 0..FILES {
            let file = File::create(&path)?;
            let begun = Instant::now();
            for at in (0..bytes).step_by(call_bytes) {
                file.write_all_at(&data, at as u64)?;
            }
            took.push(begun.elapsed());
        }
        rate_row(
            &format!("{}: write, calls of {calls}", place.name),
            bytes,
            &took,
        );
        let mut took = Vec::new();
        for _ in 0..FILES {
            took.push(read_through(&path, call_bytes, bytes)?);
        }
        rate_row(
            &format!("{}: read, calls of {calls}", place.name),
            bytes,
            &took,
        );
    }
    Ok(fs::remove_file(path)?)
}

/// Reads a file that the kernel has nothing of.
fn read_through(path: &Path, call_bytes: usize, bytes: usize) -> Result<Duration> {
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut data = vec![0; call_bytes];
    let begun = Instant::now();
    for at in (0..bytes).step_by(call_bytes) {
        file.read_exact_at(&mut data, at as u64)?;
    }
    Ok(begun.elapsed())
}

fn from_http(at: &Path) -> Result<()> {
    let big = |n: usize| at.join(format!("big-{n}"));
    let mut fetched = Vec::new();
    for n in 0..FILES {
        fetched.push(read_through(&big(n), 1 << 20, FILE_BYTES)?);
    }
    let what = "httpfs: read, calls of 1 MiB, from the server";
    rate_row(what, FILE_BYTES, &fetched);
    for (call_bytes, bytes, calls) in [
        (1 << 20, FILE_BYTES, "1 MiB"),
        (4096, SMALL_CALLS_BYTES, "4 KiB"),
    ] {
        let mut kept = Vec::new();
        for n in 0..FILES {
            kept.push(read_through(&big(n), call_bytes, bytes)?);
        }
        let what = format!("httpfs: read, calls of {calls}, once more");
        rate_row(&what, bytes, &kept);
    }
    Ok(())
}

fn latency(name: &str, small: &Path) -> Result<()> {
    let file = |n: usize| small.join(format!("file-{}", n % SMALL_FILES));
    let mut read = Vec::new();
    for n in 0..CALLS {
        let path = file(n);
        let forget = File::open(&path)?;
        posix_fadvise(&forget, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        drop(forget);
        let begun = Instant::now();
        let content = fs::read(&path)?;
        read.push(begun.elapsed());
        ensure!(
            content.len() == 4096,
            "{}: {}",
            path.display(),
            content.len()
        );
    }
    fine_row(
        &format!("{name}: open, read and close a file of 4 KiB"),
        &read,
    );

    let mut known = Vec::new();
    let mut asked = Vec::new();
    for n in 0..CALLS {
        let path = file(n);
        let begun = Instant::now();
        statx(
            CWD,
            &path,
            AtFlags::STATX_FORCE_SYNC,
            StatxFlags::BASIC_STATS,
        )?;
        asked.push(begun.elapsed());
        let begun = Instant::now();
        fs::metadata(&path)?;
        known.push(begun.elapsed());
    }
    fine_row(&format!("{name}: stat"), &known);
    fine_row(
        &format!("{name}: stat that the kernel may not answer"),
        &asked,
    );

    let mut listed = Vec::new();
    for _ in 0..LISTS {
        let begun = Instant::now();
        let found = fs::read_dir(small)?.count();
        listed.push(begun.elapsed());
        ensure!(found == SMALL_FILES, "{found} files");
    }
    fine_row(
        &format!("{name}: list a directory of {SMALL_FILES}"),
        &listed,
    );
    Ok(())
}

fn made_and_removed(place: &Place) -> Result<()> {
    let mut took = Vec::new();
    for n in 0..CALLS {
        let path = place.at.join(format!("made-{n}"));
        let begun = Instant::now();
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        fs::remove_file(&path)?;
        took.push(begun.elapsed());
    }
    fine_row(&format!("{}: create and remove a file", place.name), &took);
    Ok(())
}

/// Volumes filled from an archive, and the same by `tar`.
fn populated(node: &Node, site: &Site) -> Result<()> {
    let directory = node.directory.path().join("archive");
    let content = directory.join("content");
    for n in 0..ARCHIVED {
        let above = content.join(format!("{:02}", n % 100));
        fs::create_dir_all(&above)?;
        fs::write(above.join(format!("file-{n}")), vec![n as u8; 1024])?;
    }
    let archive = directory.join("archive.tar");
    let tar = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new("tar");
        let status = command.args(arguments).current_dir(&directory).status()?;
        ensure!(status.success(), "tar {arguments:?}");
        Ok(())
    };
    tar(&["cf", "archive.tar", "-C", "content", "."])?;
    site.add("archive.tar", fs::read(&archive)?);
    let url = format!("http://{}/archive.tar", site.address);
    let request = request("http-archive", &[("url", &url)]);
    node.install("http-archive", 256 << 20)?;
    let (mut by_plugin, mut by_tar) = (Vec::new(), Vec::new());
    for n in 0..UNPACKED {
        let staging = directory.join(format!("plugin-{n}"));
        fs::create_dir(&staging)?;
        let begun = Instant::now();
        let populated = node.host.populate(&request, &staging, None, &|_, _| {});
        node.runtime.block_on(populated)?;
        by_plugin.push(begun.elapsed());
        let plain = format!("tar-{n}");
        fs::create_dir(directory.join(&plain))?;
        let begun = Instant::now();
        tar(&["xf", "archive.tar", "-C", &plain])?;
        by_tar.push(begun.elapsed());
        let last = |of: &Path| of.join(format!("99/file-{}", ARCHIVED - 1)).is_file();
        ensure!(last(&staging) && last(&directory.join(&plain)), "all files");
    }
    let what = format!("http-archive: a volume of {ARCHIVED} files, 1 KiB each");
    fine_row(&what, &by_plugin);
    fine_row("tar x of the same archive", &by_tar);
    Ok(())
}

/// The first time that a node sees plugins, and the second.
fn compiled(node: &Node) -> Result<()> {
    let builtin = node.directory.path().join("plugin-memfs.wasm");
    let python = made_by_run_sh("WHERRY_PLUGIN_EXAMPLES").join("probe-python.wasm");
    for (what, wasm) in [("memfs", builtin), ("the probe in Python", python)] {
        let mib = fs::metadata(&wasm)?.len() as f64 / 1_048_576.0;
        let (mut fresh, mut known) = (Vec::new(), Vec::new());
        for n in 0..COMPILED {
            for (digest, took) in [
                (format!("sha256:{n}"), &mut fresh),
                ("sha256:0".to_owned(), &mut known),
            ] {
                let spec = PluginSpec {
                    name: "compiled".into(),
                    digest: format!("{digest}-{mib}"),
                    ..node.spec("compiled", 256 << 20)
                };
                let begun = Instant::now();
                node.runtime.block_on(node.host.install(spec, &wasm))?;
                took.push(begun.elapsed());
            }
        }
        // Asked for by the name and digest that it has, nothing is done at all.
        known.remove(0);
        fine_row(&format!("compile {what}, {mib:.1} MiB"), &fresh);
        fine_row(&format!("load {what} once compiled"), &known);
    }
    Ok(())
}

/// A node's plugins, without an agent.
struct Node {
    runtime: Runtime,
    host: Arc<PluginHost>,
    volumes: Arc<FilesystemVolumes>,
    directory: tempfile::TempDir,
}

impl Node {
    fn open() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // The worker's user has to get to its jail.
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let root = directory.path();
        let run = root.join("run");
        let host = PluginHost::open(HostConfig::new(root, &run, wherry_tests::wherry()))?;
        let socket = run.join("volume-server.sock");
        let volumes = FilesystemVolumes::new(Arc::clone(&host), socket, REQUEST_TIMEOUT);
        Ok(Self {
            runtime,
            host,
            volumes,
            directory,
        })
    }

    fn spec(&self, name: &str, memory_bytes_max: u64) -> PluginSpec {
        PluginSpec {
            name: name.into(),
            digest: format!("sha256:{name}"),
            grants: Grants {
                hosts: vec!["127.0.0.1".into()],
                ..Grants::default()
            },
            limits: Limits {
                memory_bytes_max,
                cpu_time_max: Duration::from_secs(60),
                wall_time_max: Duration::from_secs(60),
                instances_max: 4,
            },
            failure_policy: FailurePolicy::Fail,
            config: BTreeMap::new(),
        }
    }

    /// A built-in plugin that may reach the servers of this process.
    fn install(&self, name: &str, memory_bytes_max: u64) -> Result<()> {
        let builtin = wherry_plugin_embedded::find(name).context("built in")?;
        let wasm = self.directory.path().join(format!("plugin-{name}.wasm"));
        fs::write(&wasm, builtin.wasm)?;
        let spec = self.spec(name, memory_bytes_max);
        self.runtime.block_on(self.host.install(spec, &wasm))?;
        Ok(())
    }

    fn target(&self, name: &str) -> Result<PathBuf> {
        let target = self.directory.path().join("volumes").join(name);
        fs::create_dir_all(&target)?;
        Ok(target)
    }

    fn publish(&self, plugin: &str, attributes: &[(&str, &str)]) -> Result<PathBuf> {
        self.install(plugin, 64 << 20)?;
        let target = self.target(plugin)?;
        let request = request(plugin, attributes);
        self.runtime
            .block_on(self.volumes.publish(&request, &target))?;
        Ok(target)
    }

    fn unpublish(&self, target: &Path) -> Result<()> {
        Ok(self.runtime.block_on(self.volumes.unpublish(target))?)
    }

    /// What of it was the plugins' own.
    fn print_counted(&self) {
        self.runtime.block_on(self.volumes.count());
        println!();
        for plugin in ["memfs", "httpfs", "http-archive"] {
            let stats = self.host.stats(plugin).unwrap_or_default();
            println!(
                "{plugin}: {} calls, {:.1?} of CPU time, the longest call {:.1?}, memory of an instance {} KiB.",
                stats.calls,
                stats.cpu_time_total,
                stats.duration_max,
                stats.memory_bytes_peak >> 10
            );
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // There is something only where a measurement failed.
        for volume in fs::read_dir(self.directory.path().join("volumes"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = umount2(&volume.path(), MntFlags::MNT_DETACH);
        }
    }
}

fn request(plugin: &str, attributes: &[(&str, &str)]) -> VolumeRequest {
    let attributes = attributes.iter();
    VolumeRequest {
        plugin: plugin.into(),
        name: "volume".into(),
        namespace: "default".into(),
        pod: "pod".into(),
        attributes: attributes
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
        ..VolumeRequest::default()
    }
}

/// A tmpfs, taken off when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path) -> Result<Self> {
        let none: Option<&str> = None;
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), none)?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
