//! A network of a test's own: the node's namespace and, behind a veth, one that plays the outside.

use std::{
    ffi::OsStr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Two network namespaces, removed when dropped.
pub struct Network {
    name: String,
    outside: String,
}

impl Network {
    /// The node's address.
    pub const NODE_IP: &str = "10.51.0.1";
    /// The address of "the outside", where the node's default route leads.
    pub const OUTSIDE_IP: &str = "10.51.0.2";

    /// Makes the namespaces.
    #[expect(
        clippy::new_without_default,
        reason = "it makes things on the machine, which a default should not"
    )]
    pub fn new() -> Self {
        let name = format!(
            "wt{}n{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let network = Self {
            outside: format!("{name}o"),
            name,
        };
        let (node, outside) = (&network.name, &network.outside);
        for line in [
            format!("netns add {node}"),
            format!("netns add {outside}"),
            format!("-n {node} link set lo up"),
            format!("-n {outside} link set lo up"),
            format!("link add eth0 netns {node} type veth peer name eth0 netns {outside}"),
            format!("-n {node} addr add {}/24 dev eth0", Self::NODE_IP),
            format!("-n {outside} addr add {}/24 dev eth0", Self::OUTSIDE_IP),
            format!("-n {node} link set eth0 up"),
            format!("-n {outside} link set eth0 up"),
            format!("-n {node} route add default via {}", Self::OUTSIDE_IP),
        ] {
            let output = Command::new("ip")
                .args(line.split(' '))
                .output()
                .expect("ip starts");
            assert!(
                output.status.success(),
                "ip {line}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        network
    }

    /// The node's namespace, also a good name for what else has to be unique.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in the node's network, and shares all else with this process.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        within(&self.name, program)
    }

    /// A command that will run outside.
    pub fn outside_command(&self, program: impl AsRef<OsStr>) -> Command {
        within(&self.outside, program)
    }
}

/// A command that will run in a network namespace (`ip netns`).
// `ip netns exec` would also hide the cgroups mounted under /sys.
pub fn within(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{namespace}"))
        .arg("--")
        .arg(program);
    command
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [&self.name, &self.outside] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}
