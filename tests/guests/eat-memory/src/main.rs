//! Takes memory until it gets no more.

fn main() {
    println!("eating");
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(std::hint::black_box(vec![1; 1 << 20]));
    }
}
