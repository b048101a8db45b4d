#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

const HYBRID: &str = "\
30 29 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 30 0:30 /sub /elsewhere/pids rw - cgroup cgroup rw,pids
35 30 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

/// Files as the kernel has them in a v2 group.
fn fake_v2(root: &Path, group: &str) -> PathBuf {
    let directory = root.join(group);
    for ancestor in [
        root.to_owned(),
        directory.parent().unwrap().to_owned(),
        directory.clone(),
    ] {
        fs::create_dir_all(&ancestor).unwrap();
        fs::write(
            ancestor.join("cgroup.controllers"),
            "cpu memory pids io misc",
        )
        .unwrap();
        fs::write(ancestor.join("cgroup.subtree_control"), "memory").unwrap();
        for file in [
            "cpu.weight",
            "cpu.max",
            "memory.max",
            "memory.swap.max",
            "pids.max",
            "cgroup.procs",
            "hugetlb.2MB.max",
        ] {
            fs::write(ancestor.join(file), "").unwrap();
        }
    }
    directory
}

#[test]
fn hierarchies_are_found_as_they_are_mounted() {
    let found = Cgroups::from_mountinfo(HYBRID).unwrap();
    let shared = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct");
    assert_eq!(
        found,
        Cgroups::V1 {
            controllers: vec![
                ("cpu", shared.clone()),
                ("cpuacct", shared),
                ("memory", "/sys/fs/cgroup/memory".into())
            ],
            unified: Some("/sys/fs/cgroup/unified".into()),
        }
    );
    assert_eq!(found.roots().len(), 3);
    let unified = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    assert_eq!(
        Cgroups::from_mountinfo(unified),
        Some(Cgroups::V2 {
            root: "/sys/fs/cgroup".into()
        })
    );
    assert_eq!(Cgroups::from_mountinfo("nothing"), None);
}

#[test]
fn v2_limits_are_written_in_v2s_words() {
    let root = tempfile::tempdir().unwrap();
    let directory = fake_v2(root.path(), "kubepods/pod");
    let cgroups = Cgroups::V2 {
        root: root.path().to_owned(),
    };
    let group = cgroups.group("/kubepods/pod/");
    group.create().unwrap();
    // The file of the fake holds what was written last; the kernel's would list all of them.
    assert_eq!(
        fs::read_to_string(root.path().join("kubepods/cgroup.subtree_control")).unwrap(),
        "+iodsy"
    );
    let resources = LinuxResources {
        cpu_shares: Some(1024),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(200_000),
        memory_bytes_max: Some(4096),
        pids_max: Some(9),
        hugepage_bytes_max: vec![("2MB".into(), 0), ("1GB".into(), 0)],
        ..Default::default()
    };
    let warnings = group.set(&resources).unwrap();
    assert_eq!(
        warnings,
        ["huge page limit of 1GB pages cannot be set on this node"]
    );
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap();
    assert_eq!(read("cpu.weight"), "39");
    assert_eq!(read("cpu.max"), "50000 200000");
    assert_eq!(
        (
            read("memory.max").as_str(),
            read("memory.swap.max").as_str(),
            read("pids.max").as_str()
        ),
        ("4096", "0", "9")
    );
    fs::write(directory.join("cpu.max"), "").unwrap();
    group
        .set(&LinuxResources {
            cpu_quota_us: Some(-1),
            ..Default::default()
        })
        .unwrap();
    assert_eq!(read("cpu.max"), "max 100000");
}

#[test]
fn v2_counters_are_read() {
    let root = tempfile::tempdir().unwrap();
    let directory = fake_v2(root.path(), "kubepods/pod");
    for (file, text) in [
        ("cpu.stat", "usage_usec 7\nuser_usec 3\n"),
        ("memory.stat", "anon 100\nfile 50\ninactive_file 30\n"),
        ("memory.current", "200\n"),
        ("pids.current", "4\n"),
        (
            "memory.events",
            "low 0\noom 3\noom_kill 2\noom_group_kill 1\n",
        ),
    ] {
        fs::write(directory.join(file), text).unwrap();
    }
    let cgroups = Cgroups::V2 {
        root: root.path().to_owned(),
    };
    let group = cgroups.group("kubepods/pod");
    let stats = group.stats().unwrap();
    assert_eq!(stats.cpu_usage_core_nanoseconds, 7000);
    assert_eq!(
        (
            stats.memory_usage_bytes,
            stats.memory_working_set_bytes,
            stats.memory_rss_bytes
        ),
        (200, 170, 100)
    );
    assert_eq!((stats.process_count, group.oom_kills()), (4, 2));
    assert_eq!(cgroups.group("gone").oom_kills(), 0);
}

#[test]
fn shares_become_weights_by_the_kubelets_formula() {
    for (shares, weight) in [
        (0, 1),
        (2, 1),
        (102, 4),
        (1024, 39),
        (262_144, 10_000),
        (u64::MAX, 10_000),
    ] {
        assert_eq!(cpu_weight(shares), weight);
    }
}

#[test]
fn a_real_group_is_made_limited_emptied_and_removed() {
    let cgroups = Cgroups::detect().unwrap();
    let path = format!("wherry-test-{}-group", std::process::id());
    let group = cgroups.group(&format!("{path}/inner"));
    group.create().unwrap();
    group.create().unwrap();
    group
        .set(&LinuxResources {
            memory_bytes_max: Some(64 << 20),
            pids_max: Some(10),
            ..Default::default()
        })
        .unwrap();
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    for root in cgroups.roots() {
        write(&root.join(&path).join("inner/cgroup.procs"), child.id()).unwrap();
    }
    let whole = cgroups.group(&path);
    assert_eq!(whole.processes(), [child.id() as i32]);
    assert!(group.stats().unwrap().process_count >= 1);
    // Whoever removes it need not be who reaps.
    let waiter = std::thread::spawn(move || child.wait().unwrap());
    whole.remove().unwrap();
    whole.remove().unwrap();
    assert!(!waiter.join().unwrap().success());
    assert!(
        cgroups
            .roots()
            .iter()
            .all(|root| !root.join(&path).exists())
    );
}

#[test]
fn a_device_program_allows_what_its_rules_say() {
    // v2 takes device programs beside v1 controllers too, so the real thing can be tried here.
    let root = match Cgroups::detect().unwrap() {
        Cgroups::V2 { root } => root,
        Cgroups::V1 { unified, .. } => unified.expect("a v2 hierarchy"),
    };
    let directory = root.join(format!("wherry-test-{}-devices", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let rules = [
        DeviceRule {
            kind: DeviceKind::Char,
            major: Some(1),
            minor: Some(3),
            access: "rw".to_owned(),
        },
        DeviceRule {
            kind: DeviceKind::Char,
            major: Some(1),
            minor: Some(5),
            access: "r".to_owned(),
        },
    ];
    devices::attach(&directory, &rules).unwrap();
    let script = "echo 0 > \"$0/cgroup.procs\"; t() { if eval \"$1\" 2>/dev/null; then echo y; else echo n; fi; }; \
                  t 'true > /dev/null'; t 'head -c 1 /dev/null'; t 'head -c 1 /dev/zero | wc -c | grep -q 1'; \
                  t 'true > /dev/zero'; t 'head -c 1 /dev/urandom | wc -c | grep -q 1'";
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(&directory)
        .output()
        .unwrap();
    let removed = fs::remove_dir(&directory);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .collect::<String>(),
        "yyynn",
        "{output:?}"
    );
    removed.unwrap();
}

#[test]
fn rules_print_as_v1_reads_them() {
    let text: Vec<String> = DeviceRule::defaults()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(text[0], "c *:* m");
    assert!(text.contains(&"c 1:3 rwm".to_owned()) && text.contains(&"c 136:* rwm".to_owned()));
}
