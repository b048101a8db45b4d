//! One address in front of several servers: what a load balancer does that passes connections on and looks into none.

use std::{
    io::{self, copy},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{Shutdown as How, shutdown};

use crate::in_network;

/// How long a server may take to accept before the next one is tried.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Passes connections on until dropped; those that are open then go on.
pub struct Front {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    /// Listens in a network namespace. Each connection goes to the next server that accepts it.
    ///
    /// # Panics
    /// If it cannot listen there.
    #[track_caller]
    pub fn start(network: &str, address: SocketAddr, servers: Vec<SocketAddr>) -> Self {
        let (tell, told) = mpsc::channel();
        let thread = in_network(network, move || {
            let listener = TcpListener::bind(address);
            let accepting = listener.and_then(|listener| Ok((listener.try_clone()?, listener)));
            match accepting {
                Ok((ours, theirs)) => {
                    let _ = tell.send(Ok(theirs));
                    pass_on(&ours, &servers);
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        });
        let listener = told.recv().expect("the thread tells");
        Self {
            listener: listener.unwrap_or_else(|error| panic!("listen at {address}: {error}")),
            thread: Some(thread),
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;
        // Who waits for a connection is told that there will be none.
        let _ = shutdown(self.listener.as_raw_fd(), How::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn pass_on(listener: &TcpListener, servers: &[SocketAddr]) {
    for turn in 0.. {
        let Ok((client, _)) = listener.accept() else {
            return;
        };
        let mut order = servers.to_vec();
        order.rotate_left(turn % servers.len());
        thread::spawn(move || drop(serve(&client, &order)));
    }
}

fn serve(client: &TcpStream, servers: &[SocketAddr]) -> io::Result<()> {
    let met = servers
        .iter()
        .find_map(|server| TcpStream::connect_timeout(server, CONNECT_MAX).ok());
    // Dropped, the client's connection is closed.
    let server = met.ok_or(io::ErrorKind::ConnectionRefused)?;
    for stream in [client, &server] {
        stream.set_nodelay(true)?;
    }
    thread::scope(|scope| {
        scope.spawn(|| between(client, &server));
        between(&server, client);
    });
    Ok(())
}

/// Copies one way. An end of a server ends the client's connection altogether, as it would without anybody between.
fn between(mut from: &TcpStream, mut to: &TcpStream) {
    let end = match copy(&mut from, &mut to) {
        Ok(_) => Shutdown::Write,
        Err(_) => Shutdown::Both,
    };
    let _ = to.shutdown(end);
    if end == Shutdown::Both {
        let _ = from.shutdown(end);
    }
}
