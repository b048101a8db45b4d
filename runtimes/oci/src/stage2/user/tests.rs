#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n2000:x:5:6::/number:/bin/sh\n";
const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\nwheel:x:10:root,app\n";

fn bundle(user: &str) -> Bundle {
    Bundle {
        layers: Vec::new(),
        user: Some(user.to_owned()).filter(|user| !user.is_empty()),
        run_as_user: None,
        run_as_group: None,
        supplemental_groups: Vec::new(),
        seccomp: None,
        cgroup: String::new(),
        pod_shm: false,
        image_volumes: Vec::new(),
        user_namespace: None,
    }
}

fn resolved(bundle: &Bundle) -> Result<(u32, u32, Vec<u32>, String), String> {
    resolve(bundle, PASSWD, GROUP)
        .map(|identity| (identity.uid, identity.gid, identity.groups, identity.home))
        .map_err(|failure| failure.message)
}

#[test]
fn users_are_named_in_every_way_an_image_may() {
    for (user, uid, gid, groups, home) in [
        ("", 0, 0, vec![0, 10], "/root"),
        ("root", 0, 0, vec![0, 10], "/root"),
        ("app", 1000, 1001, vec![1001, 50, 10], "/home/app"),
        ("1000", 1000, 1001, vec![1001, 50, 10], "/home/app"),
        ("app:staff", 1000, 50, vec![50], "/home/app"),
        ("app:77", 1000, 77, vec![77], "/home/app"),
        ("4000", 4000, 0, vec![0], "/"),
        ("4000:50", 4000, 50, vec![50], "/"),
        ("2000", 2000, 0, vec![0], "/"),
        (":50", 0, 50, vec![50], "/root"),
    ] {
        assert_eq!(
            resolved(&bundle(user)),
            Ok((uid, gid, groups, home.to_owned())),
            "{user:?}"
        );
    }
}

#[test]
fn unknown_names_are_refused() {
    for (user, message) in [
        (
            "nobody",
            "unable to find user nobody: no matching entries in passwd file",
        ),
        (
            "app:nobody",
            "unable to find group nobody: no matching entries in group file",
        ),
        (
            "-1",
            "unable to find user -1: no matching entries in passwd file",
        ),
    ] {
        assert_eq!(resolved(&bundle(user)), Err(message.to_owned()));
    }
}

#[test]
fn the_pod_wins_over_the_image() {
    let asked = Bundle {
        run_as_user: Some(1000),
        run_as_group: Some(9),
        supplemental_groups: vec![9, 50, 8],
        ..bundle("root:wheel")
    };
    assert_eq!(
        resolved(&asked),
        Ok((1000, 9, vec![9, 50, 10, 8], "/home/app".to_owned()))
    );
}
