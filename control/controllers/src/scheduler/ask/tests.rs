use serde_json::{Value, json};

use super::super::testing::{World, cpu, pod};

const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI: &str = "node(s) didn't match pod anti-affinity rules";
const EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";
const SPREAD: &str = "node(s) didn't match pod topology spread constraints";

fn app(name: &str) -> Value {
    json!({ "app": name })
}

fn term(app: &str, key: &str) -> Value {
    json!({ "topologyKey": key, "labelSelector": { "matchLabels": { "app": app } } })
}

fn with(kind: &str, terms: Value) -> Value {
    json!({ "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": terms } } })
}

fn prefers(kind: &str, weight: i32, term: Value) -> Value {
    json!({ "affinity": { kind: { "preferredDuringSchedulingIgnoredDuringExecution":
        [{ "weight": weight, "podAffinityTerm": term }] } } })
}

fn three() -> World {
    World::new(&[("a1", "a"), ("a2", "a"), ("b1", "b")])
}

#[test]
fn required_affinity_goes_where_such_pods_are() {
    let mut world = three();
    let near = pod(
        "p",
        json!({}),
        with("podAffinity", json!([term("db", "zone")])),
    );
    assert_eq!(world.would(&near).unwrap_err(), format!("3 {AFFINITY}."));
    world.runs("db", "b1", app("db"), json!({}));
    assert_eq!(world.would(&near).unwrap(), "b1");
    world.state.release("db");
    assert!(world.would(&near).is_err(), "it has gone");
}

#[test]
fn the_first_of_a_kind_may_go_anywhere_that_has_the_label() {
    let mut world = three();
    world.node("bare", json!({}));
    let first = |name| {
        pod(
            name,
            app("db"),
            with("podAffinity", json!([term("db", "zone")])),
        )
    };
    let place = world.schedule(&first("1")).unwrap();
    assert_ne!(place, "bare");
    let zone = &place[..1];
    for name in ["2", "3", "4"] {
        assert_eq!(&world.schedule(&first(name)).unwrap()[..1], zone);
    }
}

#[test]
fn several_affinity_terms_want_pods_that_all_of_them_mean() {
    let mut world = three();
    let both = with(
        "podAffinity",
        json!([
            term("db", "zone"),
            { "topologyKey": "host", "labelSelector": { "matchLabels": { "tier": "fast" } } },
        ]),
    );
    world.runs("1", "a1", app("db"), json!({}));
    world.runs("2", "a1", json!({ "tier": "fast" }), json!({}));
    let wants = pod("p", json!({}), both);
    assert_eq!(world.would(&wants).unwrap_err(), format!("3 {AFFINITY}."));
    world.runs("3", "b1", json!({ "app": "db", "tier": "fast" }), json!({}));
    assert_eq!(world.would(&wants).unwrap(), "b1");
}

#[test]
fn anti_affinity_holds_in_both_directions() {
    let mut world = three();
    let alone = |name| {
        pod(
            name,
            app("web"),
            with("podAntiAffinity", json!([term("web", "zone")])),
        )
    };
    let first = world.schedule(&alone("1")).unwrap();
    let second = world.schedule(&alone("2")).unwrap();
    assert_ne!(first[..1], second[..1]);
    assert_eq!(world.would(&alone("3")).unwrap_err(), format!("3 {ANTI}."));
    let plain = pod("4", app("web"), json!({}));
    assert_eq!(world.would(&plain).unwrap_err(), format!("3 {EXISTING}."));
    assert!(world.would(&pod("5", app("other"), json!({}))).is_ok());
    world.ends("1");
    assert!(
        world.would(&plain).is_err(),
        "it is there until it has gone"
    );
    world.state.release("1");
    assert_eq!(world.would(&plain).unwrap()[..1], first[..1]);
}

#[test]
fn namespaces_are_the_pods_own_or_those_that_are_named_or_selected() {
    for (scope, reaches) in [
        (json!({}), false),
        (json!({ "namespaces": ["team"] }), true),
        (json!({ "namespaces": ["default"] }), false),
        (
            json!({ "namespaceSelector": { "matchLabels": { "kind": "team" } } }),
            true,
        ),
        (
            json!({ "namespaceSelector": { "matchLabels": { "kind": "x" } } }),
            false,
        ),
        (json!({ "namespaceSelector": {} }), true),
        (
            json!({ "namespaceSelector": { "matchLabels": { "kind": "x" } }, "namespaces": ["team"] }),
            true,
        ),
    ] {
        let mut world = World::new(&[("a", "a")]);
        world.namespace("team", json!({ "kind": "team" }));
        let mut wanted = term("web", "host");
        json_patch::merge(&mut wanted, &scope);
        let wants = pod("p", json!({}), with("podAntiAffinity", json!([wanted])));
        assert!(world.would(&wants).is_ok());
        world.runs_in("team", "other", "a", app("web"), json!({}));
        assert_eq!(world.would(&wants).is_err(), reaches, "{scope}");
    }
    let mut world = World::new(&[("a", "a")]);
    let mut wanted = term("web", "host");
    wanted["namespaceSelector"] = json!({ "matchLabels": { "kind": "team" } });
    let wants = pod("p", json!({}), with("podAntiAffinity", json!([wanted])));
    world.runs_in("team", "other", "a", app("web"), json!({}));
    assert!(world.would(&wants).is_ok());
    world.namespace("team", json!({ "kind": "team" }));
    assert!(
        world.would(&wants).is_err(),
        "the namespace has the label now"
    );
}

#[test]
fn match_label_keys_tell_revisions_apart() {
    let revision = |name: &str, revision: &str, keys: &str| {
        let mut wanted = term("web", "host");
        wanted[keys] = json!(["rev"]);
        let labels = json!({ "app": "web", "rev": revision });
        pod(name, labels, with("podAntiAffinity", json!([wanted])))
    };
    let mut world = World::new(&[("a", "a")]);
    world.runs("old", "a", json!({ "app": "web", "rev": "1" }), json!({}));
    assert!(world.would(&revision("2", "2", "matchLabelKeys")).is_ok());
    assert!(world.would(&revision("3", "1", "matchLabelKeys")).is_err());
    assert!(
        world
            .would(&revision("4", "1", "mismatchLabelKeys"))
            .is_ok()
    );
    assert!(
        world
            .would(&revision("5", "2", "mismatchLabelKeys"))
            .is_err()
    );
}

#[test]
fn preferences_of_either_side_decide_between_nodes() {
    let mut world = three();
    world.runs("db", "b1", app("db"), json!({}));
    let near = prefers("podAffinity", 10, term("db", "zone"));
    assert_eq!(world.would(&pod("p", json!({}), near)).unwrap(), "b1");
    let far = prefers("podAntiAffinity", 10, term("db", "zone"));
    assert_ne!(world.would(&pod("p", json!({}), far)).unwrap(), "b1");
    // The one that is there would like others near, and the newcomer has no opinion.
    let mut world = three();
    let likes = prefers("podAffinity", 100, term("web", "host"));
    world.runs("db", "a2", app("db"), likes);
    assert_eq!(world.would(&pod("p", app("web"), json!({}))).unwrap(), "a2");
}

fn spread(key: &str, more: Value) -> Value {
    let mut constraint = json!({
        "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": app("web") },
    });
    json_patch::merge(&mut constraint, &more);
    json!({ "topologySpreadConstraints": [constraint] })
}

#[test]
fn spreading_keeps_the_skew() {
    let mut world = three();
    let web = |name| pod(name, app("web"), spread("zone", json!({})));
    let zones: Vec<String> = ["1", "2", "3", "4"]
        .map(|name| world.schedule(&web(name)).unwrap()[..1].to_owned())
        .into();
    assert_eq!(
        zones.iter().filter(|zone| *zone == "a").count(),
        2,
        "{zones:?}"
    );
    // A zone that cannot take more holds the others back.
    world.runs("big", "b1", json!({}), json!({ "containers": cpu("4") }));
    let mut asks = spread("zone", json!({}));
    asks["containers"] = cpu("1");
    let asks = |name| pod(name, app("web"), asks.clone());
    assert_eq!(&world.schedule(&asks("5")).unwrap()[..1], "a");
    assert_eq!(
        world.would(&asks("6")).unwrap_err(),
        format!("1 Insufficient cpu, 2 {SPREAD}.")
    );
    // Pods that are being deleted do not count.
    world.ends("5");
    assert!(world.would(&asks("6")).is_ok());
}

#[test]
fn spreading_tables() {
    for (what, more, labels_of_last, want) in [
        ("a node without the label", json!({}), json!({}), Err("")),
        (
            "at least three domains",
            json!({ "minDomains": 3 }),
            json!({ "zone": "b" }),
            Err("3 X."),
        ),
        (
            "two domains",
            json!({ "minDomains": 2 }),
            json!({ "zone": "b" }),
            Ok("last"),
        ),
        ("more skew", json!({ "maxSkew": 3 }), json!({}), Ok("a")),
        (
            "nobody like it",
            json!({ "labelSelector": { "matchLabels": app("x") } }),
            json!({ "zone": "b" }),
            Ok("any"),
        ),
    ] {
        let mut world = World::new(&[("a1", "a"), ("a2", "a")]);
        world.node("last", labels_of_last);
        world.runs("1", "a1", app("web"), json!({}));
        if want == Err("3 X.") {
            world.runs("2", "last", app("web"), json!({}));
        }
        // Without a second domain the first is the one with the fewest, and its own are no skew.
        if what == "a node without the label" {
            world.node("c1", json!({ "zone": "c" }));
            world.runs("big", "c1", json!({}), json!({ "containers": cpu("4") }));
        }
        let mut spec = spread("zone", more);
        spec["containers"] = cpu("1");
        let got = world.would(&pod("p", app("web"), spec));
        match want {
            Ok("any") => assert!(got.is_ok(), "{what}"),
            Ok(prefix) => assert!(got.unwrap().starts_with(prefix), "{what}"),
            Err("3 X.") => assert_eq!(got.unwrap_err(), format!("3 {SPREAD}."), "{what}"),
            Err(_) => {
                let want =
                    format!("1 Insufficient cpu, 1 {SPREAD} (missing required label), 2 {SPREAD}.");
                assert_eq!(got.unwrap_err(), want, "{what}");
            }
        }
    }
}

#[test]
fn policies_say_which_nodes_count_for_spreading() {
    // Zone b is not for the pod: by its selector, or by a taint.
    for (more, selects, want) in [
        (json!({}), true, true),
        (json!({ "nodeAffinityPolicy": "Ignore" }), true, false),
        (json!({}), false, false),
        (json!({ "nodeTaintsPolicy": "Honor" }), false, true),
    ] {
        let mut world = World::new(&[("a1", "a")]);
        let node = json!({
            "metadata": { "name": "b1", "labels": { "zone": "b" } },
            "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] },
            "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110" } },
        });
        let offer = super::super::node::Offer::read(&serde_json::from_value(node).unwrap());
        world.state.set_node("b1", offer);
        world.runs("1", "a1", app("web"), json!({}));
        let mut spec = spread("zone", more.clone());
        if selects {
            spec["nodeSelector"] = json!({ "zone": "a" });
        }
        let got = world.would(&pod("p", app("web"), spec));
        assert_eq!(got.is_ok(), want, "{more} {selects}: {got:?}");
    }
}

#[test]
fn soft_spreading_and_owners_keep_pods_apart_without_holding_them_back() {
    let mut world = three();
    let soft = |name| {
        let spec = spread("zone", json!({ "whenUnsatisfiable": "ScheduleAnyway" }));
        pod(name, app("web"), spec)
    };
    let first = world.schedule(&soft("1")).unwrap();
    let second = world.schedule(&soft("2")).unwrap();
    assert_ne!(first[..1], second[..1]);
    assert!(world.schedule(&soft("3")).is_ok());

    let mut world = three();
    world.runs("big", "a1", json!({}), json!({ "containers": cpu("1") }));
    let owned = |name: &str| {
        let mut pod = pod(name, json!({}), json!({}));
        std::sync::Arc::make_mut(&mut pod.needs).owner = Some("set".into());
        pod
    };
    let mut places = ["1", "2", "3"].map(|name| world.schedule(&owned(name)).unwrap());
    places.sort();
    assert_eq!(places, ["a1", "a2", "b1"]);
}
