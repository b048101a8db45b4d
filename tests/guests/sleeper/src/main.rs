//! Prints one line and sleeps for a very long time.

fn main() {
    println!("sleeping");
    std::thread::sleep(std::time::Duration::from_secs(1_000_000));
}
