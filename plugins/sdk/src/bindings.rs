//! What plugins may call, generated from plugins/wit, and nothing else. Each world's exports are in its own module;
//! what a guest does not call is left out of its component.

wit_bindgen::generate!({
    path: "wit",
    inline: "
        package wherry:sdk;

        world imports {
            import wherry:plugin/types@0.1.2;
            import wherry:plugin/log@0.1.2;
            import wherry:plugin/clock@0.1.2;
            import wherry:plugin/http@0.1.2;
            import wherry:plugin/tcp@0.1.2;
            import wherry:plugin/target@0.1.2;
            import wherry:plugin/exec@0.1.2;
            import wherry:plugin/outcomes@0.1.2;
            import wherry:plugin/files@0.1.2;
            import wherry:plugin/secret@0.1.2;
            import wherry:plugin/probes@0.1.2;
            import wherry:plugin/observations@0.1.2;
            import wherry:plugin/container-log@0.1.2;
            import wherry:plugin/request@0.1.2;
            import wherry:plugin/trouble@0.1.2;
            import wherry:plugin/staging@0.1.2;
            import wherry:plugin/mounts@0.1.2;
            import wherry:plugin/images@0.1.2;
            import wherry:plugin/blocks@0.1.2;
        }
    ",
    world: "wherry:sdk/imports",
    generate_all,
});
