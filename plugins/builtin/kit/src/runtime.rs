//! What the standard library would bring: an allocator, and an end for what must not happen.

use alloc::alloc::{Layout, alloc, realloc};
use core::panic::PanicInfo;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

// For the few functions, such as memcmp, that compiled code takes for granted.
#[link(name = "c")]
unsafe extern "C" {}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}

/// Where the host puts what it passes.
#[unsafe(export_name = "cabi_realloc")]
unsafe extern "C" fn cabi_realloc(
    old: *mut u8,
    old_bytes: usize,
    align: usize,
    new_bytes: usize,
) -> *mut u8 {
    if old_bytes == 0 && new_bytes == 0 {
        return core::ptr::without_provenance_mut(align);
    }
    // SAFETY: the canonical ABI passes alignments that are powers of two, and what this function gave before.
    let place = unsafe {
        match old_bytes {
            0 => alloc(Layout::from_size_align_unchecked(new_bytes, align)),
            _ => realloc(
                old,
                Layout::from_size_align_unchecked(old_bytes, align),
                new_bytes,
            ),
        }
    };
    if place.is_null() {
        core::arch::wasm32::unreachable()
    }
    place
}
