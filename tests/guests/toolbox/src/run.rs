//! Runs commands.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::{
    applets,
    parse::{Command, Redirect, RedirectKind, parse},
};

/// What is not the next command.
pub(crate) enum Flow {
    Exit(i32),
    Break,
    Continue,
    /// The command failed before it ran.
    Error(String),
}

impl Flow {
    pub(crate) fn error(message: String) -> Self {
        Self::Error(message)
    }
}

/// Where output goes.
#[derive(Clone)]
pub(crate) enum Output {
    Stdout,
    Stderr,
    Null,
    Buffer(Rc<RefCell<Vec<u8>>>),
    File(Rc<RefCell<File>>),
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                io::stdout().write_all(bytes)?;
                io::stdout().flush()
            }
            Self::Stderr => io::stderr().write_all(bytes),
            Self::Null => Ok(()),
            Self::Buffer(buffer) => {
                buffer.borrow_mut().extend_from_slice(bytes);
                Ok(())
            }
            Self::File(file) => file.borrow_mut().write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where input comes from.
#[derive(Clone)]
pub(crate) enum Input {
    Stdin,
    Bytes(Rc<RefCell<io::Cursor<Vec<u8>>>>),
    File(Rc<RefCell<File>>),
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stdin => io::stdin().read(buffer),
            Self::Bytes(bytes) => bytes.borrow_mut().read(buffer),
            Self::File(file) => file.borrow_mut().read(buffer),
        }
    }
}

impl Input {
    pub(crate) fn bytes(bytes: Vec<u8>) -> Self {
        Self::Bytes(Rc::new(RefCell::new(io::Cursor::new(bytes))))
    }
}

/// A command's streams.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) errors: Output,
}

pub(crate) struct Shell {
    variables: BTreeMap<String, String>,
    pub(crate) arguments: Vec<String>,
    pub(crate) directory: PathBuf,
    /// Of the last command.
    pub(crate) code: i32,
    pub(crate) streams: Streams,
}

impl Shell {
    pub(crate) fn new() -> Self {
        Self {
            variables: std::env::vars().collect(),
            arguments: Vec::new(),
            directory: std::env::current_dir().unwrap_or_else(|_| "/".into()),
            code: 0,
            streams: Streams {
                input: Input::Stdin,
                output: Output::Stdout,
                errors: Output::Stderr,
            },
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    pub(crate) fn set(&mut self, name: &str, value: String) {
        self.variables.insert(name.to_owned(), value);
    }

    pub(crate) fn unset(&mut self, name: &str) {
        self.variables.remove(name);
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (&String, &String)> {
        self.variables.iter()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.join(Path::new(path))
    }

    fn complain(&mut self, message: &str) {
        let _ = writeln!(self.streams.errors, "sh: {message}");
    }

    /// Runs one command that is not to be read as a script; answers its exit code.
    pub(crate) fn run_words(&mut self, words: &[String]) -> i32 {
        match applets::run(self, words) {
            Ok(code) | Err(Flow::Exit(code)) => code,
            Err(Flow::Error(message)) => {
                self.complain(&message);
                2
            }
            Err(Flow::Break | Flow::Continue) => 0,
        }
    }

    /// Runs a script as a shell of its own.
    pub(crate) fn script(&mut self, text: &str) -> Result<i32, Flow> {
        match self.run_script(text) {
            Err(Flow::Exit(code)) => Ok(code),
            other => other,
        }
    }

    /// Runs a line of a session: `exit` ends the session.
    pub(crate) fn script_line(&mut self, text: &str) -> Result<i32, Flow> {
        self.run_script(text)
    }

    fn run_script(&mut self, text: &str) -> Result<i32, Flow> {
        let commands = parse(text).map_err(Flow::Error)?;
        self.list(&commands)
    }

    /// What a script writes.
    pub(crate) fn capture(&mut self, script: &str) -> Result<Vec<u8>, Flow> {
        let buffer = Rc::new(RefCell::new(Vec::new()));
        let before = std::mem::replace(&mut self.streams.output, Output::Buffer(buffer.clone()));
        let result = self.script(script);
        self.streams.output = before;
        self.code = result?;
        Ok(buffer.take())
    }

    fn list(&mut self, commands: &[Command]) -> Result<i32, Flow> {
        let mut code = 0;
        for command in commands {
            code = match self.command(command) {
                Err(Flow::Error(message)) => {
                    self.complain(&message);
                    2
                }
                other => other?,
            };
            self.code = code;
        }
        Ok(code)
    }

    fn with<T>(
        &mut self,
        redirects: &[Redirect],
        run: impl FnOnce(&mut Self) -> Result<T, Flow>,
    ) -> Result<T, Flow> {
        let before = self.streams.clone();
        let redirected = redirects
            .iter()
            .try_for_each(|redirect| self.redirect(redirect));
        let result = redirected.and_then(|()| run(self));
        self.streams = before;
        result
    }

    fn redirect(&mut self, redirect: &Redirect) -> Result<(), Flow> {
        let target = self.text(&redirect.target)?;
        let path = self.path(&target);
        let failed = |error: io::Error| Flow::Error(format!("can't open {target}: {error}"));
        if redirect.kind == RedirectKind::Read {
            self.streams.input = if target == "/dev/null" {
                Input::bytes(Vec::new())
            } else {
                Input::File(Rc::new(RefCell::new(File::open(path).map_err(failed)?)))
            };
            return Ok(());
        }
        let output = match (redirect.kind, target.as_str()) {
            (RedirectKind::Copy, "1") => self.streams.output.clone(),
            (RedirectKind::Copy, "2") => self.streams.errors.clone(),
            (_, "/dev/null") => Output::Null,
            (_, "/dev/stdout") => Output::Stdout,
            (_, "/dev/stderr") => Output::Stderr,
            (kind, _) => {
                let mut options = OpenOptions::new();
                options.create(true).write(true);
                if kind == RedirectKind::Append {
                    options.append(true)
                } else {
                    options.truncate(true)
                };
                Output::File(Rc::new(RefCell::new(options.open(path).map_err(failed)?)))
            }
        };
        match redirect.fd {
            1 => self.streams.output = output,
            2 => self.streams.errors = output,
            other => {
                return Err(Flow::Error(format!(
                    "{other}: not a stream that can be redirected"
                )));
            }
        }
        Ok(())
    }

    fn command(&mut self, command: &Command) -> Result<i32, Flow> {
        match command {
            Command::Simple {
                assignments,
                words,
                redirects,
            } => {
                let words = self.words(words)?;
                for (name, value) in assignments {
                    let value = self.text(value)?;
                    self.set(name, value);
                }
                self.with(redirects, |shell| {
                    if words.is_empty() {
                        Ok(0)
                    } else {
                        applets::run(shell, &words)
                    }
                })
            }
            Command::Group(body, redirects) => self.with(redirects, |shell| shell.list(body)),
            Command::Pipe(stages) => {
                let before = self.streams.clone();
                let mut result = Ok(0);
                for (n, stage) in stages.iter().enumerate() {
                    let buffer = Rc::new(RefCell::new(Vec::new()));
                    let is_last = n + 1 == stages.len();
                    self.streams.output = if is_last {
                        before.output.clone()
                    } else {
                        Output::Buffer(buffer.clone())
                    };
                    result = self.command(stage);
                    self.streams.input = Input::bytes(buffer.take());
                    if result.is_err() {
                        break;
                    }
                }
                self.streams = before;
                result
            }
            Command::And(left, right) => match self.code_of(left)? {
                0 => self.command(right),
                code => Ok(code),
            },
            Command::Or(left, right) => match self.code_of(left)? {
                0 => Ok(0),
                _ => self.command(right),
            },
            Command::Not(command) => Ok(i32::from(self.code_of(command)? == 0)),
            Command::If { arms, otherwise } => {
                for (condition, body) in arms {
                    if self.list(condition)? == 0 {
                        return self.list(body);
                    }
                }
                self.list(otherwise)
            }
            Command::While {
                until,
                condition,
                body,
            } => {
                let mut code = 0;
                while (self.list(condition)? == 0) != *until {
                    match self.list(body) {
                        Err(Flow::Break) => break,
                        Err(Flow::Continue) => {}
                        other => code = other?,
                    }
                }
                Ok(code)
            }
            Command::For { name, words, body } => {
                let mut code = 0;
                for word in self.words(words)? {
                    self.set(name, word);
                    match self.list(body) {
                        Err(Flow::Break) => break,
                        Err(Flow::Continue) => {}
                        other => code = other?,
                    }
                }
                Ok(code)
            }
        }
    }

    /// An exit code with `$?` set, errors said.
    fn code_of(&mut self, command: &Command) -> Result<i32, Flow> {
        self.list(std::slice::from_ref(command))
    }
}
