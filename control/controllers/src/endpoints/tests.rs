use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::fake::Fake;

fn service(more: Value) -> ServiceView {
    let mut service = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "service", "labels": {"tier": "front"}},
        "spec": {
            "clusterIP": "10.96.0.9",
            "ipFamilies": ["IPv4"],
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
    });
    json_patch::merge(&mut service, &more);
    serde_json::from_value::<Service>(service).unwrap().into()
}

/// A running, ready pod of the Service, changed by `more`.
fn pod(number: usize, more: Value) -> Value {
    let mut pod = json!({
        "metadata": {
            "name": format!("web-{number}"), "namespace": "ns", "uid": format!("pod-{number}"),
            "labels": {"app": "web"},
        },
        "spec": {
            "nodeName": "node",
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8000 + number}]}],
        },
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": format!("10.0.{}.{}", number / 250, number % 250 + 1)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    json_patch::merge(&mut pod, &more);
    pod
}

fn view(pod: Value) -> Arc<PodView> {
    Arc::new(serde_json::from_value::<Pod>(pod).unwrap().into())
}

/// The slices after some changes were written.
fn written(existing: &[Arc<EndpointSlice>], changes: Changes) -> Vec<Arc<EndpointSlice>> {
    let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap();
    let mut all: BTreeMap<_, _> = existing
        .iter()
        .map(|slice| (name(slice), slice.clone()))
        .collect();
    for slice in changes.create.into_iter().chain(changes.update) {
        all.insert(name(&slice), Arc::new(slice));
    }
    all.retain(|name, _| !changes.delete.contains(name));
    all.into_values().collect()
}

fn endpoints(slice: &EndpointSlice) -> &[k8s_openapi::api::discovery::v1::Endpoint] {
    slice.endpoints.as_deref().unwrap_or_default()
}

fn conditions(slice: &EndpointSlice) -> Value {
    json!(endpoints(slice)[0].conditions)
}

#[test]
fn an_endpoint_is_ready_serving_or_terminating() {
    let not_ready = json!({"status": {"conditions": null}});
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let mut both = not_ready.clone();
    json_patch::merge(&mut both, &deleted);
    let publishes = json!({"spec": {"publishNotReadyAddresses": true}});
    for (service_more, pod_more, ready, serving, terminating) in [
        (json!({}), json!({}), true, true, false),
        (json!({}), not_ready.clone(), false, false, false),
        (json!({}), deleted.clone(), false, true, true),
        (json!({}), both.clone(), false, false, true),
        (publishes.clone(), not_ready, true, false, false),
        (publishes, both, true, false, true),
    ] {
        let changes = plan::plan(
            &service(service_more),
            &[view(pod(1, pod_more.clone()))],
            &[],
        );
        let wanted = json!({"ready": ready, "serving": serving, "terminating": terminating});
        assert_eq!(conditions(&changes.create[0]), wanted, "{pod_more}");
    }
}

#[test]
fn who_has_no_address_or_has_ended_is_no_endpoint() {
    for more in [
        json!({"status": {"podIPs": null}}),
        json!({"status": {"podIPs": [{"ip": "fd00::1"}]}}),
        json!({"status": {"phase": "Succeeded"}}),
        json!({"status": {"phase": "Failed"}}),
    ] {
        let changes = plan::plan(&service(json!({})), &[view(pod(1, more.clone()))], &[]);
        assert_eq!(
            changes.create.len(),
            1,
            "one slice says that nobody is there"
        );
        assert_eq!(endpoints(&changes.create[0]), [], "{more}");
        let legacy = legacy::plan(&service(json!({})), &[view(pod(1, more))], None).unwrap();
        assert_eq!(legacy.subsets, None);
    }
}

#[test]
fn a_named_port_is_each_pods_own() {
    let named = service(json!({"spec": {"ports": [
        {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"},
    ]}}));
    let without = json!({"spec": {"containers": [{"name": "c"}]}});
    let pods = [
        view(pod(1, json!({}))),
        view(pod(2, json!({}))),
        view(pod(3, without)),
    ];
    let changes = plan::plan(&named, &pods, &[]);
    let mut ports: Vec<_> = changes
        .create
        .iter()
        .map(|slice| {
            slice
                .ports
                .iter()
                .flatten()
                .filter_map(|port| port.port)
                .collect::<Vec<_>>()
        })
        .collect();
    ports.sort();
    assert_eq!(ports, [vec![], vec![8001], vec![8002]]);
    let legacy = legacy::plan(&named, &pods, None).unwrap();
    assert_eq!(legacy.subsets.unwrap().len(), 2);
}

#[test]
fn headless_services_say_so_and_name_their_pods() {
    let headless = service(json!({"spec": {"clusterIP": "None", "ports": null}}));
    let named = json!({"spec": {"hostname": "one", "subdomain": "web"}});
    let elsewhere = json!({"spec": {"hostname": "two", "subdomain": "other"}});
    let pods = [view(pod(1, named)), view(pod(2, elsewhere))];
    let slice = &plan::plan(&headless, &pods, &[]).create[0];
    let labels = slice.metadata.labels.as_ref().unwrap();
    for (label, value) in [
        (HEADLESS, ""),
        (SERVICE_NAME, "web"),
        (MANAGED_BY, OF_PODS),
        ("tier", "front"),
    ] {
        assert_eq!(labels[label], value);
    }
    let names: Vec<_> = endpoints(slice)
        .iter()
        .map(|endpoint| endpoint.hostname.as_deref())
        .collect();
    assert_eq!(names, [Some("one"), None]);
    assert_eq!(slice.ports.as_deref(), Some(&[][..]));
    let subsets = legacy::plan(&headless, &pods, None)
        .unwrap()
        .subsets
        .unwrap();
    assert_eq!((subsets.len(), &subsets[0].ports), (1, &None));
}

#[test]
fn a_change_of_one_pod_writes_one_slice() {
    let service = service(json!({}));
    let mut pods: Vec<_> = (0..250)
        .map(|number| view(pod(number, json!({}))))
        .collect();
    let slices = written(&[], plan::plan(&service, &pods, &[]));
    let mut sizes: Vec<_> = slices.iter().map(|slice| endpoints(slice).len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100, 100]);
    assert_eq!(plan::plan(&service, &pods, &slices), Changes::default());

    pods[120] = view(pod(120, json!({"status": {"conditions": null}})));
    let changes = plan::plan(&service, &pods, &slices);
    assert_eq!(
        (
            changes.create.len(),
            changes.update.len(),
            changes.delete.len()
        ),
        (0, 1, 0)
    );
    let slices = written(&slices, changes);

    pods.truncate(1);
    let changes = plan::plan(&service, &pods, &slices);
    assert_eq!(changes.delete.len(), 2);
    let slices = written(&slices, changes);
    assert_eq!(slices.len(), 1);
    let empty = written(&slices, plan::plan(&service, &[], &slices));
    assert_eq!(
        empty[0].metadata.name, slices[0].metadata.name,
        "the last one stays"
    );
    assert_eq!(endpoints(&empty[0]), []);
}

#[test]
fn each_family_has_its_slices() {
    let dual = service(json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}}));
    let pod = view(pod(
        1,
        json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}}),
    ));
    let mut shown: Vec<_> = plan::plan(&dual, &[pod], &[])
        .create
        .into_iter()
        .map(|slice| {
            (
                slice.address_type.clone(),
                endpoints(&slice)[0].addresses.clone(),
            )
        })
        .collect();
    shown.sort();
    assert_eq!(
        shown,
        [
            ("IPv4".to_owned(), vec!["10.0.0.1".to_owned()]),
            ("IPv6".to_owned(), vec!["fd00::1".to_owned()]),
        ]
    );
}

fn by_hand(more: Value) -> Endpoints {
    let mut endpoints = json!({
        "metadata": {"name": "db", "namespace": "ns", "uid": "e"},
        "subsets": [{
            "addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
            "notReadyAddresses": [{"ip": "192.0.2.2"}],
            "ports": [{"port": 5432}],
        }],
    });
    json_patch::merge(&mut endpoints, &more);
    serde_json::from_value(endpoints).unwrap()
}

#[test]
fn endpoints_made_by_hand_are_mirrored() {
    let changes = mirror::plan(&by_hand(json!({})), &[]);
    assert_eq!(changes.create.len(), 2);
    let v4 = &changes.create[0];
    let ready: Vec<_> = endpoints(v4)
        .iter()
        .map(|endpoint| endpoint.conditions.as_ref().unwrap().ready)
        .collect();
    assert_eq!(ready, [Some(true), Some(false)]);
    assert_eq!(
        v4.metadata.labels.as_ref().unwrap()[MANAGED_BY],
        OF_ENDPOINTS
    );
    assert_eq!(
        json!(v4.ports),
        json!([{"name": "", "port": 5432, "protocol": "TCP"}])
    );
    for (more, wanted) in [
        (json!({}), true),
        (
            json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}}),
            false,
        ),
        (
            json!({"metadata": {"annotations": {"control-plane.alpha.kubernetes.io/leader": ""}}}),
            false,
        ),
    ] {
        assert_eq!(mirror::is_wanted(&by_hand(more.clone())), wanted, "{more}");
    }
}

#[tokio::test]
async fn a_service_is_followed_from_its_first_pod_to_its_end() {
    const SLICES: &str = "discovery.k8s.io/v1/endpointslices";
    let fake = Fake::new();
    let shutdown = CancellationToken::new();
    let task = fake.run_workloads(&shutdown);
    fake.put(
        "v1/services",
        json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }),
    );
    fake.wait_for(SLICES, |slice| slice["endpoints"] == json!([]))
        .await;
    fake.put("v1/pods", pod(1, json!({})));
    fake.wait_for(SLICES, |slice| {
        slice["endpoints"][0]["conditions"]["ready"] == true
    })
    .await;
    fake.wait_for("v1/endpoints", |found| {
        found["subsets"][0]["addresses"][0]["ip"] == "10.0.0.2"
    })
    .await;
    fake.put("v1/pods", pod(1, json!({"status": {"conditions": null}})));
    fake.wait_for(SLICES, |slice| {
        slice["endpoints"][0]["conditions"]["ready"] == false
    })
    .await;
    fake.wait_for("v1/endpoints", |found| {
        found["subsets"][0]["notReadyAddresses"][0]["ip"] == "10.0.0.2"
    })
    .await;
    fake.remove("v1/services", "ns", "web");
    fake.wait_until_gone("v1/endpoints", "ns", "web").await;
    shutdown.cancel();
    task.await.unwrap();
}
