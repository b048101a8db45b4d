//! Volumes of CephFS.
//!
//! Attributes: `monitors` (separated by commas), `path`, `user`, `readOnly`, as the in-tree volume has them; `fs`. The
//! user's key is the Secret's `key`.

use wherry_plugin::{
    mounter::mount,
    volume::{self, request},
};

wherry_plugin::mounter!(cephfs);

fn cephfs() -> volume::Result<()> {
    request::only(&["monitors", "path", "user", "readOnly", "fs"])?;
    let monitors = request::required("monitors")?;
    let path = request::attribute("path").unwrap_or_else(|| "/".into());
    let path = path.trim_start_matches('/');
    let user = request::attribute("user").unwrap_or_else(|| "admin".into());
    let mut options = vec![("name".to_owned(), user)];
    if let Some(key) = request::credential("key") {
        let key = String::from_utf8(key)
            .map_err(|_| volume::Error::InvalidAttributes("the Secret's key is no text".into()))?;
        options.push(("secret".into(), key.trim().to_owned()));
    }
    if let Some(fs) = request::attribute("fs") {
        options.push(("mds_namespace".into(), fs));
    }
    if request::attribute("readOnly").as_deref() == Some("true") {
        options.push(("ro".into(), String::new()));
    }
    mount("ceph", &format!("{monitors}:/{path}"), &options)
}
