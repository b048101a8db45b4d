//! Writes, reads and lists files: write PATH TEXT, read PATH, list DIR.

use std::{fs, io};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Err(error) = run(&words) {
        eprintln!("files {}: {error}", args.join(" "));
        std::process::exit(1);
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    match words {
        ["write", path, text] => fs::write(path, text),
        ["read", path] => fs::read_to_string(path).map(|text| print!("{text}")),
        ["list", dir] => {
            let mut names: Vec<_> = fs::read_dir(dir)?
                .flatten()
                .map(|entry| entry.file_name())
                .collect();
            names.sort();
            names.iter().for_each(|name| println!("{}", name.display()));
            Ok(())
        }
        // For a container that has to stay while others exec into it.
        ["wait"] => {
            std::thread::sleep(std::time::Duration::from_secs(1_000_000));
            Ok(())
        }
        _ => Err(io::Error::other(
            "usage: write PATH TEXT | read PATH | list DIR | wait",
        )),
    }
}
