//! The node's pod network: bridge, veth, addresses reserved on disk.
