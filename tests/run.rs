//! What tests/run.sh makes of tests that fail (tests/tools/again.sh), with a cargo that only says what it is told to.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

/// How a second look ended.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    is_well: bool,
    /// What passed when it was run again.
    passed: Vec<String>,
    /// What cargo was asked to run.
    asked: Vec<String>,
}

/// Has `log` looked at after a cargo that ended by `status`; another one says `again` and ends by `again_status`.
fn look(log: &str, status: i32, again: &str, again_status: i32) -> Look {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>{}\ncat {}\nexit {again_status}\n",
        at("asked").display(),
        at("again").display()
    );
    for (name, text) in [
        ("log", log),
        ("again", again),
        ("asked", ""),
        ("cargo", &script),
    ] {
        fs::write(at(name), text).expect("it can be written");
    }
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(at("cargo"), executable).expect("it is ours");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/again.sh");
    let output = Command::new("bash")
        .arg(script)
        .arg(at("log"))
        .arg(status.to_string())
        .env("CARGO", at("cargo"))
        .output()
        .expect("bash starts");
    let lines = |text: &str| text.lines().map(str::to_owned).collect();
    Look {
        is_well: output.status.success(),
        passed: lines(&String::from_utf8_lossy(&output.stdout)),
        asked: lines(&fs::read_to_string(at("asked")).expect("it is there")),
    }
}

/// What a target with failed tests prints, by libtest and libtest-mimic alike, and what cargo says of it.
fn target(arguments: &str, failed: &[&str]) -> String {
    let names: String = failed.iter().map(|name| format!("    {name}\n")).collect();
    format!(
        "     Running unittests src/lib.rs (target/debug/deps/x-0)\n\nrunning 9 tests\ntest good ... ok\n\nfailures:\n\n\
         ---- a ----\nwhat it printed:\n    indented\nfailures:\n    nobody\ntest result: FAILED. 1 passed; 2 failed;\n\n\n\
         failures:\n{names}\ntest result: FAILED. 3 passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\n\
         error: test failed, to rerun pass `{arguments}`\n",
        failed.len()
    )
}

fn sum(targets: &[&str]) -> String {
    let plural = if targets.len() == 1 { "" } else { "s" };
    let lines: String = targets
        .iter()
        .map(|target| format!("    `{target}`\n"))
        .collect();
    format!("error: {} target{plural} failed:\n{lines}", targets.len())
}

const PASSED: &str = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out\n\n\
                      running 1 test\ntest x ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out\n";

/// Nothing was run again, and the failure stays one.
fn failure() -> Look {
    Look {
        is_well: false,
        passed: Vec::new(),
        asked: Vec::new(),
    }
}

#[test]
fn a_test_that_fails_is_run_again_alone() {
    let (lib, it) = ("-p wherry-store --lib", "-p wherry-tests --test it");
    let log = [
        target(lib, &["a::b"]),
        target(it, &["nodes::c d's::wasm"]),
        sum(&[lib, it]),
    ]
    .concat();
    let asked = [
        "test --workspace --lib -- --exact a::b",
        "test --workspace --test it -- --exact nodes::c d's::wasm",
    ];
    let looked = look(&log, 101, PASSED, 0);
    assert!(looked.is_well, "{looked:?}");
    assert_eq!(looked.passed, ["a::b", "nodes::c d's::wasm"]);
    assert_eq!(looked.asked, asked);

    // One that fails again, or that is not found again, has failed.
    let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out\n";
    for (again, status) in [(PASSED, 101), (none, 0), ("", 0)] {
        let looked = look(&log, 101, again, status);
        assert!(!looked.is_well && looked.passed.is_empty(), "{looked:?}");
        assert_eq!(looked.asked, asked);
    }
}

#[test]
fn more_than_two_are_no_bad_luck() {
    let lib = "--lib";
    let log = |failed: &[&str]| [target(lib, failed), sum(&[lib])].concat();
    assert!(look(&log(&["a", "b"]), 101, PASSED, 0).is_well);
    assert_eq!(look(&log(&["a", "b", "c"]), 101, PASSED, 0), failure());
}

#[test]
fn whatever_else_ends_a_run_stays_a_failure() {
    let (lib, it) = ("-p x --lib", "-p x --test it");
    let one = target(lib, &["a"]);
    let crash = "\nCaused by:\n  process didn't exit successfully: `x-0` (signal: 11, SIGSEGV: invalid memory reference)\n";
    let silent =
        format!("     Running tests/it.rs (x-1)\nerror: test failed, to rerun pass `{it}`\n");
    let doc = "-p x --doc";
    for (what, log, status) in [
        (
            "nothing was compiled",
            "error: could not compile `x` (lib test)\n".to_owned(),
            101,
        ),
        ("cargo was killed", [&one[..], &sum(&[lib])].concat(), 137),
        ("cargo went no further", one.clone(), 101),
        ("it crashed", [&one[..], crash, &sum(&[lib])].concat(), 101),
        (
            "another crashed",
            [&one[..], &silent, crash, &sum(&[lib, it])].concat(),
            101,
        ),
        (
            "another says nothing",
            [&one[..], &silent, &sum(&[lib, it])].concat(),
            101,
        ),
        (
            "another is not told of",
            [&one[..], &sum(&[lib, it])].concat(),
            101,
        ),
        (
            "one too many is told of",
            [&one[..], &target(it, &["b"]), &sum(&[lib])].concat(),
            101,
        ),
        (
            "the sum is cut",
            [&one[..], "error: 2 targets failed:\n    `-p x --lib`\n"].concat(),
            101,
        ),
        (
            "there is more to say",
            [&one[..], &sum(&[lib]), "error: and more\n"].concat(),
            101,
        ),
        (
            "names are missing",
            [&one.replace("    a\n", ""), &sum(&[lib])[..]].concat(),
            101,
        ),
        (
            "a doc test",
            [target(doc, &["src/lib.rs - f (line 3)"]), sum(&[doc])].concat(),
            101,
        ),
        ("no log", String::new(), 101),
    ] {
        assert_eq!(look(&log, status, PASSED, 0), failure(), "{what}");
    }
}
