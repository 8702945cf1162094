//! Can what lies in a memory file system be written to a disk all the same, by swapping?

use std::fs;
use std::path::Path;

/// Says so, and what helps; none if nothing is swapped here, or to memory only.
pub(crate) fn warning(folder: &Path) -> Option<String> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let to = disks(&swaps);
    if to.is_empty() || is_never_swapped(&mounts, &folder) {
        return None;
    }
    Some(format!(
        "workloads' keys in {} may be swapped to {}: encrypt it (dm-crypt with a random key), or mount that folder as \
         ramfs, or as tmpfs with the option noswap (Linux 6.4)",
        folder.display(),
        to.join(", ")
    ))
}

/// Where memory is swapped to. zram is memory too; what device-mapper makes may be encrypted, which cannot be seen.
fn disks(swaps: &str) -> Vec<&str> {
    swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_ascii_whitespace().next())
        .filter(|to| !to.starts_with("/dev/zram") && !to.starts_with("/dev/dm-"))
        .collect()
}

/// Is the innermost file system that holds the folder one that is never swapped?
fn is_never_swapped(mounts: &str, folder: &Path) -> bool {
    let holding = mounts.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (place, kind, options) = (words.next()?, words.next()?, words.next()?);
        let never = kind == "ramfs" || options.split(',').any(|option| option == "noswap");
        folder
            .starts_with(place)
            .then(|| (Path::new(place).components().count(), never))
    });
    // Of several at one place the last one counts.
    holding
        .max_by_key(|(depth, _)| *depth)
        .is_some_and(|(_, never)| never)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_swapped_to_is_named_and_memory_is_not() {
        let swaps = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 1 0 100\n/swap.img file 9 0 -2\n";
        assert_eq!(disks(swaps), ["/swap.img"]);
        assert!(
            disks("Filename\tType\tSize\tUsed\tPriority\n/dev/dm-1 partition 1 0 1\n").is_empty()
        );
        assert!(disks("").is_empty());
    }

    #[test]
    fn the_innermost_file_system_decides() {
        let mounts = "tmpfs /run tmpfs rw,nosuid 0 0\ntmpfs /run/a tmpfs rw,noswap 0 0\nnone /run/b ramfs rw 0 0\n";
        let never = |folder: &str| is_never_swapped(mounts, Path::new(folder));
        assert!(!never("/run/svids"));
        assert!(never("/run/a/svids") && never("/run/b"));
        assert!(!never("/run/ab") && !never("/elsewhere"));
        let over = format!("{mounts}tmpfs /run/a tmpfs rw 0 0\n");
        assert!(!is_never_swapped(&over, Path::new("/run/a/svids")));
    }
}
