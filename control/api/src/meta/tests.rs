//! Names, labels and metadata.
