//! The file of the audit log, and the older ones beside it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{AuditConfig, AuditError};

/// Events written at a time.
const BATCH_MAX: usize = 256;

enum Sink {
    Stdout,
    File { file: File, bytes: u64 },
}

/// Writes lines as they come.
pub(crate) struct Writer {
    config: AuditConfig,
    lines: mpsc::Receiver<Vec<u8>>,
    sink: Sink,
    /// When a file was last put aside: names are in order.
    last: Timestamp,
}

fn open(path: &Path) -> io::Result<Sink> {
    // Who did what is nobody's business but the administrator's.
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let bytes = file.metadata()?.len();
    Ok(Sink::File { file, bytes })
}

impl Writer {
    pub(crate) fn open(
        config: AuditConfig,
        lines: mpsc::Receiver<Vec<u8>>,
    ) -> Result<Self, AuditError> {
        let sink = if config.log_path == Path::new("-") {
            Sink::Stdout
        } else {
            let made = config.log_path.parent().map_or(Ok(()), fs::create_dir_all);
            made.and_then(|()| open(&config.log_path))
                .map_err(|source| AuditError::File {
                    path: config.log_path.clone(),
                    source,
                })?
        };
        Ok(Self {
            config,
            lines,
            sink,
            last: Timestamp::UNIX_EPOCH,
        })
    }

    /// Until told to stop, and then what is left.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut is_failing = false;
        loop {
            let mut batch = Vec::new();
            let count = tokio::select! {
                biased;
                count = self.lines.recv_many(&mut batch, BATCH_MAX) => count,
                () = shutdown.cancelled() => {
                    self.lines.close();
                    self.lines.recv_many(&mut batch, usize::MAX).await
                }
            };
            if count == 0 {
                return;
            }
            let written = tokio::task::spawn_blocking(move || {
                let result = self.write(&batch);
                (self, result)
            });
            let Ok((writer, result)) = written.await else {
                tracing::error!("The audit log cannot be written any more");
                return;
            };
            self = writer;
            match result {
                Err(error) if !is_failing => {
                    tracing::error!(path = %self.config.log_path.display(), %error, "Audit log not written");
                    is_failing = true;
                }
                Err(_) => {}
                Ok(()) => is_failing = false,
            }
        }
    }

    fn write(&mut self, batch: &[Vec<u8>]) -> io::Result<()> {
        let mut block = Vec::new();
        for line in batch {
            if let Sink::File { bytes, .. } = &self.sink {
                let filled = *bytes + block.len() as u64;
                if filled > 0 && filled + line.len() as u64 > self.config.bytes_max {
                    self.append(&block)?;
                    block.clear();
                    self.rotate()?;
                }
            }
            block.extend_from_slice(line);
        }
        self.append(&block)
    }

    fn append(&mut self, block: &[u8]) -> io::Result<()> {
        match &mut self.sink {
            Sink::Stdout => io::stdout().lock().write_all(block),
            Sink::File { file, bytes } => {
                file.write_all(block)?;
                *bytes += block.len() as u64;
                Ok(())
            }
        }
    }

    /// Puts the file aside under the time, as kube-apiserver does, and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.config.log_path;
        let (head, tail) = (stem(path), extension(path));
        let step = jiff::SignedDuration::from_millis(1);
        let mut time = Timestamp::now().max(self.last + step);
        let aside = loop {
            let shown = time.strftime("%Y-%m-%dT%H-%M-%S%.3f");
            let aside = path.with_file_name(format!("{head}-{shown}{tail}"));
            if !aside.exists() {
                break aside;
            }
            time += step;
        };
        self.last = time;
        fs::rename(path, aside)?;
        self.sink = open(path)?;
        let mut aside = backups(path)?;
        let superfluous = aside.len().saturating_sub(self.config.backups_max);
        for old in aside.drain(..superfluous) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn extension(path: &Path) -> String {
    path.extension().map_or(String::new(), |extension| {
        format!(".{}", extension.to_string_lossy())
    })
}

/// Files that were put aside, the oldest first.
fn backups(path: &Path) -> io::Result<Vec<PathBuf>> {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    let (head, tail) = (format!("{}-", stem(path)), extension(path));
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let time = name
            .strip_prefix(&head)
            .and_then(|rest| rest.strip_suffix(&tail));
        if time.is_some_and(|time| time.starts_with(|c: char| c.is_ascii_digit())) {
            found.push(dir.join(name));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_full_is_put_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let config = AuditConfig {
            log_path: path.clone(),
            policy: String::new(),
            bytes_max: 100,
            backups_max: 2,
        };
        let (sender, lines) = mpsc::channel(64);
        let writer = Writer::open(config, lines).unwrap();
        for i in 0..20 {
            sender
                .send(format!("{i:049}\n").into_bytes())
                .await
                .unwrap();
        }
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        writer.run(shutdown).await;
        let aside = backups(&path).unwrap();
        assert_eq!(aside.len(), 2);
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        assert!(text(&path).ends_with("19\n"));
        assert!(text(&aside[1]).ends_with("17\n"));
        assert!(fs::metadata(&path).unwrap().len() <= 100);
    }
}
