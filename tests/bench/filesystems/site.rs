//! An HTTP server with a tree of files: indexes as nginx makes them, files by ranges.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, PoisonError, RwLock},
    thread,
};

type Files = Arc<RwLock<HashMap<String, Arc<Vec<u8>>>>>;

/// A server, which ends with this process.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    files: Files,
}

impl Site {
    /// With files `big-0`, `big-1` … of so many bytes, and a directory `small` of files of 4 KiB.
    pub(crate) fn start(big_bytes: usize, big: usize, small: usize) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let content = Arc::new(vec![7; big_bytes]);
        let page = Arc::new(vec![7; 4096]);
        let big = (0..big).map(|n| (format!("big-{n}"), Arc::clone(&content)));
        let small = (0..small).map(|n| (format!("small/file-{n}"), Arc::clone(&page)));
        let files: Files = Arc::new(RwLock::new(big.chain(small).collect()));
        let served = Arc::clone(&files);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let files = Arc::clone(&served);
                thread::spawn(move || answer(stream, &files));
            }
        });
        Ok(Self { address, files })
    }

    /// One more file.
    pub(crate) fn add(&self, path: &str, content: Vec<u8>) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.insert(path.to_owned(), Arc::new(content));
    }
}

/// The names in a directory whose path ends with `/` or is empty, as nginx lists them.
fn index(files: &HashMap<String, Arc<Vec<u8>>>, directory: &str) -> String {
    let mut entries = Vec::new();
    for (path, content) in files {
        match path.strip_prefix(directory) {
            Some(name) if !name.contains('/') => entries.push(format!(
                r#"{{"name":"{name}","type":"file","mtime":"Sun, 06 Nov 1994 08:49:37 GMT","size":{}}}"#,
                content.len()
            )),
            _ => {}
        }
    }
    if directory.is_empty() {
        let mtime = "Sun, 06 Nov 1994 08:49:37 GMT";
        entries.push(format!(
            r#"{{"name":"small","type":"directory","mtime":"{mtime}"}}"#
        ));
    }
    format!("[{}]", entries.join(","))
}

fn answer(mut stream: TcpStream, files: &Files) -> io::Result<()> {
    let (mut method, mut path, mut range) = (String::new(), String::new(), None);
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(bytes) = line.strip_prefix("range: bytes=") {
            let (from, to) = bytes.split_once('-').unwrap_or_default();
            range = from.parse::<usize>().ok().zip(to.parse::<usize>().ok());
        }
        let mut words = line.split_whitespace();
        if let (Some(verb @ ("get" | "head")), Some(of)) = (words.next(), words.next()) {
            (method, path) = (verb.to_owned(), of.trim_start_matches('/').to_owned());
        }
    }
    let found = {
        let files = files.read().unwrap_or_else(PoisonError::into_inner);
        match path.is_empty() || path.ends_with('/') {
            true => Some((
                "application/json",
                Arc::new(index(&files, &path).into_bytes()),
            )),
            false => files
                .get(&path)
                .map(|content| ("application/octet-stream", Arc::clone(content))),
        }
    };
    let Some((content_type, content)) = found else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    };
    let length = content.len();
    let (status, part) =
        match range.and_then(|(from, to)| Some((from, to, content.get(from..=to)?))) {
            Some((from, to, part)) => {
                let status =
                    format!("206 Partial Content\r\ncontent-range: bytes {from}-{to}/{length}");
                (status, part)
            }
            None => ("200 OK".to_owned(), &content[..]),
        };
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\
         last-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nconnection: close\r\n\r\n",
        part.len()
    )?;
    match method.as_str() {
        "head" => Ok(()),
        _ => stream.write_all(part),
    }
}
