//! A container's life: output, exits, limits, signals.

use std::{fs, time::Duration};

use wherry_runtime_api::*;

use crate::harness::{Node, eventually, read_log, tests};

tests! {
    a_container_runs_and_its_output_is_in_cri_format
}

async fn a_container_runs_and_its_output_is_in_cri_format(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let config = node.script(&sandbox, "main", "echo out; echo err >&2; printf tail; exit 7");
    let (exit, log) = node.run(&sandbox, &config).await;
    assert_eq!(exit.exit_code, 7);
    assert!(log.contains("out\n") && log.contains("err\n") && log.contains("tail"), "{log:?}");
    let raw = fs::read_to_string(&config.log_path).unwrap();
    let line = raw.lines().find(|line| line.ends_with(" out")).unwrap();
    let (time, rest) = line.split_at(30);
    assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    assert_eq!(rest, " stdout F out");
    assert!(raw.contains(" stderr F err\n") && raw.contains(" stdout P tail\n"), "{raw}");
}
