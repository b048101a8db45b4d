//! Services on a node.
//!
//! ```text
//!  API server ── watch ──▶ Index ──┬─ plan, table (pure) ─▶ script (pure) ─▶ proxy ─▶ nft
//!                                  ├─▶ health, for balancers
//!                                  ├─▶ kept, for the next agent
//!                                  └─▶ names (the crate for DNS)
//! ```
//!
//! A Service is a few elements of maps in one table of nftables; a change of its endpoints is a change
//! of those elements, in one transaction. The kernel does the rest, and goes on doing it while there is
//! no agent.
//!
//! Left to others: who is an endpoint (the controllers of the control plane), names, routes between
//! nodes. Only IPv4 is passed on; Services with IPv6 addresses alone are known by name.

mod affinity;
mod conntrack;
mod health;
mod index;
mod kept;
mod object;
mod plan;
mod proxy;
mod script;
mod table;
pub mod watch;

pub use index::{Index, View};
pub use kept::Kept;
pub use object::{
    Allowed, Endpoint, Kind, Protocol, Service, ServiceKey, ServicePort, Slice, SlicePort, service,
    slice,
};
pub use proxy::{Config, HostPort, run};
