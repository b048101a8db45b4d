//! What a kubelet promises about a pod of containers.

use std::sync::Arc;

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{
    Shared,
    kubectl::{ready_shell_pod, shell_pod},
    trials,
};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        the_restart_table_holds,
        a_failing_container_backs_off,
        init_containers_run_in_order_before_the_rest,
        the_termination_message_is_kept,
        the_environment_comes_from_everywhere,
        a_missing_config_map_is_named_and_waited_for,
        volumes_show_what_they_should,
        config_map_volumes_follow_changes_at_once,
        limits_are_seen_by_the_container,
        crossing_the_memory_limit_is_oom_killed,
        the_security_context_is_kept,
        probes_decide_readiness_and_restarts,
        a_static_pod_runs_and_is_mirrored,
        logs_are_rotated,
    ]
}

/// A pod from the lines below `spec:`.
pub(crate) fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}"
    )
}

/// A busybox container that runs a script, as an item of `containers:`.
pub(crate) fn container(name: &str, script: &str) -> String {
    format!(
        "  - {{name: {name}, image: 'test/busybox:1', imagePullPolicy: Never, command: [sh, -c, {script:?}]}}\n"
    )
}

pub(crate) fn apply(cluster: &Cluster, ns: &str, yaml: &str) {
    let output = cluster.kubectl_with_input(&["apply", "-n", ns, "-f", "-"], yaml);
    assert!(
        output.status.success(),
        "kubectl apply: {}\n{yaml}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn the_restart_table_holds(cluster: &Cluster, ns: &str) {
    // Policy, what each container exits with (a dash: it stays), the phase that follows, whether the first restarts.
    let table = [
        ("Always", "0", "Running", true),
        ("OnFailure", "0", "Succeeded", false),
        ("Never", "0", "Succeeded", false),
        ("Always", "1", "Running", true),
        ("OnFailure", "1", "Running", true),
        ("Never", "1", "Failed", false),
        ("Always", "1 -", "Running", true),
        ("OnFailure", "1 -", "Running", true),
        ("Never", "1 -", "Running", false),
        ("Always", "1 0", "Running", true),
        ("OnFailure", "1 0", "Running", true),
        ("Never", "1 0", "Failed", false),
    ];
    for (row, (policy, exits, ..)) in table.iter().enumerate() {
        let containers: String = exits
            .split(' ')
            .enumerate()
            .map(|(n, code)| {
                container(
                    &format!("c{n}"),
                    &if code == "-" {
                        "sleep 1000".into()
                    } else {
                        format!("exit {code}")
                    },
                )
            })
            .collect();
        apply(
            cluster,
            ns,
            &pod(
                &format!("row{row}"),
                &format!("  restartPolicy: {policy}\n  containers:\n{containers}"),
            ),
        );
    }
    for (row, (policy, exits, phase, restarts)) in table.iter().enumerate() {
        let object = format!("pod/row{row}");
        if *restarts {
            eventually(&format!("{policy} {exits}: restarts"), || {
                let count = cluster.field(ns, &object, ".status.containerStatuses[0].restartCount");
                if count.parse::<u32>().unwrap_or(0) > 0 {
                    Ok(())
                } else {
                    Err(cluster.describe(ns, &object))
                }
            });
        } else {
            eventually(
                &format!("{policy} {exits}: the first container ends"),
                || {
                    let reason = cluster.field(
                        ns,
                        &object,
                        ".status.containerStatuses[0].state.terminated.reason",
                    );
                    if reason.is_empty() {
                        Err(cluster.describe(ns, &object))
                    } else {
                        Ok(())
                    }
                },
            );
        }
        cluster.wait_field(ns, &object, ".status.phase", phase);
        if !restarts {
            assert_eq!(
                cluster.field(ns, &object, ".status.containerStatuses[0].restartCount"),
                "0",
                "{policy} {exits}"
            );
        }
    }
}

fn a_failing_container_backs_off(cluster: &Cluster, ns: &str) {
    apply(cluster, ns, &shell_pod("crash", "exit 3"));
    cluster.wait_field(
        ns,
        "pod/crash",
        ".status.containerStatuses[0].state.waiting.reason",
        "CrashLoopBackOff",
    );
    assert_eq!(
        cluster.field(
            ns,
            "pod/crash",
            ".status.containerStatuses[0].lastState.terminated.exitCode"
        ),
        "3"
    );
    assert_eq!(
        cluster.field(
            ns,
            "pod/crash",
            ".status.containerStatuses[0].lastState.terminated.reason"
        ),
        "Error"
    );
    let message = cluster.field(
        ns,
        "pod/crash",
        ".status.containerStatuses[0].state.waiting.message",
    );
    assert!(
        message.starts_with("back-off")
            && message.contains("restarting failed container=main pod=crash_"),
        "{message}"
    );
    assert!(
        cluster
            .kubectl(&["get", "pod", "crash", "-n", ns])
            .contains("CrashLoopBackOff")
    );
    assert!(
        cluster
            .wait_event(ns, "crash", "BackOff")
            .contains("Back-off restarting failed container main in pod crash_")
    );
}

fn init_containers_run_in_order_before_the_rest(cluster: &Cluster, ns: &str) {
    let mount = "volumeMounts: [{name: shared, mountPath: /shared}]";
    let with = |line: String| line.replace("command:", &format!("{mount}, command:"));
    let spec = format!(
        "  volumes: [{{name: shared, emptyDir: {{}}}}]\n  initContainers:\n{}{}  containers:\n{}",
        with(container("first", "echo first > /shared/order")),
        with(container("second", "echo second >> /shared/order")),
        with(container("main", "cat /shared/order; sleep 1000")),
    );
    apply(cluster, ns, &pod("ordered", &spec));
    cluster.wait_ready(ns, "ordered");
    eventually("both ran, in order", || {
        let log = cluster.kubectl(&["logs", "-n", ns, "ordered", "-c", "main"]);
        if log == "first\nsecond\n" {
            Ok(())
        } else {
            Err(log)
        }
    });
    let spec = format!(
        "  initContainers:\n{}  containers:\n{}",
        container("bad", "exit 1"),
        container("main", "sleep 1000")
    );
    apply(
        cluster,
        ns,
        &pod("stuck", &format!("  restartPolicy: Never\n{spec}")),
    );
    cluster.wait_field(ns, "pod/stuck", ".status.phase", "Failed");
    assert!(
        cluster
            .kubectl(&["get", "pod", "stuck", "-n", ns])
            .contains("Init:Error")
    );
}

fn the_termination_message_is_kept(cluster: &Cluster, ns: &str) {
    let never = |yaml: String| yaml.replace("spec:", "spec:\n  restartPolicy: Never");
    apply(
        cluster,
        ns,
        &never(shell_pod(
            "said",
            "echo -n last words > /dev/termination-log; exit 1",
        )),
    );
    cluster.wait_field(
        ns,
        "pod/said",
        ".status.containerStatuses[0].state.terminated.message",
        "last words",
    );
    let from_log = shell_pod("logged", "echo from the log; exit 1").replace(
        "    image:",
        "    terminationMessagePolicy: FallbackToLogsOnError\n    image:",
    );
    apply(cluster, ns, &never(from_log));
    cluster.wait_field(
        ns,
        "pod/logged",
        ".status.containerStatuses[0].state.terminated.message",
        "from the log\n",
    );
}

fn the_environment_comes_from_everywhere(cluster: &Cluster, ns: &str) {
    cluster.kubectl(&[
        "create",
        "configmap",
        "-n",
        ns,
        "settings",
        "--from-literal=colour=red",
        "--from-literal=size=big",
    ]);
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "-n",
        ns,
        "hidden",
        "--from-literal=word=sesame",
    ]);
    let env = r"
    envFrom: [{configMapRef: {name: settings}, prefix: S_}]
    env:
    - {name: LITERAL, value: 'a $(COLOUR) $$(COLOUR) $(ABSENT)'}
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: TWICE, value: '$(COLOUR)-$(COLOUR)'}
    - {name: WORD, valueFrom: {secretKeyRef: {name: hidden, key: word}}}
    - {name: NONE, valueFrom: {secretKeyRef: {name: hidden, key: none, optional: true}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: 'metadata.labels[''app'']'}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    image:";
    let yaml = shell_pod("env", "env | sort; sleep 1000").replace("\n    image:", env);
    apply(cluster, ns, &yaml);
    cluster.wait_ready(ns, "env");
    let ip = cluster.field(ns, "pod/env", ".status.podIP");
    let log = eventually("the environment is printed", || {
        let log = cluster.kubectl(&["logs", "-n", ns, "env"]);
        if log.contains("WORD=") {
            Ok(log)
        } else {
            Err(log)
        }
    });
    for line in [
        "LITERAL=a $(COLOUR) $(COLOUR) $(ABSENT)",
        "TWICE=red-red",
        "WORD=sesame",
        "POD=env",
        "NODE=node",
        "LABEL=env",
        "MEMORY=64",
        "S_size=big",
        "HOSTNAME=env",
        "KUBERNETES_SERVICE_PORT=443",
        &format!("IP={ip}"),
    ] {
        assert!(
            log.lines().any(|found| found == line),
            "no {line} in\n{log}"
        );
    }
    assert!(!log.contains("NONE="), "{log}");
}

fn a_missing_config_map_is_named_and_waited_for(cluster: &Cluster, ns: &str) {
    let env =
        "\n    env: [{name: X, valueFrom: {configMapKeyRef: {name: later, key: x}}}]\n    image:";
    apply(
        cluster,
        ns,
        &shell_pod("waits", "echo $X; sleep 1000").replace("\n    image:", env),
    );
    cluster.wait_field(
        ns,
        "pod/waits",
        ".status.containerStatuses[0].state.waiting.reason",
        "CreateContainerConfigError",
    );
    let message = cluster.field(
        ns,
        "pod/waits",
        ".status.containerStatuses[0].state.waiting.message",
    );
    assert_eq!(message, "configmap \"later\" not found");
    cluster.kubectl(&[
        "create",
        "configmap",
        "-n",
        ns,
        "later",
        "--from-literal=x=1",
    ]);
    cluster.wait_ready(ns, "waits");
}

fn volumes_show_what_they_should(cluster: &Cluster, ns: &str) {
    cluster.kubectl(&[
        "create",
        "configmap",
        "-n",
        ns,
        "settings",
        "--from-literal=colour=red",
        "--from-literal=size=big",
    ]);
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "-n",
        ns,
        "hidden",
        "--from-literal=word=sesame",
    ]);
    let host = cluster.root().join(format!("host-{ns}"));
    std::fs::create_dir_all(&host).expect("a directory can be made");
    std::fs::write(host.join("file"), "from the host").expect("a file can be written");
    let spec = format!(
        r"  containers:
  - name: main
    image: test/busybox:1
    imagePullPolicy: Never
    command: [sleep, '1000']
    volumeMounts:
    - {{name: disk, mountPath: /disk}}
    - {{name: memory, mountPath: /memory}}
    - {{name: host, mountPath: /host, readOnly: true}}
    - {{name: settings, mountPath: /settings}}
    - {{name: hidden, mountPath: /hidden, readOnly: true}}
    - {{name: down, mountPath: /down}}
    - {{name: all, mountPath: /all}}
    - {{name: settings, mountPath: /one/colour, subPath: colour}}
  volumes:
  - {{name: disk, emptyDir: {{}}}}
  - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}
  - {{name: host, hostPath: {{path: {host}, type: Directory}}}}
  - {{name: settings, configMap: {{name: settings}}}}
  - {{name: hidden, secret: {{secretName: hidden, defaultMode: 0400}}}}
  - {{name: down, downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}}}
  - name: all
    projected:
      sources:
      - {{configMap: {{name: settings, items: [{{key: size, path: deep/size}}]}}}}
      - {{secret: {{name: hidden}}}}
      - {{serviceAccountToken: {{path: token, expirationSeconds: 3600}}}}
",
        host = host.display()
    );
    apply(
        cluster,
        ns,
        &pod("volumes", &spec).replace("name: volumes", "name: volumes, labels: {a: b}"),
    );
    cluster.wait_ready(ns, "volumes");
    let sh =
        |script: &str| cluster.kubectl(&["exec", "-n", ns, "volumes", "--", "sh", "-c", script]);
    assert_eq!(sh("echo x > /disk/f && cat /disk/f"), "x\n");
    assert_eq!(sh("grep -c ' /memory tmpfs' /proc/mounts"), "1\n");
    assert_eq!(
        sh("head -c 2000000 /dev/zero > /memory/f 2>/dev/null || echo full"),
        "full\n"
    );
    assert_eq!(
        sh("cat /host/file; touch /host/x 2>/dev/null || echo ' read-only'"),
        "from the host read-only\n"
    );
    assert_eq!(sh("cat /settings/colour /settings/size"), "redbig");
    assert_eq!(
        sh("cat /hidden/word; stat -Lc ' %a' /hidden/word"),
        "sesame 400\n"
    );
    assert_eq!(sh("cat /down/labels"), "a=\"b\"");
    assert_eq!(sh("cat /all/deep/size /all/word"), "bigsesame");
    assert_eq!(sh("cut -d. -f2 /all/token | wc -w"), "1\n");
    assert_eq!(sh("cat /one/colour"), "red");
    let token = sh("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace");
    assert_eq!(token, ns);
}

fn config_map_volumes_follow_changes_at_once(cluster: &Cluster, ns: &str) {
    cluster.kubectl(&[
        "create",
        "configmap",
        "-n",
        ns,
        "settings",
        "--from-literal=a=1",
        "--from-literal=b=1",
    ]);
    let volumes = "\n  volumes: [{name: v, configMap: {name: settings}}]\n  containers:";
    // Never does one key show the new value and the other the old one in one version of the directory. A version that
    // goes while it is read says nothing.
    let script = "while :; do d=$(readlink /v/..data); a=$(cat /v/$d/a 2>/dev/null) && b=$(cat /v/$d/b 2>/dev/null) && [ \"$a\" != \"$b\" ] && echo torn; sleep 0.01; done";
    let yaml = shell_pod("follows", script)
        .replace("\n  containers:", volumes)
        .replace(
            "\n    image:",
            "\n    volumeMounts: [{name: v, mountPath: /v}]\n    image:",
        );
    apply(cluster, ns, &yaml);
    cluster.wait_ready(ns, "follows");
    for n in 2..5 {
        let patch = format!(r#"{{"data":{{"a":"{n}","b":"{n}"}}}}"#);
        cluster.kubectl(&["patch", "configmap", "settings", "-n", ns, "-p", &patch]);
        eventually("the file follows", || {
            let value = cluster.kubectl(&["exec", "-n", ns, "follows", "--", "cat", "/v/a"]);
            if value == n.to_string() {
                Ok(())
            } else {
                Err(value)
            }
        });
    }
    let log = cluster.kubectl(&["logs", "-n", ns, "follows"]);
    assert!(!log.contains("torn"), "{log}");
}

fn limits_are_seen_by_the_container(cluster: &Cluster, ns: &str) {
    let resources = "\n    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 250m, memory: 32Mi}}\n    image:";
    let yaml = shell_pod("limited", "sleep 1000").replace("\n    image:", resources);
    apply(cluster, ns, &yaml);
    cluster.wait_ready(ns, "limited");
    assert_eq!(
        cluster.field(ns, "pod/limited", ".status.qosClass"),
        "Burstable"
    );
    let uid = cluster.field(ns, "pod/limited", ".metadata.uid");
    let find = |file: &str| -> Vec<String> {
        let output = std::process::Command::new("find")
            .args(["/sys/fs/cgroup", "-path", &format!("*{uid}*/*/{file}")])
            .output()
            .expect("find starts");
        let files = String::from_utf8_lossy(&output.stdout).into_owned();
        files
            .lines()
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .map(|text| text.trim().to_owned())
            .collect()
    };
    let memory = [find("memory.limit_in_bytes"), find("memory.max")].concat();
    assert!(
        memory.contains(&(32 * 1024 * 1024).to_string()),
        "{memory:?}"
    );
    let cpu = [find("cpu.cfs_quota_us"), find("cpu.max")].concat();
    assert!(
        cpu.iter()
            .any(|quota| quota == "25000" || quota == "25000 100000"),
        "{cpu:?}"
    );
}

fn crossing_the_memory_limit_is_oom_killed(cluster: &Cluster, ns: &str) {
    let yaml = shell_pod("greedy", "x=x; while :; do x=$x$x; done")
        .replace("spec:", "spec:\n  restartPolicy: Never")
        .replace(
            "\n    image:",
            "\n    resources: {limits: {memory: 16Mi}}\n    image:",
        );
    apply(cluster, ns, &yaml);
    cluster.wait_field(
        ns,
        "pod/greedy",
        ".status.containerStatuses[0].state.terminated.reason",
        "OOMKilled",
    );
    assert_eq!(
        cluster.field(
            ns,
            "pod/greedy",
            ".status.containerStatuses[0].state.terminated.exitCode"
        ),
        "137"
    );
    assert_eq!(cluster.field(ns, "pod/greedy", ".status.phase"), "Failed");
}

fn the_security_context_is_kept(cluster: &Cluster, ns: &str) {
    let context = "\n    securityContext: {runAsUser: 1000, runAsGroup: 2000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}\n    image:";
    let yaml = shell_pod("guarded", "sleep 1000")
        .replace("\n    image:", context)
        .replace(
            "spec:",
            "spec:\n  securityContext: {supplementalGroups: [3000], fsGroup: 4000}",
        );
    apply(cluster, ns, &yaml);
    cluster.wait_ready(ns, "guarded");
    let sh =
        |script: &str| cluster.kubectl(&["exec", "-n", ns, "guarded", "--", "sh", "-c", script]);
    assert_eq!(sh("id -u; id -g"), "1000\n2000\n");
    let groups = sh("id -G");
    assert!(
        groups.contains("3000") && groups.contains("4000"),
        "{groups}"
    );
    assert_eq!(sh("touch /x 2>/dev/null || echo refused"), "refused\n");
    let status = sh("cat /proc/1/status");
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "no {line} in\n{status}");
    }
    // The default: Docker's fourteen capabilities and the seccomp profile of the runtime when asked for.
    ready_shell_pod(cluster, ns, "default", "sleep 1000");
    let status = cluster.kubectl(&["exec", "-n", ns, "default", "--", "cat", "/proc/1/status"]);
    assert!(status.contains("CapEff:\t00000000a80425fb"), "{status}");
    let root = shell_pod("root", "sleep 1000").replace(
        "\n    image:",
        "\n    securityContext: {runAsNonRoot: true}\n    image:",
    );
    apply(cluster, ns, &root);
    cluster.wait_field(
        ns,
        "pod/root",
        ".status.containerStatuses[0].state.waiting.reason",
        "CreateContainerConfigError",
    );
    let message = cluster.field(
        ns,
        "pod/root",
        ".status.containerStatuses[0].state.waiting.message",
    );
    assert!(message.contains("runAsNonRoot"), "{message}");
}

fn probes_decide_readiness_and_restarts(cluster: &Cluster, ns: &str) {
    let probes = r#"
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, "!", -e, /tmp/dead]}, periodSeconds: 1, failureThreshold: 2}
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 60}
    image:"#;
    let yaml = shell_pod(
        "probed",
        "mkdir -p /tmp; nc -ll -p 8080 -e true & sleep 1000",
    )
    .replace("\n    image:", probes);
    apply(cluster, ns, &yaml);
    cluster.wait_field(
        ns,
        "pod/probed",
        ".status.containerStatuses[0].started",
        "true",
    );
    assert_eq!(
        cluster.field(ns, "pod/probed", ".status.containerStatuses[0].ready"),
        "false"
    );
    let said = cluster.wait_event(ns, "probed", "Unhealthy");
    assert!(said.contains("probe failed"), "{said}");
    cluster.kubectl(&["exec", "-n", ns, "probed", "--", "touch", "/tmp/ready"]);
    cluster.wait_ready(ns, "probed");
    cluster.kubectl(&["exec", "-n", ns, "probed", "--", "rm", "/tmp/ready"]);
    cluster.wait_field(
        ns,
        "pod/probed",
        ".status.containerStatuses[0].ready",
        "false",
    );
    cluster.kubectl(&["exec", "-n", ns, "probed", "--", "touch", "/tmp/dead"]);
    cluster.wait_field(
        ns,
        "pod/probed",
        ".status.containerStatuses[0].restartCount",
        "1",
    );
    assert!(
        cluster
            .wait_event(ns, "probed", "Killing")
            .contains("failed liveness probe, will be restarted")
    );

    let http = shell_pod("web", "")
        .replace("test/busybox:1", "test/nginx:1")
        .replace(
            "\n    image:",
            "\n    readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}\n    image:",
        );
    apply(
        cluster,
        ns,
        &http[..http.find("    command:").expect("the pod has a command")],
    );
    cluster.wait_ready(ns, "web");
}

fn a_static_pod_runs_and_is_mirrored(cluster: &Cluster, _: &str) {
    let arguments =
        std::fs::read(format!("/proc/{}/cmdline", cluster.pid())).expect("the node runs");
    let arguments = String::from_utf8_lossy(&arguments).into_owned();
    let mut words = arguments
        .split('\0')
        .skip_while(|word| *word != "--pod-manifest-path");
    let dir = std::path::PathBuf::from(
        words
            .nth(1)
            .expect("the node was given a manifest directory"),
    );
    let file = dir.join("fixed.yaml");
    std::fs::write(&file, shell_pod("fixed", "sleep 1000")).expect("a manifest can be written");
    cluster.wait_ready("default", "fixed-node");
    let annotations = cluster.field("default", "pod/fixed-node", ".metadata.annotations");
    assert!(
        annotations.contains("kubernetes.io/config.mirror") && annotations.contains("\"file\""),
        "{annotations}"
    );
    // Deleting the mirror does not end the pod: its mirror comes back, the container is the same.
    let container = cluster.field(
        "default",
        "pod/fixed-node",
        ".status.containerStatuses[0].containerID",
    );
    let uid = cluster.field("default", "pod/fixed-node", ".metadata.uid");
    cluster.kubectl(&[
        "delete",
        "pod",
        "fixed-node",
        "-n",
        "default",
        "--wait=false",
    ]);
    eventually("the mirror comes back", || {
        let now = cluster.field("default", "pod/fixed-node", ".metadata.uid");
        if now.is_empty() || now == uid {
            Err(now)
        } else {
            Ok(())
        }
    });
    cluster.wait_field(
        "default",
        "pod/fixed-node",
        ".status.containerStatuses[0].containerID",
        &container,
    );
    std::fs::remove_file(&file).expect("the manifest is there");
    eventually("the pod goes with its manifest", || {
        let phase = cluster.field("default", "pod/fixed-node", ".status.phase");
        if phase.is_empty() { Ok(()) } else { Err(phase) }
    });
}

fn logs_are_rotated(cluster: &Cluster, ns: &str) {
    // 12 MiB in lines of 1 KiB: past the default of 10 MiB for one file.
    let script = "l=$(head -c 1000 /dev/zero | tr '\\0' x); n=0; while [ $n -lt 12288 ]; do n=$((n+1)); echo $n $l; done; sleep 1000";
    ready_shell_pod(cluster, ns, "chatty", script);
    let uid = cluster.field(ns, "pod/chatty", ".metadata.uid");
    let dir = cluster
        .root()
        .join(format!("log/pods/{ns}_chatty_{uid}/main"));
    eventually("a rotated file beside the live one", || {
        let files: Vec<_> = std::fs::read_dir(&dir)
            .map_err(|e| format!("{}: {e}", dir.display()))?
            .flatten()
            .collect();
        if files.len() > 1 {
            Ok(())
        } else {
            Err(format!("{files:?}"))
        }
    });
    eventually("the last line is in the log", || {
        let last = cluster.kubectl(&["logs", "-n", ns, "chatty", "--tail=1"]);
        if last.starts_with("12288 ") {
            Ok(())
        } else {
            Err(last.chars().take(20).collect())
        }
    });
}
