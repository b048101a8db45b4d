//! The contract (plugins/wit) in Rust, and nothing else.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "probe",
    imports: { default: async | trappable },
    exports: { default: async },
    with: { "wherry:plugin/tcp.connection": crate::tcp::Connection },
});
