//! The targets of plugins/host/fuzz compile and take their seeds, without libFuzzer: it is played by this file.

use std::path::Path;

// What the targets take for the crate of that name.
extern crate self as libfuzzer_sys;

macro_rules! fuzz_target {
    (|$bytes:ident: &[u8]| $body:block) => {
        pub(crate) fn target($bytes: &[u8]) {
            $body
        }
    };
}
pub(crate) use fuzz_target;

#[path = "../fuzz/fuzz_targets/connection.rs"]
mod connection;
#[path = "../fuzz/fuzz_targets/frames.rs"]
mod frames;
#[path = "../fuzz/fuzz_targets/from_worker.rs"]
mod from_worker;
#[path = "../fuzz/fuzz_targets/mounting.rs"]
mod mounting;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 4] = [
    ("connection", connection::target),
    ("frames", frames::target),
    ("from_worker", from_worker::target),
    ("mounting", mounting::target),
];

#[test]
fn every_target_takes_its_seeds() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, target) in TARGETS {
        let seeds = fuzz.join("seeds").join(name).read_dir().expect("seeds");
        let mut taken = 0;
        for seed in seeds {
            let path = seed.expect("an entry").path();
            target(&std::fs::read(path).expect("a seed"));
            taken += 1;
        }
        assert!(taken > 0, "{name} has no seeds");
    }
}

#[test]
fn every_target_is_tried_here() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml");
    let manifest = std::fs::read_to_string(fuzz).expect("a manifest");
    let mut declared: Vec<_> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .filter(|name| *name != "wherry-plugin-host-fuzz")
        .collect();
    declared.sort_unstable();
    assert_eq!(declared, TARGETS.map(|(name, _)| name));
}
