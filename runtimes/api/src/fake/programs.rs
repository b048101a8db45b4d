//! Programs of the conformance suite, acted out: output, a log in CRI's format, stdin, execs and attached clients.
//!
//! The command is `program` and its words (`program print 7`), arguments that a case appends follow.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    sync::{mpsc, watch},
};

use crate::*;

/// Room in a stream before its writer has to wait.
const STREAM_BYTES: usize = 64 * 1024;
/// Between two prints of a program that repeats itself.
const PAUSE: Duration = Duration::from_millis(5);
/// A fake's log says nothing of when; readers want something that looks like a time.
const TIME: &str = "1970-01-01T00:00:00.000000000Z";

/// How a program ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) exit_code: i32,
    pub(super) oom_killed: bool,
}

const fn exited(exit_code: i32) -> Ended {
    Ended {
        exit_code,
        oom_killed: false,
    }
}

/// A container that runs a program.
pub(super) struct App {
    words: Vec<String>,
    config: ContainerConfig,
    log: Mutex<Log>,
    attached: Mutex<Vec<Attached>>,
    /// Into the program; `None` once it is closed.
    stdin: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    stdin_end: Mutex<Option<mpsc::Receiver<Vec<u8>>>>,
    asked: watch::Sender<bool>,
    size: watch::Sender<TerminalSize>,
    /// Its exit code, once it has ended.
    ended: watch::Sender<Option<i32>>,
}

struct Attached {
    stderr: bool,
    output: mpsc::UnboundedSender<Vec<u8>>,
}

/// Where a program's output goes.
enum Output<'a> {
    App(&'a App),
    Command {
        stdout: Option<DuplexStream>,
        stderr: Option<DuplexStream>,
    },
}

impl Output<'_> {
    async fn write(&mut self, stderr: bool, bytes: &[u8]) {
        match self {
            Self::App(app) => app.output(stderr, bytes),
            Self::Command {
                stdout,
                stderr: err,
            } => {
                if let Some(stream) = if stderr { err } else { stdout } {
                    let _ = stream.write_all(bytes).await;
                }
            }
        }
    }

    async fn print(&mut self, text: &str) {
        self.write(false, text.as_bytes()).await;
    }
}

impl App {
    /// A container's program, if its command names one.
    pub(super) fn new(config: &ContainerConfig) -> Result<Option<Arc<Self>>, RuntimeError> {
        let Some(("program", words)) = config
            .command
            .split_first()
            .map(|(first, rest)| (first.as_str(), rest))
        else {
            return Ok(None);
        };
        let (stdin, stdin_end) = mpsc::channel(1);
        let size = TerminalSize {
            width: 80,
            height: 24,
        };
        Ok(Some(Arc::new(Self {
            words: words.to_vec(),
            config: config.clone(),
            log: Mutex::new(Log::open(&config.log_path, config.log_rotation)?),
            attached: Mutex::default(),
            stdin: Mutex::new(config.stdin.then_some(stdin)),
            stdin_end: Mutex::new(Some(stdin_end)),
            asked: watch::Sender::new(false),
            size: watch::Sender::new(size),
            ended: watch::Sender::new(None),
        })))
    }

    /// Runs it to its end, or until it is ended.
    pub(super) async fn run(self: Arc<Self>) -> Ended {
        let (mut stdin_writer, stdin) = tokio::io::duplex(STREAM_BYTES);
        let input = lock(&self.stdin_end).take();
        let feed = async move {
            let Some(mut input) = input else { return };
            while let Some(bytes) = input.recv().await {
                let _ = stdin_writer.write_all(&bytes).await;
            }
            drop(stdin_writer);
            std::future::pending::<()>().await;
        };
        let mut ended = self.ended.subscribe();
        let program = self.act(
            &self.words,
            Output::App(&self),
            Box::new(stdin),
            self.size.subscribe(),
        );
        let result = tokio::select! {
            result = program => result,
            () = feed => exited(0),
            _ = ended.wait_for(Option::is_some) => exited(137),
        };
        lock(&self.log).finish();
        result
    }

    pub(super) fn ask_to_stop(&self) {
        self.asked.send_replace(true);
    }

    pub(super) fn end(&self, exit_code: i32) {
        self.ended.send_replace(Some(exit_code));
        lock(&self.attached).clear();
    }

    pub(super) fn listens_on(&self, port: u16) -> bool {
        matches!(&self.words[..], [name, at, ..] if name == "echo" && *at == port.to_string())
    }

    pub(super) fn reopen_log(&self) -> Result<(), RuntimeError> {
        lock(&self.log).reopen()
    }

    fn output(&self, stderr: bool, bytes: &[u8]) {
        lock(&self.log).append(stderr, bytes);
        lock(&self.attached)
            .retain(|one| one.stderr != stderr || one.output.send(bytes.to_vec()).is_ok());
    }

    async fn act(
        &self,
        words: &[String],
        mut output: Output<'_>,
        mut stdin: Box<dyn AsyncRead + Send + Unpin>,
        size: watch::Receiver<TerminalSize>,
    ) -> Ended {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let number = |text: &str| text.parse::<i32>().unwrap_or(1);
        match words[..] {
            ["print", code] => {
                output.print("out\n").await;
                output.write(true, b"err\n").await;
                exited(number(code))
            }
            ["wait" | "spin"] | ["echo", _] => {
                output.print("up\n").await;
                std::future::pending().await
            }
            ["copy"] => {
                let mut buffer = vec![0; STREAM_BYTES];
                while let Ok(count @ 1..) = stdin.read(&mut buffer).await {
                    output.write(false, &buffer[..count]).await;
                }
                exited(0)
            }
            ["eat"] => Ended {
                exit_code: 137,
                oom_killed: true,
            },
            ["polite", code] => {
                output.print("up\n").await;
                let mut asked = self.asked.subscribe();
                let _ = asked.wait_for(|asked| *asked).await;
                exited(number(code))
            }
            ["context", ..] => {
                let cwd = self.config.working_dir.as_deref().unwrap_or("/");
                output.print(&format!("cwd={cwd}\n")).await;
                for argument in words[1..]
                    .iter()
                    .copied()
                    .chain(self.config.args.iter().map(String::as_str))
                {
                    output.print(&format!("arg={argument}\n")).await;
                }
                for (name, value) in &self.config.env {
                    output.print(&format!("env={name}={value}\n")).await;
                }
                exited(0)
            }
            ["unfinished"] => {
                output.print("unfinished").await;
                exited(0)
            }
            ["lines", count] => {
                for line in 1..=number(count) {
                    output.print(&format!("{line}\n")).await;
                }
                exited(0)
            }
            ["read", path] => match self.find(path).and_then(|(path, _)| fs::read(path).ok()) {
                Some(bytes) => {
                    output.write(false, &bytes).await;
                    exited(0)
                }
                None => exited(1),
            },
            ["write", path] => match self.find(path) {
                Some((path, false)) if fs::write(&path, "written\n").is_ok() => exited(0),
                _ => exited(1),
            },
            ["terminal-size"] => loop {
                let TerminalSize { width, height } = *size.borrow();
                output.print(&format!("{height} {width}\n")).await;
                tokio::time::sleep(PAUSE).await;
            },
            _ => exited(127),
        }
    }

    /// A path of the container on the node, and whether it is read-only. There is nothing beside volumes.
    fn find(&self, path: &str) -> Option<(PathBuf, bool)> {
        let mounts = self.config.mounts.iter().rev();
        mounts
            .filter_map(|mount| {
                let rest = Path::new(path).strip_prefix(&mount.container_path).ok()?;
                let host = if rest.as_os_str().is_empty() {
                    mount.host_path.clone()
                } else {
                    mount.host_path.join(rest)
                };
                Some((host, mount.readonly))
            })
            .next()
    }

    pub(super) async fn exec_sync(
        self: &Arc<Self>,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecSyncResponse, RuntimeError> {
        let session = self.exec(&ExecRequest::sync(command));
        let run = ExecSyncResponse::collect(session.stdout, session.stderr, session.exit);
        ExecSyncResponse::within(timeout, command, run).await
    }

    pub(super) fn exec(self: &Arc<Self>, request: &ExecRequest) -> StreamSession {
        let words: Vec<String> = request.command.iter().skip(1).cloned().collect();
        let (stdin, their_stdin) = tokio::io::duplex(STREAM_BYTES);
        let pipe = |is_wanted: bool| {
            let (ours, theirs) = is_wanted.then(|| tokio::io::duplex(STREAM_BYTES)).unzip();
            (
                ours.map(|stream| Box::new(stream) as Box<dyn AsyncRead + Send + Unpin>),
                theirs,
            )
        };
        let (stdout, their_stdout) = pipe(request.stdout);
        let (stderr, their_stderr) = pipe(request.stderr && !request.tty);
        let output = Output::Command {
            stdout: their_stdout,
            stderr: their_stderr,
        };
        let (resize, mut sizes) = mpsc::channel::<TerminalSize>(1);
        let size = watch::Sender::new(TerminalSize {
            width: 80,
            height: 24,
        });
        let (app, seen) = (self.clone(), size.subscribe());
        let command = tokio::spawn(async move {
            let resizing = async {
                while let Some(new) = sizes.recv().await {
                    size.send_replace(new);
                }
                std::future::pending::<Ended>().await
            };
            let mut ended = app.ended.subscribe();
            tokio::select! {
                result = app.act(&words, output, Box::new(their_stdin), seen) => result.exit_code,
                result = resizing => result.exit_code,
                _ = ended.wait_for(Option::is_some) => 137,
            }
        });
        let command = AbortOnDrop(command);
        StreamSession {
            stdin: request.stdin.then(|| Box::new(stdin) as _),
            stdout,
            stderr,
            resize: request.tty.then_some(resize),
            exit: async move {
                let mut command = command;
                Ok((&mut command.0).await.unwrap_or(137))
            }
            .boxed(),
        }
    }

    pub(super) fn attach(self: &Arc<Self>, request: &AttachRequest) -> StreamSession {
        let follow = |stderr: bool| -> Box<dyn AsyncRead + Send + Unpin> {
            let (output, mut bytes) = mpsc::unbounded_channel::<Vec<u8>>();
            lock(&self.attached).push(Attached { stderr, output });
            let (ours, mut theirs) = tokio::io::duplex(STREAM_BYTES);
            tokio::spawn(async move {
                while let Some(bytes) = bytes.recv().await {
                    if theirs.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
            Box::new(ours)
        };
        let stdin = request.stdin.then(|| {
            let (ours, mut theirs) = tokio::io::duplex(STREAM_BYTES);
            let app = self.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; STREAM_BYTES];
                while let Ok(count @ 1..) = theirs.read(&mut buffer).await {
                    let into = lock(&app.stdin).clone();
                    if let Some(into) = into {
                        let _ = into.send(buffer[..count].to_vec()).await;
                    }
                }
                if app.config.stdin_once {
                    lock(&app.stdin).take();
                }
            });
            Box::new(ours) as Box<dyn AsyncWrite + Send + Unpin>
        });
        let (resize, mut sizes) = mpsc::channel::<TerminalSize>(1);
        let app = self.clone();
        tokio::spawn(async move {
            while let Some(new) = sizes.recv().await {
                app.size.send_replace(new);
            }
        });
        let mut ended = self.ended.subscribe();
        StreamSession {
            stdin,
            stdout: request.stdout.then(|| follow(false)),
            stderr: (request.stderr && !self.config.tty).then(|| follow(true)),
            resize: self.config.tty.then_some(resize),
            exit: async move {
                let code = ended.wait_for(Option::is_some).await;
                Ok(code.ok().and_then(|code| *code).unwrap_or(137))
            }
            .boxed(),
        }
    }
}

/// Somebody who sends back what comes.
pub(super) fn echo() -> Box<dyn Duplex> {
    let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(theirs);
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    Box::new(ours)
}

/// A command that ends when nobody waits for it any more.
struct AbortOnDrop(tokio::task::JoinHandle<i32>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A log file with its rotation.
struct Log {
    path: PathBuf,
    rotation: LogRotation,
    file: fs::File,
    size: u64,
    partial: [Vec<u8>; 2],
}

impl Log {
    fn open(path: &Path, rotation: LogRotation) -> Result<Self, RuntimeError> {
        // Where a test names no directory that is there, nobody reads the log.
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(RuntimeError::io(path.display().to_string()))?;
        Ok(Self {
            path: path.to_owned(),
            rotation,
            file,
            size: 0,
            partial: Default::default(),
        })
    }

    fn reopen(&mut self) -> Result<(), RuntimeError> {
        let anew = Self::open(&self.path, self.rotation)?;
        (self.file, self.size) = (anew.file, 0);
        Ok(())
    }

    fn append(&mut self, stderr: bool, bytes: &[u8]) {
        let mut partial = std::mem::take(&mut self.partial[usize::from(stderr)]);
        for byte in bytes {
            if *byte == b'\n' {
                self.line(stderr, 'F', &partial);
                partial.clear();
            } else {
                partial.push(*byte);
            }
        }
        self.partial[usize::from(stderr)] = partial;
    }

    fn finish(&mut self) {
        for stderr in [false, true] {
            let partial = std::mem::take(&mut self.partial[usize::from(stderr)]);
            if !partial.is_empty() {
                self.line(stderr, 'P', &partial);
            }
        }
    }

    fn line(&mut self, stderr: bool, tag: char, text: &[u8]) {
        let stream = if stderr { "stderr" } else { "stdout" };
        let mut line = format!("{TIME} {stream} {tag} ").into_bytes();
        line.extend_from_slice(text);
        line.push(b'\n');
        if self.size + line.len() as u64 > self.rotation.size_bytes_max {
            self.rotate();
        }
        self.size += line.len() as u64;
        let _ = self.file.write_all(&line);
    }

    fn rotate(&mut self) {
        let old = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        for number in (1..self.rotation.files_max.saturating_sub(1)).rev() {
            let _ = fs::rename(old(number), old(number + 1));
        }
        let _ = fs::rename(&self.path, old(1));
        let _ = self.reopen();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
