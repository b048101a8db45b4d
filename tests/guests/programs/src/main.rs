//! What the runtimes' conformance suite wants programs to do: print CODE, wait, copy, eat.

use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["print", code] => {
            println!("out");
            eprintln!("err");
            std::process::exit(code.parse().expect("an exit code"));
        }
        ["wait"] => {
            println!("up");
            std::thread::sleep(Duration::from_secs(1_000_000));
        }
        ["copy"] => {
            let copied = std::io::copy(&mut std::io::stdin(), &mut std::io::stdout());
            copied.expect("stdin can be copied");
        }
        ["eat"] => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                eaten.push(std::hint::black_box(vec![1; 1 << 20]));
            }
        }
        _ => panic!("usage: print CODE | wait | copy | eat"),
    }
}
