//! Volumes on iSCSI disks.
//!
//! Attributes: `targetPortal`, `iqn`, `lun`, `iscsiInterface`, `fsType`, `chapAuthSession`, `readOnly`, as the in-tree volume
//! has them; further `portals` and `chapAuthDiscovery` are refused. User and password are the Secret's `node.session.auth.username` and `node.session.auth.password`.

use wherry_plugin::{
    mounter::{attach, grow, mount_disk},
    volume::{self, request},
};

wherry_plugin::mounter!(iscsi, expand: grow);

fn text(key: &str) -> volume::Result<String> {
    let value = request::credential(key);
    let missing = || volume::Error::InvalidAttributes(format!("the Secret has no {key}"));
    String::from_utf8(value.ok_or_else(missing)?)
        .map_err(|_| volume::Error::InvalidAttributes(format!("{key} is no text")))
}

fn iscsi() -> volume::Result<()> {
    request::only(&[
        "targetPortal",
        "portals",
        "iqn",
        "lun",
        "iscsiInterface",
        "fsType",
        "chapAuthSession",
        "chapAuthDiscovery",
        "readOnly",
    ])?;
    for (key, is_asked) in [
        ("portals", request::attribute("portals").is_some()),
        (
            "chapAuthDiscovery",
            request::attribute("chapAuthDiscovery").as_deref() == Some("true"),
        ),
    ] {
        if is_asked {
            let message = format!("{key}: only targetPortal is used, and no discovery");
            return Err(volume::Error::InvalidAttributes(message));
        }
    }
    let mut parameters = vec![
        ("portal".to_owned(), request::required("targetPortal")?),
        ("target".to_owned(), request::required("iqn")?),
        (
            "lun".to_owned(),
            request::attribute("lun").unwrap_or_else(|| "0".into()),
        ),
    ];
    if let Some(interface) = request::attribute("iscsiInterface") {
        parameters.push(("interface".into(), interface));
    }
    if request::attribute("chapAuthSession").as_deref() == Some("true") {
        parameters.push(("username".into(), text("node.session.auth.username")?));
        parameters.push(("password".into(), text("node.session.auth.password")?));
    }
    mount_disk(&attach("iscsi", &parameters)?)
}
