//! `nc`, `httpd`, `nslookup` by sockets; `wget` by `wasi:http`.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs},
};

use wasip2::http::{
    outgoing_handler,
    types::{Fields, IncomingBody, OutgoingRequest, Scheme},
};

use crate::{
    applets,
    run::{Flow, Input, Output, Shell},
};

pub(crate) fn command(shell: &mut Shell, name: &str, arguments: &[&str]) -> io::Result<i32> {
    let value = |flag: &str| {
        let at = arguments.iter().position(|word| *word == flag)?;
        arguments.get(at + 1).copied()
    };
    match name {
        "nc" if arguments.iter().any(|word| word.starts_with("-l")) => {
            let port = value("-p").ok_or_else(|| io::Error::other("-p PORT is missing"))?;
            let at = arguments.iter().position(|word| *word == "-e");
            let run: Vec<String> = at.map_or_else(Vec::new, |at| {
                arguments[at + 1..]
                    .iter()
                    .map(|word| (*word).to_owned())
                    .collect()
            });
            let is_once = !arguments
                .iter()
                .any(|word| matches!(*word, "-ll" | "-lk" | "-k"));
            listen(shell, &address(port), &run, is_once)
        }
        "nc" => {
            let plain: Vec<&&str> = arguments
                .iter()
                .filter(|word| !word.starts_with('-'))
                .collect();
            let [.., host, port] = &plain[..] else {
                return Err(io::Error::other("HOST PORT are missing"));
            };
            talk(shell, host, port)
        }
        "httpd" => httpd(
            shell,
            &address(value("-p").unwrap_or("80")),
            value("-h").unwrap_or("."),
        ),
        "wget" => {
            let url = arguments
                .iter()
                .rfind(|word| !word.starts_with('-'))
                .unwrap_or(&"");
            let body = get(url).map_err(io::Error::other)?;
            match value("-O").or_else(|| value("-qO")) {
                Some("-") => shell.streams.output.write_all(&body)?,
                Some(file) => fs::write(shell.path(file), body)?,
                None => fs::write(
                    shell.path(
                        url.rsplit('/')
                            .next()
                            .filter(|name| !name.is_empty())
                            .unwrap_or("index.html"),
                    ),
                    body,
                )?,
            }
            Ok(0)
        }
        _ => {
            let name = arguments
                .first()
                .ok_or_else(|| io::Error::other("a name is missing"))?;
            let addresses = (*name, 0).to_socket_addrs()?;
            writeln!(shell.streams.output, "Name:\t{name}")?;
            for address in addresses {
                writeln!(shell.streams.output, "Address: {}", address.ip())?;
            }
            Ok(0)
        }
    }
}

/// `8080` or `127.0.0.1:8080`.
fn address(port: &str) -> String {
    if port.contains(':') {
        port.to_owned()
    } else {
        format!("0.0.0.0:{port}")
    }
}

fn listen(shell: &mut Shell, address: &str, run: &[String], is_once: bool) -> io::Result<i32> {
    let listener = TcpListener::bind(address)?;
    for connection in listener.incoming() {
        let mut connection = connection?;
        if run.is_empty() {
            io::copy(&mut connection, &mut shell.streams.output.clone())?;
        } else {
            let buffer = std::rc::Rc::default();
            let before = shell.streams.clone();
            // Whoever talks to it says what it has to say first.
            shell.streams.output = Output::Buffer(std::rc::Rc::clone(&buffer));
            let applet = run
                .first()
                .map(|word| applets::base(word))
                .unwrap_or_default();
            if matches!(applet, "cat" | "read") {
                let mut said = Vec::new();
                connection.read_to_end(&mut said)?;
                shell.streams.input = Input::bytes(said);
            }
            let result = applets::run(shell, run);
            shell.streams = before;
            if let Err(Flow::Error(message)) = result {
                writeln!(shell.streams.errors, "nc: {message}")?;
            }
            // A client that went away is its own business.
            let _ = connection.write_all(&buffer.take());
        }
        if is_once {
            break;
        }
    }
    Ok(0)
}

fn talk(shell: &mut Shell, host: &str, port: &str) -> io::Result<i32> {
    let port = port
        .parse()
        .map_err(|_| io::Error::other(format!("{port}: not a port")))?;
    let mut connection = TcpStream::connect((host, port))?;
    // The program's own stdin may never end: only what is piped in is sent.
    if !matches!(shell.streams.input, Input::Stdin) {
        io::copy(&mut shell.streams.input, &mut connection)?;
        connection.shutdown(Shutdown::Write)?;
    }
    io::copy(&mut connection, &mut shell.streams.output)?;
    Ok(0)
}

fn httpd(shell: &mut Shell, address: &str, directory: &str) -> io::Result<i32> {
    let root = shell.path(directory);
    for connection in TcpListener::bind(address)?.incoming() {
        let connection = connection?;
        let mut request = String::new();
        let mut reader = BufReader::new(&connection);
        if reader.read_line(&mut request).is_err() {
            continue;
        }
        let mut header = String::new();
        while reader.read_line(&mut header).is_ok_and(|n| n > 2) {
            header.clear();
        }
        let path = request
            .split(' ')
            .nth(1)
            .unwrap_or("/")
            .split('?')
            .next()
            .unwrap_or("/");
        let name = if path.ends_with('/') {
            format!("{path}index.html")
        } else {
            path.to_owned()
        };
        let file = root.join(name.trim_start_matches('/'));
        let (status, body) = match fs::read(file) {
            Ok(body) if !name.contains("..") => ("200 OK", body),
            _ => ("404 Not Found", b"not found\n".to_vec()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let mut writer = &connection;
        let _ = writer
            .write_all(head.as_bytes())
            .and_then(|()| writer.write_all(&body));
    }
    Ok(0)
}

fn get(url: &str) -> Result<Vec<u8>, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("http", rest)) => (Scheme::Http, rest),
        Some((other, _)) => return Err(format!("{other}: not a scheme")),
        None => (Scheme::Http, url),
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let request = OutgoingRequest::new(Fields::new());
    let set = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)));
    set.map_err(|()| format!("{url}: not a URL"))?;
    let answer =
        outgoing_handler::handle(request, None).map_err(|error| format!("{url}: {error:?}"))?;
    answer.subscribe().block();
    let response = match answer.get() {
        Some(Ok(Ok(response))) => response,
        Some(Ok(Err(error))) => return Err(format!("{url}: {error:?}")),
        _ => return Err(format!("{url}: no answer")),
    };
    let status = response.status();
    let body = response.consume().map_err(|()| "no body".to_owned())?;
    let stream = body.stream().map_err(|()| "no stream".to_owned())?;
    let mut bytes = Vec::new();
    // The end of the stream is an error of its own.
    while let Ok(more) = stream.blocking_read(64 * 1024) {
        bytes.extend(more);
    }
    drop(stream);
    drop(IncomingBody::finish(body));
    if status >= 400 {
        return Err(format!("server returned error: HTTP/1.1 {status}"));
    }
    Ok(bytes)
}
