//! Addresses, names and ports.

use std::process::Stdio;

use serde_json::json;
use wherry_tests::{Network, eventually};

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    program::{get, print, read, resolves, serve, sh, stay},
};

pub(super) const GROUP: Group = Group {
    name: "network",
    title: "Network",
    rows: &[
        Behaviour::new(
            "a pod has an address that others see as its own",
            own_address,
        ),
        Behaviour::new(
            "containers of a pod reach each other on 127.0.0.1",
            loopback,
        ),
        Behaviour::new("two pods use the same port", same_port),
        Behaviour::new("a pod reaches the outside", outside),
        Behaviour::new("hostNetwork is the node's network", host_network),
        Behaviour::new(
            "a hostPort that is taken is told before anything starts",
            host_port,
        ),
        Behaviour::new(
            "a port that another container has is the program's own error",
            taken_port,
        ),
        Behaviour::new(
            "the host name is the pod's, or the one it asks for",
            host_name,
        ),
        Behaviour::new("subdomain makes a full name", subdomain),
        Behaviour::new(
            "hostAliases are in the hosts file and names resolve by it",
            host_aliases,
        ),
        Behaviour::new("dnsPolicy and dnsConfig make resolv.conf", dns_config),
        Behaviour::new("dnsPolicy Default is the node's", dns_default),
        Behaviour::new("a page of a container is served on the pod's address", page),
    ],
};

fn own_address(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("server", &[serve(7000, "seen")]))?;
    case.ready(&case.pod("client", &[stay()]))?;
    let ip = case.field("server", ".status.podIP");
    assert_ne!(ip, case.field("client", ".status.podIP"));
    listens(case, "client", &ip, 7000, "seen\n");
    // From the node, and the pod reaching itself by its own address.
    let output = case
        .cluster
        .network
        .command("busybox")
        .args(["nc", &ip, "7000"])
        .stdin(Stdio::null())
        .output();
    assert_eq!(
        String::from_utf8_lossy(&output.expect("busybox starts").stdout),
        "seen\n"
    );
    assert_eq!(case.exec("server", &[get(&ip, 7000)])?, "seen\n");
    Ok(())
}

/// Waits until a server answers a container of a pod.
fn listens(case: &Case<'_>, from: &str, host: &str, port: u16, wanted: &str) {
    eventually(&format!("{wanted:?} from {host}:{port}"), || {
        let steps = [get(host, port)];
        let command = case.command(&steps);
        let mut args = vec!["exec", "-n", case.ns, from, "-c", "main", "--"];
        args.extend(command.iter().map(String::as_str));
        let output = case
            .cluster
            .kubectl_command(&args)
            .output()
            .expect("kubectl starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said == wanted {
            Ok(())
        } else {
            Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
        }
    });
}

fn loopback(case: &Case<'_>) -> Outcome {
    let pod = case.pod("both", &[serve(7000, "main")]);
    case.ready(&pod.container(case.container("other", &[stay()])))?;
    eventually("main answers other", || {
        match case.exec_in("both", "other", case.runtime, &[get("127.0.0.1", 7000)]) {
            Ok(said) if said == "main\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    Ok(())
}

fn same_port(case: &Case<'_>) -> Outcome {
    for name in ["a", "b"] {
        case.ready(&case.pod(name, &[serve(7000, name)]))?;
    }
    listens(case, "a", "127.0.0.1", 7000, "a\n");
    listens(case, "b", "127.0.0.1", 7000, "b\n");
    let b = case.field("b", ".status.podIP");
    listens(case, "a", &b, 7000, "b\n");
    Ok(())
}

fn outside(case: &Case<'_>) -> Outcome {
    // A port of its own for each runtime: the outside is shared.
    let port = 7100 + case.runtime as u16;
    case.ready(&case.pod("client", &[stay()]))?;
    let mut server = case
        .cluster
        .network
        .outside_command("busybox")
        .args([
            "nc",
            "-ll",
            "-p",
            &port.to_string(),
            "-e",
            "echo",
            "outside",
        ])
        .stdin(Stdio::null())
        .spawn()
        .expect("busybox starts");
    listens(case, "client", Network::OUTSIDE_IP, port, "outside\n");
    server.kill().expect("busybox listens until it is killed");
    server.wait().expect("busybox can be waited for");
    Ok(())
}

fn host_network(case: &Case<'_>) -> Outcome {
    let port = 7200 + case.runtime as u16;
    let pod = case.pod("host", &[serve(port, "host")]);
    case.ready(&pod.spec(json!({"hostNetwork": true})))?;
    assert_eq!(case.field("host", ".status.podIP"), Network::NODE_IP);
    eventually("the pod answers on the node's loopback", || {
        let output = case
            .cluster
            .network
            .command("busybox")
            .args(["nc", "127.0.0.1", &port.to_string()])
            .stdin(Stdio::null())
            .output();
        let output = output.expect("busybox starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said == "host\n" { Ok(()) } else { Err(said) }
    });
    Ok(())
}

fn host_port(case: &Case<'_>) -> Outcome {
    let port = json!({"ports": [{"containerPort": 80, "hostPort": 18080 + case.runtime as u16}]});
    case.ready(&case.pod_with("first", &[stay()], port.clone()))?;
    case.create(&case.pod_with("second", &[stay()], port))?;
    let event = case.event("second", "FailedScheduling");
    assert!(
        event.contains("0/1 nodes are available") && event.contains("didn't have free ports"),
        "{event}"
    );
    Ok(())
}

fn taken_port(case: &Case<'_>) -> Outcome {
    let server = |name: &str| case.container(name, &[sh("nc -ll -p 7000 -e echo x || exit 1")]);
    case.create(
        &case
            .empty("twice")
            .container(server("one"))
            .container(server("two")),
    )?;
    eventually("one of them says that the port is taken", || {
        let logs = ["one", "two"].map(|name| {
            let previous = ["logs", "-n", case.ns, "twice", "-c", name, "--previous"];
            let output = case
                .cluster
                .kubectl_command(&previous)
                .output()
                .expect("kubectl starts");
            format!(
                "{}{}",
                case.log("twice", name),
                String::from_utf8_lossy(&output.stdout)
            )
        });
        let words = logs.concat().to_lowercase();
        if words.contains("in use") {
            Ok(())
        } else {
            Err(logs.concat())
        }
    });
    Ok(())
}

fn host_name(case: &Case<'_>) -> Outcome {
    let steps = [sh("hostname"), stay()];
    case.ready(&case.pod("plain", &steps))?;
    assert_eq!(case.until_log("plain", "main", "\n"), "plain\n");
    case.ready(&case.pod("named", &steps).spec(json!({"hostname": "boat"})))?;
    assert_eq!(case.until_log("named", "main", "\n"), "boat\n");
    Ok(())
}

fn subdomain(case: &Case<'_>) -> Outcome {
    let pod = case.pod("named", &[read("/etc/hosts"), print("that is all"), stay()]);
    case.ready(&pod.spec(json!({"hostname": "boat", "subdomain": "harbour"})))?;
    let hosts = case.until_log("named", "main", "that is all\n");
    let ip = case.field("named", ".status.podIP");
    let line = format!("{ip}\tboat.harbour.{}.svc.cluster.local\tboat", case.ns);
    assert!(hosts.contains(&line), "no {line} in {hosts}");
    Ok(())
}

fn host_aliases(case: &Case<'_>) -> Outcome {
    let pod = case.pod("named", &[stay()]);
    case.ready(
        &pod.spec(json!({"hostAliases": [{"ip": "10.1.2.3", "hostnames": ["far.away", "far"]}]})),
    )?;
    let hosts = case.exec("named", &[read("/etc/hosts")])?;
    assert!(hosts.contains("10.1.2.3\tfar.away\tfar"), "{hosts}");
    case.exec("named", &[resolves("far.away", "10.1.2.3")])?;
    let ip = case.field("named", ".status.podIP");
    case.exec("named", &[resolves("named", &ip)])?;
    Ok(())
}

fn dns_config(case: &Case<'_>) -> Outcome {
    let dns = json!({"dnsPolicy": "None", "dnsConfig": {
        "nameservers": ["10.9.9.9"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}],
    }});
    case.ready(&case.pod("named", &[stay()]).spec(dns))?;
    let resolv = case.exec("named", &[read("/etc/resolv.conf")])?;
    for line in ["nameserver 10.9.9.9", "search a.b", "options ndots:2"] {
        assert!(
            resolv.lines().any(|found| found == line),
            "no {line} in {resolv}"
        );
    }
    Ok(())
}

fn dns_default(case: &Case<'_>) -> Outcome {
    case.ready(
        &case
            .pod("named", &[stay()])
            .spec(json!({"dnsPolicy": "Default"})),
    )?;
    let resolv = case.exec("named", &[read("/etc/resolv.conf")])?;
    let own = std::fs::read_to_string("/etc/resolv.conf").expect("the node has one");
    for line in own.lines().filter(|line| line.starts_with("nameserver")) {
        assert!(resolv.contains(line), "no {line} in {resolv}");
    }
    Ok(())
}

fn page(case: &Case<'_>) -> Outcome {
    case.ready(&case.empty("site").container(case.web("main")))?;
    let ip = case.field("site", ".status.podIP");
    eventually("the page", || {
        case.cluster
            .curl(&format!("http://{ip}:8080/ready"))
            .and_then(|page| {
                if page.contains("hello") {
                    Ok(())
                } else {
                    Err(page)
                }
            })
    });
    Ok(())
}
