//! Volumes of GlusterFS.
//!
//! Attributes: `endpoints` (hosts, separated by commas), `path` (the volume's name), `readOnly`, as the in-tree volume has
//! them; the hosts after the first are asked when the first does not answer.

use wherry_plugin::{
    mounter::mount,
    volume::{self, request},
};

wherry_plugin::mounter!(glusterfs);

fn glusterfs() -> volume::Result<()> {
    request::only(&["endpoints", "path", "readOnly"])?;
    let (endpoints, path) = (request::required("endpoints")?, request::required("path")?);
    let mut hosts = endpoints.split(',').map(str::trim);
    let first = hosts.next().unwrap_or_default();
    let others: Vec<_> = hosts.collect();
    let mut options = Vec::new();
    if !others.is_empty() {
        options.push(("backup-volfile-servers".to_owned(), others.join(":")));
    }
    if request::attribute("readOnly").as_deref() == Some("true") {
        options.push(("ro".into(), String::new()));
    }
    let path = path.trim_start_matches('/');
    mount("glusterfs", &format!("{first}:/{path}"), &options)
}
