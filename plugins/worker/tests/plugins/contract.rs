//! Versions of the contract: plugins of earlier ones are called as ever (tests/contract holds one of each world as it was
//! built against the version that brought the world), and one that was built against a newer contract than this node's is refused by reason.

use std::{fs, path::Path, path::PathBuf, time::Duration};

use libtest_mimic::Trial;
use tokio::net::TcpListener;
use wherry_plugin_host::{Grants, PluginSpec, ProbeResult, World};

use super::{LOOPBACK, Node, block_on, spec};

pub(crate) fn trials() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(
                concat!("contract::", stringify!($name)),
                || { block_on($name()); Ok(()) },
            )),*]
        };
    }
    trials![
        plugins_of_earlier_contracts_are_linked_and_called,
        a_plugin_of_another_contract_is_refused_by_reason,
    ]
}

/// A component that was built against version 0.1.0: `probe` (`tcp-socket`), `populator` (that of the tests), `mounter`
/// (`loop`), `filesystem` (`memfs`).
pub(crate) fn first(world: &str) -> PathBuf {
    let first = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract/0.1.0");
    first.join(world).with_extension("wasm")
}

/// What is installed of it, with every grant that the four of them need to be installed.
pub(crate) fn first_spec(world: &str) -> PluginSpec {
    PluginSpec {
        digest: format!("sha256:first-{world}"),
        grants: Grants {
            mount_types: vec!["ext4".into()],
            devices: vec!["loop:/srv/wherry-images/*".into()],
            ..Grants::default()
        },
        ..spec(world)
    }
}

async fn plugins_of_earlier_contracts_are_linked_and_called() {
    let node = Node::open();
    for (name, world) in [
        ("probe", World::Probe),
        ("populator", World::Populator),
        ("mounter", World::Mounter),
        ("filesystem", World::Filesystem),
    ] {
        let imports = node.host.install(first_spec(name), &first(name)).await;
        let imports = imports.unwrap_or_else(|error| panic!("{name}: {error}"));
        let is_first =
            |import: &String| import.starts_with("wherry:plugin/") && import.ends_with("@0.1.0");
        assert!(imports.iter().any(is_first), "{imports:?}");
        assert_eq!(node.host.world(name), Some(world));
    }
    let expanding = "expanding-mounter";
    let wasm = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract/0.1.1");
    let wasm = wasm.join(expanding).with_extension("wasm");
    let imports = node.host.install(first_spec(expanding), &wasm).await;
    let imports = imports.unwrap_or_else(|error| panic!("{expanding}: {error}"));
    assert!(
        imports.contains(&"wherry:plugin/mounts@0.1.1".to_owned()),
        "{imports:?}"
    );
    assert_eq!(node.host.world(expanding), Some(World::Mounter));
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = format!("--port={}", listener.local_addr().unwrap().port());
    let check = async || {
        let time = Duration::from_secs(10);
        node.check_with("probe", &[&port], time).await
    };
    let said = check().await;
    assert_eq!(said.result, ProbeResult::Success, "{said:?}");
    drop(listener);
    let said = check().await;
    assert_eq!(said.result, ProbeResult::Failure, "{said:?}");
}

async fn a_plugin_of_another_contract_is_refused_by_reason() {
    let node = Node::open();
    let directory = tempfile::tempdir().unwrap();
    let was = fs::read(first("probe")).unwrap();
    for (version, why) in [
        (
            "0.1.9",
            "it was built against wherry:plugin@0.1.9, and this node has 0.1.2: update the node, or build it against 0.1.2",
        ),
        (
            "0.9.0",
            "it was built against wherry:plugin@0.9.0, and this node has 0.1.2: update the node",
        ),
        (
            "0.0.3",
            "it was built against wherry:plugin@0.0.3, which this node does not know any more",
        ),
    ] {
        let mut wasm = was.clone();
        let (from, to) = (b"@0.1.0", format!("@{version}"));
        for at in 0..wasm.len() - from.len() {
            if wasm[at..].starts_with(from) {
                wasm[at..at + from.len()].copy_from_slice(to.as_bytes());
            }
        }
        let file = directory.path().join(version).with_extension("wasm");
        fs::write(&file, wasm).unwrap();
        let spec = PluginSpec {
            digest: format!("sha256:of-{version}"),
            ..spec("other")
        };
        let refused = node
            .host
            .install(spec, &file)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            refused.starts_with("plugin other: ") && refused.contains(why),
            "{refused}"
        );
    }
}
