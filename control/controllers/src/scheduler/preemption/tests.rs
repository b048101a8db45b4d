use serde_json::{Value, json};

use super::{
    super::testing::{World, cpu, pod},
    *,
};

fn spec(priority: i32, amount: &str) -> Value {
    json!({ "priority": priority, "containers": cpu(amount) })
}

/// Who has to go from where; otherwise what is said.
fn preempt(world: &mut World, pod: &PodInfo) -> Result<(String, Vec<String>), String> {
    let rejections = world.state.schedule(pod).expect_err("no room");
    let preemption = world.state.preempt(pod, &rejections)?;
    let mut victims: Vec<_> = (preemption.victims.into_iter())
        .map(|victim| victim.uid)
        .collect();
    victims.sort();
    Ok((preemption.node, victims))
}

fn budget(allowed: i32) -> Budget {
    let budget = json!({
        "metadata": { "name": "b" },
        "spec": { "selector": { "matchLabels": { "app": "web" } } },
        "status": { "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1 },
    });
    Budget::read(&serde_json::from_value(budget).unwrap())
}

fn at(world: &mut World, name: &str, seconds: i64) {
    let mut pod = world.state.count_out(name).unwrap();
    pod.started = Some(Timestamp::from_second(seconds).unwrap());
    world.state.count_in(name, pod);
}

#[test]
fn the_fewest_and_least_important_pods_make_room() {
    let mut world = World::new(&[("a", "a"), ("b", "b")]);
    world.runs("a-low", "a", json!({}), spec(1, "1"));
    world.runs("a-mid", "a", json!({}), spec(5, "1"));
    world.runs("a-high", "a", json!({}), spec(50, "2"));
    world.runs("b-mid", "b", json!({}), spec(5, "2"));
    world.runs("b-high", "b", json!({}), spec(100, "2"));
    let one = pod("p", json!({}), spec(50, "1"));
    assert_eq!(
        preempt(&mut world, &one).unwrap(),
        ("a".into(), vec!["a-low".into()])
    );
    let two = pod("p", json!({}), spec(50, "2"));
    // On both nodes the most important victim matters as much; b loses one pod and a two.
    assert_eq!(
        preempt(&mut world, &two).unwrap(),
        ("b".into(), vec!["b-mid".into()])
    );
    let three = pod("p", json!({}), spec(60, "3"));
    assert_eq!(
        preempt(&mut world, &three).unwrap(),
        ("a".into(), vec!["a-high".into(), "a-low".into()]),
        "what need not go stays"
    );
}

#[test]
fn what_does_not_help_is_said_as_kubernetes_says_it() {
    let mut world = World::new(&[("a", "a"), ("b", "b")]);
    world.runs("1", "a", json!({}), spec(10, "4"));
    world.runs("2", "b", json!({}), spec(10, "4"));
    let message = |world: &mut World, pod: &PodInfo| preempt(world, pod).unwrap_err();
    assert_eq!(
        message(&mut world, &pod("p", json!({}), spec(10, "1"))),
        "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
    );
    assert_eq!(
        message(&mut world, &pod("p", json!({}), spec(20, "5"))),
        "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
    let mut never = spec(20, "1");
    never["preemptionPolicy"] = "Never".into();
    assert_eq!(
        message(&mut world, &pod("p", json!({}), never)),
        "preemption: not eligible due to preemptionPolicy=Never."
    );
    assert_eq!(
        message(&mut World::default(), &pod("p", json!({}), spec(20, "1"))),
        ""
    );
    let mut elsewhere = spec(20, "1");
    elsewhere["nodeSelector"] = json!({ "zone": "a" });
    world.runs("3", "a", json!({}), spec(30, "0"));
    let rejected = pod("p", json!({}), elsewhere);
    assert_eq!(preempt(&mut world, &rejected).unwrap().0, "a");
}

#[test]
fn budgets_are_respected_where_that_is_possible() {
    let mut world = World::new(&[("a", "a"), ("b", "b")]);
    world.runs("web", "a", json!({ "app": "web" }), spec(1, "4"));
    world.runs("other", "b", json!({}), spec(5, "4"));
    let wants = pod("p", json!({}), spec(10, "1"));
    let key = Key::new("default", "b");
    world.state.budgets.insert(key.clone(), budget(0));
    assert_eq!(preempt(&mut world, &wants).unwrap().0, "b");
    world.state.budgets.insert(key.clone(), budget(1));
    assert_eq!(preempt(&mut world, &wants).unwrap().0, "a");
    world.state.release("other");
    world.runs("tall", "b", json!({}), spec(99, "4"));
    world.state.budgets.insert(key, budget(0));
    assert_eq!(
        preempt(&mut world, &wants).unwrap().1,
        ["web"],
        "there is no other way"
    );
}

#[test]
fn of_equals_the_youngest_goes() {
    let mut world = World::new(&[("a", "a"), ("b", "b")]);
    world.runs("1", "a", json!({}), spec(1, "4"));
    world.runs("2", "b", json!({}), spec(1, "4"));
    at(&mut world, "1", 100);
    at(&mut world, "2", 200);
    let wants = pod("p", json!({}), spec(10, "1"));
    assert_eq!(preempt(&mut world, &wants).unwrap().0, "b");
    at(&mut world, "1", 300);
    assert_eq!(preempt(&mut world, &wants).unwrap().0, "a");
    let mut world = World::new(&[("a", "a")]);
    for (name, started) in [("old", 100), ("young", 200)] {
        world.runs(name, "a", json!({}), spec(1, "2"));
        at(&mut world, name, started);
    }
    assert_eq!(preempt(&mut world, &wants).unwrap().1, ["young"]);
}

#[test]
fn anti_affinity_and_ports_are_reasons_to_make_room() {
    let mut world = World::new(&[("a", "a")]);
    world.runs("1", "a", json!({ "app": "web" }), spec(1, "0"));
    world.runs("2", "a", json!({}), spec(1, "0"));
    let mut apart = spec(10, "1");
    apart["affinity"] = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
        { "topologyKey": "host", "labelSelector": { "matchLabels": { "app": "web" } } },
    ] } });
    let wants = pod("p", json!({}), apart);
    assert_eq!(preempt(&mut world, &wants).unwrap().1, ["1"]);
}

#[test]
fn room_is_kept_for_whom_it_was_made() {
    let mut world = World::new(&[("a", "a")]);
    world.runs("1", "a", json!({}), spec(1, "4"));
    let first = pod("first", json!({}), spec(10, "3"));
    assert_eq!(preempt(&mut world, &first).unwrap().1, ["1"]);
    world.state.nominate(&first, "a");
    world.ends("1");
    let rejections = world.state.schedule(&first).unwrap_err();
    assert_eq!(
        world.state.preempt(&first, &rejections).unwrap_err(),
        "preemption: not eligible due to a terminating pod on the nominated node."
    );
    world.state.release("1");
    let meek = pod("meek", json!({}), spec(5, "2"));
    assert_eq!(world.would(&meek).unwrap_err(), "1 Insufficient cpu.");
    let small = pod("small", json!({}), spec(5, "1"));
    assert_eq!(world.would(&small).unwrap(), "a", "besides it");
    let bold = pod("bold", json!({}), spec(20, "2"));
    assert_eq!(
        world.schedule(&bold).unwrap(),
        "a",
        "who matters more does not wait"
    );
    world.state.release("bold");
    assert_eq!(world.schedule(&first).unwrap(), "a");
    assert_eq!(world.state.nomination("first"), None);

    let mut world = World::new(&[("a", "a")]);
    world.runs("1", "a", json!({}), spec(1, "4"));
    world.state.nominate(&meek, "a");
    let rejections = world.state.schedule(&bold).unwrap_err();
    let preemption = world.state.preempt(&bold, &rejections).unwrap();
    assert_eq!(
        preemption.withdrawn,
        [("meek".to_owned(), Key::new("default", "meek"))]
    );
}
