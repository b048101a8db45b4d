//! The content store, and how images get into it: pull, import, unpack.
