//! The daemonless OCI runtime: stage 0 in the agent, stage 1 one supervisor per pod, stage 2 the app.
