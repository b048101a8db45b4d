//! What a volume plugin exports besides its world to make the volumes of StorageClasses, and to take them away.
//!
//! ```
//! use wherry_plugin::provisioner::{Created, Reach, Wanted, images};
//! use wherry_plugin::volume;
//!
//! fn create(wanted: Wanted) -> volume::Result<Created> {
//!     let file = images::make("/srv/images", wanted.bytes_min)?;
//!     Ok(Created {
//!         handle: file.clone(),
//!         bytes: wanted.bytes_min,
//!         attributes: vec![("file".into(), file)],
//!         reach: Reach::ThisNode,
//!     })
//! }
//!
//! fn delete(_handle: String) -> volume::Result<()> {
//!     images::remove("/srv/images")
//! }
//!
//! wherry_plugin::provisioner!(create, delete);
//! # fn main() {}
//! ```

pub use bindings::exports::wherry::plugin::provisioner::{ClaimAccess, Created, Reach, Wanted};

/// Images of file systems on the node, named after the volume; needs the grant `devices`, as `image:/srv/images/*`.
pub mod images {
    pub use crate::bindings::wherry::plugin::images::{make, remove};
}

use crate::volume;

/// Refuses a claim for a volume that one node alone can reach, should it want to use it from many.
///
/// # Errors
/// [`volume::Error::InvalidAttributes`] names the access mode.
pub fn only_one_node(wanted: &Wanted) -> volume::Result<()> {
    for access in &wanted.access {
        let mode = match access {
            ClaimAccess::ReadWriteOnce | ClaimAccess::ReadWriteOncePod => continue,
            ClaimAccess::ReadOnlyMany => "ReadOnlyMany",
            ClaimAccess::ReadWriteMany => "ReadWriteMany",
        };
        return Err(volume::Error::InvalidAttributes(format!(
            "access mode {mode}: only one node can reach the volume"
        )));
    }
    Ok(())
}

#[doc(hidden)]
#[allow(
    missing_docs,
    reason = "the export macro is for the macro `provisioner!` alone"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "wherry:plugin/provisioning",
        with: { "wherry:plugin/trouble@0.1.2": crate::bindings::wherry::plugin::trouble },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "wherry_plugin::provisioner::bindings",
    });
}

/// Makes two functions the component's `create`, `fn(Wanted) -> volume::Result<Created>`, and `delete`,
/// `fn(handle: String) -> volume::Result<()>`; goes with `mounter!`, `populator!` or `filesystem!`.
#[macro_export]
macro_rules! provisioner {
    ($create:path, $delete:path) => {
        const _: () = {
            struct Component;

            impl $crate::provisioner::bindings::exports::wherry::plugin::provisioner::Guest
                for Component
            {
                fn create(
                    wanted: $crate::provisioner::Wanted,
                ) -> ::std::result::Result<$crate::provisioner::Created, $crate::volume::Error>
                {
                    $create(wanted)
                }

                fn delete(
                    handle: ::std::string::String,
                ) -> ::std::result::Result<(), $crate::volume::Error> {
                    $delete(handle)
                }
            }

            $crate::provisioner::bindings::export!(Component with_types_in $crate::provisioner::bindings);
        };
    };
}
