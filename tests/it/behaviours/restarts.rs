//! The restart policies, row by row, for one and for two containers; and the pause before a restart.

use serde_json::json;

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    program::{Step, append, exit, print, sleep, stay},
};

pub(super) const GROUP: Group = Group {
    name: "restarts",
    title: "Restarts",
    rows: &[
        Behaviour::new("one container succeeds with Always and restarts", |case| {
            table(case, "Always", &[Ends(0)], "Running", true)
        }),
        Behaviour::new(
            "one container succeeds with OnFailure and the pod has Succeeded",
            |case| table(case, "OnFailure", &[Ends(0)], "Succeeded", false),
        ),
        Behaviour::new(
            "one container succeeds with Never and the pod has Succeeded",
            |case| table(case, "Never", &[Ends(0)], "Succeeded", false),
        ),
        Behaviour::new("one container fails with Always and restarts", |case| {
            table(case, "Always", &[Ends(1)], "Running", true)
        }),
        Behaviour::new("one container fails with OnFailure and restarts", |case| {
            table(case, "OnFailure", &[Ends(1)], "Running", true)
        }),
        Behaviour::new(
            "one container fails with Never and the pod has Failed",
            |case| table(case, "Never", &[Ends(1)], "Failed", false),
        ),
        Behaviour::new("the first of two fails with Always and restarts", |case| {
            table(case, "Always", &[Ends(1), Stays], "Running", true)
        }),
        Behaviour::new(
            "the first of two fails with OnFailure and restarts",
            |case| table(case, "OnFailure", &[Ends(1), Stays], "Running", true),
        ),
        Behaviour::new(
            "the first of two fails with Never and the pod stays Running",
            |case| table(case, "Never", &[Ends(1), Stays], "Running", false),
        ),
        Behaviour::new("both of two have ended with Always and restart", |case| {
            table(case, "Always", &[Ends(1), EndsLater], "Running", true)
        }),
        Behaviour::new(
            "both of two have ended with OnFailure and the failed one restarts",
            |case| table(case, "OnFailure", &[Ends(1), EndsLater], "Running", true),
        ),
        Behaviour::new(
            "both of two have ended with Never and the pod has Failed",
            |case| table(case, "Never", &[Ends(1), EndsLater], "Failed", false),
        ),
        Behaviour::new(
            "a container that fails again and again is in CrashLoopBackOff",
            backs_off,
        ),
        Behaviour::new(
            "a restart keeps the volumes and makes the container anew",
            volumes_stay,
        ),
        Behaviour::new("an exit code is kept", |case| {
            case.ends(&exits(case, 7), "Failed")?;
            assert_eq!(case.first("code", ".state.terminated.exitCode"), "7");
            assert_eq!(case.first("code", ".state.terminated.reason"), "Error");
            Ok(())
        }),
    ],
};

/// What a container of the table does.
enum Life {
    Ends(u8),
    /// Succeeds after the others have ended.
    EndsLater,
    Stays,
}
use Life::{Ends, EndsLater, Stays};

impl Life {
    fn steps(&self) -> Vec<Step> {
        match self {
            Ends(code) => vec![exit(*code)],
            EndsLater => vec![sleep("1"), exit(0)],
            Stays => vec![stay()],
        }
    }
}

fn table(case: &Case<'_>, policy: &str, lives: &[Life], phase: &str, restarts: bool) -> Outcome {
    let mut pod = case.empty("row").spec(json!({"restartPolicy": policy}));
    for (n, life) in lives.iter().enumerate() {
        pod = pod.container(case.container(&format!("c{n}"), &life.steps()));
    }
    case.create(&pod)?;
    if restarts {
        case.some("row", ".status.containerStatuses[?(@.restartCount>0)].name");
    } else {
        case.some(
            "row",
            ".status.containerStatuses[0].state.terminated.reason",
        );
    }
    if matches!(lives, [_, EndsLater]) {
        // The second has ended as well, and once more where that is its lot.
        let ended = if policy == "Always" {
            "lastState"
        } else {
            "state"
        };
        let path = format!(".status.containerStatuses[1].{ended}.terminated.reason");
        case.until("row", &path, "Completed");
    }
    case.until("row", ".status.phase", phase);
    let count = case.first("row", ".restartCount");
    assert_eq!(count != "0", restarts, "restarted {count} times");
    Ok(())
}

fn exits(case: &Case<'_>, code: u8) -> super::manifest::Pod {
    case.pod("code", &[exit(code)])
        .spec(json!({"restartPolicy": "Never"}))
}

fn backs_off(case: &Case<'_>) -> Outcome {
    case.create(&case.pod("crash", &[exit(1)]))?;
    case.until_first("crash", ".state.waiting.reason", "CrashLoopBackOff");
    let last = ".lastState.terminated";
    assert_eq!(case.first("crash", &format!("{last}.exitCode")), "1");
    assert_eq!(case.first("crash", &format!("{last}.reason")), "Error");
    let message = case.first("crash", ".state.waiting.message");
    assert!(
        message.starts_with("back-off 10s restarting failed container=main pod=crash_"),
        "{message}"
    );
    let table = case.kubectl(&["get", "pod", "crash"])?;
    assert!(table.contains("CrashLoopBackOff"), "{table}");
    let event = case.event("crash", "BackOff");
    assert!(
        event.contains("Back-off restarting failed container main in pod crash_"),
        "{event}"
    );
    Ok(())
}

fn volumes_stay(case: &Case<'_>) -> Outcome {
    let steps = [append("/data/runs", "run"), print("once more"), exit(1)];
    case.create(
        &case
            .pod("again", &steps)
            .container(case.container("reads", &[stay()]))
            .volume("data", json!({"emptyDir": {}})),
    )?;
    case.some(
        "again",
        ".status.containerStatuses[?(@.restartCount>0)].name",
    );
    let runs = case.exec_in(
        "again",
        "reads",
        case.runtime,
        &[super::program::read("/data/runs")],
    )?;
    assert!(runs.starts_with("run\nrun\n"), "{runs}");
    Ok(())
}
