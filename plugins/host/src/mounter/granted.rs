//! What has to hold of every act that check.rs lets through, said once more and from the other end: of what the node is
//! then asked. For the fuzz target and the tests (untrusted.rs).

use std::net::{IpAddr, Ipv4Addr};

use super::{
    act::{gluster, in_kernels_words},
    check::{self, Allowed, Device, Hosts},
};
use crate::{Grants, named::NamedHosts, protocol::MountAsk};

/// Never among what the kernel is told, whatever was asked.
const NEVER: [&str; 8] = [
    "suid", "dev", "exec", "lowerdir", "upperdir", "workdir", "fd", "context",
];
/// What arguments of a program begin with.
const ARGUMENTS: [&str; 7] = [
    "--volfile-server=",
    "--volfile-id=",
    "--volfile-server-transport=",
    "--log-level=",
    "--direct-io-mode=",
    "--read-only",
    "--fuse-mountopts=nosuid,nodev",
];

/// # Panics
/// It would be done, and is not granted.
pub(crate) fn assert_granted(
    grants: &Grants,
    named: &NamedHosts,
    attached: &[String],
    ask: &MountAsk,
) {
    let hosts = Hosts { grants, named };
    let assert_host = |host: &str, port: u16| {
        let is_granted = grants.allows_host(host, port) || named.has(host, port);
        assert!(is_granted && !host.is_empty(), "{host}:{port}");
    };
    match ask {
        MountAsk::Mount {
            kind,
            source,
            options,
        } => {
            if let Ok(allowed) = check::mount(kind, source, options, &hosts, attached, false) {
                assert!(grants.mount_types.contains(kind), "{kind}");
                for (host, port) in &allowed.hosts {
                    assert_host(host, *port);
                }
                assert_mount(&allowed, attached);
            }
        }
        MountAsk::Attach { kind, parameters } => match check::device(kind, parameters, &hosts) {
            Ok(Device::Loop { file }) => {
                assert_device(grants, "loop", &file);
                let mut parts = file.split('/');
                assert_eq!(parts.next(), Some(""), "{file}");
                assert!(parts.all(|part| !["", ".", ".."].contains(&part)), "{file}");
            }
            Ok(Device::Iscsi { portal, target, .. }) => {
                assert_device(grants, "iscsi", &target);
                assert_word(&target);
                let (host, port) = check::host_and_port(&portal, 0).expect("a portal");
                assert_host(&host, port);
            }
            Ok(Device::Rbd {
                monitors,
                pool,
                image,
                user,
                key,
            }) => {
                assert_device(grants, "rbd", &format!("{pool}/{image}"));
                for (host, port) in &monitors {
                    assert_host(host, *port);
                }
                for word in [&pool, &image, &user] {
                    assert_word(word);
                }
                assert!(!key.contains([',', ' ', '\n']), "{key:?}");
            }
            Err(_) => {}
        },
        MountAsk::Format { .. } | MountAsk::Grow { .. } => {}
    }
}

/// Looks at what the kernel or a program is told.
fn assert_mount(allowed: &Allowed, attached: &[String]) {
    let some_address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let call = in_kernels_words(allowed, &vec![some_address; allowed.hosts.len()]);
    assert!(!call.source.contains('\\'), "{:?}", call.source);
    assert!(!call.source.contains("/../"), "{:?}", call.source);
    if allowed.hosts.is_empty() {
        let is_known = call.source == allowed.kind || attached.contains(&call.source);
        assert!(is_known, "{:?}", call.source);
    }
    let words: Vec<_> = call
        .data
        .split(',')
        .filter(|word| !word.is_empty())
        .collect();
    let addresses = words
        .iter()
        .filter(|word| word.starts_with("addr="))
        .count();
    assert!(addresses <= 1, "{}", call.data);
    assert_eq!(
        words.len(),
        allowed.options.len() + addresses,
        "{}",
        call.data
    );
    for word in words {
        let name = word.split('=').next().unwrap_or(word);
        assert!(!NEVER.contains(&name), "{}", call.data);
        assert!(!word.contains(char::is_whitespace), "{}", call.data);
    }
    if allowed.program.is_some() {
        let arguments = gluster(allowed, "/target");
        let (target, rest) = arguments.split_last().expect("a target");
        assert_eq!(target, "/target");
        for argument in rest {
            let is_known = ARGUMENTS.iter().any(|known| argument.starts_with(known));
            assert!(is_known, "{argument}");
        }
    }
}

fn assert_device(grants: &Grants, kind: &str, what: &str) {
    let wanted = format!("{kind}:{what}");
    let is_granted = grants.devices.iter().any(|granted| {
        granted
            .strip_suffix('*')
            .map_or(*granted == wanted, |beginning| {
                wanted.starts_with(beginning)
            })
    });
    assert!(is_granted, "{wanted}");
}

/// Something that stands among arguments and is no option there.
fn assert_word(word: &str) {
    assert!(
        !word.starts_with('-') && !word.contains(char::is_whitespace),
        "{word:?}"
    );
}
