//! The inside of a Wasm worker: engine, linkers, limits, confined sockets. Rarely changes, takes long to link.
