//! An NFS export. Attributes: server, path.

use wherry_plugin::mounter::mount;
use wherry_plugin::volume::{self, request};

fn nfs() -> volume::Result<()> {
    request::only(&["server", "path"])?;
    let (server, path) = (request::required("server")?, request::required("path")?);
    mount(
        "nfs4",
        &format!("{server}:{path}"),
        &[("vers".into(), "4.1".into())],
    )
}

wherry_plugin::mounter!(nfs);
