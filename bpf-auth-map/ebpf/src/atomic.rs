//! Adding where other CPUs add too. The compiler offers no atomics for this target.

use core::arch::asm;

/// Adds and returns what was there before (BPF_ATOMIC | BPF_FETCH, kernel 5.12).
///
/// # Safety
/// `value` points into a map value.
#[inline(always)]
pub unsafe fn add(value: *mut u64, by: u64) -> u64 {
    let mut result = by;
    // SAFETY: the caller's; the verifier checks the access.
    unsafe {
        asm!(
            "{by} = atomic_fetch_add((u64 *)({value} + 0), {by})",
            by = inout(reg) result,
            value = in(reg) value,
        );
    }
    result
}

/// The same for half of that, where nobody asks what was there before (BPF_ATOMIC without BPF_FETCH, kernel 3.18).
///
/// # Safety
/// `value` points into a map value.
#[inline(always)]
pub unsafe fn add_u32(value: *mut u32, by: u32) {
    // SAFETY: the caller's; the verifier checks the access.
    unsafe {
        asm!(
            "lock *(u32 *)({value} + 0) += {by}",
            by = in(wreg) by,
            value = in(reg) value,
        );
    }
}
