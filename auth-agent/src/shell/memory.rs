//! What was needed for a moment is given back to the system: a node has memory for its workloads, not for us.
//!
//! Loading the programs reads all of the kernel's type information, some thirty megabytes, of which nothing is kept.
//! The allocator would keep that for later.
//!
//! The program's own pages are a file's, and the kernel's to drop; but until it wants them they count as the agent's, the
//! many that only its start or a command needed included. So they are let go too: those that are in use come back at the
//! first touch, from the page cache, sixteen at a time.

use std::time::{Duration, Instant};

/// Between two times: what comes and goes all the time is not worth it.
const EVERY: Duration = Duration::from_secs(10);

/// When memory was given back last.
#[derive(Debug)]
pub(super) struct Memory(Instant);

impl Memory {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// The start is over.
    pub(super) fn started(&mut self) {
        give_back_heap();
        let_go_of_program();
        *self = Self::new();
    }

    /// To be called every few seconds.
    pub(super) fn keep_house(&mut self) {
        if self.0.elapsed() >= EVERY {
            self.started();
        }
    }
}

/// Threads that allocate share so many heaps; each has holes of its own where something was needed for a moment.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// To be called before much is allocated: what is kept lies together, and what is given back is whole pages.
pub(crate) fn keep_heap_together() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two integers, and may be called at any time on any thread. If it is refused, more is used.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// What was freed goes back to the system, wherever in the heap it lies.
pub(crate) fn give_back_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, and may be called at any time on any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

unsafe extern "C" {
    /// Where the program lies: the linker's names for the first byte, and for the end of what is executed.
    static __executable_start: u8;
    static etext: u8;
}

/// Between the two lies nothing that is ever written.
fn let_go_of_program() {
    let page = usize::try_from(
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .unwrap_or(0),
    );
    let Some(page) = page.ok().filter(|page| page.is_power_of_two()) else {
        return;
    };
    let start = (&raw const __executable_start)
        .addr()
        .next_multiple_of(page);
    let end = (&raw const etext).addr() & !(page - 1);
    if start < end {
        // SAFETY: whole pages of a private mapping of a file, without a write to any: what is dropped is read again as
        // it was. If it is refused, they stay.
        unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                libc::MADV_DONTNEED,
            );
        }
    }
}
