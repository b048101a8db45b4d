//! What a plugin worker may send to the agent: no message does anything that is not granted, and none is the agent's end.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        wherry_plugin_host::untrusted::take(bytes).await;
        wherry_plugin_host::untrusted::take_stream(bytes).await;
    });
});
