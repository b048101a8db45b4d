//! Provisioners: what a guest may make and remove on the node, what is taken of what it answers, and the built-in one.

use std::{fs, path::Path, time::Duration};

use libtest_mimic::Trial;
use wherry_plugin_host::{
    Grants, PluginSpec, VolumeError,
    protocol::{ClaimAccess, Created, Fault, Wanted},
    volume::{VolumeFailure, VolumeRequest},
};

use super::{Node, block_on, contract, guest_named, spec};

const MIB: u64 = 1 << 20;

pub(crate) fn trials() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(
                concat!("provisioners::", stringify!($name)),
                || { block_on($name()); Ok(()) },
            )),*]
        };
    }
    trials![
        what_a_provisioner_answers_is_a_volume,
        a_bad_provisioner_costs_its_call_and_is_told_of,
        a_provisioner_touches_its_volumes_image_and_no_other_file,
        what_makes_no_volumes_says_so,
        an_image_is_made_for_a_claim_and_removed,
    ]
}

/// The guest that does what it is told.
async fn scripted(more: impl FnOnce(&mut PluginSpec)) -> Node {
    let node = Node::open();
    let mut spec = spec("scripted");
    spec.digest = "sha256:provisioner-plugin".into();
    spec.grants = Grants::default();
    spec.limits.wall_time_max = Duration::from_secs(60);
    spec.limits.cpu_time_max = Duration::from_secs(20);
    spec.limits.memory_bytes_max = 128 << 20;
    more(&mut spec);
    let wasm = guest_named("populator_plugin");
    node.host.install(spec, &wasm).await.unwrap();
    node
}

fn request(plugin: &str, attributes: &[(&str, &str)]) -> VolumeRequest {
    let attributes = attributes.iter();
    VolumeRequest {
        plugin: plugin.into(),
        name: "pvc-1".into(),
        attributes: attributes
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
        ..VolumeRequest::default()
    }
}

fn wanted(bytes: u64) -> Wanted {
    Wanted {
        bytes_min: bytes,
        bytes_max: None,
        access: vec![ClaimAccess::ReadWriteOnce],
        claim: "ns/data".into(),
    }
}

async fn create(node: &Node, attributes: &[(&str, &str)]) -> Result<Created, VolumeFailure> {
    let request = request("scripted", attributes);
    node.host.create_volume(&request, wanted(100)).await
}

async fn what_a_provisioner_answers_is_a_volume() {
    let node = scripted(|_| {}).await;
    let made = create(&node, &[("do", "well")]).await.unwrap();
    let expected = Created {
        handle: "pvc-1 for ns/data".into(),
        bytes: 100,
        attributes: vec![("do".into(), "write".into())],
        is_of_this_node: false,
    };
    assert_eq!(made, expected);
    let mut asked = request("scripted", &[("do", "secret")]);
    asked.credentials.insert("key".into(), b"hunter2".to_vec());
    let made = node.host.create_volume(&asked, wanted(1)).await.unwrap();
    assert_eq!(made.handle, "hunter2");
    node.host.delete_volume(&asked, "hunter2").await.unwrap();
}

async fn a_bad_provisioner_costs_its_call_and_is_told_of() {
    let node = scripted(|spec| {
        spec.limits.wall_time_max = Duration::from_secs(20);
        spec.limits.cpu_time_max = Duration::from_millis(500);
    })
    .await;
    for (word, why) in [
        ("trap", "trap:"),
        ("spin", "more than 500 ms of CPU time"),
        ("not-utf8", "trap:"),
        ("less", "the volume holds 99 bytes and not 100"),
        ("more", "no volume holds 18446744073709551615 bytes"),
        ("stray", "has a part .."),
        ("enormous", "is longer than 1024 bytes"),
        ("many", "more than 64 attributes"),
        ("nonsense", "invalid attributes: no word of mine: nonsense"),
    ] {
        let said = create(&node, &[("do", word)]).await.unwrap_err();
        let said = said.to_string();
        assert!(said.starts_with("plugin scripted: "), "{word}: {said}");
        assert!(said.contains(why) && said.len() < 300, "{word}: {said}");
    }
    let full = create(&node, &[("do", "full")]).await.unwrap_err();
    assert!(full.is_no_space(), "{full}");
    // Handles that nobody may have are not passed on.
    let asked = request("scripted", &[("do", "trap")]);
    for (handle, why) in [("..", "has a part .."), ("", "is empty"), ("fine", "trap:")] {
        let said = node.host.delete_volume(&asked, handle).await.unwrap_err();
        assert!(said.to_string().contains(why), "{said}");
    }
    // The same again sets the volume apart, and no other one.
    let mut said = String::new();
    for _ in 0..6 {
        said = create(&node, &[("do", "trap")])
            .await
            .unwrap_err()
            .to_string();
    }
    assert!(said.contains("is not tried for another"), "{said}");
    create(&node, &[("do", "well")]).await.unwrap();
}

async fn a_provisioner_touches_its_volumes_image_and_no_other_file() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    let below = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let images = below("images");
    let node = scripted(|spec| spec.grants.devices = vec![format!("image:{images}/*")]).await;
    let make = |directory: &str| {
        let attributes = vec![
            ("do".to_owned(), "image".to_owned()),
            ("directory".into(), directory.to_owned()),
        ];
        let mut asked = request("scripted", &[]);
        asked.attributes = attributes.into_iter().collect();
        asked
    };
    let asked = make(&images);
    let made = node.host.create_volume(&asked, wanted(MIB)).await.unwrap();
    assert_eq!(Path::new(&made.handle), root.join("images/pvc-1.img"));
    assert_eq!(fs::metadata(&made.handle).unwrap().len(), MIB);
    for (elsewhere, why) in [
        (below("other"), "needs the grant devices"),
        (
            format!("{images}/../other"),
            "not an absolute path without ..",
        ),
        ("/etc".into(), "needs the grant devices"),
    ] {
        let said = node
            .host
            .create_volume(&make(&elsewhere), wanted(MIB))
            .await;
        let said = said.unwrap_err().to_string();
        assert!(said.contains(why), "{elsewhere}: {said}");
    }
    let mut stray = make(&images);
    stray.name = "../../etc/x".into();
    assert!(node.host.create_volume(&stray, wanted(MIB)).await.is_err());
    // Each in its own call, and not for ever.
    for (word, why) in [
        ("remove", "images are removed by delete"),
        ("image-forever", "more than 16 acts in one call"),
    ] {
        let said = create(&node, &[("do", word), ("directory", &images)]).await;
        let said = said.unwrap_err().to_string();
        assert!(said.contains(why), "{word}: {said}");
    }
    let mut wrong = asked.clone();
    wrong.attributes.insert("do".into(), "make".into());
    let said = node.host.delete_volume(&wrong, "x").await.unwrap_err();
    assert!(
        said.to_string().contains("images are made by create"),
        "{said}"
    );
    for _ in 0..2 {
        node.host.delete_volume(&asked, &made.handle).await.unwrap();
    }
    assert!(!Path::new(&made.handle).exists());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "nothing beside");
}

async fn what_makes_no_volumes_says_so() {
    let node = Node::open();
    for plugin in ["memfs", "nfs", "git"] {
        let asked = request(plugin, &[]);
        let said = node
            .host
            .create_volume(&asked, wanted(1))
            .await
            .unwrap_err();
        assert!(said.is_no_provisioner(), "{plugin}: {said}");
    }
    // One of an earlier contract.
    let wasm = contract::first("mounter");
    let installed = node
        .host
        .install(contract::first_spec("mounter"), &wasm)
        .await;
    installed.unwrap();
    let asked = request("mounter", &[]);
    let said = node
        .host
        .create_volume(&asked, wanted(1))
        .await
        .unwrap_err();
    assert!(said.is_no_provisioner(), "{said}");
    let absent = request("absent", &[]);
    let said = node.host.create_volume(&absent, wanted(1)).await;
    assert!(
        matches!(said, Err(VolumeFailure::NotInstalled(_))),
        "{said:?}"
    );
}

async fn an_image_is_made_for_a_claim_and_removed() {
    let node = Node::open();
    let mut asked = request("loop", &[]);
    // No other test's, and no other run's.
    asked.name = format!("pvc-{}", std::process::id());
    let made = node
        .host
        .create_volume(&asked, wanted(5 * MIB + 1))
        .await
        .unwrap();
    let file = format!("/srv/wherry-images/{}.img", asked.name);
    let pairs = [("file", file.as_str()), ("fsType", "ext4")];
    let expected = Created {
        handle: file.clone(),
        bytes: 6 * MIB,
        attributes: pairs
            .map(|(key, value)| (key.into(), value.into()))
            .to_vec(),
        is_of_this_node: true,
    };
    assert_eq!(made, expected);
    assert_eq!(
        node.host
            .create_volume(&asked, wanted(5 * MIB + 1))
            .await
            .unwrap(),
        expected
    );
    assert_eq!(fs::metadata(&file).unwrap().len(), 6 * MIB);
    let mut taking = asked.clone();
    taking.attributes = made.attributes.into_iter().collect();
    for _ in 0..2 {
        node.host
            .delete_volume(&taking, &made.handle)
            .await
            .unwrap();
    }
    assert!(!Path::new(&file).exists());

    type Change<'a> = &'a dyn Fn(&mut VolumeRequest, &mut Wanted);
    let refused = async |change: Change<'_>| {
        let (mut asked, mut wanted) = (asked.clone(), wanted(MIB));
        change(&mut asked, &mut wanted);
        let said = node.host.create_volume(&asked, wanted).await.unwrap_err();
        match &said {
            VolumeFailure::Failed {
                fault: Fault::Volume(VolumeError::InvalidAttributes(why)),
                ..
            } => why.clone(),
            other => other.to_string(),
        }
    };
    let cases: [(Change<'_>, &str); 5] = [
        (
            &|_, wanted| wanted.access = vec![ClaimAccess::ReadWriteMany],
            "access mode ReadWriteMany: only one node can reach the volume",
        ),
        (
            &|asked, _| asked.fs_type = Some("ntfs".into()),
            "neither ext4 nor xfs",
        ),
        (
            &|_, wanted| wanted.bytes_max = Some(MIB),
            "the claim's limit is 1048576",
        ),
        (
            &|asked, _| {
                asked.attributes.insert("colour".into(), "red".into());
            },
            "colour is not known here",
        ),
        (
            &|asked, _| {
                asked.attributes.insert("directory".into(), "/etc".into());
            },
            "needs the grant devices",
        ),
    ];
    for (change, why) in cases {
        let said = refused(change).await;
        assert!(said.contains(why), "{said}");
    }
    assert!(!Path::new(&file).exists());

    // The operator's own image is nobody's to remove.
    let mut fixed = asked.clone();
    fixed
        .attributes
        .insert("file".into(), "/srv/wherry-images/of-the-operator".into());
    let made = node.host.create_volume(&fixed, wanted(MIB)).await.unwrap();
    assert_eq!(
        (made.handle.as_str(), made.is_of_this_node),
        (asked.name.as_str(), false)
    );
    node.host.delete_volume(&fixed, &made.handle).await.unwrap();
}
