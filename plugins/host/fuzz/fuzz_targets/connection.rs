//! What a plugin worker's connection may carry, frames and all.

#![cfg_attr(not(test), no_main)]

use wherry_plugin_host::untrusted;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    untrusted::run(untrusted::take_stream(bytes));
});
