//! What was needed for a moment is given back to the system: a node has memory for its workloads, not for us.
//!
//! Loading the programs reads all of the kernel's type information, some thirty megabytes, of which nothing is kept;
//! and a start runs through code that is never run again. The allocator and the kernel would both keep that for later.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Between two times that the heap is given back: what comes and goes all the time is not worth it.
const HEAP_EVERY: Duration = Duration::from_secs(10);
/// The same of code, for what is needed of it is read again at once.
const CODE_EVERY: Duration = Duration::from_secs(60);

/// When memory was given back last.
#[derive(Debug)]
pub(super) struct Memory {
    heap: Instant,
    code: Instant,
}

impl Memory {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            heap: now,
            code: now,
        }
    }

    /// The start is over.
    pub(super) fn started(&mut self) {
        give_back_code();
        give_back_heap();
        *self = Self::new();
    }

    /// To be called every few seconds.
    pub(super) fn keep_house(&mut self) {
        if self.heap.elapsed() >= HEAP_EVERY {
            give_back_heap();
            self.heap = Instant::now();
        }
        if self.code.elapsed() >= CODE_EVERY {
            give_back_code();
            self.code = Instant::now();
        }
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

/// Pages of the program itself, which the kernel reads again from its cache when they are needed.
fn give_back_code() {
    let Ok(program) = std::fs::metadata("/proc/self/exe") else {
        return;
    };
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, end) in untouched(&maps, program.ino()) {
        // SAFETY: the range is one mapping of the program's file, private, not writable, and without a page that
        // differs from the file: what is dropped comes back as it was.
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// Mappings of a file that nobody can write to and nobody has written to (proc(5), smaps).
fn untouched(maps: &str, inode: u64) -> Vec<(usize, usize)> {
    let (mut found, mut current) = (Vec::new(), None);
    for line in maps.lines() {
        if let Some(of_file) = header(line) {
            current = of_file
                .filter(|(_, _, found)| *found == inode)
                .map(|(start, end, _)| (start, end));
        } else if let (Some(range), Some(size)) = (current, line.strip_prefix("Anonymous:"))
            && size.trim() == "0 kB"
        {
            found.push(range);
        }
    }
    found
}

/// `Some` if the line begins a mapping; in it start, end and inode, if it is private and read-only.
#[allow(clippy::option_option)]
fn header(line: &str) -> Option<Option<(usize, usize, u64)>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16)
        .ok()
        .zip(usize::from_str_radix(end, 16).ok());
    let (start, end) = range?;
    let permissions = words.next()?;
    let inode = words.nth(2)?.parse().ok()?;
    let fits = matches!(permissions, "r-xp" | "r--p");
    Some(fits.then_some((start, end, inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0400000 r--p 00000000 fe:00 1234                       /usr/bin/handfast
Rss:                1024 kB
Anonymous:             0 kB
55d0c0400000-55d0c1000000 r-xp 00400000 fe:00 1234                       /usr/bin/handfast
Anonymous:             0 kB
55d0c1000000-55d0c1100000 r--p 01000000 fe:00 1234                       /usr/bin/handfast
Anonymous:           412 kB
55d0c1100000-55d0c1101000 rw-p 01100000 fe:00 1234                       /usr/bin/handfast
Anonymous:             0 kB
7f0000000000-7f0000100000 r-xp 00000000 fe:00 77                         /usr/lib/libc.so.6
Anonymous:             0 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Anonymous:            40 kB
";

    #[test]
    fn only_what_is_as_in_the_programs_file_is_given_back() {
        let kept = untouched(MAPS, 1234);
        assert_eq!(
            kept,
            [
                (0x55d0_c000_0000, 0x55d0_c040_0000),
                (0x55d0_c040_0000, 0x55d0_c100_0000)
            ]
        );
    }

    #[test]
    fn a_program_that_gave_its_pages_back_goes_on() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages = text.split(' ').nth(1).unwrap();
            pages.parse::<u64>().unwrap()
        };
        let before = resident();
        give_back_code();
        let after = resident();
        assert!(after < before, "{before} pages before, {after} after");
    }
}
