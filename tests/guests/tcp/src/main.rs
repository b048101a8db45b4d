//! TCP both ways: serve ADDRESS TEXT answers every connection, get ADDRESS prints what it is answered.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Err(error) = run(&words) {
        eprintln!("tcp {}: {error}", args.join(" "));
        std::process::exit(1);
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    match words {
        ["serve", address, text] => {
            let listener = TcpListener::bind(address)?;
            println!("listening on {}", listener.local_addr()?);
            for connection in listener.incoming() {
                let mut connection = connection?;
                println!("connection from {}", connection.peer_addr()?);
                // A client that went away is its own business.
                let _ = writeln!(connection, "{text}");
            }
            Ok(())
        }
        ["get", address] => {
            let mut answer = String::new();
            TcpStream::connect(address)?.read_to_string(&mut answer)?;
            print!("{answer}");
            Ok(())
        }
        _ => Err(io::Error::other("usage: serve ADDRESS TEXT | get ADDRESS")),
    }
}
