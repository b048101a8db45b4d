//! Volumes on RADOS block devices.
//!
//! Attributes: `monitors` (separated by commas), `image`, `pool`, `user`, `fsType`, `readOnly`, as the in-tree volume has
//! them. The user's key is the Secret's `key`.

use wherry_plugin::{
    mounter::{attach, format, mount},
    volume::{self, request},
};

wherry_plugin::mounter!(rbd);

fn rbd() -> volume::Result<()> {
    request::only(&[
        "monitors", "image", "pool", "user", "keyring", "fsType", "readOnly",
    ])?;
    let mut parameters = vec![
        ("monitors".to_owned(), request::required("monitors")?),
        ("image".to_owned(), request::required("image")?),
    ];
    for name in ["pool", "user"] {
        if let Some(value) = request::attribute(name) {
            parameters.push((name.into(), value));
        }
    }
    if let Some(key) = request::credential("key") {
        let key = String::from_utf8(key)
            .map_err(|_| volume::Error::InvalidAttributes("the Secret's key is no text".into()))?;
        parameters.push(("key".into(), key.trim().to_owned()));
    }
    let device = attach("rbd", &parameters)?;
    let kind = request::attribute("fsType").unwrap_or_else(|| "ext4".into());
    let is_read_only = request::attribute("readOnly").as_deref() == Some("true")
        || request::access() == request::AccessMode::ReadOnly;
    let mut options = Vec::new();
    match is_read_only {
        true => options.push(("ro".to_owned(), String::new())),
        false => format(&device, &kind)?,
    }
    mount(&kind, &device, &options)
}
