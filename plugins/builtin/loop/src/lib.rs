//! Volumes in images of file systems that are files on the node.
//!
//! Attributes: `file`, which the operator has to have granted (below /srv/wherry-images, unless another Plugin of this name
//! says otherwise); `fsType`. An image that holds nothing yet gets a file system.
//! One whose claim asks for more is lengthened, and its file system with it.
//!
//! As the `provisioner` of a StorageClass it makes an image for each claim, on the node of its first pod. Parameters:
//! `directory` (/srv/wherry-images), which has to be granted too; `fsType`. A class with the parameter `file` has the
//! operator's image for all its claims, which is there before and stays.

use wherry_plugin::{
    mounter::{attach, format, grow, mount},
    provisioner::{self, Created, Reach, Wanted, images},
    volume::{self, request},
};

wherry_plugin::mounter!(image, expand: grow);
wherry_plugin::provisioner!(create, delete);

/// Where images are if nothing is said.
const DIRECTORY: &str = "/srv/wherry-images";
/// Images are whole multiples of this.
const MIB: u64 = 1 << 20;
/// File systems, with the least that each is made of.
const KINDS: [(&str, u64); 2] = [("ext4", 2 * MIB), ("xfs", 300 * MIB)];

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

fn create(wanted: Wanted) -> volume::Result<Created> {
    request::only(&["directory", "file", "fsType"])?;
    let kind = request::attribute("fsType").unwrap_or_else(|| "ext4".into());
    if let Some(file) = request::attribute("file") {
        return Ok(Created {
            handle: request::name(),
            bytes: wanted.bytes_min,
            attributes: vec![("file".into(), file), ("fsType".into(), kind)],
            reach: Reach::EveryNode,
        });
    }
    provisioner::only_one_node(&wanted)?;
    let known = KINDS.iter().find(|(name, _)| *name == kind);
    let Some((_, least)) = known else {
        let why = format!("fsType {kind:?}: neither ext4 nor xfs");
        return Err(volume::Error::InvalidAttributes(why));
    };
    let bytes = wanted.bytes_min.max(*least).next_multiple_of(MIB);
    if let Some(max) = wanted.bytes_max.filter(|max| bytes > *max) {
        let why = format!(
            "an image of {kind} has {bytes} bytes at least, and the claim's limit is {max}"
        );
        return Err(volume::Error::InvalidAttributes(why));
    }
    let directory = request::attribute("directory").unwrap_or_else(|| DIRECTORY.into());
    let file = images::make(&directory, bytes)?;
    Ok(Created {
        handle: file.clone(),
        bytes,
        attributes: vec![("file".into(), file), ("fsType".into(), kind)],
        reach: Reach::ThisNode,
    })
}

fn delete(handle: String) -> volume::Result<()> {
    match handle.rsplit_once('/') {
        Some((directory, _)) => images::remove(directory),
        // The operator's.
        None => Ok(()),
    }
}
