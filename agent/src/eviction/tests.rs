//! Evictions as the pods and the API see them, on a node of fakes.
