//! The world `filesystem-volume`: a volume whose every operation is the plugin's.
//!
//! ```
//! use wherry_plugin::filesystem::*;
//! use wherry_plugin::volume;
//!
//! struct Hello;
//!
//! impl FileSystem for Hello {
//!     fn open() -> volume::Result<(Self, Opened)> {
//!         Ok((Hello, Opened::READ_ONLY))
//!     }
//!     fn find(&mut self, parent: Node, name: &str) -> Result<Attributes> {
//!         match (parent, name) {
//!             (ROOT, "hello") => self.stat(2),
//!             _ => Err(Errno::NotFound),
//!         }
//!     }
//!     fn stat(&mut self, node: Node) -> Result<Attributes> {
//!         match node {
//!             ROOT => Ok(Attributes::directory(ROOT)),
//!             2 => Ok(Attributes::file(2, 5)),
//!             _ => Err(Errno::Stale),
//!         }
//!     }
//!     fn read_directory(&mut self, _: Node, offset: u64, _: u32) -> Result<Vec<Entry>> {
//!         let hello = Entry { name: "hello".into(), next: 1, attributes: self.stat(2)? };
//!         Ok(if offset == 0 { vec![hello] } else { vec![] })
//!     }
//!     fn read(&mut self, _: Node, offset: u64, length: u32) -> Result<Vec<u8>> {
//!         Ok(slice(b"hello", offset, length).to_vec())
//!     }
//! }
//!
//! wherry_plugin::filesystem!(Hello);
//! # fn main() {}
//! ```

use std::time::SystemTime;

pub use crate::bindings::wherry::plugin::{blocks, types::Datetime};
pub use bindings::{
    Opened,
    exports::wherry::plugin::filesystem::{
        Attributes, Changes, Creation, Entry, Errno, Kind, Node, Room,
    },
};

use crate::volume;

#[doc(hidden)]
#[allow(
    missing_docs,
    reason = "the export macro is for the macro `filesystem!` alone"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "wherry:plugin/filesystem-volume",
        with: {
            "wherry:plugin/types@0.1.2": crate::bindings::wherry::plugin::types,
            "wherry:plugin/trouble@0.1.2": crate::bindings::wherry::plugin::trouble,
        },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "wherry_plugin::filesystem::bindings",
    });
}

/// The node of the volume's root.
pub const ROOT: Node = 1;

/// What an operation answers.
pub type Result<T> = std::result::Result<T, Errno>;

/// A volume's operations, one at a time. Those that change something answer [`Errno::ReadOnly`] unless they are
/// implemented.
pub trait FileSystem: Sized + 'static {
    /// Called once for each instance, before anything else, with [`volume::request`] to ask.
    fn open() -> volume::Result<(Self, Opened)>;

    /// A child of a directory by its name.
    fn find(&mut self, parent: Node, name: &str) -> Result<Attributes>;

    /// What a node is like.
    fn stat(&mut self, node: Node) -> Result<Attributes>;

    /// Changes what a node is like.
    fn change(&mut self, _node: Node, _changes: Changes) -> Result<Attributes> {
        Err(Errno::ReadOnly)
    }

    /// Entries of a directory from `offset` on (0: the first, else what `next` of an entry said), at most `count`;
    /// empty at the end.
    fn read_directory(&mut self, node: Node, offset: u64, count: u32) -> Result<Vec<Entry>>;

    /// Bytes of a file, at most 128 KiB; fewer than asked for only at its end. See [`slice`].
    fn read(&mut self, node: Node, offset: u64, length: u32) -> Result<Vec<u8>>;

    /// Where a link leads.
    fn read_link(&mut self, _node: Node) -> Result<String> {
        Err(Errno::Invalid)
    }

    /// Writes bytes, all of them, at most 128 KiB.
    fn write(&mut self, _node: Node, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Err(Errno::ReadOnly)
    }

    /// Makes a file or directory.
    fn create(
        &mut self,
        _parent: Node,
        _name: &str,
        _kind: Kind,
        _creation: Creation,
    ) -> Result<Attributes> {
        Err(Errno::ReadOnly)
    }

    /// Makes a link.
    fn create_link(
        &mut self,
        _parent: Node,
        _name: &str,
        _to: &str,
        _creation: Creation,
    ) -> Result<Attributes> {
        Err(Errno::ReadOnly)
    }

    /// Removes a file, a link or an empty directory.
    fn remove(&mut self, _parent: Node, _name: &str) -> Result<()> {
        Err(Errno::ReadOnly)
    }

    /// Renames, in place of what is there if `replace` says so.
    fn rename(&mut self, _from: (Node, &str), _to: (Node, &str), _replace: bool) -> Result<()> {
        Err(Errno::ReadOnly)
    }

    /// Nobody uses the node any more. A hint: it may never come.
    fn forget(&mut self, _node: Node) {}

    /// Brings what was written to where it is kept.
    fn sync(&mut self, _node: Node) -> Result<()> {
        Ok(())
    }

    /// What there is room for; 0 of 0 where that cannot be said.
    fn space(&mut self) -> Result<Room> {
        Ok(Room {
            bytes: 0,
            bytes_free: 0,
        })
    }
}

impl Opened {
    /// Nothing can be written, and nodes follow from what they name: they mean the same to every instance.
    pub const READ_ONLY: Self = Self {
        nodes_are_kept: true,
        is_read_only: true,
    };
    /// What the volume is lives in [`blocks`]: nodes mean the same to every instance.
    pub const READ_WRITE: Self = Self {
        nodes_are_kept: true,
        is_read_only: false,
    };
}

impl Attributes {
    /// A file of a size that anybody may read, answered from memory for a second.
    pub fn file(node: Node, size: u64) -> Self {
        Self::new(node, Kind::File, size, 0o644)
    }

    /// A directory that anybody may read, answered from memory for a second.
    pub fn directory(node: Node) -> Self {
        Self::new(node, Kind::Directory, 0, 0o755)
    }

    /// A link.
    pub fn link(node: Node, to: &str) -> Self {
        Self::new(node, Kind::Link, to.len() as u64, 0o777)
    }

    fn new(node: Node, kind: Kind, size: u64, mode: u32) -> Self {
        Self {
            node,
            kind,
            size,
            mode,
            owner: 0,
            group: 0,
            modified: crate::clock::from_system_time(SystemTime::UNIX_EPOCH),
            valid_milliseconds: 1000,
        }
    }

    /// With the time of the last change of its content.
    pub fn modified(mut self, time: SystemTime) -> Self {
        self.modified = crate::clock::from_system_time(time);
        self
    }
}

/// What a read of a file with this content answers.
pub fn slice(content: &[u8], offset: u64, length: u32) -> &[u8] {
    let begin = usize::try_from(offset).map_or(content.len(), |at| at.min(content.len()));
    let end = begin.saturating_add(length as usize).min(content.len());
    &content[begin..end]
}

/// Makes a [`FileSystem`] the component's.
#[macro_export]
macro_rules! filesystem {
    ($volume:ty) => {
        const _: () = {
            use ::std::{cell::RefCell, result::Result, string::String, vec::Vec};
            use $crate::filesystem::{
                Attributes, Changes, Creation, Entry, Errno, FileSystem, Kind, Node, Opened, Room,
                bindings::{Guest, exports::wherry::plugin::filesystem::Guest as Operations},
            };

            ::std::thread_local! {
                static OPEN: RefCell<Option<$volume>> = const { RefCell::new(None) };
            }

            struct Component;

            fn with<T>(f: impl FnOnce(&mut $volume) -> Result<T, Errno>) -> Result<T, Errno> {
                OPEN.with_borrow_mut(|open| open.as_mut().map_or(Err(Errno::Stale), f))
            }

            impl Guest for Component {
                fn open() -> Result<Opened, $crate::volume::Error> {
                    let (volume, opened) = <$volume as FileSystem>::open()?;
                    OPEN.set(Some(volume));
                    Ok(opened)
                }
            }

            impl Operations for Component {
                fn find(parent: Node, name: String) -> Result<Attributes, Errno> {
                    with(|volume| volume.find(parent, &name))
                }
                fn stat(node: Node) -> Result<Attributes, Errno> {
                    with(|volume| volume.stat(node))
                }
                fn change(node: Node, changes: Changes) -> Result<Attributes, Errno> {
                    with(|volume| volume.change(node, changes))
                }
                fn read_directory(node: Node, offset: u64, count: u32) -> Result<Vec<Entry>, Errno> {
                    with(|volume| volume.read_directory(node, offset, count))
                }
                fn read(node: Node, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
                    with(|volume| volume.read(node, offset, length))
                }
                fn read_link(node: Node) -> Result<String, Errno> {
                    with(|volume| volume.read_link(node))
                }
                fn write(node: Node, offset: u64, bytes: Vec<u8>) -> Result<(), Errno> {
                    with(|volume| volume.write(node, offset, &bytes))
                }
                fn create(
                    parent: Node,
                    name: String,
                    kind: Kind,
                    creation: Creation,
                ) -> Result<Attributes, Errno> {
                    with(|volume| volume.create(parent, &name, kind, creation))
                }
                fn create_link(
                    parent: Node,
                    name: String,
                    to: String,
                    creation: Creation,
                ) -> Result<Attributes, Errno> {
                    with(|volume| volume.create_link(parent, &name, &to, creation))
                }
                fn remove(parent: Node, name: String) -> Result<(), Errno> {
                    with(|volume| volume.remove(parent, &name))
                }
                fn rename(
                    parent: Node,
                    name: String,
                    new_parent: Node,
                    new_name: String,
                    replace: bool,
                ) -> Result<(), Errno> {
                    with(|volume| volume.rename((parent, &name), (new_parent, &new_name), replace))
                }
                fn forget(node: Node) {
                    OPEN.with_borrow_mut(|open| {
                        if let Some(volume) = open {
                            volume.forget(node);
                        }
                    });
                }
                fn sync(node: Node) -> Result<(), Errno> {
                    with(|volume| volume.sync(node))
                }
                fn space() -> Result<Room, Errno> {
                    with(|volume| volume.space())
                }
            }

            $crate::filesystem::bindings::export!(Component with_types_in $crate::filesystem::bindings);
        };
    };
}
