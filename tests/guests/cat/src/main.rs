//! Copies its standard input to its standard output.

fn main() {
    if let Err(error) = std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()) {
        eprintln!("cat: {error}");
        std::process::exit(1);
    }
}
