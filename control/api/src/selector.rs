//! Which objects a request means: by their labels, or by a few of their fields.

mod field;
mod label;

pub use field::{FieldRequirement, FieldSelector};
pub use label::{LabelSelector, Operator, Requirement};

#[cfg(test)]
mod tests;
