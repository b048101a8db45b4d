//! What a plugin worker may send to the agent: no message does anything that is not granted, and none is the agent's end.

#![cfg_attr(not(test), no_main)]

use wherry_plugin_host::untrusted;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    untrusted::run(untrusted::take(bytes));
});
