//! The node agent: what a kubelet does, over any runtime.
