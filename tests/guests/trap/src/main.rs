//! Traps after it has printed a line.

fn main() {
    println!("about to trap");
    std::process::abort();
}
