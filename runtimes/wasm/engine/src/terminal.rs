//! A guest's terminal. There is no pseudo-terminal behind it, so what a kernel would do is done here:
//! line ends, keys, and the size, for which WASI has no call.
//!
//! The size is told as terminals tell it over a wire: asked by `CSI 18 t` it is answered on stdin as
//! `CSI 8 ; rows ; columns t`; a guest that has written `CSI ? 2048 h` is told at once and whenever it
//! changes, as `CSI 48 ; rows ; columns ; 0 ; 0 t`, until it writes `CSI ? 2048 l`. Such a request is
//! kept from the log and the clients if the size is known; if not, the client's own terminal answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::output::Input;

const ASK: &[u8] = b"\x1b[18t";
const REPORT: &[u8] = b"\x1b[?2048h";
const QUIET: &[u8] = b"\x1b[?2048l";

/// The terminal of an app or an exec.
pub(crate) struct Terminal {
    state: Mutex<State>,
    input: Input,
}

#[derive(Debug, Default)]
struct State {
    /// Rows and columns, once a client has said.
    size: Option<(u16, u16)>,
    reports: bool,
}

impl Terminal {
    /// A terminal whose keys are written to `input`.
    pub(crate) fn new(input: Input) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            input,
        })
    }

    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    /// Takes requests out of what a guest writes, and answers them; `None` if there were none.
    pub(crate) fn pass(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (left, told) = self.filter(bytes)?;
        self.tell(told);
        Some(left)
    }

    /// A client's terminal has this size now.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        self.tell(self.resized(rows, columns));
    }

    /// Tells the guest something on its stdin, when it reads.
    fn tell(&self, told: Vec<u8>) {
        if !told.is_empty() {
            let input = self.input.clone();
            tokio::spawn(async move { input.write(&told).await });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left without requests, and what to tell the guest. A request is seen if it is written
    /// in one piece.
    fn filter(&self, bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        if !bytes.contains(&0x1b) {
            return None;
        }
        let mut state = self.state();
        let (mut left, mut told) = (Vec::with_capacity(bytes.len()), Vec::new());
        let mut rest = bytes;
        while let [first, after @ ..] = rest {
            if rest.starts_with(REPORT) {
                state.reports = true;
                told.extend(state.report());
                rest = &rest[REPORT.len()..];
            } else if rest.starts_with(QUIET) {
                state.reports = false;
                rest = &rest[QUIET.len()..];
            } else if let (true, Some((rows, columns))) = (rest.starts_with(ASK), state.size) {
                told.extend(format!("\x1b[8;{rows};{columns}t").into_bytes());
                rest = &rest[ASK.len()..];
            } else {
                left.push(*first);
                rest = after;
            }
        }
        Some((left, told))
    }

    fn resized(&self, rows: u16, columns: u16) -> Vec<u8> {
        let mut state = self.state();
        state.size = Some((rows, columns));
        if state.reports {
            state.report()
        } else {
            Vec::new()
        }
    }
}

impl State {
    fn report(&self) -> Vec<u8> {
        self.size.map_or_else(Vec::new, |(rows, columns)| {
            format!("\x1b[48;{rows};{columns};0;0t").into_bytes()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(filtered: Option<(Vec<u8>, Vec<u8>)>) -> Option<(String, String)> {
        filtered.map(|(left, told)| {
            (
                String::from_utf8(left).unwrap(),
                String::from_utf8(told).unwrap(),
            )
        })
    }

    #[test]
    fn a_size_is_told_who_asks_and_what_else_is_written_passes() {
        let terminal = Terminal::new(Input::default());
        assert_eq!(terminal.filter(b"plain"), None);
        let passed = text(terminal.filter(b"a\x1b[18tb\x1b[1m"));
        assert_eq!(
            passed,
            Some(("a\x1b[18tb\x1b[1m".into(), String::new())),
            "nobody knows it yet"
        );
        assert!(
            terminal.resized(24, 80).is_empty(),
            "nobody asked to be told"
        );
        let answered = text(terminal.filter(b"a\x1b[18tb\x1b[1m"));
        assert_eq!(answered, Some(("ab\x1b[1m".into(), "\x1b[8;24;80t".into())));
        let told = text(terminal.filter(b"\x1b[?2048h"));
        assert_eq!(told, Some((String::new(), "\x1b[48;24;80;0;0t".into())));
        assert_eq!(terminal.resized(50, 132), b"\x1b[48;50;132;0;0t");
        terminal.filter(b"\x1b[?2048l");
        assert!(terminal.resized(1, 1).is_empty());
    }
}
