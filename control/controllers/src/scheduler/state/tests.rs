use proptest::prelude::*;
use serde_json::json;

use super::{
    super::{pod::Footprint, resources::Resources},
    *,
};

fn offer(cpu_millis: i64) -> Offer {
    let allocatable = Resources {
        cpu_millis,
        memory_bytes: 1 << 40,
        pods: 110,
        ..Resources::default()
    };
    Offer {
        allocatable,
        ..Offer::default()
    }
}

fn pod(uid: &str, cpu_millis: i64) -> PodInfo {
    let requests = Resources {
        cpu_millis,
        pods: 1,
        ..Resources::default()
    };
    let footprint = Footprint {
        requests,
        cpu_millis_assumed: cpu_millis,
        ..Footprint::default()
    };
    let mut pod = PodInfo {
        uid: uid.into(),
        ..PodInfo::default()
    };
    Arc::make_mut(&mut pod.needs).footprint = footprint;
    pod
}

#[test]
fn pods_spread_over_the_nodes_with_most_left() {
    let mut state = State::default();
    for (name, cpu) in [("small", 1000), ("large", 4000)] {
        assert!(state.set_node(name, offer(cpu)));
        assert!(!state.set_node(name, offer(cpu)), "no news");
    }
    let mut place = |uid: &str| state.schedule(&pod(uid, 900)).unwrap().node;
    assert_eq!(["0", "1", "2"].map(&mut place), ["large"; 3]);
    let mut last = ["3", "4"].map(&mut place);
    last.sort();
    assert_eq!(last, ["large", "small"]);
    assert!(state.schedule(&pod("5", 900)).is_err());
    assert!(state.release("0"));
    assert!(!state.release("0"));
    assert_eq!(state.schedule(&pod("5", 900)).unwrap().node, "large");
}

#[test]
fn preferences_and_soft_taints_decide_between_nodes_that_fit() {
    let mut state = State::default();
    state.set_node("a", offer(4000));
    let mut labelled = offer(2000);
    labelled.labels.insert("disk".into(), "ssd".into());
    state.set_node("b", labelled);
    let mut wants = pod("1", 100);
    Arc::make_mut(&mut wants.needs).preferred = serde_json::from_value(json!([
        { "weight": 1, "preference": { "matchExpressions": [{ "key": "disk", "operator": "Exists" }] } },
    ]))
    .unwrap();
    assert_eq!(state.schedule(&wants).unwrap().node, "b");

    let mut tainted = offer(4000);
    tainted.taints =
        serde_json::from_value(json!([{ "key": "k", "effect": "PreferNoSchedule" }])).unwrap();
    state.set_node("a", tainted);
    assert_eq!(state.schedule(&pod("2", 100)).unwrap().node, "b");
}

#[test]
fn a_node_that_has_gone_takes_no_pods_and_comes_back_with_what_it_has() {
    let mut state = State::default();
    state.set_node("a", offer(1000));
    state.schedule(&pod("1", 800)).unwrap();
    state.remove_node("a");
    assert_eq!(
        state.schedule(&pod("2", 100)).unwrap_err().message(),
        "no nodes available to schedule pods"
    );
    state.set_node("a", offer(1000));
    assert!(state.schedule(&pod("2", 800)).is_err());
    state.remove_node("a");
    assert!(state.schedule(&pod("2", 100)).is_err());
}

#[test]
fn nodes_that_come_and_go_leave_nothing() {
    let mut state = State::default();
    for n in 0..100 {
        let name = n.to_string();
        state.set_node(&name, offer(1000));
        state.schedule(&pod("p", 100)).unwrap();
        state.remove_node(&name);
        state.release("p");
    }
    assert_eq!((state.nodes.len(), state.index.len()), (1, 0));
}

proptest! {
    #[test]
    fn no_node_is_ever_overcommitted(
        cpus in proptest::collection::vec(100..2000i64, 1..6),
        steps in proptest::collection::vec((0..40u8, 1..800i64, any::<bool>()), 1..120),
    ) {
        let mut state = State::default();
        for (n, cpu) in cpus.iter().enumerate() {
            state.set_node(&n.to_string(), offer(*cpu));
        }
        let mut placed: HashMap<u8, (usize, i64)> = HashMap::new();
        for (id, cpu, is_add) in steps {
            if is_add && !placed.contains_key(&id) {
                let fits = (0..cpus.len()).any(|n| {
                    let taken: i64 = placed.values().filter(|(node, _)| *node == n).map(|(_, cpu)| cpu).sum();
                    taken + cpu <= cpus[n]
                });
                let chosen = state.schedule(&pod(&id.to_string(), cpu)).ok();
                prop_assert_eq!(chosen.is_some(), fits);
                if let Some(Placement { node, .. }) = chosen {
                    placed.insert(id, (node.parse().unwrap(), cpu));
                }
            } else {
                prop_assert_eq!(state.release(&id.to_string()), placed.remove(&id).is_some());
            }
            for (n, cpu) in cpus.iter().enumerate() {
                let taken: i64 = placed.values().filter(|(node, _)| *node == n).map(|(_, cpu)| cpu).sum();
                prop_assert!(taken <= *cpu);
                prop_assert_eq!(state.nodes[n].requested.cpu_millis, taken);
            }
        }
    }
}
