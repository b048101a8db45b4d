//! Constant load: HTTP requests from a network namespace, each on a connection of its own, counted.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

use crate::eventually;

/// How long a request may take before it has failed; time for a connection whose packets were lost four times.
const REQUEST_MAX: Duration = Duration::from_secs(20);

/// Between two requests of one thread, so that the load leaves the machine to what is loaded.
const PAUSE: Duration = Duration::from_millis(10);

/// Threads that ask one address until they are stopped.
pub struct Load {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Loaded>>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Answers with status 200, by their bodies.
    pub answers: BTreeMap<String, u64>,
    /// What went wrong, each with the moment after the start.
    pub failures: Vec<String>,
}

impl Loaded {
    /// Requests that were answered.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// # Panics
    /// If a request failed; `what` says beside what.
    #[track_caller]
    pub fn assert_no_failure(&self, what: &str) {
        let nothing: [&str; 0] = [];
        assert_eq!(
            self.failures,
            nothing,
            "{what}, beside {} answers",
            self.answered()
        );
    }
}

/// Runs a closure on a thread of its own in a network namespace (`ip netns`), where the sockets it makes belong.
pub fn in_network<T: Send + 'static>(
    network: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let file = File::open(format!("/run/netns/{network}")).expect("the namespace is there");
    thread::spawn(move || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter it");
        run()
    })
}

impl Load {
    /// Starts asking `http://<address>/` with a number of threads in a network namespace.
    pub fn start(network: &str, address: SocketAddr, threads: usize) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let threads = (0..threads).map(|_| {
            let (is_over, answered) = (is_over.clone(), answered.clone());
            in_network(network, move || ask_until(address, &is_over, &answered))
        });
        Self {
            threads: threads.collect(),
            is_over,
            answered,
        }
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until so many more are answered.
    #[track_caller]
    pub fn wait_answers(&self, more: u64) {
        let enough = self.answered() + more;
        eventually(&format!("{more} more answers"), || {
            let now = self.answered();
            if now >= enough {
                Ok(())
            } else {
                Err(format!("{now} of {enough}"))
            }
        });
    }

    /// Ends the load and counts.
    pub fn stop(self) -> Loaded {
        self.is_over.store(true, Ordering::Relaxed);
        let mut sum = Loaded::default();
        for thread in self.threads {
            let one = thread.join().expect("a loading thread does not panic");
            sum.failures.extend(one.failures);
            for (body, count) in one.answers {
                *sum.answers.entry(body).or_default() += count;
            }
        }
        sum
    }
}

fn ask_until(address: SocketAddr, is_over: &AtomicBool, answered: &AtomicU64) -> Loaded {
    let start = Instant::now();
    let mut loaded = Loaded::default();
    while !is_over.load(Ordering::Relaxed) {
        match ask(address) {
            Ok(body) => {
                answered.fetch_add(1, Ordering::Relaxed);
                *loaded.answers.entry(body).or_default() += 1;
            }
            Err(error) => {
                let at = start.elapsed().as_secs_f32();
                loaded.failures.push(format!("{at:.2} s: {error}"));
            }
        }
        thread::sleep(PAUSE);
    }
    loaded
}

/// One request; gives the body, without white space round it.
fn ask(address: SocketAddr) -> Result<String, String> {
    let say = |what: &'static str| move |error| format!("{what}: {error}");
    let mut stream = TcpStream::connect_timeout(&address, REQUEST_MAX).map_err(say("connect"))?;
    stream
        .set_read_timeout(Some(REQUEST_MAX))
        .map_err(say("set a timeout"))?;
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(say("write"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(say("read"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.contains(" 200 ") {
        Ok(body.trim().to_owned())
    } else {
        Err(format!("answered {status:?}"))
    }
}
