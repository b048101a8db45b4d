//! Whether a file on one of the pod's volumes was written lately: a heartbeat, a backup, a cache.
//!
//! `--volume=` (its name in the pod), `--path=` (within the volume), `--max-age=` (seconds), `--min-size=` (bytes; 0).

#![no_std]

extern crate alloc;

use alloc::{format, string::String, vec::Vec};

use kit::{
    Arguments, Guest, Outcome, ProbeError, clock, failure,
    files::{self, FileError},
    success,
};

struct Plugin;

kit::export!(Plugin);

impl Guest for Plugin {
    fn check(arguments: Vec<String>) -> Result<Outcome, ProbeError> {
        let mut arguments = Arguments::new(arguments);
        let volume = arguments.need("volume")?;
        let path = arguments.need("path")?;
        let age_max = arguments.number("max-age", 0)?;
        let size_min = arguments.number("min-size", 0)?;
        arguments.end()?;
        if age_max == 0 {
            let why = "--max-age= is missing: seconds, at least 1";
            return Err(ProbeError::InvalidArguments(why.into()));
        }
        let file = format!("{volume}/{path}");
        let seen = match files::stat(&volume, &path) {
            Ok(seen) => seen,
            Err(FileError::NotFound) => return failure(format!("{file} is not there")),
            Err(FileError::Denied(why)) => return Err(ProbeError::Denied(why)),
            Err(FileError::Other(why)) => return Err(ProbeError::Other(format!("{file}: {why}"))),
        };
        let age = clock::now().seconds.saturating_sub(seen.modified.seconds);
        if age > age_max {
            return failure(format!("{file} is {age} s old, more than {age_max} s"));
        }
        if seen.size < size_min {
            let size = seen.size;
            return failure(format!("{file} has {size} bytes, fewer than {size_min}"));
        }
        success(format!("{file} is {age} s old"))
    }
}
