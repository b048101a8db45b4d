//! `wherry down` where there is no node: on the root of a control plane, and on none.

use libtest_mimic::Trial;
use nix::sys::signal::Signal::SIGKILL;
use wherry_tests::Hosts;

use crate::own_trials;

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![down_ends_a_control_plane_and_says_so]
}

fn down_ends_a_control_plane_and_says_so() {
    let mut hosts = Hosts::new(1);
    let host = hosts.host(0);
    let said = host.wherry_fails(&["down", "--purge"]);
    assert!(
        said.contains("nothing was ever started here") && said.contains("--root"),
        "{said}"
    );
    assert!(host.root().exists(), "what is not ours is left alone");

    let args = ["control", "--advertise-address", host.address()].map(String::from);
    host.start(&args);
    let said = host.wherry(&["down"]);
    assert!(said.starts_with("stopped the control plane\n"), "{said}");
    assert!(said.contains("are kept under"), "{said}");
    // Its lock goes a moment before it does.
    host.signal(SIGKILL);
    let said = host.wherry(&["down"]);
    assert!(said.starts_with("no control plane runs under"), "{said}");

    // What was kept is there again, and goes when it is to go.
    host.start(&args);
    let said = host.wherry(&["down", "--purge"]);
    assert!(said.starts_with("stopped the control plane\n"), "{said}");
    assert!(said.contains("deleted"), "{said}");
    assert!(!host.root().exists());
    host.signal(SIGKILL);
}
