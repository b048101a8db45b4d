//! The built-in mounters: what each has done on the node, as it is noted by a node that does nothing; and images on loop
//! devices for real.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use libtest_mimic::Trial;
use tokio::runtime::Runtime;
use wherry_plugin_host::{
    PluginHost,
    mounter::{MountCall, MounterVolumes, System},
    volume::{VolumeFailure, VolumeMounts, VolumeRequest},
};

use super::{
    Node,
    contract::{first, first_spec},
};

/// Of every device there is.
const DEVICE_BYTES: u64 = 4096;

/// Notes what it is asked, in lines; what begins with `fails` fails, and with `hangs` never ends.
#[derive(Default)]
struct Noted {
    lines: Mutex<Vec<String>>,
    fails: Option<&'static str>,
    hangs: Option<&'static str>,
    /// What a device holds.
    holds: Vec<u8>,
    /// As what a file is attached already.
    foreign: Option<&'static str>,
}

impl Noted {
    async fn note(&self, line: String) -> io::Result<String> {
        let begins = |with: Option<&str>| with.is_some_and(|with| line.starts_with(with));
        let (fails, hangs) = (begins(self.fails), begins(self.hangs));
        self.lines.lock().unwrap().push(line);
        if hangs {
            std::future::pending::<()>().await;
        }
        match fails {
            true => Err(io::Error::other("as it was asked to")),
            false => Ok(String::new()),
        }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap())
    }
}

#[async_trait]
impl System for Noted {
    async fn mount(&self, call: &MountCall, _: &Path) -> io::Result<()> {
        let MountCall {
            kind,
            source,
            data,
            flags,
            is_read_only,
        } = call;
        let ro = if *is_read_only { "ro" } else { "rw" };
        let line = format!("mount {kind} {source} {ro} {flags:?} {data}");
        self.note(line).await.map(drop)
    }

    async fn unmount(&self, _: &Path) -> io::Result<()> {
        self.note("unmount".into()).await.map(drop)
    }

    async fn run(&self, program: &str, arguments: &[String]) -> io::Result<String> {
        let line = format!("{program} {}", arguments.join(" "));
        self.note(line).await?;
        match program {
            "blockdev" => Ok(format!("{DEVICE_BYTES}\n")),
            _ => Ok("/dev/loop77\n".into()),
        }
    }

    async fn write(&self, path: &str, line: &str) -> io::Result<()> {
        self.note(format!("echo {line} > {path}")).await.map(drop)
    }

    async fn read(&self, _: &str, bytes: usize) -> io::Result<Vec<u8>> {
        let mut read = self.holds.clone();
        read.resize(bytes, 0);
        Ok(read)
    }

    async fn resolve(&self, host: &str, _: u16) -> io::Result<Vec<IpAddr>> {
        Ok(match host {
            "nas.example" => vec!["10.1.2.9".parse().unwrap()],
            _ => vec![host.parse().map_err(|_| io::ErrorKind::NotFound)?],
        })
    }

    async fn device(&self, path: &str) -> io::Result<String> {
        Ok(path.to_owned())
    }

    fn check_image(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    async fn loop_file(&self, _: &str) -> io::Result<Option<String>> {
        Ok(Some("/srv/wherry-images/a".into()))
    }

    async fn loops_of(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(self.foreign.iter().map(|device| (*device).into()).collect())
    }

    async fn rbd_number(&self, _: &str) -> io::Result<Option<String>> {
        Ok(Some("5".into()))
    }

    async fn mounted(&self, _: &Path) -> io::Result<Option<(String, String)>> {
        Ok(Some(("ext4".into(), "/dev/loop77".into())))
    }

    async fn lengthen(&self, path: &str, bytes: u64) -> io::Result<()> {
        self.note(format!("lengthen {path} {bytes}"))
            .await
            .map(drop)
    }
}

struct Setup {
    runtime: Runtime,
    node: Node,
}

impl Setup {
    fn open() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let node = runtime.block_on(async { Node::open() });
        Self { runtime, node }
    }

    fn host(&self) -> Arc<PluginHost> {
        Arc::clone(&self.node.host)
    }

    fn records(&self) -> PathBuf {
        self.node._directory.path().join("mounts")
    }

    fn volumes(&self, system: &Arc<Noted>) -> Arc<MounterVolumes> {
        let system: Arc<dyn System> = Arc::clone(system) as _;
        MounterVolumes::open_on(self.host(), self.records(), system).unwrap()
    }

    fn target(&self, name: &str) -> PathBuf {
        let target = self.node._directory.path().join("volumes").join(name);
        fs::create_dir_all(&target).unwrap();
        target
    }

    fn has_records(&self) -> bool {
        fs::read_dir(self.records()).unwrap().next().is_some()
    }
}

fn request(
    plugin: &str,
    attributes: &[(&str, &str)],
    credentials: &[(&str, &str)],
) -> VolumeRequest {
    let attributes = attributes.iter();
    let credentials = credentials.iter();
    VolumeRequest {
        plugin: plugin.into(),
        name: "volume".into(),
        namespace: "default".into(),
        pod: "pod".into(),
        attributes: attributes
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
        credentials: credentials
            .map(|(key, value)| ((*key).into(), value.as_bytes().to_vec()))
            .collect(),
        ..VolumeRequest::default()
    }
}

pub(crate) fn trials() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($name), || { $name(&Setup::open()); Ok(()) })),*]
        };
    }
    trials![
        mounters_have_done_what_is_recorded_here_and_have_it_undone,
        mounters_are_refused_what_they_may_not_have,
        what_fails_is_undone_in_reverse_order,
        what_a_killed_agent_had_begun_is_undone_by_the_next,
        an_image_is_mounted_formatted_once_and_kept,
        what_is_mounted_is_made_larger_as_is_recorded_here_or_refused,
        an_image_grows_under_who_uses_it,
        an_image_is_attached_once_for_all_who_mount_it,
        a_mounter_of_the_first_contract_mounts_and_cannot_grow,
    ]
}

/// What is asked for, what the device holds, what is done, and what undoes it.
type Case = (VolumeRequest, Vec<u8>, Vec<String>, Vec<String>);

fn mounters_have_done_what_is_recorded_here_and_have_it_undone(setup: &Setup) {
    let target = setup.target("recorded");
    let at = target.display();
    let iscsi = "iscsiadm -m node -T iqn.2026-01.example:disk -p 10.1.2.3:3260";
    let disk = "/dev/disk/by-path/ip-10.1.2.3:3260-iscsi-iqn.2026-01.example:disk-lun-2";
    let read_only = |request: VolumeRequest| VolumeRequest {
        is_read_only: true,
        ..request
    };
    let cases: Vec<Case> = vec![
        (
            request("nfs", &[("server", "nas.example"), ("path", "/export/a")], &[]),
            Vec::new(),
            vec!["mount nfs4 nas.example:/export/a rw [] vers=4.2,addr=10.1.2.9".into()],
            vec!["unmount".into()],
        ),
        (
            VolumeRequest {
                mount_options: vec!["soft".into(), "timeo=50".into(), "noatime".into()],
                ..read_only(request(
                    "nfs",
                    &[("server", "10.1.2.3"), ("path", "/x"), ("version", "3")],
                    &[],
                ))
            },
            Vec::new(),
            vec!["mount nfs 10.1.2.3:/x ro [\"noatime\"] vers=3,soft,timeo=50,addr=10.1.2.3".into()],
            vec!["unmount".into()],
        ),
        (
            request(
                "cephfs",
                &[("monitors", "10.1.2.3:6790,10.1.2.4"), ("path", "/data"), ("user", "u")],
                &[("key", "AQB==\n")],
            ),
            Vec::new(),
            vec!["mount ceph 10.1.2.3:6790,10.1.2.4:6789:/data rw [] name=u,secret=AQB==".into()],
            vec!["unmount".into()],
        ),
        (
            request("glusterfs", &[("endpoints", "10.1.2.3,10.1.2.4"), ("path", "vol")], &[]),
            Vec::new(),
            vec![format!(
                "glusterfs --volfile-server=10.1.2.3 --volfile-server=10.1.2.4 --volfile-id=vol \
                 --fuse-mountopts=nosuid,nodev {at}"
            )],
            vec!["unmount".into()],
        ),
        (
            request(
                "iscsi",
                &[
                    ("targetPortal", "10.1.2.3"),
                    ("iqn", "iqn.2026-01.example:disk"),
                    ("lun", "2"),
                    ("chapAuthSession", "true"),
                ],
                &[
                    ("node.session.auth.username", "me"),
                    ("node.session.auth.password", "secret"),
                ],
            ),
            Vec::new(),
            vec![
                format!("{iscsi} -I default -o new"),
                format!("{iscsi} -o update -n node.session.auth.authmethod -v CHAP"),
                format!("{iscsi} -o update -n node.session.auth.username -v me"),
                format!("{iscsi} -o update -n node.session.auth.password -v secret"),
                format!("{iscsi} --login"),
                format!("mkfs.ext4 -q -F -m 0 {disk}"),
                format!("mount ext4 {disk} rw [] "),
            ],
            vec!["unmount".into(), format!("{iscsi} --logout"), format!("{iscsi} -o delete")],
        ),
        // A disk that holds something is left as it is.
        (
            VolumeRequest {
                fs_type: Some("xfs".into()),
                ..request(
                    "rbd",
                    &[("monitors", "10.1.2.3,10.1.2.4:6790"), ("image", "disk"), ("pool", "p")],
                    &[("key", "AQB==")],
                )
            },
            vec![1],
            vec![
                "echo 10.1.2.3:6789,10.1.2.4:6790 name=admin,secret=AQB== p disk - > /sys/bus/rbd/add".into(),
                "mount xfs /dev/rbd/p/disk rw [] ".into(),
            ],
            vec!["unmount".into(), "echo 5 > /sys/bus/rbd/remove".into()],
        ),
        // What nobody may write is not formatted.
        (
            read_only(request("loop", &[("file", "/srv/wherry-images/a")], &[])),
            Vec::new(),
            vec![
                "losetup --find".into(),
                "losetup --read-only /dev/loop77 /srv/wherry-images/a".into(),
                "mount ext4 /dev/loop77 ro [] ".into(),
            ],
            vec!["unmount".into(), "losetup --detach /dev/loop77".into()],
        ),
    ];
    for (request, holds, done, undone) in cases {
        let system = Arc::new(Noted {
            holds,
            ..Noted::default()
        });
        let volumes = setup.volumes(&system);
        let plugin = &request.plugin;
        let published = setup.runtime.block_on(volumes.publish(&request, &target));
        assert!(published.is_ok(), "{plugin}: {published:?}");
        assert_eq!(system.take(), done, "{plugin}");
        // Another agent undoes it as well.
        let volumes = setup.volumes(&system);
        setup.runtime.block_on(volumes.unpublish(&target)).unwrap();
        assert_eq!(system.take(), undone, "{plugin}");
        setup.runtime.block_on(volumes.unpublish(&target)).unwrap();
        assert_eq!(system.take(), Vec::<String>::new());
        assert!(!setup.has_records());
    }
}

fn mounters_are_refused_what_they_may_not_have(setup: &Setup) {
    let target = setup.target("refused");
    let system = Arc::new(Noted::default());
    let volumes = setup.volumes(&system);
    let nfs = |server: &str, path: &str| request("nfs", &[("server", server), ("path", path)], &[]);
    let option = |option: &str| VolumeRequest {
        mount_options: vec![option.into()],
        ..nfs("10.1.2.3", "/x")
    };
    let image = |file: &str| request("loop", &[("file", file)], &[]);
    let typed = |fs_type: &str| VolumeRequest {
        fs_type: Some(fs_type.into()),
        ..image("/srv/wherry-images/a")
    };
    for (request, expected) in [
        (
            nfs("127.0.0.1", "/x"),
            "127.0.0.1 is an address of the node itself",
        ),
        (nfs("10.1.2.3", "x"), "does not begin with /"),
        (nfs("10.1.2.3", "/a/../b"), ".."),
        (nfs("10.1.2.3,suid", "/x"), "not host:/path"),
        (option("suid"), "not one that nfs4 may be given"),
        (option("soft,dev"), "a comma"),
        (option("context=x"), "not one that nfs4 may be given"),
        (
            image("/etc/shadow"),
            "loop:/etc/shadow needs the grant devices",
        ),
        (image("/srv/wherry-images/../../etc/shadow"), "without .."),
        (typed("proc"), "neither ext4 nor xfs"),
        (typed("nfs"), "neither ext4 nor xfs"),
        (
            request("nfs", &[("server", "10.1.2.3")], &[]),
            "path is missing",
        ),
        (
            request("nfs", &[("sevrer", "10.1.2.3")], &[]),
            "sevrer is not known here",
        ),
        (request("memfs", &[], &[]), "is a file system"),
    ] {
        let refused = setup.runtime.block_on(volumes.publish(&request, &target));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(expected), "{request:?}: {refused}");
        let lines = system.take();
        assert!(
            lines.iter().all(|line| !line.starts_with("mount")),
            "{lines:?}"
        );
        assert!(!setup.has_records());
    }
}

fn what_fails_is_undone_in_reverse_order(setup: &Setup) {
    let target = setup.target("fails");
    let system = Arc::new(Noted {
        fails: Some("mount"),
        ..Noted::default()
    });
    let volumes = setup.volumes(&system);
    let image = request("loop", &[("file", "/srv/wherry-images/a")], &[]);
    let failed = setup
        .runtime
        .block_on(volumes.publish(&image, &target))
        .unwrap_err();
    assert!(
        failed
            .to_string()
            .contains("mount ext4 /dev/loop77: as it was asked to"),
        "{failed}"
    );
    let lines = system.take();
    assert_eq!(
        lines[lines.len() - 2..],
        ["unmount", "losetup --detach /dev/loop77"]
    );
    assert!(!setup.has_records());
}

fn what_a_killed_agent_had_begun_is_undone_by_the_next(setup: &Setup) {
    let target = setup.target("killed");
    let hanging = Arc::new(Noted {
        hangs: Some("mount"),
        ..Noted::default()
    });
    let volumes = setup.volumes(&hanging);
    let image = request("loop", &[("file", "/srv/wherry-images/a")], &[]);
    let begun = async {
        tokio::time::timeout(Duration::from_secs(3), volumes.publish(&image, &target)).await
    };
    assert!(setup.runtime.block_on(begun).is_err());
    assert!(hanging.take().iter().any(|line| line.starts_with("mount")));
    assert!(setup.has_records());

    let system = Arc::new(Noted::default());
    let volumes = setup.volumes(&system);
    setup.runtime.block_on(volumes.restore());
    assert_eq!(system.take(), ["unmount", "losetup --detach /dev/loop77"]);
    assert!(!setup.has_records());
}

fn an_image_is_mounted_formatted_once_and_kept(setup: &Setup) {
    let images = Path::new("/srv/wherry-images");
    let made = !images.exists();
    fs::create_dir_all(images).unwrap();
    let file = tempfile::Builder::new()
        .prefix("test-")
        .tempfile_in(images)
        .unwrap();
    file.as_file().set_len(32 << 20).unwrap();
    let path = file.path().to_str().unwrap();
    let target = setup.target("image");
    let volumes = MounterVolumes::open(setup.host(), setup.records()).unwrap();
    let image = request("loop", &[("file", path)], &[]);
    let publish =
        |request: &VolumeRequest| setup.runtime.block_on(volumes.publish(request, &target));
    publish(&image).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(target.to_str().unwrap()))
        .unwrap();
    assert!(
        line.contains("nosuid,nodev") && line.contains(" ext4 /dev/loop"),
        "{line}"
    );
    fs::write(target.join("kept"), "kept").unwrap();
    // Repeatable, by another agent too.
    let other = MounterVolumes::open(setup.host(), setup.records()).unwrap();
    setup.runtime.block_on(other.restore());
    setup
        .runtime
        .block_on(other.publish(&image, &target))
        .unwrap();
    assert_eq!(fs::read_to_string(target.join("kept")).unwrap(), "kept");
    setup.runtime.block_on(volumes.unpublish(&target)).unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);

    let read_only = VolumeRequest {
        is_read_only: true,
        ..image.clone()
    };
    publish(&read_only).unwrap();
    assert_eq!(fs::read_to_string(target.join("kept")).unwrap(), "kept");
    assert!(fs::write(target.join("more"), "").is_err());
    setup.runtime.block_on(volumes.unpublish(&target)).unwrap();

    // A link is no image, wherever it leads.
    let link = images.join(format!("link-{}", std::process::id()));
    std::os::unix::fs::symlink(path, &link).unwrap();
    let refused = publish(&request("loop", &[("file", link.to_str().unwrap())], &[]));
    fs::remove_file(&link).unwrap();
    assert!(refused.is_err());
    assert!(!setup.has_records());
    assert_eq!(devices_of(path), 0);
    drop(file);
    if made {
        // Should another test not use it now.
        let _ = fs::remove_dir(images);
    }
}

fn what_is_mounted_is_made_larger_as_is_recorded_here_or_refused(setup: &Setup) {
    let target = setup.target("larger");
    let iscsi = request(
        "iscsi",
        &[
            ("targetPortal", "10.1.2.3"),
            ("iqn", "iqn.2026-01.example:disk"),
        ],
        &[],
    );
    let rbd = request("rbd", &[("monitors", "10.1.2.3"), ("image", "disk")], &[]);
    let image = request("loop", &[("file", "/srv/wherry-images/a")], &[]);
    let nfs = request("nfs", &[("server", "10.1.2.3"), ("path", "/x")], &[]);
    let read_only = VolumeRequest {
        is_read_only: true,
        ..image.clone()
    };
    let looks = ["blockdev --getsize64 /dev/loop77", "resize2fs /dev/loop77"];
    let lengthens = [
        &[
            "lengthen /srv/wherry-images/a 4096",
            "losetup --set-capacity /dev/loop77",
        ],
        &looks[..],
    ]
    .concat();
    let rescans = [
        &["iscsiadm -m node -T iqn.2026-01.example:disk -p 10.1.2.3:3260 -R"],
        &looks[..],
    ]
    .concat();
    for (request, bytes, done, refused) in [
        (&image, DEVICE_BYTES, lengthens, ""),
        (&iscsi, DEVICE_BYTES, rescans, ""),
        (&rbd, 1, looks.to_vec(), ""),
        (
            &rbd,
            DEVICE_BYTES + 1,
            looks[..1].to_vec(),
            "/dev/loop77 holds 4096 bytes where it comes from",
        ),
        (
            &read_only,
            DEVICE_BYTES,
            Vec::new(),
            "nobody may write there",
        ),
        (&nfs, 1, Vec::new(), "its volumes cannot be made larger"),
    ] {
        let system = Arc::new(Noted::default());
        let volumes = setup.volumes(&system);
        let expand = || {
            setup
                .runtime
                .block_on(volumes.expand(request, &target, bytes))
        };
        let early = expand().unwrap_err();
        assert!(matches!(early, VolumeFailure::NotMounted { .. }), "{early}");
        setup
            .runtime
            .block_on(volumes.publish(request, &target))
            .unwrap();
        system.take();
        // What is not mounted for real is not mounted.
        let _mounted = Mounted::on(&target);
        match expand() {
            Ok(held) => assert!(refused.is_empty() && held == DEVICE_BYTES, "{request:?}"),
            Err(error) => {
                let error = error.to_string();
                assert!(!refused.is_empty() && error.contains(refused), "{error}");
            }
        }
        assert_eq!(system.take(), done, "{request:?}");
        setup.runtime.block_on(volumes.unpublish(&target)).unwrap();
    }
}

/// A tmpfs as long as it lives.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn on(target: &'a Path) -> Self {
        let none = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), target, Some("tmpfs"), none, None::<&str>).unwrap();
        Self(target)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn an_image_grows_under_who_uses_it(setup: &Setup) {
    const MIB: u64 = 1 << 20;
    let images = Path::new("/srv/wherry-images");
    fs::create_dir_all(images).unwrap();
    let file = tempfile::Builder::new()
        .prefix("test-")
        .tempfile_in(images)
        .unwrap();
    // The least that xfs is made of.
    file.as_file().set_len(300 * MIB).unwrap();
    let path = file.path().to_str().unwrap();
    let target = setup.target("grows");
    let volumes = MounterVolumes::open(setup.host(), setup.records()).unwrap();
    let image = request("loop", &[("file", path), ("fsType", "xfs")], &[]);
    let expand = |bytes| {
        setup
            .runtime
            .block_on(volumes.expand(&image, &target, bytes))
    };
    setup
        .runtime
        .block_on(volumes.publish(&image, &target))
        .unwrap();
    let holds = || {
        let found = nix::sys::statvfs::statvfs(&target).unwrap();
        found.blocks() * found.fragment_size() / MIB
    };
    let mut used = fs::File::create(target.join("used")).unwrap();
    std::io::Write::write_all(&mut used, b"kept").unwrap();
    assert!(holds() < 300);
    assert_eq!(expand(400 * MIB).unwrap(), 400 * MIB);
    assert!(holds() > 300, "{} MiB", holds());
    assert_eq!(fs::read_to_string(target.join("used")).unwrap(), "kept");
    // Again, and less: as it is.
    assert_eq!(expand(400 * MIB).unwrap(), 400 * MIB);
    assert_eq!(expand(300 * MIB).unwrap(), 400 * MIB);
    assert_eq!(file.as_file().metadata().unwrap().len(), 400 * MIB);
    drop(used);
    setup.runtime.block_on(volumes.unpublish(&target)).unwrap();
    let gone = expand(500 * MIB).unwrap_err();
    assert!(matches!(gone, VolumeFailure::NotMounted { .. }), "{gone}");
}

/// The loop devices of a file.
fn devices_of(path: &str) -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let ours = devices.filter(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| backing.trim() == path)
    });
    ours.count()
}

fn an_image_is_attached_once_for_all_who_mount_it(setup: &Setup) {
    let images = Path::new("/srv/wherry-images");
    fs::create_dir_all(images).unwrap();
    let file = tempfile::Builder::new()
        .prefix("test-")
        .tempfile_in(images)
        .unwrap();
    file.as_file().set_len(32 << 20).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let path = path.as_str();
    let [one, two, three] = ["one", "two", "three"].map(|name| setup.target(name));
    let volumes = MounterVolumes::open(setup.host(), setup.records()).unwrap();
    let image = request("loop", &[("file", path)], &[]);
    let read_only = VolumeRequest {
        is_read_only: true,
        ..image.clone()
    };
    let publish = |request: &VolumeRequest, target: &Path| {
        setup.runtime.block_on(volumes.publish(request, target))
    };
    let unpublish = |target: &Path| setup.runtime.block_on(volumes.unpublish(target)).unwrap();
    // Both at once, as pods come.
    setup.runtime.block_on(async {
        let (a, b) = tokio::join!(volumes.publish(&image, &one), volumes.publish(&image, &two));
        a.and(b).unwrap();
    });
    publish(&read_only, &three).unwrap();
    assert_eq!(devices_of(path), 1);
    fs::write(one.join("file"), "written by one").unwrap();
    for other in [&two, &three] {
        let read = fs::read_to_string(other.join("file")).unwrap();
        assert_eq!(read, "written by one");
    }
    assert!(fs::write(three.join("more"), "").is_err());
    // Who attached it goes first.
    unpublish(&one);
    assert_eq!(devices_of(path), 1);
    fs::write(two.join("file"), "written by two").unwrap();
    unpublish(&two);
    let read = fs::read_to_string(three.join("file")).unwrap();
    assert_eq!(read, "written by two");
    unpublish(&three);
    assert_eq!(devices_of(path), 0);

    // A device that cannot be written to is no device to write to.
    publish(&read_only, &one).unwrap();
    publish(&read_only, &two).unwrap();
    let refused = publish(&image, &three).unwrap_err().to_string();
    assert!(refused.contains("nobody may write there"), "{refused}");
    unpublish(&one);
    unpublish(&two);
    publish(&image, &three).unwrap();
    unpublish(&three);
    assert!(devices_of(path) == 0 && !setup.has_records());

    // One that is removed while it is mounted is detached as well.
    publish(&image, &one).unwrap();
    drop(file);
    let removed = format!("{path} (deleted)");
    assert_eq!(devices_of(&removed), 1);
    unpublish(&one);
    assert_eq!(devices_of(&removed), 0);

    // What others have attached is left to them.
    let theirs = setup.volumes(&Arc::new(Noted {
        foreign: Some("/dev/loop5"),
        ..Noted::default()
    }));
    let image = request("loop", &[("file", "/srv/wherry-images/a")], &[]);
    let refused = setup.runtime.block_on(theirs.publish(&image, &one));
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("it is attached as /dev/loop5, and not by this node's volumes"),
        "{refused}"
    );
    assert!(!setup.has_records());
}

fn a_mounter_of_the_first_contract_mounts_and_cannot_grow(setup: &Setup) {
    let target = setup.target("first");
    let wasm = first("mounter");
    let host = setup.host();
    let installed = host.install(first_spec("mounter"), &wasm);
    setup.runtime.block_on(installed).unwrap();
    let system = Arc::new(Noted::default());
    let volumes = setup.volumes(&system);
    let image = request("mounter", &[("file", "/srv/wherry-images/a")], &[]);
    setup
        .runtime
        .block_on(volumes.publish(&image, &target))
        .unwrap();
    let done = system.take();
    assert_eq!(
        done.last().map(String::as_str),
        Some("mount ext4 /dev/loop77 rw [] ")
    );
    let _mounted = Mounted::on(&target);
    let refused = setup.runtime.block_on(volumes.expand(&image, &target, 1));
    let refused = refused.unwrap_err();
    assert!(refused.is_unsupported(), "{refused}");
    setup.runtime.block_on(volumes.unpublish(&target)).unwrap();
}
