//! Servers for populators, on loopback: a small one for HTTP that also runs git's own CGI, Docker's registry, moto.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long a server takes to be there, at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was asked.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// A header by its name in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What is answered.
pub(super) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    announced: Option<usize>,
}

impl Answer {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::status(200)
        }
    }

    pub(super) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            announced: None,
        }
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Says that the body has so many bytes, whatever comes.
    pub(super) fn announcing(mut self, length: usize) -> Self {
        self.announced = Some(length);
        self
    }
}

/// Answers on a port of its own until it is dropped.
pub(super) struct Server {
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, handler) = (Arc::clone(&is_over), Arc::new(handler));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let handler = Arc::clone(&handler);
                thread::spawn(move || {
                    // A client may leave whenever it likes.
                    let _ = stream.and_then(|stream| serve(stream, &*handler));
                });
            }
        });
        Self {
            port,
            is_over,
            thread: Some(thread),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, handler: &dyn Fn(&Request) -> Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (line, headers) = head(&mut reader)?;
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
    };
    let length = request
        .header("content-length")
        .and_then(|length| length.parse().ok());
    reader
        .take(length.unwrap_or(0))
        .read_to_end(&mut request.body)?;
    let answer = handler(&request);
    let length = answer.announced.unwrap_or(answer.body.len());
    let mut text = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        text += &format!("{name}: {value}\r\n");
    }
    if answer.status != 304 {
        text += &format!("content-length: {length}\r\n");
    }
    let mut stream = stream;
    stream.write_all(text.as_bytes())?;
    stream.write_all(b"\r\n")?;
    stream.write_all(&answer.body)
}

/// The first line and the headers of a message.
fn head(from: &mut impl BufRead) -> std::io::Result<(String, Vec<(String, String)>)> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        from.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            return Ok((line.trim_end().to_owned(), headers));
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// Asks another server the same.
pub(super) fn forward(port: u16, request: &Request) -> Answer {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let (method, path, query) = (&request.method, &request.path, &request.query);
    let mut text = format!("{method} {path}?{query} HTTP/1.1\r\n");
    for (name, value) in &request.headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all(text.as_bytes()).unwrap();
    stream.write_all(b"\r\n").unwrap();
    stream.write_all(&request.body).unwrap();
    let mut reader = BufReader::new(stream);
    let (line, headers) = head(&mut reader).unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer::status(status);
    reader.read_to_end(&mut answer.body).unwrap();
    for (name, value) in headers {
        if name == "content-type" {
            answer = answer.header(&name, &value);
        }
    }
    answer
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A repository, with `git http-backend` before it.
pub(super) struct Git {
    directory: TempDir,
}

impl Git {
    /// Branches `main` (file: two) and `side`, tag `v1` (file: one).
    pub(super) fn new() -> Self {
        let git = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(git.work()).unwrap();
        git.git(&["init", "-q", "-b", "main", "."]);
        git.git(&["clone", "-q", "--bare", ".", "../repo.git"]);
        git.git(&["remote", "add", "origin", "../repo.git"]);
        fs::create_dir(git.work().join("d")).unwrap();
        fs::write(git.work().join("d/large"), git.large()).unwrap();
        fs::write(git.work().join("run"), "#!/bin/sh\n").unwrap();
        let runnable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(git.work().join("run"), runnable).unwrap();
        std::os::unix::fs::symlink("../file", git.work().join("d/link")).unwrap();
        git.add_commit("one");
        git.git(&["tag", "-a", "-m", "v1", "v1"]);
        git.git(&["checkout", "-q", "-b", "side"]);
        git.add_commit("side");
        git.git(&["checkout", "-q", "main"]);
        git.add_commit("two");
        git
    }

    fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// A file that is worth to be compressed.
    pub(super) fn large(&self) -> String {
        (0..20_000).map(|n| format!("line {}\n", n * n)).collect()
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command
            .current_dir(self.work())
            .args(["-c", "user.name=t", "-c", "user.email=t@example"])
            .args(["-c", "protocol.file.allow=always"])
            .args(arguments)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", self.directory.path());
        String::from_utf8(run(&mut command))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(super) fn add_commit(&self, text: &str) {
        fs::write(self.work().join("file"), format!("{text}\n")).unwrap();
        self.commit_all(text);
    }

    pub(super) fn add_link(&self, name: &str, to: &str) {
        std::os::unix::fs::symlink(to, self.work().join(name)).unwrap();
        self.commit_all(name);
    }

    fn commit_all(&self, message: &str) {
        self.git(&["add", "."]);
        self.git(&["commit", "-q", "-m", message]);
        self.git(&["push", "-q", "--all", "origin"]);
        self.git(&["push", "-q", "--tags", "origin"]);
    }

    pub(super) fn commit(&self, name: &str) -> String {
        self.git(&["rev-parse", name])
    }

    /// Serves it; whoever does not show `authorization` is asked for it.
    pub(super) fn serve(&self, authorization: Option<&'static str>) -> Server {
        self.git(&["push", "-q", "--all", "origin"]);
        self.git(&["push", "-q", "--tags", "origin"]);
        let root = self.directory.path().to_owned();
        Server::start(move |request| {
            if authorization.is_some() && request.header("authorization") != authorization {
                return Answer::status(401).header("www-authenticate", "Basic realm=\"x\"");
            }
            cgi(&root, request)
        })
    }
}

/// Runs `git http-backend` for a request.
fn cgi(root: &Path, request: &Request) -> Answer {
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("HOME", root)
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", &request.path)
        .env("QUERY_STRING", &request.query)
        .env(
            "CONTENT_TYPE",
            request.header("content-type").unwrap_or_default(),
        )
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env(
            "GIT_PROTOCOL",
            request.header("git-protocol").unwrap_or_default(),
        )
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Requests are small: they fit the pipe.
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&request.body)
        .unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    let mut rest = &output[..];
    let mut answer = Answer::status(200);
    loop {
        let mut line = String::new();
        rest.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name {
            "Status" => answer.status = value[..3].parse().unwrap(),
            name => answer = answer.header(name, value),
        }
    }
    answer.body = rest.to_vec();
    answer
}

/// A tar.gz of files, made by the system's tar.
pub(super) fn tar_gz(files: &[(&str, &str)]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    run(Command::new("tar")
        .args(["--owner=0", "-czf", "-", "."])
        .current_dir(directory.path()))
}

/// `sha256:…`, by the system's program.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    format!("sha256:{}", &output[..64])
}

/// A program that listens on loopback; killed when dropped.
struct Process {
    child: Child,
    port: u16,
    _directory: TempDir,
}

impl Process {
    fn start(directory: TempDir, port: u16, command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut process = Self {
            child,
            port,
            _directory: directory,
        };
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = process.child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            assert!(begun.elapsed() < PATIENCE, "{command:?} does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-sSf", "--noproxy", "*"]).args(arguments);
    String::from_utf8(run(&mut command)).unwrap()
}

/// Docker's registry, with a login.
pub(super) struct Registry {
    process: Process,
    login: String,
}

impl Registry {
    pub(super) fn start(user: &str, password: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let users = run(Command::new("htpasswd").args(["-Bbn", user, password]));
        fs::write(at("users"), users).unwrap();
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '127.0.0.1:{port}'}}\nauth: {{htpasswd: {{realm: x, path: \
             '{}'}}}}\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\n",
            at("users").display(),
            at("data").display()
        );
        fs::write(at("config.yml"), config).unwrap();
        let config = at("config.yml");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config);
        Self {
            process: Process::start(directory, port, &mut command),
            login: format!("{user}:{password}"),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.process.port
    }

    fn blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let base = format!("http://127.0.0.1:{}/v2/{repository}", self.port());
        let url = format!("{base}/blobs/uploads/");
        let head = curl(&[
            "-u",
            &self.login,
            "-X",
            "POST",
            "-D",
            "-",
            "-o",
            "/dev/null",
            &url,
        ]);
        let location = head
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .unwrap();
        let joint = if location.contains('?') { '&' } else { '?' };
        let url = format!("{}{joint}digest={digest}", location.trim());
        let file = self.process._directory.path().join("upload");
        fs::write(&file, bytes).unwrap();
        let data = format!("@{}", file.display());
        let kind = "content-type: application/octet-stream";
        curl(&[
            "-u",
            &self.login,
            "-X",
            "PUT",
            "-H",
            kind,
            "--data-binary",
            &data,
            &url,
        ]);
        digest
    }

    /// Layers are media type, title and content.
    pub(super) fn push(&self, name: &str, layers: &[(&str, Option<&str>, Vec<u8>)]) {
        let (repository, tag) = name.split_once(':').unwrap();
        let described: Vec<_> = layers
            .iter()
            .map(|(kind, title, bytes)| {
                let annotations = title.map_or_else(String::new, |title| {
                    format!(r#","annotations":{{"org.opencontainers.image.title":"{title}"}}"#)
                });
                let (digest, size) = (self.blob(repository, bytes), bytes.len());
                format!(
                    r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}{annotations}}}"#
                )
            })
            .collect();
        let config = self.blob(repository, b"{}");
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{manifest_type}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{config}","size":2}},"layers":[{}]}}"#,
            described.join(",")
        );
        let url = format!(
            "http://127.0.0.1:{}/v2/{repository}/manifests/{tag}",
            self.port()
        );
        let kind = format!("content-type: {manifest_type}");
        curl(&[
            "-u",
            &self.login,
            "-X",
            "PUT",
            "-H",
            &kind,
            "--data-binary",
            &manifest,
            &url,
        ]);
    }
}

/// moto's server, which takes any signature: its own check refuses what Amazon's client signs, too.
pub(super) struct Moto {
    process: Process,
}

impl Moto {
    pub(super) fn start() -> Self {
        let python = std::env::var_os("WHERRY_MOTO").expect("WHERRY_MOTO: tests/run.sh sets it");
        let port = free_port();
        let mut command = Command::new(python);
        command
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p"])
            .arg(port.to_string());
        let moto = Self {
            process: Process::start(tempfile::tempdir().unwrap(), port, &mut command),
        };
        curl(&["-X", "PUT", &moto.url("things")]);
        moto
    }

    pub(super) fn port(&self) -> u16 {
        self.process.port
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port())
    }

    pub(super) fn put(&self, bucket: &str, key: &str, text: &str) {
        let key = key.replace(' ', "%20").replace('ü', "%C3%BC");
        let url = self.url(&format!("{bucket}/{key}"));
        // A form would be read as fields.
        let kind = "content-type: text/plain";
        curl(&["-X", "PUT", "-H", kind, "--data-binary", text, &url]);
    }
}
