//! Prints a numbered line every few milliseconds, for ever; the first argument is how many.

use std::io::Write;

fn main() {
    let period = std::env::args()
        .nth(1)
        .and_then(|ms| ms.parse().ok())
        .unwrap_or(10);
    let mut out = std::io::stdout();
    for n in 0u64.. {
        if writeln!(out, "tick {n}")
            .and_then(|()| out.flush())
            .is_err()
        {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(period));
    }
}
