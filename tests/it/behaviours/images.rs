//! Where a container's image comes from.

use serde_json::json;
use wherry_tests::eventually;

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    program::stay,
};

pub(super) const GROUP: Group = Group {
    name: "images",
    title: "Images",
    rows: &[
        Behaviour::new("an image that is there is used as it is", present),
        Behaviour::new("an image is named by its digest in the status", image_id),
        Behaviour::new("imagePullPolicy Never does not look elsewhere", never),
        Behaviour::new(
            "an image that cannot be had is told and tried again",
            pull_fails,
        ),
        Behaviour::new("a name that is none is told", bad_name),
    ],
};

const STATE: &str = ".state.waiting.reason";

fn present(case: &Case<'_>) -> Outcome {
    for policy in ["Never", "IfNotPresent"] {
        let name = policy.to_lowercase();
        case.ready(&case.pod_with(&name, &[stay()], json!({"imagePullPolicy": policy})))?;
        let event = case.event(&name, "Pulled");
        assert!(event.contains("already present on machine"), "{event}");
        for (reason, words) in [
            ("Created", "Created container"),
            ("Started", "Started container main"),
            ("Scheduled", "Successfully assigned"),
        ] {
            let event = case.event(&name, reason);
            assert!(event.contains(words), "{event}");
        }
    }
    Ok(())
}

fn image_id(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("first", &[stay()]))?;
    let id = case.first("first", ".imageID");
    assert!(id.contains("sha256:"), "{id}");
    let name = if case.is_wasm() { "toolbox" } else { "busybox" };
    // The node looks at itself every few seconds.
    eventually("the image in the node's status", || {
        let path = ".status.images[*].names[*]";
        let images = case.cluster.field("default", "node/node", path);
        images.contains(name).then_some(()).ok_or(images)
    });
    Ok(())
}

fn never(case: &Case<'_>) -> Outcome {
    let more = json!({"image": "test/absent:1", "imagePullPolicy": "Never"});
    case.create(&case.pod_with("never", &[stay()], more))?;
    case.until_first("never", STATE, "ErrImageNeverPull");
    let message = case.first("never", ".state.waiting.message");
    assert!(
        message.contains("test/absent:1")
            && message.contains("is not present with pull policy of Never"),
        "{message}"
    );
    Ok(())
}

fn pull_fails(case: &Case<'_>) -> Outcome {
    // Nothing listens there.
    let more = json!({"image": "127.0.0.1:9/test/absent:1", "imagePullPolicy": "Always"});
    case.create(&case.pod_with("gone", &[stay()], more))?;
    let event = case.event("gone", "Failed");
    assert!(
        event.contains("Failed to pull image \"127.0.0.1:9/test/absent:1\""),
        "{event}"
    );
    case.until_first("gone", STATE, "ImagePullBackOff");
    let message = case.first("gone", ".state.waiting.message");
    assert!(message.contains("Back-off pulling image"), "{message}");
    assert!(
        case.event("gone", "BackOff")
            .contains("Back-off pulling image")
    );
    Ok(())
}

fn bad_name(case: &Case<'_>) -> Outcome {
    let more = json!({"image": "test/Bad Name:1", "imagePullPolicy": "IfNotPresent"});
    case.create(&case.pod_with("name", &[stay()], more))?;
    case.until_first("name", STATE, "InvalidImageName");
    Ok(())
}
