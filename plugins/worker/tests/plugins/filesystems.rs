//! File systems that guests serve, with the real kernel, volume server, worker and guests: memfs as it is built in, and
//! tests/guests/bad-filesystem. Tests mount below one directory and share one host.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use nix::{sys::signal::Signal, unistd::Pid};
use tokio::runtime::Runtime;
use wherry_plugin_host::{
    HostConfig, Limits, PluginHost, PluginSpec,
    filesystem::{FilesystemVolumes, protocol::Status},
    volume::{VolumeMounts, VolumeRequest},
};

use super::{guest_named, spec};

/// A request that is answered by nobody.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// A node: its directory, and the runtime that connections live in.
pub(crate) struct Node {
    directory: tempfile::TempDir,
    runtime: Runtime,
}

/// An agent on it.
struct Agent {
    host: Arc<PluginHost>,
    volumes: Arc<FilesystemVolumes>,
}

impl Node {
    fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // The worker's user has to get to its jail.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self { directory, runtime }
    }

    fn agent(&self) -> Agent {
        self.agent_in(None)
    }

    /// One that has the volume server in a cgroup.
    fn agent_in(&self, cgroup: Option<&str>) -> Agent {
        let _in = self.runtime.enter();
        let root = self.directory.path();
        let exe = std::env::current_exe().unwrap();
        let mut config = HostConfig::new(root, &root.join("run"), exe);
        config.volumes_cgroup = cgroup.map(str::to_owned);
        let host = PluginHost::open(config).unwrap();
        let socket = root.join("run/volume-server.sock");
        let volumes = FilesystemVolumes::new(Arc::clone(&host), socket, REQUEST_TIMEOUT);
        Agent { host, volumes }
    }

    fn target(&self, name: &str) -> PathBuf {
        let target = self.directory.path().join("volumes").join(name);
        // One whose server is dead cannot be looked at.
        let _ = fs::create_dir_all(&target);
        target
    }

    fn publish(&self, agent: &Agent, request: &VolumeRequest) -> Result<PathBuf, String> {
        let target = self.target(&request.name);
        let published = agent.volumes.publish(request, &target);
        match self.runtime.block_on(published) {
            Ok(()) => Ok(target),
            Err(error) => Err(error.to_string()),
        }
    }

    fn unpublish(&self, agent: &Agent, target: &Path) {
        self.runtime
            .block_on(agent.volumes.unpublish(target))
            .unwrap();
        assert!(!is_mounted(target));
        // Whatever was there is gone with the mount.
        assert_eq!(fs::read_dir(target).unwrap().count(), 0);
    }

    fn status(&self, agent: &Agent, target: &Path) -> Status {
        let volumes = self.runtime.block_on(agent.volumes.volumes());
        let found = volumes
            .into_iter()
            .find(|status| Path::new(&status.volume.id) == target);
        found.expect("the server serves it")
    }

    fn kill_worker(&self, agent: &Agent, target: &Path) -> bool {
        match self.status(agent, target).worker {
            Some(pid) => {
                kill(pid);
                true
            }
            None => false,
        }
    }

    /// The server's process, by its socket in /proc.
    fn server(&self) -> u32 {
        self.find_server().expect("the server runs")
    }

    fn find_server(&self) -> Option<u32> {
        let socket = self.directory.path().join("run/volume-server.sock");
        let mut found = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let line = fs::read(entry.path().join("cmdline")).ok()?;
                let mut words = line.split(|byte| *byte == 0).skip(1);
                let is_server = words.next() == Some(b"volume-server")
                    && words.next() == Some(socket.as_os_str().as_encoded_bytes());
                is_server.then_some(pid)
            });
        found.next()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines() {
            let at = line.split(' ').nth(4).unwrap_or_default();
            if Path::new(at).starts_with(self.directory.path()) {
                let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        // It would end by itself, a little later.
        if let Some(server) = self.find_server() {
            kill(server);
        }
    }
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    // It may have ended since it was looked for.
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
}

fn is_mounted(target: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == target.to_str())
}

fn memfs(name: &str, attributes: &[(&str, &str)]) -> VolumeRequest {
    request("memfs", name, attributes)
}

fn request(plugin: &str, name: &str, attributes: &[(&str, &str)]) -> VolumeRequest {
    let attributes = attributes.iter();
    VolumeRequest {
        plugin: plugin.into(),
        name: name.into(),
        namespace: "default".into(),
        pod: "pod".into(),
        attributes: attributes
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect::<BTreeMap<String, String>>(),
        ..VolumeRequest::default()
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn bad(node: &Node) -> Agent {
    let agent = node.agent();
    let spec = PluginSpec {
        digest: "sha256:bad-filesystem".into(),
        limits: Limits {
            wall_time_max: Duration::from_secs(2),
            cpu_time_max: Duration::from_secs(1),
            ..Limits::default()
        },
        ..spec("bad")
    };
    node.runtime
        .block_on(agent.host.install(spec, &guest_named("bad_filesystem")))
        .unwrap();
    agent
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

pub(crate) fn trials() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($name), || { $name(&Node::open()); Ok(()) })),*]
        };
    }
    trials![
        files_in_memory_behave_as_files_do,
        removed_files_are_used_until_they_are_closed,
        a_volume_in_memory_has_a_size,
        a_group_gets_the_volume,
        a_killed_worker_fails_no_call_and_loses_nothing,
        an_agent_that_comes_back_finds_its_volumes,
        a_killed_server_is_replaced_with_the_mounts_alive,
        a_new_version_takes_over_between_two_calls,
        wrong_requests_are_refused_with_nothing_mounted,
        what_a_bad_guest_answers_stays_an_error_of_one_call,
        a_file_that_keeps_killing_the_plugin_is_set_apart_and_told_of,
        calls_are_counted_as_those_of_every_plugin_are,
        a_server_and_its_workers_share_a_cgroup_with_a_bound,
        a_reader_of_a_guest_that_never_answers_can_be_killed,
        paths_are_found_again_by_an_instance_with_other_numbers,
        an_index_over_http_is_a_tree_that_is_read_as_it_is_needed,
        the_server_gives_up_what_it_does_not_need_and_ends_with_the_last_volume,
    ]
}

fn files_in_memory_behave_as_files_do(node: &Node) {
    let agent = node.agent();
    let at = node.publish(&agent, &memfs("posix", &[])).unwrap();
    assert!(is_mounted(&at));
    // Repeatable.
    assert_eq!(node.publish(&agent, &memfs("posix", &[])).unwrap(), at);

    // Longer than a block, and not by whole ones.
    let content: Vec<u8> = (0..700_001_u32).map(|n| (n / 7) as u8).collect();
    fs::write(at.join("file"), &content).unwrap();
    assert_eq!(fs::read(at.join("file")).unwrap(), content);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(at.join("file"))
        .unwrap();
    file.write_all_at(b"changed", 131_070).unwrap();
    let mut read = [0; 9];
    file.read_exact_at(&mut read, 131_069).unwrap();
    assert_eq!(&read[1..8], b"changed");
    assert_eq!([read[0], read[8]], [content[131_069], content[131_077]]);

    // Cut, and lengthened with zeros where the old bytes were.
    file.set_len(200_000).unwrap();
    file.set_len(300_000).unwrap();
    let read = fs::read(at.join("file")).unwrap();
    assert_eq!(read.len(), 300_000);
    assert!(read[200_000..].iter().all(|byte| *byte == 0));
    assert_eq!(read[131_077..200_000], content[131_077..200_000]);
    drop(file);

    // A hole.
    let mut sparse = File::create(at.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(1_000_000)).unwrap();
    sparse.write_all(b"end").unwrap();
    drop(sparse);
    let read = fs::read(at.join("sparse")).unwrap();
    assert!(read[..1_000_000].iter().all(|byte| *byte == 0) && read.ends_with(b"end"));

    // Appending, by several at once.
    let append = |word: &'static [u8]| {
        let path = at.join("log");
        std::thread::spawn(move || {
            for _ in 0..50 {
                let mut file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(&path)
                    .unwrap();
                file.write_all(word).unwrap();
            }
        })
    };
    for thread in [append(b"one"), append(b"two")] {
        thread.join().unwrap();
    }
    assert_eq!(fs::metadata(at.join("log")).unwrap().len(), 300);

    // Directories, and what is told of them while they are emptied.
    fs::create_dir_all(at.join("a/b/c")).unwrap();
    let expected: Vec<_> = (0..1500)
        .map(|n| format!("{n:05}-{}", "x".repeat(100)))
        .collect();
    for name in &expected {
        fs::write(at.join("a/b").join(name), name).unwrap();
    }
    let mut listed = names(&at.join("a/b"));
    assert_eq!(listed.pop().as_deref(), Some("c"));
    assert_eq!(listed, expected);
    assert_eq!(
        errno(fs::remove_dir(at.join("a"))),
        Some(libc_errno("ENOTEMPTY"))
    );
    assert_eq!(
        errno(fs::create_dir(at.join("a"))),
        Some(libc_errno("EEXIST"))
    );
    fs::rename(at.join("a/b"), at.join("moved")).unwrap();
    assert_eq!(
        fs::read_to_string(at.join("moved").join(&expected[7])).unwrap(),
        expected[7]
    );
    fs::remove_dir_all(at.join("moved")).unwrap();
    assert_eq!(names(&at.join("a")), Vec::<String>::new());

    // Renaming over something, links, modes, times.
    fs::write(at.join("new"), "new").unwrap();
    fs::rename(at.join("new"), at.join("sparse")).unwrap();
    assert_eq!(fs::read_to_string(at.join("sparse")).unwrap(), "new");
    std::os::unix::fs::symlink("sparse", at.join("link")).unwrap();
    assert_eq!(fs::read_link(at.join("link")).unwrap(), Path::new("sparse"));
    assert_eq!(fs::read_to_string(at.join("link")).unwrap(), "new");
    assert!(fs::hard_link(at.join("sparse"), at.join("hard")).is_err());
    fs::set_permissions(at.join("sparse"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(at.join("sparse"), Some(1234), Some(5678)).unwrap();
    let found = fs::metadata(at.join("sparse")).unwrap();
    assert_eq!(
        (found.mode() & 0o7777, found.uid(), found.gid()),
        (0o640, 1234, 5678)
    );
    let then = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
    File::open(at.join("sparse"))
        .unwrap()
        .set_modified(then)
        .unwrap();
    assert_eq!(
        fs::metadata(at.join("sparse")).unwrap().modified().unwrap(),
        then
    );
    assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o777);
    File::open(at.join("sparse")).unwrap().sync_all().unwrap();
    assert_eq!(names(&at), ["a", "file", "link", "log", "sparse"]);

    // Nothing runs as somebody else, and nothing is a device.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(at.to_str().unwrap()))
        .unwrap();
    assert!(
        line.contains("nosuid,nodev") && line.contains("fuse.memfs"),
        "{line}"
    );
    let fifo = nix::unistd::mkfifo(&at.join("fifo"), nix::sys::stat::Mode::S_IRUSR);
    assert!(fifo.is_err());
    node.unpublish(&agent, &at);
    // Repeatable.
    node.unpublish(&agent, &at);
}

fn libc_errno(name: &str) -> i32 {
    use nix::errno::Errno;
    match name {
        "ENOTEMPTY" => Errno::ENOTEMPTY as i32,
        "EEXIST" => Errno::EEXIST as i32,
        "EIO" => Errno::EIO as i32,
        "EROFS" => Errno::EROFS as i32,
        "ENOSPC" => Errno::ENOSPC as i32,
        other => panic!("{other}"),
    }
}

fn removed_files_are_used_until_they_are_closed(node: &Node) {
    let agent = node.agent();
    let at = node
        .publish(&agent, &memfs("removed", &[("size", "1Mi")]))
        .unwrap();
    let free = || nix::sys::statvfs::statvfs(&at).unwrap().blocks_free();
    let before = free();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(at.join("file"))
        .unwrap();
    file.write_all(&vec![7; 300_000]).unwrap();
    fs::remove_file(at.join("file")).unwrap();
    assert_eq!(names(&at), Vec::<String>::new());
    // Not even a new instance takes it away.
    node.kill_worker(&agent, &at);
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert_eq!(read.len(), 300_000);
    assert!(free() < before);
    drop(file);
    // What it took comes back, soon: nobody waits for a forgotten file.
    eventually(|| free() >= before - 1);
    node.unpublish(&agent, &at);
}

fn eventually(mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "it did not come to be");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn a_volume_in_memory_has_a_size(node: &Node) {
    let agent = node.agent();
    let at = node
        .publish(&agent, &memfs("size", &[("size", "1Mi")]))
        .unwrap();
    let found = nix::sys::statvfs::statvfs(&at).unwrap();
    assert_eq!(found.blocks() * found.fragment_size(), 1 << 20);
    let filled = fs::write(at.join("big"), vec![1; 2 << 20]);
    assert_eq!(errno(filled), Some(libc_errno("ENOSPC")));
    // What was written before stays, and room that is made is room.
    let kept = fs::metadata(at.join("big")).unwrap().len();
    assert!((500_000..1 << 20).contains(&kept), "{kept}");
    fs::write(at.join("big"), b"small").unwrap();
    fs::write(at.join("other"), vec![1; 500_000]).unwrap();
    assert_eq!(fs::read(at.join("big")).unwrap(), b"small");
    node.unpublish(&agent, &at);
}

fn a_group_gets_the_volume(node: &Node) {
    let agent = node.agent();
    let request = VolumeRequest {
        fs_group: Some(4321),
        ..memfs("group", &[("mode", "0750")])
    };
    let at = node.publish(&agent, &request).unwrap();
    let root = fs::metadata(&at).unwrap();
    assert_eq!((root.gid(), root.mode() & 0o7777), (4321, 0o2770));
    fs::create_dir(at.join("dir")).unwrap();
    fs::write(at.join("dir/file"), "").unwrap();
    let (dir, file) = (at.join("dir"), at.join("dir/file"));
    assert_eq!(fs::metadata(&file).unwrap().gid(), 4321);
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o2000, 0o2000);
    node.unpublish(&agent, &at);

    let request = VolumeRequest {
        is_read_only: true,
        ..memfs("read-only", &[])
    };
    let at = node.publish(&agent, &request).unwrap();
    assert_eq!(
        errno(fs::write(at.join("x"), "")),
        Some(libc_errno("EROFS"))
    );
    node.unpublish(&agent, &at);
}

/// Appends numbered lines, makes and removes files, checks what it reads, and counts; every call has to succeed.
struct Writer {
    stop: Arc<AtomicBool>,
    lines: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    fn start(directory: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let lines = Arc::new(AtomicUsize::new(0));
        let directory = directory.to_owned();
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&lines));
        let thread = std::thread::spawn(move || {
            let path = directory.join("lines");
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .unwrap();
            let mut lines = 0;
            while !stopped.load(Ordering::Relaxed) {
                let name = directory.join(format!("made-{}", lines % 5));
                writeln!(file, "line {lines:08}").unwrap();
                // Made and removed anew each time: what was done twice says so.
                match lines / 5 % 2 {
                    0 => drop(File::create_new(&name).unwrap()),
                    _ => fs::remove_file(&name).unwrap(),
                }
                lines += 1;
                if lines % 50 == 0 {
                    check(&path, lines);
                }
                counted.store(lines, Ordering::Relaxed);
            }
            check(&path, lines);
        });
        Self {
            stop,
            lines,
            thread,
        }
    }

    /// Waits until it has written so many lines more.
    fn goes_on(&self, lines: usize) {
        let before = self.lines.load(Ordering::Relaxed);
        eventually(|| {
            assert!(!self.thread.is_finished(), "a call of the writer failed");
            self.lines.load(Ordering::Relaxed) >= before + lines
        });
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn check(path: &Path, lines: usize) {
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count(), lines);
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {number:08}"));
    }
}

fn a_killed_worker_fails_no_call_and_loses_nothing(node: &Node) {
    let agent = node.agent();
    let at = node.publish(&agent, &memfs("killed", &[])).unwrap();
    let first = Writer::start(&at);
    fs::create_dir(at.join("second")).unwrap();
    let second = Writer::start(&at.join("second"));
    for kills in 1..=4 {
        assert!(node.kill_worker(&agent, &at));
        eventually(|| node.status(&agent, &at).reopened >= kills);
        first.goes_on(3);
        second.goes_on(3);
    }
    first.goes_on(100);
    first.finish();
    second.finish();
    let status = node.status(&agent, &at);
    assert_eq!(status.failed, 0, "{status:?}");
    node.unpublish(&agent, &at);
}

fn an_agent_that_comes_back_finds_its_volumes(node: &Node) {
    let agent = node.agent();
    let at = node.publish(&agent, &memfs("agent", &[])).unwrap();
    let writer = Writer::start(&at);
    let server = node.server();
    drop(agent);
    // Nobody is there, and a worker ends: the server needs nobody.
    fs::write(at.join("meanwhile"), "meanwhile").unwrap();

    let agent = node.agent();
    node.runtime.block_on(agent.volumes.restore());
    node.kill_worker(&agent, &at);
    fs::write(at.join("after"), "after").unwrap();
    // What a new agent asks for again is there.
    assert_eq!(node.publish(&agent, &memfs("agent", &[])).unwrap(), at);
    assert_eq!(
        fs::read_to_string(at.join("meanwhile")).unwrap(),
        "meanwhile"
    );
    writer.goes_on(20);
    writer.finish();
    assert_eq!(node.server(), server);

    // Killed before it could have it served: mounted, and nobody's.
    let target = node.target("dead");
    let device = rustix_free_fuse(&target);
    drop(device);
    let at_dead = node.publish(&agent, &memfs("dead", &[])).unwrap();
    fs::write(at_dead.join("x"), "x").unwrap();
    node.unpublish(&agent, &at_dead);
    node.unpublish(&agent, &at);
}

/// Mounts FUSE as an agent does, and serves nothing.
fn rustix_free_fuse(target: &Path) -> File {
    use std::os::fd::AsRawFd;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(
        Some("dead"),
        target,
        Some("fuse"),
        flags,
        Some(options.as_str()),
    )
    .unwrap();
    device
}

fn a_killed_server_is_replaced_with_the_mounts_alive(node: &Node) {
    let agent = node.agent();
    let at = node.publish(&agent, &memfs("server", &[])).unwrap();
    fs::write(at.join("before"), "before").unwrap();
    let writer = Writer::start(&at);
    for _ in 0..2 {
        writer.goes_on(20);
        let server = node.server();
        kill(server);
        eventually(|| node.runtime.block_on(agent.volumes.volumes()).len() == 1);
        assert_ne!(node.server(), server);
    }
    assert_eq!(fs::read_to_string(at.join("before")).unwrap(), "before");
    writer.goes_on(20);
    writer.finish();
    node.unpublish(&agent, &at);
}

fn a_new_version_takes_over_between_two_calls(node: &Node) {
    let agent = node.agent();
    let at = node.publish(&agent, &memfs("upgrade", &[])).unwrap();
    let writer = Writer::start(&at);
    let wasm = node.directory.path().join("memfs.wasm");
    fs::write(&wasm, wherry_plugin_embedded::find("memfs").unwrap().wasm).unwrap();
    let before = node.status(&agent, &at);
    for version in 1..3 {
        let spec = PluginSpec {
            digest: format!("sha256:version-{version}"),
            limits: Limits {
                memory_bytes_max: 64 << 20,
                cpu_time_max: Duration::from_secs(2),
                ..Limits::default()
            },
            ..spec("memfs")
        };
        node.runtime
            .block_on(agent.host.install(spec, &wasm))
            .unwrap();
        eventually(|| {
            let now = node.status(&agent, &at);
            now.volume
                .plugin
                .digest
                .contains(&format!("version-{version}"))
                && now.reopened >= version
        });
    }
    let after = node.status(&agent, &at);
    assert_ne!(after.worker, before.worker);
    assert_eq!(after.failed, 0);
    writer.goes_on(20);
    writer.finish();
    // The plugin is removed: what is mounted goes on.
    node.runtime.block_on(agent.host.remove("memfs"));
    fs::write(at.join("x"), "x").unwrap();
    node.unpublish(&agent, &at);
}

fn wrong_requests_are_refused_with_nothing_mounted(node: &Node) {
    let agent = bad(node);
    for (name, plugin, attributes, expected) in [
        ("1", "memfs", ("siez", "1Mi"), "siez is not known here"),
        ("2", "memfs", ("size", "much"), "size \"much\""),
        ("3", "memfs", ("size", "-1"), "size \"-1\""),
        ("4", "memfs", ("size", "1Ti"), "size"),
        (
            "5",
            "memfs",
            ("mode", "rwx"),
            "mode \"rwx\" is no octal mode",
        ),
        ("6", "bad", ("open", "refuse"), "not found: nothing there"),
        (
            "7",
            "bad",
            ("open", "trap"),
            "wasm `unreachable` instruction executed",
        ),
        ("8", "bad", ("open", "hang"), "00 ms"),
        ("9", "tcp-socket", ("a", "b"), "is a probe"),
        (
            "10",
            "nothing",
            ("a", "b"),
            "not found: no plugin of that name",
        ),
    ] {
        let refused = node
            .publish(&agent, &request(plugin, name, &[attributes]))
            .unwrap_err();
        assert!(refused.contains(expected), "{name}: {refused}");
        assert!(!is_mounted(&node.target(name)), "{name}");
    }
    let options = VolumeRequest {
        mount_options: vec!["suid".into()],
        ..memfs("options", &[])
    };
    let refused = node.publish(&agent, &options).unwrap_err();
    assert!(refused.contains("mountOptions: suid"), "{refused}");
    let volumes = node.runtime.block_on(agent.volumes.volumes());
    assert_eq!(volumes, []);
}

fn what_a_bad_guest_answers_stays_an_error_of_one_call(node: &Node) {
    let agent = bad(node);
    let at = node.publish(&agent, &request("bad", "bad", &[])).unwrap();
    let good = |at: &Path| assert_eq!(fs::read(at.join("good")).unwrap(), b"content");
    good(&at);
    let eio = Some(libc_errno("EIO"));
    for name in ["much", "trap", "eat", "spin"] {
        assert_eq!(errno(fs::read(at.join(name))), eio, "{name}");
        good(&at);
    }
    assert_eq!(errno(fs::metadata(at.join("huge"))), eio);
    assert_eq!(errno(fs::read_link(at.join("nowhere"))), eio);
    assert_eq!(names(&at.join("names")), ["good"]);
    assert_eq!(fs::read_dir(at.join("many")).unwrap().count(), 20_000);
    assert!(!fs::exists(at.join("missing")).unwrap());
    assert_eq!(
        errno(fs::write(at.join("good"), "")),
        Some(libc_errno("EROFS"))
    );
    let long = at.join("x".repeat(256));
    assert!(fs::metadata(long).is_err());
    good(&at);
    let status = node.status(&agent, &at);
    assert!(status.failed >= 6 && status.reopened >= 3, "{status:?}");
    node.unpublish(&agent, &at);
}

fn a_file_that_keeps_killing_the_plugin_is_set_apart_and_told_of(node: &Node) {
    let agent = bad(node);
    let mut news = VolumeMounts::news(&agent.volumes).unwrap();
    let at = node.publish(&agent, &request("bad", "apart", &[])).unwrap();
    // Three instances for the first request, two for the second, and none from then on.
    for _ in 0..3 {
        assert_eq!(errno(fs::read(at.join("trap"))), Some(libc_errno("EIO")));
    }
    node.runtime.block_on(agent.volumes.count());
    let stats = agent.host.stats("bad").unwrap();
    assert_eq!((stats.traps, stats.set_apart), (5, 1), "{stats:?}");
    assert!(stats.not_made >= 1, "{stats:?}");
    assert!(stats.last_error.unwrap().1.starts_with("trap: "));
    // Nobody else notices.
    assert_eq!(fs::read(at.join("good")).unwrap(), b"content");
    let message = loop {
        let news = node.runtime.block_on(news.recv()).unwrap();
        if news.reason == "VolumeCallSetApart" {
            break news.message;
        }
    };
    assert!(
        message.contains("read of /trap kept killing the plugin and is not tried for 10 s"),
        "{message}"
    );
    node.unpublish(&agent, &at);
}

fn calls_are_counted_as_those_of_every_plugin_are(node: &Node) {
    let agent = node.agent();
    let at = node.publish(&agent, &memfs("counted", &[])).unwrap();
    fs::write(at.join("file"), "content").unwrap();
    assert!(!fs::exists(at.join("none")).unwrap());
    node.runtime.block_on(agent.volumes.count());
    let stats = agent.host.stats("memfs").unwrap();
    // It is opened, a file is looked up, made and written, and another one is not there.
    assert!(stats.calls >= 5, "{stats:?}");
    assert_eq!((stats.errors, stats.traps, stats.lost), (0, 0, 0));
    assert!(stats.duration_total >= stats.duration_max && !stats.duration_max.is_zero());
    assert!(!stats.cpu_time_total.is_zero());
    assert!(stats.memory_bytes_peak > 64 << 10, "{stats:?}");
    let of = |name: &str| {
        let line = format!("wherry_plugin_{name}{{plugin=\"memfs\"}} ");
        let metrics = agent.host.metrics();
        let value = metrics.lines().find_map(|there| there.strip_prefix(&line));
        value.unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(of("calls_total"), stats.calls as f64);

    // Who kills the worker is noted, and with the volume goes no number.
    for _ in 0..2 {
        node.kill_worker(&agent, &at);
        fs::write(at.join("file"), "more").unwrap();
    }
    node.unpublish(&agent, &at);
    let after = agent.host.stats("memfs").unwrap();
    assert!(after.calls > stats.calls, "{after:?}");
    assert_eq!(of("calls_total"), after.calls as f64);
}

fn a_server_and_its_workers_share_a_cgroup_with_a_bound(node: &Node) {
    let name = format!("wherry-test-volumes-{}", std::process::id());
    let agent = node.agent_in(Some(&name));
    let at = node
        .publish(&agent, &memfs("bound", &[("size", "64Mi")]))
        .unwrap();
    let all = wherry_cgroup::Cgroups::detect().unwrap();
    let group = all.group(&name);
    let bound = || group.stats().unwrap().memory_limit_bytes.unwrap();
    let before = bound();
    let processes = group.processes();
    let pid = |pid: u32| i32::try_from(pid).unwrap();
    assert!(processes.contains(&pid(node.server())));
    assert!(processes.contains(&pid(node.status(&agent, &at).worker.unwrap())));
    let more = node
        .publish(&agent, &memfs("more", &[("size", "128Mi")]))
        .unwrap();
    // What it may keep, and what it takes to serve it.
    assert!(bound() > before + (128 << 20));
    fs::write(more.join("file"), vec![7; 100 << 20]).unwrap();
    node.unpublish(&agent, &more);
    assert_eq!(bound(), before);
    node.unpublish(&agent, &at);
    group.remove().unwrap();
    assert!(node.find_server().is_none());
}

fn a_reader_of_a_guest_that_never_answers_can_be_killed(node: &Node) {
    let agent = bad(node);
    let at = node.publish(&agent, &request("bad", "hang", &[])).unwrap();
    // The call overruns its limit.
    assert_eq!(errno(fs::read(at.join("hang"))), Some(libc_errno("EIO")));
    let mut reader = std::process::Command::new("cat")
        .arg(at.join("hang"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    reader.kill().unwrap();
    let status = reader.wait().unwrap();
    assert!(!status.success());
    assert_eq!(fs::read(at.join("good")).unwrap(), b"content");
    node.unpublish(&agent, &at);
}

fn paths_are_found_again_by_an_instance_with_other_numbers(node: &Node) {
    let agent = bad(node);
    let at = node
        .publish(&agent, &request("bad", "numbers", &[]))
        .unwrap();
    let mut file = File::open(at.join("dir/file")).unwrap();
    let other = File::open(at.join("other")).unwrap();
    for _ in 0..3 {
        assert!(node.kill_worker(&agent, &at));
        // Another file first: it gets a number that was this one's.
        assert_eq!(fs::read(at.join("first")).unwrap(), b"content");
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "content");
        assert_eq!(names(&at.join("dir")), ["file"]);
        assert_eq!(other.metadata().unwrap().len(), 7);
    }
    node.unpublish(&agent, &at);
}

fn the_server_gives_up_what_it_does_not_need_and_ends_with_the_last_volume(node: &Node) {
    let agent = node.agent();
    let at = node.publish(&agent, &memfs("server-ends", &[])).unwrap();
    let status = |pid: u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    let server = node.server();
    // CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SYS_CHROOT.
    assert_eq!(field(&status(server), "CapEff:"), "00000000000400e0");
    let worker = status(node.status(&agent, &at).worker.unwrap());
    assert_eq!(field(&worker, "CapPrm:"), "0000000000000000");
    assert_eq!(field(&worker, "Seccomp:"), "2");
    assert!(field(&worker, "Uid:").starts_with("65532"));
    // Somebody else took the mount away, as the removal of a pod's directory does.
    nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let socket = node.directory.path().join("run/volume-server.sock");
    eventually(|| !socket.exists());
    eventually(|| {
        !Path::new(&format!("/proc/{server}/exe")).exists()
            || fs::read_link(format!("/proc/{server}/exe")).is_err()
    });
    node.unpublish(&agent, &at);
    // And starts again with the next.
    let at = node.publish(&agent, &memfs("next", &[])).unwrap();
    fs::write(at.join("x"), "x").unwrap();
    node.unpublish(&agent, &at);
}

/// A server of one tree: `/dir/` by an index in HTML, `/` by one in JSON, files by ranges.
struct Site {
    address: std::net::SocketAddr,
    asked: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Site {
    fn start(big: Vec<u8>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = Self::answer(stream.unwrap(), &big, &noted);
            }
        });
        Self { address, asked }
    }

    fn answer(
        mut stream: std::net::TcpStream,
        big: &[u8],
        asked: &std::sync::Mutex<Vec<String>>,
    ) -> io::Result<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let mut words = head.split_whitespace();
        let (method, path) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let range = head
            .lines()
            .find_map(|line| line.strip_prefix("range: bytes="));
        asked
            .lock()
            .unwrap()
            .push(format!("{method} {path} {}", range.unwrap_or_default()));
        let json = format!(
            r#"[{{"name":"dir","type":"directory","mtime":"Sun, 06 Nov 1994 08:49:37 GMT"}},
                {{"name":"big","type":"file","mtime":"Sun, 06 Nov 1994 08:49:37 GMT","size":{}}},
                {{"name":"../etc","type":"file","size":1}}]"#,
            big.len()
        );
        let html = r#"<a href="../">..</a> <a href="?C=N">N</a> <a href="a%20b">a b</a> <a href='/x'>x</a>
            <a href="sub/">sub</a> <a href="gone">gone</a> <a href="%2e%2e">up</a> <a href="c%2fd">no</a>"#;
        let (content_type, body) = match path {
            "/" => ("application/json", json.as_bytes()),
            "/dir/" => ("text/html", html.as_bytes()),
            "/dir/sub/" => ("text/html", &b""[..]),
            "/dir/a%20b" => ("text/plain", &b"a and b"[..]),
            "/big" => ("application/octet-stream", big),
            _ => {
                return write!(
                    stream,
                    "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
                );
            }
        };
        let mut part = body;
        let mut status = "200 OK".to_owned();
        if let Some((from, to)) = range.and_then(|range| range.split_once('-')) {
            let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
            part = &body[from..=to];
            let length = body.len();
            status = format!("206 Partial\r\ncontent-range: bytes {from}-{to}/{length}");
        }
        let length = part.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
             last-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nconnection: close\r\n\r\n"
        )?;
        match method {
            "head" => Ok(()),
            _ => stream.write_all(part),
        }
    }
}

fn an_index_over_http_is_a_tree_that_is_read_as_it_is_needed(node: &Node) {
    let big: Vec<u8> = (0..1_500_000_u32).map(|n| (n / 3) as u8).collect();
    let site = Site::start(big.clone());
    let agent = node.agent();
    let url = format!("http://{}/", site.address);
    let asked = || std::mem::take(&mut *site.asked.lock().unwrap());
    let request = |name: &str| request("httpfs", name, &[("url", &url), ("cacheSeconds", "60")]);

    // The node's own addresses are no pod owner's to name.
    let refused = node.publish(&agent, &request("own")).unwrap_err();
    assert!(
        refused.contains("127.0.0.1 is an address of the node itself"),
        "{refused}"
    );
    let wasm = node.directory.path().join("httpfs.wasm");
    fs::write(&wasm, wherry_plugin_embedded::find("httpfs").unwrap().wasm).unwrap();
    let mut spec = PluginSpec {
        digest: "sha256:httpfs".into(),
        ..spec("httpfs")
    };
    spec.grants.hosts = vec!["127.0.0.1".into()];
    spec.limits.memory_bytes_max = 64 << 20;
    node.runtime
        .block_on(agent.host.install(spec, &wasm))
        .unwrap();

    let at = node.publish(&agent, &request("http")).unwrap();
    assert_eq!(names(&at), ["big", "dir"]);
    assert_eq!(names(&at.join("dir")), ["a b", "sub"]);
    assert_eq!(fs::read_to_string(at.join("dir/a b")).unwrap(), "a and b");
    assert_eq!(names(&at.join("dir/sub")), Vec::<String>::new());
    let found = fs::metadata(at.join("big")).unwrap();
    assert_eq!((found.len(), found.mtime()), (1_500_000, 784_111_777));
    assert_eq!(
        errno(fs::write(at.join("big"), "")),
        Some(libc_errno("EROFS"))
    );
    assert!(!fs::exists(at.join("none")).unwrap());

    // A few bytes in the middle are not the whole file.
    asked();
    let file = File::open(at.join("big")).unwrap();
    let mut read = [0; 10];
    file.read_exact_at(&mut read, 1_000_000).unwrap();
    assert_eq!(read, big[1_000_000..1_000_010]);
    let first = asked();
    assert!(
        first.iter().all(|line| !line.ends_with("-1499999")),
        "{first:?}"
    );
    // What has been read is not asked for again, not even by a new instance and with the kernel's memory dropped.
    assert_eq!(fs::read(at.join("big")).unwrap(), big);
    asked();
    node.kill_worker(&agent, &at);
    drop(file);
    let file = File::open(at.join("big")).unwrap();
    nix::fcntl::posix_fadvise(
        &file,
        0,
        0,
        nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )
    .unwrap();
    assert_eq!(fs::read(at.join("big")).unwrap(), big);
    let again = asked();
    assert!(
        again.iter().all(|line| !line.starts_with("get /big")),
        "{again:?}"
    );
    drop(file);
    node.unpublish(&agent, &at);
}
