use proptest::prelude::*;

use super::*;
use crate::object::Protocol;

fn owner(name: &str) -> Owner {
    Owner::Service(ServiceKey::new("ns", name))
}

fn frontend(port: u16) -> Frontend {
    Frontend {
        at: At::Node,
        protocol: Protocol::Udp,
        port,
    }
}

fn element(port: u16, last: u8) -> Element {
    (
        Key::Endpoint(frontend(port), 0),
        Data::Target(([10, 0, 0, last].into(), 1)),
    )
}

fn set(table: &mut Table, owner: &Owner, elements: &[Element]) -> Changes {
    let mut changes = Changes::default();
    table.set(owner, elements, &mut changes);
    changes
}

#[test]
fn only_what_differs_is_changed() {
    let mut table = Table::default();
    let changes = set(&mut table, &owner("a"), &[element(1, 1), element(2, 1)]);
    assert_eq!((changes.removed.len(), changes.added.len()), (0, 2));
    let changes = set(&mut table, &owner("a"), &[element(1, 1), element(2, 2)]);
    assert_eq!(changes.removed, [element(2, 1)]);
    assert_eq!(changes.added, [element(2, 2)]);
    assert_eq!(changes.frontends(), [frontend(2)].into());
    assert_eq!(table.targets(frontend(2)), [([10, 0, 0, 2].into(), 1)]);
    assert!(set(&mut table, &owner("a"), &[element(1, 1), element(2, 2)]).is_empty());
}

#[test]
fn what_two_want_the_lesser_has_and_the_other_inherits() {
    let mut table = Table::default();
    set(&mut table, &owner("b"), &[element(1, 2)]);
    let changes = set(&mut table, &owner("a"), &[element(1, 1)]);
    assert_eq!(changes.removed, [element(1, 2)]);
    assert_eq!(changes.added, [element(1, 1)]);
    assert!(set(&mut table, &owner("b"), &[element(1, 3)]).is_empty());
    let changes = set(&mut table, &owner("a"), &[]);
    assert_eq!(changes.added, [element(1, 3)]);
}

proptest! {
    #[test]
    fn what_is_changed_step_by_step_is_what_is_there(
        steps in prop::collection::vec((0..4_u8, prop::collection::vec((0..6_u16, 0..4_u8), 0..5)), 0..30),
    ) {
        let mut table = Table::default();
        let mut kernel = std::collections::HashMap::new();
        for (name, wanted) in steps {
            let elements: Vec<_> = wanted.iter().map(|(port, last)| element(*port, *last)).collect();
            let changes = set(&mut table, &owner(&name.to_string()), &elements);
            for (key, data) in changes.removed {
                prop_assert_eq!(kernel.remove(&key), Some(data));
            }
            for (key, data) in changes.added {
                prop_assert_eq!(kernel.insert(key, data), None);
            }
        }
        prop_assert_eq!(kernel, table.elements().collect());
    }
}
