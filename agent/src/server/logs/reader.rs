//! Follows a cursor through a log, and waits where the log has not been written yet.

use std::{io, path::PathBuf, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{
    cursor::{Cursor, Step},
    options::LogOptions,
    watcher::Watch,
};

/// How often a follower looks without having been told of anything.
pub(crate) const REPAIR_INTERVAL: Duration = Duration::from_secs(2);

/// Ready once the container no longer runs.
pub(crate) type Ended = BoxFuture<'static, ()>;

/// A log being read.
pub(crate) struct LogReader {
    /// `None` at the end, and after a read was given up half-way.
    cursor: Option<Box<Cursor>>,
    follow: Option<Follow>,
}

struct Follow {
    watch: Watch,
    ended: Ended,
    has_ended: bool,
}

impl LogReader {
    /// Finds where to begin. `follow` tells of changes and of the container's end.
    pub(crate) async fn open(
        path: PathBuf,
        options: LogOptions,
        follow: Option<(Watch, Ended)>,
    ) -> io::Result<Self> {
        let cursor = blocking(move || Cursor::open(path, options)).await?;
        let follow = follow.map(|(watch, ended)| Follow {
            watch,
            ended,
            has_ended: false,
        });
        Ok(Self {
            cursor: Some(Box::new(cursor)),
            follow,
        })
    }

    /// The next piece of the log as the client is to see it; `None` at the end.
    pub(crate) async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            // Taken before reading, so that what is written until the end is read.
            let was_ended = self.follow.as_ref().is_none_or(|follow| follow.has_ended);
            let Some(mut cursor) = self.cursor.take() else {
                return Ok(None);
            };
            let (cursor, step) = blocking(move || cursor.step().map(|step| (cursor, step))).await?;
            match step {
                Step::Show(chunk) => {
                    self.cursor = Some(cursor);
                    return Ok(Some(chunk));
                }
                Step::Done => return Ok(None),
                Step::Wait if was_ended => return Ok(None),
                Step::Wait => self.cursor = Some(cursor),
            }
            if let Some(follow) = &mut self.follow {
                tokio::select! {
                    () = &mut follow.ended => follow.has_ended = true,
                    () = follow.watch.changed() => {}
                    () = tokio::time::sleep(REPAIR_INTERVAL) => {}
                }
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        io::Write,
        path::Path,
    };

    use tokio::sync::oneshot;

    use super::{super::watcher::LogWatcher, *};

    struct Log {
        directory: tempfile::TempDir,
        lines: u32,
    }

    impl Log {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().expect("a temporary directory"),
                lines: 0,
            }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("0.log")
        }

        /// Appends the next numbered lines.
        fn write(&mut self, count: u32) {
            let mut file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(self.path())
                .expect("writable");
            for _ in 0..count {
                let text = format!("2026-11-20T12:00:00Z stdout F {}\n", self.lines);
                file.write_all(text.as_bytes()).expect("space");
                self.lines += 1;
            }
        }

        fn rotate(&self) {
            let name = format!("0.log.20261120-{:06}", self.lines);
            fs::rename(self.path(), self.directory.path().join(name)).expect("same directory");
        }

        fn expected(&self, from: u32) -> String {
            (from..self.lines)
                .map(|number| format!("{number}\n"))
                .collect()
        }
    }

    async fn read(reader: &mut LogReader, bytes: usize) -> String {
        let mut text = Vec::new();
        while text.len() < bytes
            && let Some(chunk) = reader.next_chunk().await.expect("readable")
        {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8(text).expect("text")
    }

    fn following() -> LogOptions {
        LogOptions {
            follow: true,
            ..LogOptions::default()
        }
    }

    async fn open(path: &Path, options: LogOptions) -> LogReader {
        LogReader::open(path.to_path_buf(), options, None)
            .await
            .expect("readable")
    }

    fn follow(path: &Path) -> (oneshot::Sender<()>, Option<(Watch, Ended)>) {
        let (end, ended) = oneshot::channel::<()>();
        let ended = Box::pin(async {
            let _ = ended.await;
        });
        (end, Some((LogWatcher::default().watch(path), ended)))
    }

    #[tokio::test]
    async fn a_log_is_read_over_its_rotated_files() {
        let mut log = Log::new();
        for _ in 0..3 {
            log.write(10);
            log.rotate();
        }
        log.write(10);
        let mut reader = open(&log.path(), LogOptions::default()).await;
        assert_eq!(read(&mut reader, usize::MAX).await, log.expected(0));
        for tail in [0, 1, 9, 10, 11, 25, 39, 40, 41] {
            let options = LogOptions {
                tail_lines: Some(tail),
                ..LogOptions::default()
            };
            let mut reader = open(&log.path(), options).await;
            let from = 40_u32.saturating_sub(u32::try_from(tail).expect("small"));
            assert_eq!(
                read(&mut reader, usize::MAX).await,
                log.expected(from),
                "tail {tail}"
            );
        }
    }

    #[tokio::test]
    async fn a_follower_loses_no_line_to_rotation() {
        let mut log = Log::new();
        log.write(1);
        let (end, follow) = follow(&log.path());
        let mut reader = LogReader::open(log.path(), following(), follow)
            .await
            .expect("readable");
        let mut text = String::new();
        for round in 0..30 {
            // Sometimes the reader sees each rotation, sometimes several at once.
            log.write(7);
            log.rotate();
            log.write(3);
            if round % 3 == 0 {
                let missing = log.expected(0).len() - text.len();
                text.push_str(&read(&mut reader, missing).await);
            }
        }
        log.write(1);
        end.send(()).expect("the reader waits for it");
        text.push_str(&read(&mut reader, usize::MAX).await);
        assert_eq!(text, log.expected(0));
    }

    #[tokio::test]
    async fn a_follower_of_a_log_not_yet_there_waits_for_it() {
        let mut log = Log::new();
        let (end, follow) = follow(&log.path());
        let mut reader = LogReader::open(log.path(), following(), follow)
            .await
            .expect("readable");
        let writer = async {
            tokio::task::yield_now().await;
            log.write(2);
        };
        let (text, ()) = tokio::join!(read(&mut reader, 4), writer);
        assert_eq!(text, "0\n1\n");
        drop(end);
        assert_eq!(reader.next_chunk().await.expect("readable"), None);
    }

    #[tokio::test]
    async fn files_deleted_under_a_follower_are_passed_over() {
        let mut log = Log::new();
        log.write(2);
        let (end, follow) = follow(&log.path());
        let mut reader = LogReader::open(log.path(), following(), follow)
            .await
            .expect("readable");
        assert_eq!(read(&mut reader, 4).await, "0\n1\n");
        fs::remove_file(log.path()).expect("there");
        log.write(1);
        assert_eq!(read(&mut reader, 2).await, "2\n");
        drop(end);
    }
}
