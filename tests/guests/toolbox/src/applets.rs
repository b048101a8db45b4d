//! The commands.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    network,
    run::{Flow, Input, Output, Shell},
};

const KNOWN: &[&str] = &[
    ":", "true", "false", "exit", "cd", "pwd", "export", "unset", "read", "break", "continue",
    "exec", "test", "[", "sh", "trap", "set", "echo", "printf", "env", "printenv", "hostname",
    "date", "seq", "args", "cat", "ls", "mkdir", "rm", "mv", "cp", "touch", "tee", "wc", "head",
    "grep", "stat", "dd", "chmod", "chown", "id", "ln", "sleep", "nc", "httpd", "wget", "nslookup",
    "spin", "eat", "crash", "kill",
];

/// A command's name without its directory.
pub(crate) fn base(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

pub(crate) fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}

/// Runs a command: the name, then its arguments.
pub(crate) fn run(shell: &mut Shell, words: &[String]) -> Result<i32, Flow> {
    let Some((name, arguments)) = words.split_first() else {
        return Ok(0);
    };
    let name = base(name);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match (name, &arguments[..]) {
        (":" | "true" | "set", _) => Ok(0),
        ("false", _) => Ok(1),
        ("exit", []) => Err(Flow::Exit(shell.code)),
        ("exit", [code, ..]) => Err(Flow::Exit(number(code).map_err(Flow::Error)? as i32 & 0xff)),
        ("break", _) => Err(Flow::Break),
        ("continue", _) => Err(Flow::Continue),
        ("exec", rest) if rest.is_empty() => Ok(0),
        ("exec", _) => run(shell, &words[1..]).and_then(|code| Err(Flow::Exit(code))),
        ("sh", rest) => sh(shell, rest),
        ("[", [condition @ .., "]"]) => {
            Ok(i32::from(!test(shell, condition).map_err(Flow::Error)?))
        }
        ("test", condition) => Ok(i32::from(!test(shell, condition).map_err(Flow::Error)?)),
        _ if !is_known(name) => {
            let _ = writeln!(shell.streams.errors, "sh: {name}: not found");
            Ok(127)
        }
        _ => match command(shell, name, &arguments) {
            Ok(code) => Ok(code),
            Err(error) => {
                let _ = writeln!(shell.streams.errors, "{name}: {error}");
                Ok(1)
            }
        },
    }
}

fn sh(shell: &mut Shell, arguments: &[&str]) -> Result<i32, Flow> {
    let arguments = match arguments {
        ["-e" | "-x" | "-i", rest @ ..] => rest,
        all => all,
    };
    match arguments {
        [flags, script, rest @ ..] if flags.starts_with('-') && flags.ends_with('c') => {
            let mut own: Vec<String> = rest.iter().map(|word| (*word).to_owned()).collect();
            if own.is_empty() {
                own.push("sh".into());
            }
            let before = std::mem::replace(&mut shell.arguments, own);
            let result = shell.script(script);
            shell.arguments = before;
            result
        }
        [file, rest @ ..] => {
            let script = fs::read_to_string(shell.path(file))
                .map_err(|error| Flow::Error(format!("{file}: {error}")))?;
            let own = std::iter::once(file)
                .chain(rest)
                .map(|word| (*word).to_owned())
                .collect();
            let before = std::mem::replace(&mut shell.arguments, own);
            let result = shell.script(&script);
            shell.arguments = before;
            result
        }
        // A session: a line at a time, so that it can be talked to.
        [] => {
            let mut code = 0;
            while let Some(line) =
                line(&mut shell.streams.input).map_err(|error| Flow::Error(error.to_string()))?
            {
                code = match shell.script_line(&line) {
                    Err(Flow::Exit(code)) => return Ok(code),
                    Err(Flow::Error(message)) => {
                        let _ = writeln!(shell.streams.errors, "sh: {message}");
                        2
                    }
                    other => other?,
                };
            }
            Ok(code)
        }
    }
}

/// A line without its end; byte by byte, so that the rest is left for whoever reads next.
fn line(input: &mut Input) -> io::Result<Option<String>> {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    loop {
        match input.read(&mut byte)? {
            0 if bytes.is_empty() => return Ok(None),
            0 => break,
            _ if byte[0] == b'\n' => break,
            _ => bytes.push(byte[0]),
        }
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("{text}: bad number"))
}

fn test(shell: &Shell, words: &[&str]) -> Result<bool, String> {
    let metadata = |path: &str| fs::metadata(shell.path(path));
    match words {
        ["!", rest @ ..] => test(shell, rest).map(|truth| !truth),
        [] => Ok(false),
        [left @ .., "-a", a, b, c] if !left.is_empty() => {
            Ok(test(shell, left)? && test(shell, &[a, b, c])?)
        }
        [text] => Ok(!text.is_empty()),
        ["-n", text] => Ok(!text.is_empty()),
        ["-z", text] => Ok(text.is_empty()),
        ["-e", path] => Ok(metadata(path).is_ok()),
        ["-f", path] => Ok(metadata(path).is_ok_and(|file| file.is_file())),
        ["-d", path] => Ok(metadata(path).is_ok_and(|file| file.is_dir())),
        ["-s", path] => Ok(metadata(path).is_ok_and(|file| file.len() > 0)),
        ["-r", path] => Ok(File::open(shell.path(path)).is_ok()),
        ["-w", path] => Ok(OpenOptions::new()
            .append(true)
            .open(shell.path(path))
            .is_ok()),
        [left, "=" | "==", right] => Ok(left == right),
        [left, "!=", right] => Ok(left != right),
        [left, operator, right] => {
            let (left, right) = (number(left)?, number(right)?);
            match *operator {
                "-eq" => Ok(left == right),
                "-ne" => Ok(left != right),
                "-lt" => Ok(left < right),
                "-le" => Ok(left <= right),
                "-gt" => Ok(left > right),
                "-ge" => Ok(left >= right),
                other => Err(format!("{other}: unknown operator")),
            }
        }
        _ => Err(format!("{}: unknown condition", words.join(" "))),
    }
}

fn cannot(what: &str) -> io::Error {
    io::Error::other(format!("WASI has no {what}"))
}

fn usage() -> io::Error {
    io::Error::other("wrong arguments: the header of the toolbox's main.rs lists what there is")
}

fn command(shell: &mut Shell, name: &str, arguments: &[&str]) -> io::Result<i32> {
    let mut output = shell.streams.output.clone();
    match (name, arguments) {
        ("cd", [to]) => {
            let path = shell.path(to);
            if !fs::metadata(&path)?.is_dir() {
                return Err(io::Error::other(format!("{to}: not a directory")));
            }
            shell.directory = path;
        }
        ("pwd", _) => writeln!(output, "{}", shell.directory.display())?,
        ("export", words) => {
            for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
                shell.set(name, value.to_owned());
            }
        }
        ("unset", names) => names.iter().for_each(|name| shell.unset(name)),
        ("read", names) => {
            let Some(text) = line(&mut shell.streams.input)? else {
                return Ok(1);
            };
            let name = names
                .iter()
                .rfind(|name| !name.starts_with('-'))
                .unwrap_or(&"REPLY");
            shell.set(name, text);
        }
        ("trap", _) => return Err(cannot("signals")),
        ("chmod" | "chown" | "id", _) => return Err(cannot("users and modes")),
        ("ln", _) => return Err(cannot("links in Rust's standard library")),
        ("echo", ["-n", words @ ..]) => write!(output, "{}", words.join(" "))?,
        ("echo", ["-e", words @ ..]) => writeln!(output, "{}", unescape(&words.join(" ")))?,
        ("echo", words) => writeln!(output, "{}", words.join(" "))?,
        ("printf", [format, values @ ..]) => write!(output, "{}", printf(format, values))?,
        ("args", words) => words
            .iter()
            .try_for_each(|word| writeln!(output, "{word}"))?,
        ("env", []) => shell
            .variables()
            .try_for_each(|(name, value)| writeln!(output, "{name}={value}"))?,
        ("printenv", [name]) => match shell.get(name) {
            Some(value) => writeln!(output, "{value}")?,
            None => return Ok(1),
        },
        ("hostname", []) => match fs::read_to_string("/etc/hostname") {
            Ok(name) => writeln!(output, "{}", name.trim())?,
            Err(_) => writeln!(output, "{}", shell.get("HOSTNAME").unwrap_or_default())?,
        },
        ("date", _) => {
            let since = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            writeln!(output, "{}", since.as_secs())?;
        }
        ("seq", [last]) => return seq(&mut output, "1", last),
        ("seq", [first, last]) => return seq(&mut output, first, last),
        ("sleep", ["infinity"]) => std::thread::sleep(Duration::from_secs(1 << 40)),
        ("sleep", [text]) => {
            let seconds = text
                .trim_end_matches('s')
                .parse()
                .ok()
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            std::thread::sleep(
                seconds.ok_or_else(|| io::Error::other(format!("{text}: bad number")))?,
            );
        }
        ("spin", _) => {
            let mut n = 0u64;
            loop {
                n = std::hint::black_box(n.wrapping_add(1));
            }
        }
        ("eat", _) => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                eaten.push(std::hint::black_box(vec![1; 1 << 20]));
            }
        }
        ("crash", _) | ("kill", ["-ABRT" | "-6", "1"]) => std::process::abort(),
        ("kill", _) => return Err(cannot("signals")),
        ("nc" | "httpd" | "wget" | "nslookup", _) => {
            return network::command(shell, name, arguments);
        }
        _ => return files(shell, name, arguments),
    }
    Ok(0)
}

fn seq(output: &mut Output, first: &str, last: &str) -> io::Result<i32> {
    let (first, last) = (
        number(first).map_err(io::Error::other)?,
        number(last).map_err(io::Error::other)?,
    );
    (first..=last).try_for_each(|n| writeln!(output, "{n}"))?;
    Ok(0)
}

fn unescape(text: &str) -> String {
    text.replace("\\n", "\n")
        .replace("\\t", "\t")
        .replace("\\r", "\r")
}

/// Once through the format for each value it has no more places for.
fn printf(format: &str, values: &[&str]) -> String {
    let format = unescape(format);
    let mut values = values.iter();
    let mut text = String::new();
    loop {
        let mut chars = format.chars();
        let mut took = false;
        while let Some(c) = chars.next() {
            match (c, if c == '%' { chars.next() } else { None }) {
                ('%', Some('s' | 'd')) => {
                    text += values.next().unwrap_or(&"");
                    took = true;
                }
                ('%', Some(other)) => text.push(other),
                (c, _) => text.push(c),
            }
        }
        if !took || values.len() == 0 {
            return text;
        }
    }
}

fn named(path: &str) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// The input of a command that reads the files it is given, or else its standard input.
fn inputs(shell: &Shell, files: &[&str]) -> io::Result<Vec<Box<dyn Read>>> {
    if files.is_empty() || files == ["-"] {
        return Ok(vec![Box::new(shell.streams.input.clone())]);
    }
    let open = |path: &&str| -> io::Result<Box<dyn Read>> {
        match *path {
            "/dev/zero" => Ok(Box::new(io::repeat(0))),
            "/dev/null" => Ok(Box::new(io::empty())),
            path => Ok(Box::new(File::open(shell.path(path)).map_err(named(path))?)),
        }
    };
    files.iter().map(open).collect()
}

fn files(shell: &mut Shell, name: &str, arguments: &[&str]) -> io::Result<i32> {
    let flags: Vec<&str> = arguments
        .iter()
        .copied()
        .filter(|word| word.starts_with('-') && word.len() > 1)
        .collect();
    let rest: Vec<&str> = arguments
        .iter()
        .copied()
        .filter(|word| !word.starts_with('-') || word.len() == 1)
        .collect();
    let has = |flag: char| flags.iter().any(|word| word.contains(flag));
    let mut output = shell.streams.output.clone();
    match (name, &rest[..]) {
        ("cat", paths) => {
            for mut input in inputs(shell, paths)? {
                io::copy(&mut input, &mut output)?;
            }
        }
        ("tee", paths) => {
            let mut outputs = vec![];
            for path in paths {
                let mut options = OpenOptions::new();
                options
                    .create(true)
                    .write(true)
                    .append(has('a'))
                    .truncate(!has('a'));
                outputs.push(options.open(shell.path(path)).map_err(named(path))?);
            }
            let (mut input, mut buffer) = (shell.streams.input.clone(), [0; 4096]);
            while let n @ 1.. = input.read(&mut buffer)? {
                output.write_all(&buffer[..n])?;
                outputs
                    .iter_mut()
                    .try_for_each(|file| file.write_all(&buffer[..n]))?;
            }
        }
        ("ls", paths) => {
            for path in if paths.is_empty() { &["."][..] } else { paths } {
                let full = shell.path(path);
                if fs::metadata(&full).map_err(named(path))?.is_file() {
                    writeln!(output, "{path}")?;
                    continue;
                }
                let mut names: Vec<String> = fs::read_dir(full)
                    .map_err(named(path))?
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect::<io::Result<_>>()?;
                names.retain(|name| has('a') || has('A') || !name.starts_with('.'));
                names.sort();
                names
                    .iter()
                    .try_for_each(|name| writeln!(output, "{name}"))?;
            }
        }
        ("mkdir", paths) => {
            for path in paths {
                let full = shell.path(path);
                if has('p') {
                    fs::create_dir_all(full)
                } else {
                    fs::create_dir(full)
                }
                .map_err(named(path))?;
            }
        }
        ("rm", paths) => {
            for path in paths {
                let full = shell.path(path);
                let is_directory = fs::symlink_metadata(&full).is_ok_and(|file| file.is_dir());
                let removed = match (is_directory, has('r')) {
                    (true, true) => fs::remove_dir_all(full),
                    _ => fs::remove_file(full),
                };
                match removed {
                    Err(error) if error.kind() == io::ErrorKind::NotFound && has('f') => {}
                    other => other.map_err(named(path))?,
                }
            }
        }
        ("mv", [from, to]) => {
            fs::rename(shell.path(from), into(shell, from, to)).map_err(named(from))?
        }
        ("cp", [from, to]) => {
            let mut source = inputs(shell, &[from])?.remove(0);
            let mut target = File::create(into(shell, from, to)).map_err(named(to))?;
            io::copy(&mut source, &mut target)?;
        }
        ("touch", paths) => {
            for path in paths {
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(shell.path(path))
                    .map_err(named(path))?;
                let _ = file.set_modified(SystemTime::now());
            }
        }
        ("wc", paths) => {
            let mut bytes = Vec::new();
            for mut input in inputs(shell, paths)? {
                input.read_to_end(&mut bytes)?;
            }
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            let counted = if has('l') { lines } else { bytes.len() };
            match paths.first() {
                Some(path) => writeln!(output, "{counted} {path}")?,
                None => writeln!(output, "{counted}")?,
            }
        }
        ("head", [count, paths @ ..]) if has('n') || has('c') => {
            let count = number(count).map_err(io::Error::other)?.max(0);
            let input = inputs(shell, paths)?.remove(0);
            if has('c') {
                io::copy(&mut input.take(count as u64), &mut output)?;
            } else {
                for line in BufReader::new(input).lines().take(count as usize) {
                    writeln!(output, "{}", line?)?;
                }
            }
        }
        ("grep", [text, paths @ ..]) => {
            let mut is_found = false;
            for input in inputs(shell, paths)? {
                for line in BufReader::new(input).lines() {
                    let line = line?;
                    if line.contains(text.trim_start_matches('^')) != has('v') {
                        is_found = true;
                        if !has('q') && !has('c') {
                            writeln!(output, "{line}")?;
                        }
                    }
                }
            }
            return Ok(i32::from(!is_found));
        }
        ("stat", [format, paths @ ..]) if has('c') => {
            for path in paths {
                let file = fs::metadata(shell.path(path)).map_err(named(path))?;
                let kind = if file.is_dir() {
                    "directory"
                } else {
                    "regular file"
                };
                match *format {
                    "%s" => writeln!(output, "{}", file.len())?,
                    "%F" => writeln!(output, "{kind}")?,
                    "%n" => writeln!(output, "{path}")?,
                    _ => return Err(cannot("users and modes")),
                }
            }
        }
        ("dd", words) => {
            let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key));
            let (Some(from), Some(to)) = (value("if="), value("of=")) else {
                return Err(usage());
            };
            let bytes =
                size(value("bs=").unwrap_or("512"))? * size(value("count=").unwrap_or("1"))?;
            let source = inputs(shell, &[from])?.remove(0);
            let mut target = File::create(shell.path(to)).map_err(named(to))?;
            io::copy(&mut source.take(bytes), &mut target)?;
        }
        _ => return Err(usage()),
    }
    Ok(0)
}

/// `to`, or the file of `from`'s name in the directory `to`.
fn into(shell: &Shell, from: &str, to: &str) -> std::path::PathBuf {
    let target = shell.path(to);
    match Path::new(from).file_name() {
        Some(name) if target.is_dir() => target.join(name),
        _ => target,
    }
}

fn size(text: &str) -> io::Result<u64> {
    let (digits, factor) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 1 << 10),
        Some('M' | 'm') => (&text[..text.len() - 1], 1 << 20),
        Some('G' | 'g') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let digits = number(digits).map_err(io::Error::other)?;
    Ok(u64::try_from(digits).map_err(|_| usage())? * factor)
}
