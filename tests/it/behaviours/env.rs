//! Where a container's environment comes from.

use serde_json::json;

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    program::{env, sh, stay},
};

pub(super) const GROUP: Group = Group {
    name: "env",
    title: "Environment",
    rows: &[
        Behaviour::new("values refer to each other by $(NAME)", |case| {
            let env = json!({"env": [
                {"name": "COLOUR", "value": "red"},
                {"name": "TWICE", "value": "$(COLOUR)-$(COLOUR)"},
                {"name": "LITERAL", "value": "$$(COLOUR) $(ABSENT) $(LATER)"},
                {"name": "LATER", "value": "x"},
            ]});
            expect(
                case,
                env,
                &["TWICE=red-red", "LITERAL=$(COLOUR) $(ABSENT) $(LATER)"],
                &[],
            )
        }),
        Behaviour::new(
            "command and args refer to the environment by $(NAME)",
            expanded_command,
        ),
        Behaviour::new("values come from ConfigMaps and Secrets", |case| {
            case.config_map("settings", json!({"colour": "red"}))?;
            case.secret("hidden", json!({"word": "sesame"}))?;
            let env = json!({"env": [
                {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "word"}}},
                {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "none", "optional": true}}},
                {"name": "NOBODY", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "none", "optional": true}}},
            ]});
            expect(
                case,
                env,
                &["COLOUR=red", "WORD=sesame"],
                &["NONE=", "NOBODY="],
            )
        }),
        Behaviour::new(
            "envFrom takes whole ConfigMaps and Secrets with a prefix",
            |case| {
                case.config_map("settings", json!({"size": "big", "colour": "red"}))?;
                case.secret("hidden", json!({"word": "sesame"}))?;
                let env = json!({
                    "envFrom": [
                        {"configMapRef": {"name": "settings"}, "prefix": "S_"},
                        {"secretRef": {"name": "hidden"}},
                        {"configMapRef": {"name": "absent", "optional": true}},
                    ],
                    "env": [{"name": "S_colour", "value": "blue"}],
                });
                expect(
                    case,
                    env,
                    &["S_size=big", "word=sesame", "S_colour=blue"],
                    &[],
                )
            },
        ),
        Behaviour::new("fields of the pod are values", fields),
        Behaviour::new("resources of the container are values", |case| {
            let env = json!({
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"cpu": "100m"}},
                "env": [
                    {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "BYTES", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
                    {"name": "CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                ],
            });
            expect(
                case,
                env,
                &["MEMORY=64", "BYTES=67108864", "CPU=100", "CORES=1"],
                &[],
            )
        }),
        Behaviour::new("services of the namespace are in the environment", |case| {
            service_links(case, true)
        }),
        Behaviour::new("enableServiceLinks false leaves them out", |case| {
            service_links(case, false)
        }),
        Behaviour::new("the host name is in the environment", |case| {
            case.ready(
                &case
                    .pod("named", &[sh("echo name=$HOSTNAME"), stay()])
                    .spec(json!({"hostname": "boat"})),
            )?;
            case.until_log("named", "main", "name=boat\n");
            Ok(())
        }),
        Behaviour::new(
            "a ConfigMap that is not there is named and waited for",
            waits,
        ),
    ],
};

fn expect(case: &Case<'_>, more: serde_json::Value, wanted: &[&str], unwanted: &[&str]) -> Outcome {
    let steps = [env(), super::program::print("that is all"), stay()];
    case.ready(&case.pod_with("env", &steps, more))?;
    let log = case.until_log("env", "main", "that is all\n");
    for line in wanted {
        assert!(
            log.lines().any(|found| found == *line),
            "no {line} in\n{log}"
        );
    }
    for start in unwanted {
        assert!(
            !log.lines().any(|found| found.starts_with(start)),
            "{start} in\n{log}"
        );
    }
    Ok(())
}

fn expanded_command(case: &Case<'_>) -> Outcome {
    let mut pod = case.pod_with(
        "words",
        &[],
        json!({"env": [{"name": "WHAT", "value": "boat"}]}),
    );
    pod.object["spec"]["containers"][0]["command"] = json!(["sh", "-c"]);
    pod.object["spec"]["containers"][0]["args"] = json!(["echo a $(WHAT) '$$(WHAT)'; sleep 1000"]);
    case.ready(&pod)?;
    case.until_log("words", "main", "a boat $(WHAT)\n");
    Ok(())
}

fn fields(case: &Case<'_>) -> Outcome {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let env = json!({"env": [
        field("NAME", "metadata.name"),
        field("NAMESPACE", "metadata.namespace"),
        field("UID", "metadata.uid"),
        field("LABEL", "metadata.labels['app']"),
        field("NOTE", "metadata.annotations['note']"),
        field("NODE", "spec.nodeName"),
        field("ACCOUNT", "spec.serviceAccountName"),
        field("HOST", "status.hostIP"),
        field("IP", "status.podIP"),
        field("IPS", "status.podIPs"),
    ]});
    let steps = [
        super::program::env(),
        super::program::print("that is all"),
        stay(),
    ];
    let pod = case
        .pod_with("env", &steps, env)
        .metadata(json!({"labels": {"app": "boat"}, "annotations": {"note": "hello"}}));
    case.ready(&pod)?;
    let log = case.until_log("env", "main", "that is all\n");
    let (ip, uid) = (
        case.field("env", ".status.podIP"),
        case.field("env", ".metadata.uid"),
    );
    for line in [
        "NAME=env",
        &format!("NAMESPACE={}", case.ns),
        &format!("UID={uid}"),
        "LABEL=boat",
        "NOTE=hello",
        "NODE=node",
        "ACCOUNT=default",
        &format!("HOST={}", wherry_tests::Network::NODE_IP),
        &format!("IP={ip}"),
        &format!("IPS={ip}"),
    ] {
        assert!(
            log.lines().any(|found| found == line),
            "no {line} in\n{log}"
        );
    }
    Ok(())
}

fn service_links(case: &Case<'_>, enabled: bool) -> Outcome {
    case.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "redis-master"},
        "spec": {"ports": [{"port": 6379}], "selector": {"app": "redis"}},
    }))?;
    let service = case
        .cluster
        .field(case.ns, "service/redis-master", ".spec.clusterIP");
    let steps = [env(), super::program::print("that is all"), stay()];
    case.ready(
        &case
            .pod("env", &steps)
            .spec(json!({"enableServiceLinks": enabled})),
    )?;
    let log = case.until_log("env", "main", "that is all\n");
    for line in [
        format!("REDIS_MASTER_SERVICE_HOST={service}"),
        "REDIS_MASTER_SERVICE_PORT=6379".to_owned(),
        format!("REDIS_MASTER_PORT_6379_TCP_ADDR={service}"),
        format!("REDIS_MASTER_PORT=tcp://{service}:6379"),
    ] {
        assert_eq!(
            log.lines().any(|found| found == line),
            enabled,
            "{line} in\n{log}"
        );
    }
    // The API server's own is always there.
    assert!(log.contains("KUBERNETES_SERVICE_PORT=443\n"), "{log}");
    Ok(())
}

fn waits(case: &Case<'_>) -> Outcome {
    let env = json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "x"}}}]});
    case.create(&case.pod_with("waits", &[stay()], env))?;
    case.until_first(
        "waits",
        ".state.waiting.reason",
        "CreateContainerConfigError",
    );
    assert_eq!(
        case.first("waits", ".state.waiting.message"),
        "configmap \"later\" not found"
    );
    case.config_map("later", json!({"y": "1"}))?;
    let words = "couldn't find key x in ConfigMap";
    case.until_contains(
        "waits",
        ".status.containerStatuses[0].state.waiting.message",
        words,
    );
    case.config_map("later", json!({"x": "1"}))?;
    case.wait_ready("waits");
    Ok(())
}
