//! What the runtimes' conformance suite wants programs to do: the words of `usage` below. As a component it keeps its
//! exit code by `exit-with-code`; asked to stop, what a component may see is the end of its stdin.

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    time::Duration,
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let code = match run(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("programs {}: {error}", args.join(" "));
            1
        }
    };
    let _ = io::stdout().flush();
    exit(code)
}

#[cfg(target_env = "p2")]
fn exit(code: u8) {
    wasip2::cli::exit::exit_with_code(code);
}

#[cfg(not(target_env = "p2"))]
fn exit(code: u8) {
    std::process::exit(code.into());
}

fn directory() -> String {
    #[cfg(target_env = "p2")]
    if let Some(directory) = wasip2::cli::environment::initial_cwd() {
        return directory;
    }
    std::env::current_dir().map_or_else(|_| "/".into(), |path| path.display().to_string())
}

fn number<T: std::str::FromStr>(word: &str) -> io::Result<T> {
    word.parse()
        .map_err(|_| io::Error::other(format!("{word}: not a number")))
}

fn run(words: &[&str]) -> io::Result<u8> {
    match words {
        ["print", code] => {
            println!("out");
            eprintln!("err");
            return number(code);
        }
        ["wait"] => {
            println!("up");
            std::thread::sleep(Duration::from_secs(1_000_000));
        }
        ["copy"] => {
            io::copy(&mut io::stdin(), &mut io::stdout())?;
        }
        ["eat"] => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                eaten.push(std::hint::black_box(vec![1; 1 << 20]));
            }
        }
        ["polite", code] => {
            println!("up");
            io::copy(&mut io::stdin(), &mut io::sink())?;
            return number(code);
        }
        ["context", args @ ..] => {
            println!("cwd={}", directory());
            args.iter().for_each(|arg| println!("arg={arg}"));
            std::env::vars().for_each(|(name, value)| println!("env={name}={value}"));
        }
        ["terminal-size"] => {
            // WASI has no call for it: the terminal is asked to tell it, whenever it changes.
            print!("\x1b[?2048h");
            io::stdout().flush()?;
            let (mut report, mut byte) = (String::new(), [0]);
            while io::stdin().read(&mut byte)? > 0 {
                report.push(byte[0].into());
                if byte[0] == b't' {
                    let fields: Vec<&str> =
                        report.trim_start_matches("\x1b[48;").split(';').collect();
                    println!("{} {}", fields[0], fields.get(1).unwrap_or(&""));
                    report.clear();
                }
            }
        }
        ["unfinished"] => print!("unfinished"),
        ["lines", count] => {
            let mut output = io::BufWriter::new(io::stdout().lock());
            (1..=number::<u32>(count)?).try_for_each(|n| writeln!(output, "{n}"))?;
            output.flush()?;
        }
        ["read", path] => {
            io::copy(&mut std::fs::File::open(path)?, &mut io::stdout())?;
        }
        ["write", path] => std::fs::write(path, "written\n")?,
        ["spin"] => {
            println!("up");
            let mut n = 0u64;
            loop {
                n = std::hint::black_box(n.wrapping_add(1));
            }
        }
        ["echo", port] => {
            let listener = TcpListener::bind(("0.0.0.0", number(port)?))?;
            println!("up");
            for connection in listener.incoming() {
                let mut connection = connection?;
                let mut said = [0; 4096];
                // A client that went away is its own business.
                while let Ok(n @ 1..) = connection.read(&mut said) {
                    if connection.write_all(&said[..n]).is_err() {
                        break;
                    }
                }
            }
        }
        _ => {
            let usage = "usage: print CODE | wait | copy | eat | polite CODE | context ARG… | unfinished | lines COUNT | \
                read PATH | write PATH | spin | echo PORT | terminal-size";
            return Err(io::Error::other(usage));
        }
    }
    Ok(0)
}
