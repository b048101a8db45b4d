//! The world `mounter`: a volume that the host attaches and mounts, as the plugin says.
//!
//! ```
//! use wherry_plugin::mounter::mount;
//! use wherry_plugin::volume::{self, request};
//!
//! fn nfs() -> volume::Result<()> {
//!     let source = format!("{}:{}", request::required("server")?, request::required("path")?);
//!     mount("nfs4", &source, &[("vers".into(), "4.1".into())])
//! }
//!
//! wherry_plugin::mounter!(nfs);
//! # fn main() {}
//! ```

pub use crate::bindings::wherry::plugin::mounts::{attach, format, grow, mount};

use crate::volume::{self, request};

/// Mounts a disk as the attributes `fsType` (ext4 if nothing is said) and `readOnly` say. One that may be written and has
/// nothing on it gets a file system.
///
/// # Errors
/// What the host says of formatting and mounting it.
pub fn mount_disk(device: &str) -> volume::Result<()> {
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

#[doc(hidden)]
#[allow(
    missing_docs,
    reason = "the export macro is for the macro `mounter!` alone"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "wherry:plugin/mounter",
        with: { "wherry:plugin/trouble@0.1.2": crate::bindings::wherry::plugin::trouble },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "wherry_plugin::mounter::bindings",
    });
}

/// The world `expanding-mounter`.
#[doc(hidden)]
#[allow(
    missing_docs,
    reason = "the export macro is for the macro `mounter!` alone"
)]
pub mod expanding {
    wit_bindgen::generate!({
        path: "wit",
        world: "wherry:plugin/expanding-mounter",
        with: { "wherry:plugin/trouble@0.1.2": crate::bindings::wherry::plugin::trouble },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "wherry_plugin::mounter::expanding",
    });
}

/// Makes a function the component's `mount`: `fn() -> volume::Result<()>`. Where volumes can be made larger a second one
/// is its `expand`: `fn(bytes: u64) -> volume::Result<u64>`, such as [`grow`](crate::mounter::grow) itself.
///
/// ```
/// # use wherry_plugin::volume;
/// use wherry_plugin::mounter::{attach, grow, mount_disk};
///
/// fn image() -> volume::Result<()> {
///     mount_disk(&attach("loop", &[("file".into(), "/srv/images/a".into())])?)
/// }
///
/// wherry_plugin::mounter!(image, expand: grow);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! mounter {
    ($mount:path, expand: $expand:path) => {
        const _: () = {
            struct Component;

            impl $crate::mounter::expanding::Guest for Component {
                fn mount() -> ::std::result::Result<(), $crate::volume::Error> {
                    $mount()
                }

                fn expand(bytes: u64) -> ::std::result::Result<u64, $crate::volume::Error> {
                    $expand(bytes)
                }
            }

    $crate::mounter::expanding::export!(Component with_types_in $crate::mounter::expanding);
        };
    };
    ($mount:path) => {
        const _: () = {
            struct Component;

            impl $crate::mounter::bindings::Guest for Component {
                fn mount() -> ::std::result::Result<(), $crate::volume::Error> {
                    $mount()
                }
            }

    $crate::mounter::bindings::export!(Component with_types_in $crate::mounter::bindings);
        };
    };
}
