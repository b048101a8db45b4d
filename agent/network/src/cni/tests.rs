//! Debian's plugins, in a network namespace of the test's own.

use std::os::fd::{AsRawFd, OwnedFd};

use super::*;
use crate::pod_network::tests::{Netns, Node, connect, ip, listen, on_a_node, sh};

/// Where Debian's `containernetworking-plugins` puts them.
const PLUGINS: &str = "/usr/lib/cni";

fn config(node: &Node) -> CniConfig {
    let conf_dir = node.dir.path().join("net.d");
    fs::create_dir_all(&conf_dir).unwrap();
    CniConfig {
        dir: node.dir.path().join("cni"),
        conf_dir,
        bin_dirs: vec![node.dir.path().join("nothing"), PLUGINS.into()],
    }
}

/// A bridge with addresses from a directory of the test's own, and ports of the node.
fn configure(node: &Node, more: &str) {
    config(node);
    let data = node.dir.path().join("ipam").display().to_string();
    let list = format!(
        r#"{{"cniVersion": "1.0.0", "name": "test", "plugins": [
            {{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
              "ipam": {{"type": "host-local", "dataDir": "{data}", "ranges": [[{{"subnet": "10.90.0.0/24"}}]]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}, "snat": true}}{more}]}}"#
    );
    fs::write(node.dir.path().join("net.d/10-test.conflist"), list).unwrap();
}

fn reserved(node: &Node) -> usize {
    let dir = fs::read_dir(node.dir.path().join("ipam/test"));
    let names = dir
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("10."))
        .count()
}

/// A path that the plugins, which are other processes, can open.
fn path(netns: &Netns) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.0.as_raw_fd()).into()
}

fn pod(uid: &str) -> Member {
    Member {
        uid: uid.into(),
        namespace: "default".into(),
        name: uid.into(),
        ports: Vec::new(),
    }
}

#[test]
fn pods_are_attached_checked_made_anew_and_detached() {
    on_a_node(async |node| {
        let network = CniNetwork::new(config(&node)).unwrap();
        let (a, b) = (Netns::new(), Netns::new());
        let error = network.attach(&pod("a"), &path(&a)).await.unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("no network configuration is there yet"),
            "{error}"
        );
        configure(&node, "");
        let with_port = Member {
            ports: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: "tcp".into(),
                host_ip: None,
            }],
            ..pod("b")
        };
        let a_ip = network.attach(&pod("a"), &path(&a)).await.unwrap()[0];
        let b_ip = network.attach(&with_port, &path(&b)).await.unwrap()[0];
        assert_eq!((a_ip, b_ip), (ip("10.90.0.2"), ip("10.90.0.3")));
        let listener = b.run(|| std::net::TcpListener::bind((b_ip, 80)).unwrap());
        assert_eq!(a.run(|| connect(&listener, (b_ip, 80).into())), a_ip);
        let node_port = (ip("10.90.0.1"), 8080).into();
        a.run(|| connect(&listener, node_port));
        let (own, at) = a.run(|| listen(ip("127.0.0.1")));
        a.run(|| connect(&own, at));

        // A second agent finds it in order, and has it made anew where it is not.
        let again = CniNetwork::new(config(&node)).unwrap();
        assert_eq!(again.attach(&pod("a"), &path(&a)).await.unwrap(), [a_ip]);
        assert_eq!(reserved(&node), 2);
        a.run(|| sh("ip link del eth0"));
        let a_ip = again.attach(&pod("a"), &path(&a)).await.unwrap()[0];
        assert_eq!(a.run(|| connect(&listener, (b_ip, 80).into())), a_ip);
        assert_eq!(reserved(&node), 2);

        // Killed between the call and the note of its answer; and then the namespace goes, too.
        let mut left = again.read("b").unwrap().unwrap();
        left.result = None;
        again.write("b", &left).unwrap();
        let b_ip = again.attach(&with_port, &path(&b)).await.unwrap()[0];
        let listener = b.run(|| std::net::TcpListener::bind((b_ip, 80)).unwrap());
        assert_eq!(a.run(|| connect(&listener, (b_ip, 80).into())), a_ip);
        drop(listener);
        // Its path is another's by then: that one is left as it is.
        let mut b = OwnedFd::from(b.0);
        nix::unistd::dup2(&a.0, &mut b).unwrap();
        again
            .retain(&HashSet::from(["a".to_owned()]))
            .await
            .unwrap();
        assert_eq!(reserved(&node), 1);
        a.run(|| sh("ip link show eth0"));
        again.detach("never").await.unwrap();
        again.down().await.unwrap();
        assert_eq!(reserved(&node), 0);
        assert_eq!(
            fs::read_dir(node.dir.path().join("cni")).unwrap().count(),
            0
        );
        let rules = sh("iptables-save -t nat 2>/dev/null || true");
        assert!(!rules.contains("10.90.0.3"), "{rules}");
    });
}

#[test]
fn nothing_is_left_of_an_attachment_that_failed() {
    on_a_node(async |node| {
        configure(&node, r#", {"type": "absent"}"#);
        let network = CniNetwork::new(config(&node)).unwrap();
        let netns = Netns::new();
        let error = network.attach(&pod("a"), &path(&netns)).await.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cni: plugin absent, ADD: it is not in "),
            "{error}"
        );
        assert!(network.known().unwrap().is_empty());
        // One that is there and fails: what was made before it is unmade.
        configure(
            &node,
            r#", {"type": "tuning", "sysctl": {"net.core.none": "1"}}"#,
        );
        let error = network.attach(&pod("a"), &path(&netns)).await.unwrap_err();
        assert!(
            error.to_string().contains("plugin tuning, ADD: "),
            "{error}"
        );
        assert_eq!(reserved(&node), 0);
        assert!(network.known().unwrap().is_empty());
    });
}

#[test]
fn a_plugins_own_words_are_told() {
    on_a_node(async |node| {
        configure(&node, "");
        let file = node.dir.path().join("net.d/10-test.conflist");
        let list = fs::read_to_string(&file).unwrap();
        fs::write(&file, list.replace("10.90.0.0/24", "10.90.0.0/33")).unwrap();
        let network = CniNetwork::new(config(&node)).unwrap();
        let netns = Netns::new();
        let error = network.attach(&pod("a"), &path(&netns)).await.unwrap_err();
        assert!(
            error.to_string().contains("plugin bridge, ADD: ")
                && error.to_string().contains("10.90.0.0/33"),
            "{error}"
        );
        network.down().await.unwrap();
    });
}
