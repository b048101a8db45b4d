//! Keeps writing the page that the nginx container of the same pod serves.

use std::{
    fs,
    thread::sleep,
    time::{Duration, SystemTime},
};

fn main() -> std::io::Result<()> {
    let page = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "/page/index.html".into());
    let greeting = std::env::var("GREETING").unwrap_or_else(|_| "Hello".into());
    let pod = std::env::var("POD_NAME").unwrap_or_default();
    for n in 1u64.. {
        let seconds = SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_secs());
        // Renamed into place, so that nginx never serves half a page.
        let new = format!("{page}.new");
        fs::write(
            &new,
            format!(
                "<h1>{greeting} from a Wasm component in pod {pod}</h1>\n<p>page {n}, written at {seconds}</p>\n"
            ),
        )?;
        fs::rename(&new, &page)?;
        if n == 1 || n % 60 == 0 {
            println!("page {n} written");
        }
        sleep(Duration::from_secs(1));
    }
    Ok(())
}
