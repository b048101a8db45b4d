//! The program `wherry`.
fn main() {}
