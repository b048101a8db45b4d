//! The world `populator`: a volume whose content is written once, and perhaps again.
//!
//! ```
//! use std::io::Write;
//! use wherry_plugin::http;
//! use wherry_plugin::populator::{File, Populated};
//! use wherry_plugin::volume::{self, request};
//!
//! fn populate(_current: Option<String>) -> volume::Result<Populated> {
//!     let page = http::get(&request::required("url")?)?.ok()?;
//!     File::create("index.html")?.write_all(&page.body)?;
//!     Ok(Populated::new(page.header("etag").unwrap_or("unknown")).refresh_after(60))
//! }
//!
//! wherry_plugin::populator!(populate);
//! # fn main() {}
//! ```

use std::io::{self, Write};

use crate::bindings::wherry::plugin::staging;
pub use crate::bindings::wherry::plugin::staging::{
    StagingError as Error, make_directory, make_link, progress,
};
pub use bindings::Populated;

#[doc(hidden)]
#[allow(
    missing_docs,
    reason = "the export macro is for the macro `populator!` alone"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "wherry:plugin/populator",
        with: { "wherry:plugin/trouble@0.1.2": crate::bindings::wherry::plugin::trouble },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "wherry_plugin::populator::bindings",
    });
}

/// Bytes that the host takes at once.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// A file of the volume being written; dropping it closes it.
#[derive(Debug)]
pub struct File(staging::File);

impl File {
    /// Makes a file, and the directories above it. The path is relative to the volume.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn create(path: &str) -> Result<Self, Error> {
        staging::File::create(path, false).map(Self)
    }

    /// The same, for a program.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn create_executable(path: &str) -> Result<Self, Error> {
        staging::File::create(path, true).map(Self)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(APPEND_BYTES_MAX)];
        self.0.append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Error {
    /// What it is for people: names the path.
    pub fn message(&self) -> &str {
        match self {
            Self::InvalidPath(text)
            | Self::Exists(text)
            | Self::NoSpace(text)
            | Self::Other(text) => text,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind as K;
        let kind = match &error {
            Error::InvalidPath(_) => K::InvalidInput,
            Error::Exists(_) => K::AlreadyExists,
            Error::NoSpace(_) => K::StorageFull,
            Error::Other(_) => K::Other,
        };
        io::Error::new(kind, error.message().to_owned())
    }
}

impl Populated {
    /// What the content was made of: a commit, a digest. Never asked for again.
    pub fn new(version: impl Into<String>) -> Self {
        Self {
            version: version.into(),
            refresh_seconds: 0,
        }
    }

    /// Asked for again after so many seconds.
    pub fn refresh_after(mut self, seconds: u32) -> Self {
        self.refresh_seconds = seconds;
        self
    }
}

/// Makes a function the component's `populate`: `fn(Option<String>) -> volume::Result<Populated>`.
#[macro_export]
macro_rules! populator {
    ($populate:path) => {
        const _: () = {
            struct Component;

            impl $crate::populator::bindings::Guest for Component {
                fn populate(
                    current: ::std::option::Option<::std::string::String>,
                ) -> ::std::result::Result<$crate::populator::Populated, $crate::volume::Error> {
                    $populate(current)
                }
            }

            $crate::populator::bindings::export!(Component with_types_in $crate::populator::bindings);
        };
    };
}
