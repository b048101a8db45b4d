use super::*;

fn config(dir: &Path) -> PkiConfig {
    PkiConfig {
        dir: dir.to_owned(),
        advertise: vec!["192.0.2.7".parse().unwrap()],
        names: Vec::new(),
        service_ip: "10.96.0.1".parse().unwrap(),
    }
}

fn now() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn days_later(days: i64) -> Timestamp {
    now() + jiff::SignedDuration::from_hours(24 * days)
}

#[test]
fn what_is_there_is_kept_and_what_nears_its_end_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(&config(dir.path()), now()).unwrap();
    let again = Pki::open(&config(dir.path()), days_later(30)).unwrap();
    assert_eq!(first.ca_pem(), again.ca_pem());
    assert_eq!(first.server(), again.server());
    assert_eq!(
        first.service_account_key().serialize_pem(),
        again.service_account_key().serialize_pem()
    );
    let renewed = Pki::open(&config(dir.path()), days_later(300)).unwrap();
    assert_eq!(first.ca_pem(), renewed.ca_pem());
    assert_ne!(first.server(), renewed.server());
    assert_ne!(first.admin(), renewed.admin());
}

#[test]
fn a_new_address_makes_a_new_server_certificate_only() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(&config(dir.path()), now()).unwrap();
    let mut moved = config(dir.path());
    moved.advertise = vec!["192.0.2.8".parse().unwrap()];
    let second = Pki::open(&moved, now()).unwrap();
    assert_ne!(first.server(), second.server());
    assert_eq!(first.admin(), second.admin());
}

#[test]
fn a_damaged_authority_is_reported_and_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    Pki::open(&config(dir.path()), now()).unwrap();
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, "nonsense").unwrap();
    let error = Pki::open(&config(dir.path()), now())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ca.pem: not a certificate authority"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(path).unwrap(), "nonsense");
}

#[test]
fn keys_are_for_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(&config(dir.path()), now()).unwrap();
    pki.node(
        &dir.path().join("node"),
        "n1",
        &["192.0.2.7".parse().unwrap()],
        now(),
    )
    .unwrap();
    for name in [
        "ca.pem",
        "apiserver.pem",
        "admin.pem",
        "service-account.key",
        "node/kubelet-client.pem",
    ] {
        let mode = std::fs::metadata(dir.path().join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}
