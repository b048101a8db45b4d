//! Prints its arguments and environment.

fn main() {
    println!("args: {}", std::env::args().collect::<Vec<_>>().join(" "));
    let mut env: Vec<_> = std::env::vars().collect();
    env.sort();
    for (name, value) in env {
        println!("env: {name}={value}");
    }
    eprintln!("this is stderr");
}
