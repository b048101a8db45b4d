use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::{
        filter::Verdict,
        state::State,
        testing::{World, cpu, pod},
    },
    *,
};

/// Specs with every kind of term, over few labels, so that they mean each other.
fn spec(kind: u8) -> Value {
    let term = |app: &str, key: &str| json!({ "topologyKey": key, "labelSelector": { "matchLabels": { "app": app } } });
    let selected = json!({
        "topologyKey": "zone", "namespaceSelector": { "matchLabels": { "team": "x" } },
        "labelSelector": { "matchExpressions": [{ "key": "app", "operator": "Exists" }] },
    });
    let mut spec = match kind {
        0 => {
            json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term("a", "host")] } } })
        }
        1 => {
            json!({ "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term("a", "zone"), term("a", "host")] } } })
        }
        2 => {
            json!({ "affinity": { "podAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 3, "podAffinityTerm": term("b", "zone") }] } } })
        }
        3 => {
            json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [selected] } } })
        }
        4 => json!({ "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "a" } },
        }] }),
        _ => json!({}),
    };
    spec["containers"] = cpu("100m");
    spec
}

fn labels(kind: u8) -> Value {
    match kind % 3 {
        0 => json!({ "app": "a" }),
        1 => json!({ "app": "b" }),
        _ => json!({}),
    }
}

const KINDS: u8 = 6;

type Numbers = Vec<(String, i64)>;

/// The numbers of every term, by names of nodes and domains.
fn numbers(state: &State, term: &Term) -> Option<[Numbers; 6]> {
    let entry = state.counts.entry(state.counts.id(term)?)?;
    let sorted = |mut numbers: Numbers| {
        numbers.sort();
        numbers
    };
    let nodes = |tally: &Tally| {
        let named = tally
            .nodes
            .iter()
            .map(|(node, number)| (state.nodes[*node].name.clone(), *number));
        sorted(named.collect())
    };
    let domains = |tally: &Tally| sorted(tally.domains.clone().into_iter().collect());
    let (meant, repelled, draw) = (&entry.meant, &entry.repelled, &entry.draw);
    Some([
        nodes(meant),
        domains(meant),
        nodes(repelled),
        domains(repelled),
        nodes(draw),
        domains(draw),
    ])
}

#[derive(Clone, Debug)]
enum Step {
    Node(u8, u8),
    NoNode(u8),
    Runs(u8, u8, u8, u8),
    Ends(u8),
    Gone(u8),
    Namespace(u8, bool),
    Schedule(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, 0..3u8).prop_map(|(node, zone)| Step::Node(node, zone)),
        (0..4u8).prop_map(Step::NoNode),
        (0..12u8, 0..4u8, 0..KINDS, 0..2u8).prop_map(|(a, b, c, d)| Step::Runs(a, b, c, d)),
        (0..12u8).prop_map(Step::Ends),
        (0..12u8).prop_map(Step::Gone),
        (0..2u8, any::<bool>()).prop_map(|(name, has)| Step::Namespace(name, has)),
        (0..12u8, 0..KINDS).prop_map(|(pod, kind)| Step::Schedule(pod, kind)),
    ]
}

/// What is true now, kept plainly.
#[derive(Default)]
struct Truth {
    nodes: BTreeMap<u8, u8>,
    namespaces: BTreeMap<u8, bool>,
}

fn apply(world: &mut World, truth: &mut Truth, step: &Step) {
    let name = |pod: u8| format!("p{pod}");
    match *step {
        Step::Node(node, zone) => {
            truth.nodes.insert(node, zone);
            put_node(world, node, zone);
        }
        Step::NoNode(node) => {
            truth.nodes.remove(&node);
            world.state.remove_node(&format!("n{node}"));
        }
        Step::Runs(pod, node, kind, namespace) => {
            let place = format!("n{node}");
            world.runs_in(
                &format!("ns{namespace}"),
                &name(pod),
                &place,
                labels(kind + pod),
                spec(kind),
            );
        }
        Step::Ends(pod) => {
            if world.state.pods.get(&name(pod)).is_some() {
                world.ends(&name(pod));
            }
        }
        Step::Gone(pod) => {
            world.state.release(&name(pod));
        }
        Step::Namespace(namespace, has) => {
            truth.namespaces.insert(namespace, has);
            put_namespace(world, namespace, has);
        }
        Step::Schedule(id, kind) => {
            let pod = pod(&name(id), labels(kind), spec(kind));
            if world.state.pods.get(&pod.uid).is_none() {
                let _ = world.schedule(&pod);
            }
        }
    }
}

fn put_node(world: &mut World, node: u8, zone: u8) {
    let name = format!("n{node}");
    let labels = match zone {
        0 => json!({ "any": "node", "host": name }),
        zone => json!({ "any": "node", "host": name, "zone": format!("z{zone}") }),
    };
    world.node(&name, labels);
}

fn put_namespace(world: &mut World, namespace: u8, has: bool) {
    let labels = if has {
        json!({ "team": "x" })
    } else {
        json!({})
    };
    world.namespace(&format!("ns{namespace}"), labels);
}

proptest! {
    #[test]
    fn what_is_counted_step_by_step_is_what_is_counted_at_once(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut world, mut truth) = (World::default(), Truth::default());
        for step in &steps {
            apply(&mut world, &mut truth, step);
        }
        let mut fresh = World::default();
        for (namespace, has) in &truth.namespaces {
            put_namespace(&mut fresh, *namespace, *has);
        }
        for (node, zone) in &truth.nodes {
            put_node(&mut fresh, *node, *zone);
        }
        for uid in world.state.pods().cloned().collect::<Vec<_>>() {
            let pod = world.state.pods.get(&uid).unwrap().clone();
            fresh.state.assign(&uid, super::super::pod::Assigned {
                name: pod.name,
                node: world.state.nodes[pod.node].name.clone(),
                needs: pod.needs,
                is_terminating: pod.is_terminating,
                started: pod.started,
            });
        }
        let terms: Vec<Arc<Term>> = world.state.counts.ids.keys().cloned().collect();
        for term in terms {
            fresh.state.counts.register(&term, &fresh.state.pods, &fresh.state.nodes);
            prop_assert_eq!(numbers(&world.state, &term), numbers(&fresh.state, &term), "{:?}", term);
        }
        // What is known of all domains is what is found by looking at every node.
        for (key, others) in [("zone", &["host"][..]), ("host", &["zone"]), ("zone", &[])] {
            let spread = |selector: Value| {
                let constraints: Vec<Value> = [key].iter().chain(others).map(|key| json!({
                    "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2,
                    "labelSelector": { "matchLabels": { "app": "a" } },
                })).collect();
                let spec = json!({ "topologySpreadConstraints": constraints, "nodeSelector": selector });
                pod("probe", labels(0), spec)
            };
            let state = &mut world.state;
            let [known, looked] = [json!({}), json!({ "any": "node" })].map(spread).map(|pod| {
                state.register(&pod.needs);
                let nodes: Vec<_> = (0..state.nodes.len()).filter(|node| state.nodes[*node].offer.is_some()).collect();
                nodes.into_iter().map(|node| state.verdict_on(&pod, node)).collect::<Vec<_>>()
            });
            prop_assert_eq!(known, looked);
        }
        // So a newcomer gets the same answer of every node.
        for kind in 0..KINDS {
            let probe = pod("probe", labels(kind), spec(kind));
            for state in [&mut world.state, &mut fresh.state] {
                state.register(&probe.needs);
            }
            let answers = |state: &mut State| -> BTreeMap<String, Verdict> {
                let nodes: Vec<_> = (0..state.nodes.len()).filter(|node| state.nodes[*node].offer.is_some()).collect();
                nodes.into_iter().map(|node| (state.nodes[node].name.clone(), state.verdict_on(&probe, node))).collect()
            };
            prop_assert_eq!(answers(&mut world.state), answers(&mut fresh.state));
        }
    }
}

#[test]
fn terms_that_nobody_has_are_forgotten_once_there_are_many() {
    let mut world = World::new(&[("a", "a")]);
    world.runs("kept", "a", json!({}), spec(0));
    for n in 0..3 * IDLE_TERMS_MAX {
        let spec = json!({ "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
            { "topologyKey": "host", "labelSelector": { "matchLabels": { "app": n.to_string() } } },
        ] } } });
        let _ = world.schedule(&pod("p", json!({}), spec));
    }
    let counts = &world.state.counts;
    assert!(
        counts.ids.len() <= 2 * IDLE_TERMS_MAX + 2,
        "{}",
        counts.ids.len()
    );
    assert_eq!(
        counts.buckets.values().map(Vec::len).sum::<usize>(),
        counts.ids.len()
    );
    let web = pod("web", json!({ "app": "a" }), json!({}));
    assert!(
        world.would(&web).is_err(),
        "the one that is had still counts"
    );
}
