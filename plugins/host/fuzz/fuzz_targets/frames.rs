//! What the worker of a file system may send to the volume server, with data behind it.

#![cfg_attr(not(test), no_main)]

use wherry_plugin_host::untrusted;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    untrusted::run(untrusted::take_frames(bytes));
});
