//! Controllers and the scheduler: plain clients of a Kubernetes API.
