//! Volumes of NFS servers.
//!
//! Attributes: `server`, `path`, `version` (`4.2` where it is missing; `3`), `readOnly`, as the in-tree volume has them.

use wherry_plugin::{
    mounter::mount,
    volume::{self, request},
};

wherry_plugin::mounter!(nfs);

fn nfs() -> volume::Result<()> {
    request::only(&["server", "path", "version", "readOnly", "fsType"])?;
    let (server, path) = (request::required("server")?, request::required("path")?);
    if !path.starts_with('/') {
        let why = format!("path {path:?} does not begin with /");
        return Err(volume::Error::InvalidAttributes(why));
    }
    let version = request::attribute("version").unwrap_or_else(|| "4.2".into());
    let kind = match version.as_str() {
        "3" => "nfs",
        "4" | "4.0" | "4.1" | "4.2" => "nfs4",
        _ => {
            let why = format!("version {version:?}: neither 3 nor 4, 4.0, 4.1, 4.2");
            return Err(volume::Error::InvalidAttributes(why));
        }
    };
    // An address of IPv6 stands in brackets.
    let server = match server.contains(':') && !server.starts_with('[') {
        true => format!("[{server}]"),
        false => server,
    };
    let mut options = vec![("vers".to_owned(), version)];
    if request::attribute("readOnly").as_deref() == Some("true") {
        options.push(("ro".into(), String::new()));
    }
    mount(kind, &format!("{server}:{path}"), &options)
}
