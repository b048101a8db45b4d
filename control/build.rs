//! Links the program at a fixed address.
//!
//! A position-independent program of this size has megabytes of pointers that the loader must write before
//! `main`: private memory of every process. There is one supervisor per pod, with 1.5 MB to spend, and it is
//! this program. Libraries, stacks, heaps and mappings stay at random addresses.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-no-pie");
}
