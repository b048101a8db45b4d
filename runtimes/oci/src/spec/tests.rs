#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn sandbox() -> PodSandboxConfig {
    PodSandboxConfig {
        hostname: Some("host".into()),
        ..PodSandboxConfig::new("u", "p", "n", "/log", "kubepods/pod1")
    }
}

fn config() -> ContainerConfig {
    ContainerConfig::new("c", "sha256:0", "i", "/log/0.log")
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

#[test]
fn the_command_line_follows_the_table_of_the_documentation() {
    let image = ImageDefaults {
        entrypoint: strings(&["/ep-1"]),
        command: strings(&["foo", "bar"]),
        ..Default::default()
    };
    for (command, args, expected) in [
        (&[][..], &[][..], &["/ep-1", "foo", "bar"][..]),
        (&["/ep-2"], &[], &["/ep-2"]),
        (&[], &["zoo", "boo"], &["/ep-1", "zoo", "boo"]),
        (&["/ep-2"], &["zoo", "boo"], &["/ep-2", "zoo", "boo"]),
    ] {
        let config = ContainerConfig {
            command: strings(command),
            args: strings(args),
            ..config()
        };
        assert_eq!(arguments(&config, &image).unwrap(), strings(expected));
    }
    let error = arguments(&config(), &ImageDefaults::default()).unwrap_err();
    assert_eq!(error.to_string(), "no command specified");
}

#[test]
fn later_environment_wins_in_the_place_of_the_earlier() {
    let image = ImageDefaults {
        env: strings(&["PATH=/image", "A=1", "B=2"]),
        ..Default::default()
    };
    let config = ContainerConfig {
        env: vec![("A".into(), "x=y".into()), ("C".into(), String::new())],
        tty: true,
        ..config()
    };
    assert_eq!(
        environment(&sandbox(), &config, &image),
        strings(&[
            "PATH=/image",
            "HOSTNAME=host",
            "TERM=xterm",
            "A=x=y",
            "B=2",
            "C="
        ])
    );
}

#[test]
fn capabilities_are_what_add_and_drop_leave() {
    let count = |add: &[&str], drop: &[&str], privileged| {
        let security = ContainerSecurity {
            capabilities_add: strings(add),
            capabilities_drop: strings(drop),
            privileged,
            ..Default::default()
        };
        capabilities(&security, 40)
            .map(|held| held.len())
            .map_err(|error| error.to_string())
    };
    for (add, drop, expected) in [
        (&[][..], &[][..], 14),
        (&["NET_ADMIN"], &[], 15),
        (&["net_admin", "CAP_NET_ADMIN"], &["CHOWN"], 14),
        (&[], &["ALL"], 0),
        (&["CHOWN"], &["ALL"], 1),
        (&["ALL"], &[], 41),
        (&["ALL"], &["SYS_ADMIN"], 40),
        (&["ALL"], &["ALL"], 41),
    ] {
        assert_eq!(
            count(add, drop, false),
            Ok(expected),
            "add {add:?} drop {drop:?}"
        );
    }
    assert_eq!(count(&[], &["ALL"], true), Ok(41));
    assert_eq!(
        count(&["FLY"], &[], false),
        Err("unknown capability \"CAP_FLY\"".to_owned())
    );
}

#[test]
fn root_is_refused_whichever_way_it_is_named() {
    let verify = |user: Option<u32>, image: Option<&str>| {
        let security = ContainerSecurity {
            run_as_non_root: true,
            run_as_user: user,
            ..Default::default()
        };
        verify_run_as_non_root(
            &sandbox(),
            &ContainerConfig {
                security,
                ..config()
            },
            image,
        )
        .map_err(|error| error.to_string())
    };
    let whom = "(pod: \"p_n(u)\", container: c)";
    for (user, image, trouble) in [
        (
            Some(0),
            None,
            "container's runAsUser breaks non-root policy",
        ),
        (
            None,
            None,
            "container has runAsNonRoot and image will run as root",
        ),
        (
            None,
            Some("0:1000"),
            "container has runAsNonRoot and image will run as root",
        ),
        (
            None,
            Some("app"),
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root",
        ),
    ] {
        assert_eq!(verify(user, image), Err(format!("{trouble} {whom}")));
    }
    assert_eq!(verify(Some(5), Some("root")), Ok(()));
    assert_eq!(verify(None, Some("1000:0")), Ok(()));
}

#[test]
fn a_spec_is_what_other_runtimes_understand() {
    let image = ImageDefaults {
        command: strings(&["/bin/app"]),
        ..Default::default()
    };
    let spec = build(&sandbox(), &config(), &image, &[], "kubepods/pod1/c").unwrap();
    let text = serde_json::to_value(&spec).unwrap();
    assert_eq!(
        text["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        14
    );
    assert!(
        text["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .iter()
            .all(|name| name.as_str().unwrap().starts_with("CAP_"))
    );
    assert_eq!(
        text["linux"]["maskedPaths"].as_array().unwrap().len(),
        MASKED_PATHS.len()
    );
    assert_eq!(text["process"]["cwd"], "/");
    let again: Spec = serde_json::from_value(text).unwrap();
    assert_eq!(again, spec);
    let privileged = ContainerConfig {
        security: ContainerSecurity {
            privileged: true,
            ..Default::default()
        },
        ..config()
    };
    let spec = build(&sandbox(), &privileged, &image, &[], "x").unwrap();
    assert_eq!(
        spec.linux().as_ref().unwrap().masked_paths().as_deref(),
        Some(&[][..])
    );
}

#[test]
fn an_apparmor_profile_has_to_be_loaded() {
    let loaded = AppArmor::Enabled(Some(
        "docker-default (enforce)\n/usr/bin/man (complain)\n".to_owned(),
    ));
    assert!(loaded.verify("docker-default").is_ok());
    assert!(loaded.verify("/usr/bin/man").is_ok());
    assert!(matches!(
        loaded.verify("docker"),
        Err(RuntimeError::InvalidArgument(_))
    ));
    // Only who applies it can tell.
    assert!(AppArmor::Enabled(None).verify("docker").is_ok());
    assert!(matches!(
        AppArmor::Absent.verify("docker-default"),
        Err(RuntimeError::Unsupported(text)) if text.contains("not enabled")
    ));
}
