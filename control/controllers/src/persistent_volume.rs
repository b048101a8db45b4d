//! Volumes for claims.

pub(crate) mod matching;
pub(crate) mod view;
