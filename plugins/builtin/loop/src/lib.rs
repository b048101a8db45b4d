//! Volumes in images of file systems that are files on the node.
//!
//! Attributes: `file`, which the operator has to have granted (below /srv/wherry-images, unless another Plugin of this name
//! says otherwise); `fsType`. An image that holds nothing yet gets a file system.
//! One whose claim asks for more is lengthened, and its file system with it.

use wherry_plugin::{
    mounter::{attach, format, grow, mount},
    volume::{self, request},
};

wherry_plugin::mounter!(image, expand: grow);

fn image() -> volume::Result<()> {
    request::only(&["file", "fsType"])?;
    let file = request::required("file")?;
    let kind = request::attribute("fsType").unwrap_or_else(|| "ext4".into());
    let device = attach("loop", &[("file".into(), file)])?;
    if request::access() == request::AccessMode::ReadWrite {
        format(&device, &kind)?;
    }
    mount(&kind, &device, &[])
}
