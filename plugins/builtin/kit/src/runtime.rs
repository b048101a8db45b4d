//! What the standard library would bring: an allocator, and an end for what must not happen.

use alloc::alloc::{GlobalAlloc, Layout, alloc, realloc};
use core::{
    arch::wasm32::{memory_grow, unreachable},
    cell::UnsafeCell,
    panic::PanicInfo,
    ptr,
};

use dlmalloc::{Allocator, Dlmalloc};

/// A page of Wasm, which is what the allocator asks for at a time.
const PAGE_BYTES: usize = 64 << 10;

/// What most probes get by with. It is there from the beginning: memory that grows has to be mapped for each instance,
/// which costs the node more than the probe does.
#[repr(align(16))]
struct FirstPage(UnsafeCell<[u8; PAGE_BYTES]>);

/// Pages for the allocator: the first, then those that memory grows by.
struct Pages {
    first: FirstPage,
    is_taken: UnsafeCell<bool>,
}

// SAFETY: a probe has one thread.
unsafe impl Sync for Pages {}

static PAGES: Pages = Pages {
    first: FirstPage(UnsafeCell::new([0; PAGE_BYTES])),
    is_taken: UnsafeCell::new(false),
};

struct System;

// SAFETY: the first page is given once, and pages that memory has grown by are nobody else's.
unsafe impl Allocator for System {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        // SAFETY: there is one thread, and the reference ends here.
        let was_taken = unsafe { ptr::replace(PAGES.is_taken.get(), true) };
        if !was_taken && size <= PAGE_BYTES {
            return (PAGES.first.0.get().cast(), PAGE_BYTES, 0);
        }
        let pages = size.div_ceil(PAGE_BYTES);
        match memory_grow(0, pages) {
            usize::MAX => (ptr::null_mut(), 0, 0),
            first => (
                ptr::without_provenance_mut(first * PAGE_BYTES),
                pages * PAGE_BYTES,
                0,
            ),
        }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE_BYTES
    }
}

struct Heap(UnsafeCell<Dlmalloc<System>>);

// SAFETY: a probe has one thread.
unsafe impl Sync for Heap {}

// SAFETY: dlmalloc keeps the contract, and there is one thread to call it.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { (*self.0.get()).malloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { (*self.0.get()).free(place, layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { (*self.0.get()).calloc(layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { (*self.0.get()).realloc(place, layout.size(), layout.align(), size) }
    }
}

#[global_allocator]
static ALLOCATOR: Heap = Heap(UnsafeCell::new(Dlmalloc::new_with_allocator(System)));

// For the few functions, such as memcmp, that compiled code takes for granted.
#[link(name = "c")]
unsafe extern "C" {}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    unreachable()
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
        return ptr::without_provenance_mut(align);
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
        unreachable()
    }
    place
}
