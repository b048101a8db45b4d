//! The contract (plugins/wit) in Rust, and nothing else. Interfaces that several worlds import are generated once.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "probe",
    imports: { default: async | trappable },
    exports: { default: async },
    with: {
        "wherry:plugin/tcp.connection": crate::tcp::Connection,
        "wherry:plugin/http.download": crate::http::Download,
    },
});

/// World `populator`.
pub(crate) mod populator {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "populator",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "wherry:plugin/types": super::wherry::plugin::types,
            "wherry:plugin/log": super::wherry::plugin::log,
            "wherry:plugin/clock": super::wherry::plugin::clock,
            "wherry:plugin/http": super::wherry::plugin::http,
            "wherry:plugin/tcp": super::wherry::plugin::tcp,
            "wherry:plugin/staging.file": crate::populate::staging::File,
        },
    });
}

/// World `filesystem-volume`.
pub(crate) mod filesystem {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "filesystem-volume",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "wherry:plugin/types": super::wherry::plugin::types,
            "wherry:plugin/log": super::wherry::plugin::log,
            "wherry:plugin/clock": super::wherry::plugin::clock,
            "wherry:plugin/http": super::wherry::plugin::http,
            "wherry:plugin/tcp": super::wherry::plugin::tcp,
            "wherry:plugin/request": super::populator::wherry::plugin::request,
            "wherry:plugin/trouble": super::populator::wherry::plugin::trouble,
        },
    });
}

/// World `mounter`.
pub(crate) mod mounter {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "mounter",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "wherry:plugin/types": super::wherry::plugin::types,
            "wherry:plugin/log": super::wherry::plugin::log,
            "wherry:plugin/clock": super::wherry::plugin::clock,
            "wherry:plugin/http": super::wherry::plugin::http,
            "wherry:plugin/tcp": super::wherry::plugin::tcp,
            "wherry:plugin/request": super::populator::wherry::plugin::request,
            "wherry:plugin/trouble": super::populator::wherry::plugin::trouble,
        },
    });
}

/// World `expanding-mounter`.
pub(crate) mod expanding {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "expanding-mounter",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "wherry:plugin/types": super::wherry::plugin::types,
            "wherry:plugin/log": super::wherry::plugin::log,
            "wherry:plugin/clock": super::wherry::plugin::clock,
            "wherry:plugin/http": super::wherry::plugin::http,
            "wherry:plugin/tcp": super::wherry::plugin::tcp,
            "wherry:plugin/request": super::populator::wherry::plugin::request,
            "wherry:plugin/trouble": super::populator::wherry::plugin::trouble,
            "wherry:plugin/mounts": super::mounter::wherry::plugin::mounts,
        },
    });
}

/// World `provisioning`.
pub(crate) mod provisioning {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "provisioning",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "wherry:plugin/types": super::wherry::plugin::types,
            "wherry:plugin/log": super::wherry::plugin::log,
            "wherry:plugin/clock": super::wherry::plugin::clock,
            "wherry:plugin/http": super::wherry::plugin::http,
            "wherry:plugin/tcp": super::wherry::plugin::tcp,
            "wherry:plugin/request": super::populator::wherry::plugin::request,
            "wherry:plugin/trouble": super::populator::wherry::plugin::trouble,
        },
    });
}
