use super::*;

fn grants() -> Grants {
    Grants {
        hosts: [
            "10.0.0.1",
            "10.0.0.3:2049",
            "10.0.0.4:20490",
            "*.storage.example",
        ]
        .map(Into::into)
        .into(),
        mount_types: ["nfs4", "ceph", "ext4", "tmpfs", "glusterfs"]
            .map(Into::into)
            .into(),
        devices: vec![
            "loop:/srv/images/*".into(),
            "iscsi:iqn.2026-01.example:disk".into(),
            "rbd:rbd/*".into(),
        ],
        ..Grants::default()
    }
}

fn pairs(options: &[(&str, &str)]) -> Vec<(String, String)> {
    let options = options.iter();
    options.map(|(a, b)| ((*a).into(), (*b).into())).collect()
}

fn try_mount(kind: &str, source: &str, options: &[(&str, &str)]) -> Result<Allowed, String> {
    let (grants, named) = (grants(), NamedHosts::default());
    let hosts = Hosts {
        grants: &grants,
        named: &named,
    };
    let attached = ["/dev/loop7".to_owned()];
    mount(kind, source, &pairs(options), &hosts, &attached, false)
        .map_err(|error| error.to_string())
}

#[test]
fn a_mount_is_what_is_granted_and_no_other() {
    let allowed = try_mount(
        "nfs4",
        "10.0.0.1:/export",
        &[("vers", "4.1"), ("soft", ""), ("ro", "")],
    );
    assert_eq!(
        allowed,
        Ok(Allowed {
            kind: "nfs4",
            source: "10.0.0.1:/export".into(),
            program: None,
            is_read_only: true,
            flags: Vec::new(),
            options: pairs(&[("vers", "4.1"), ("soft", "")]),
            hosts: vec![("10.0.0.1".into(), 2049)],
        })
    );
    assert!(try_mount("nfs4", "10.0.0.4:/x", &[("port", "20490")]).is_ok());
    assert!(try_mount("ext4", "/dev/loop7", &[("noatime", "")]).is_ok());
    assert!(try_mount("tmpfs", "anything", &[("size", "1m")]).is_ok());
    assert!(
        try_mount(
            "ceph",
            "a.storage.example,10.0.0.1:6790:/x",
            &[("name", "admin")]
        )
        .is_ok()
    );
    for (kind, source, options, expected) in [
        (
            "proc",
            "proc",
            &[][..],
            "not a file system that is known here",
        ),
        (
            "overlay",
            "overlay",
            &[("lowerdir", "/etc")],
            "not a file system",
        ),
        (
            "nfs",
            "10.0.0.1:/x",
            &[],
            "mounting nfs needs the grant mountTypes",
        ),
        (
            "xfs",
            "/dev/loop7",
            &[],
            "mounting xfs needs the grant mountTypes",
        ),
        (
            "ext4",
            "/dev/sda1",
            &[],
            "not a device that this call has attached",
        ),
        (
            "ext4",
            "/dev/../etc",
            &[],
            "not a device that this call has attached",
        ),
        (
            "nfs4",
            "10.0.0.2:/x",
            &[],
            "10.0.0.2:2049 needs the grant hosts",
        ),
        ("nfs4", "/etc", &[], "not host:/path"),
        ("nfs4", "10.0.0.1:/a/../../b", &[], ".."),
        ("nfs4", "-oproxy:/x", &[], "not host:/path"),
        ("nfs4", "10.0.0.1:/x\n", &[], "control characters"),
        ("nfs4", "10.0.0.1:/x", &[("vers", "4,suid")], "a comma"),
        ("nfs4", "10.0.0.1:/x", &[("vers=3,dev", "")], "a comma"),
        (
            "nfs4",
            "10.0.0.1:/x",
            &[("vers=3", "")],
            "option \"vers=3\"",
        ),
        (
            "nfs4",
            "10.0.0.1:/x",
            &[("suid", "")],
            "not one that nfs4 may be given",
        ),
        (
            "nfs4",
            "10.0.0.1:/x",
            &[("dev", "")],
            "not one that nfs4 may be given",
        ),
        (
            "nfs4",
            "10.0.0.1:/x",
            &[("addr", "10.0.0.2")],
            "not one that nfs4 may be given",
        ),
        ("nfs4", "10.0.0.1:/x", &[("ro", "no")], "has no value"),
        ("nfs4", "10.0.0.1:111:/x", &[], "is given no port there"),
        (
            "nfs4",
            "10.0.0.1:/x",
            &[("port", "x")],
            "option \"port\": no port",
        ),
        (
            "nfs4",
            "10.0.0.3:/x",
            &[("port", "111")],
            "10.0.0.3:111 needs the grant hosts",
        ),
        (
            "nfs4",
            "10.0.0.3:/x",
            &[("mountport", "111")],
            "10.0.0.3:111 needs the grant hosts",
        ),
        (
            "ext4",
            "/dev/loop7",
            &[("journal_path", "/etc/passwd")],
            "not one that ext4",
        ),
        (
            "ceph",
            "10.0.0.1,10.0.0.9:/x",
            &[],
            "10.0.0.9:6789 needs the grant hosts",
        ),
        (
            "glusterfs",
            "10.0.0.1:/v",
            &[("backup-volfile-servers", "10.0.0.1:10.0.0.9")],
            "10.0.0.9:24007 needs the grant hosts",
        ),
    ] {
        let refused = try_mount(kind, source, options).unwrap_err();
        assert!(
            refused.contains(expected),
            "{kind} {source} {options:?}: {refused}"
        );
    }
}

fn try_device(kind: &str, parameters: &[(&str, &str)]) -> Result<Device, String> {
    let (grants, named) = (grants(), NamedHosts::default());
    let hosts = Hosts {
        grants: &grants,
        named: &named,
    };
    device(kind, &pairs(parameters), &hosts).map_err(|error| error.to_string())
}

#[test]
fn a_device_is_what_is_granted_and_no_other() {
    let image = || "/srv/images/a.img".to_owned();
    assert_eq!(
        try_device("loop", &[("file", &image())]),
        Ok(Device::Loop { file: image() })
    );
    let iqn = "iqn.2026-01.example:disk";
    for (kind, parameters, expected) in [
        ("nbd", &[("file", "x")][..], "not a kind that is known here"),
        (
            "loop",
            &[("file", "/etc/shadow")],
            "loop:/etc/shadow needs the grant devices",
        ),
        (
            "loop",
            &[("file", "/srv/images/../../etc/shadow")],
            "without ..",
        ),
        ("loop", &[("file", "/srv/images//x")], "without .."),
        ("loop", &[("file", "srv/images/x")], "not an absolute path"),
        ("loop", &[], "file is missing"),
        ("loop", &[("flie", "x")], "\"flie\" is not a parameter"),
        (
            "iscsi",
            &[("portal", "10.0.0.1"), ("target", "iqn.other")],
            "needs the grant devices",
        ),
        (
            "iscsi",
            &[("portal", "10.9.9.9"), ("target", iqn)],
            "10.9.9.9:3260 needs the grant hosts",
        ),
        (
            "iscsi",
            &[("portal", "10.0.0.1:x"), ("target", iqn)],
            "not host:port",
        ),
        (
            "iscsi",
            &[("portal", "10.0.0.1"), ("target", iqn), ("lun", "-1")],
            "lun",
        ),
        (
            "iscsi",
            &[("portal", "10.0.0.1"), ("target", "-x y")],
            "not a name",
        ),
        (
            "iscsi",
            &[("portal", "10.0.0.1"), ("target", iqn), ("username", "x")],
            "go together",
        ),
        (
            "rbd",
            &[("monitors", "10.0.0.1"), ("image", "i"), ("pool", "other")],
            "rbd:other/i needs",
        ),
        (
            "rbd",
            &[("monitors", "10.0.0.1"), ("image", "i -o x")],
            "not a name",
        ),
        (
            "rbd",
            &[("monitors", "10.0.0.1"), ("image", "i"), ("key", "a b")],
            "not a key",
        ),
        (
            "rbd",
            &[("monitors", "10.0.0.1,"), ("image", "i")],
            "not host:port",
        ),
    ] {
        let refused = try_device(kind, parameters).unwrap_err();
        assert!(
            refused.contains(expected),
            "{kind} {parameters:?}: {refused}"
        );
    }
}

#[test]
fn what_only_the_volume_names_is_told_apart() {
    let grants = Grants::default();
    let named = NamedHosts::of(&[("server".to_owned(), "nas".to_owned())].into());
    let hosts = Hosts {
        grants: &grants,
        named: &named,
    };
    assert!(hosts.allow("nas", 2049).is_ok() && hosts.is_only_named("nas", 2049));
    assert!(hosts.allow("other", 2049).is_err());
}
