//! What a mounter may ask for, and what of it is granted: nothing else is done, and nothing is said to the kernel or to a
//! program that was not meant.

#![cfg_attr(not(test), no_main)]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    wherry_plugin_host::untrusted::take_mounting(bytes);
});
