//! Volumes on iSCSI disks.
//!
//! Attributes: `targetPortal`, `iqn`, `lun`, `iscsiInterface`, `fsType`, `chapAuthSession`, `readOnly`, as the in-tree volume
//! has them. User and password are the Secret's `node.session.auth.username` and `node.session.auth.password`.

use wherry_plugin::{
    mounter::{attach, format, mount},
    volume::{self, request},
};

wherry_plugin::mounter!(iscsi);

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
    let device = attach("iscsi", &parameters)?;
    on(&device)
}

/// Mounts the disk, which gets a file system if it has nothing on it and may be written.
fn on(device: &str) -> volume::Result<()> {
    let kind = request::attribute("fsType").unwrap_or_else(|| "ext4".into());
    let is_read_only = request::attribute("readOnly").as_deref() == Some("true")
        || request::access() == request::AccessMode::ReadOnly;
    let mut options = Vec::new();
    match is_read_only {
        true => options.push(("ro".to_owned(), String::new())),
        false => format(device, &kind)?,
    }
    mount(&kind, device, &options)
}
