//! The Wasm runtime as the agent sees it: workers, their protocol and their records.
