//! Volumes on RADOS block devices.
//!
//! Attributes: `monitors` (separated by commas), `image`, `pool`, `user`, `fsType`, `readOnly`, as the in-tree volume has
//! them. The user's key is the Secret's `key`.

use wherry_plugin::{
    mounter::{attach, grow, mount_disk},
    volume::{self, request},
};

wherry_plugin::mounter!(rbd, expand: grow);

fn rbd() -> volume::Result<()> {
    request::only(&[
        "monitors", "image", "pool", "user", "keyring", "fsType", "readOnly",
    ])?;
    // The API server fills in Ceph's default. Nothing on the node is read for a volume.
    if request::attribute("keyring").is_some_and(|keyring| keyring != "/etc/ceph/keyring") {
        let message = "keyring: the key has to be in the Secret".to_owned();
        return Err(volume::Error::InvalidAttributes(message));
    }
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
    mount_disk(&attach("rbd", &parameters)?)
}
